"""Personal data of every class: nowhere in clear, and of no use to a thief who has no KMS key."""

import base64
import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import HaltError
from pipeline.kms.authority import open_authority
from pipeline.records.classes import POLICIES
from pipeline.records.policy import Field
from pipeline.settings import LogSettings
from tests.e2e.journey import wav
from tests.kms_server import key_server_config, running_key_server
from tests.node import ProcessNode, process_node, until
from tests.records_site import KEPT, RecordSite, record_site, serving
from tests.sites import Party
from tests.sites import _kms as endpoint_of

MARKER = "Zyxwvuq-Mustermann"
NUMBER = "+4930901827364"
SPEAKER = "speaker-4930901827364"
SECRETS = (MARKER, NUMBER.removeprefix("+"))
PARTS = [part.name for part in POLICIES["voiceid"].parts]


def data(data_class: str) -> dict[str, Any]:
    """Give a record that says the marker in a member, and the number where the class's index looks for it."""
    return {
        "class": data_class,
        "title": f"{MARKER} asked for a refund",
        "PhoneNumber": NUMBER,
        "DestinationPhoneNumber": NUMBER,
        "CustomerEndpoint": {"Address": NUMBER},
        "CustomerSpeakerId": SPEAKER,
    }


def case_event(arn: str) -> dict[str, Any]:
    """Give an event of a case as AWS shapes it; with nobody to hand it on to, it waits."""
    case = {"caseId": "c-1", "fields": [{"id": "title", "value": {"stringValue": f"{MARKER} {NUMBER}"}}]}
    return {
        "version": "0",
        "id": "event-1",
        "detail-type": "Amazon Connect Cases Change",
        "source": "aws.cases",
        "account": "111122223333",
        "time": "2026-11-23T14:05:12Z",
        "region": "eu-central-1",
        "resources": [arn, f"{arn}/case/c-1"],
        "detail": {"version": "0", "eventType": "CASE.CREATED", "timestamp": "2026-11-23T14:05:11Z", "case": case},
    }


def forms(secret: str) -> Iterator[bytes]:
    """Give a text as a file may have it: as it is, as a word of an index, in hex, base64 at any offset, UTF-16."""
    for text in {secret, secret.lower(), secret.upper(), secret.casefold().partition("-")[0]}:
        raw = text.encode()
        yield raw
        yield raw.hex().encode()
        yield raw.hex().upper().encode()
        yield text.encode("utf-16-le")
        yield text.encode("utf-16-be")
        for shift in range(3):
            yield base64.b64encode(b"\0" * shift + raw)[4:-4]


FORMS = {form for secret in SECRETS for form in forms(secret)}


def leaks(directory: Path, pid: int | None = None) -> list[str]:
    """Name each file that says a secret, also by its name, and those that the process has removed and holds open."""
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    if pid is not None:
        files += [each for each in Path(f"/proc/{pid}/fd").iterdir() if _is_file(each)]
    found = []
    for path in files:
        said = _content(path) + b"\0" + str(path.relative_to("/")).encode()
        found += [f"{path}: {form!r}" for form in FORMS if form in said]
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""  # it has another name by now; under which it is looked at after the kill


def _is_file(descriptor: Path) -> bool:
    try:
        return stat.S_ISREG(descriptor.stat().st_mode)
    except OSError:
        return False


async def fill(records: RecordSite, party: Party) -> None:
    """Put a record of every class, of every part, by event too, and a recording; change, find, search and remove."""
    for data_class in KEPT:
        for part in PARTS if data_class == "voiceid" else [None]:
            query = {} if part is None else {"part": part}
            path = records.path(party, data_class, f"{MARKER}-{part}", **query)
            for _ in range(2):
                assert (await records.ask("PUT", party, path, json=data(data_class))).status in {200, 201}
            assert (await records.ask("GET", party, path)).json == data(data_class)
        assert (await records.put(party, data_class, f"{MARKER}-gone", data(data_class))).status == 201
        gone = records.path(party, data_class, f"{MARKER}-gone")
        assert (await records.ask("DELETE", party, gone)).status == 204
        for field in POLICIES[data_class].fields[:1]:
            value = SPEAKER if field.name == "speaker" else NUMBER
            assert await records.find(party, data_class, field.name, value)
    for data_class in ("ai_content", "cases"):
        assert await records.find(party, data_class, "text", MARKER.partition("-")[0])
    arn = party.instance.places["cases", "default"].scope.name
    assert (await records.ask("POST", party, "/v1/events", json=[case_event(arn)])).status == 202
    identity = {"number": [NUMBER], "speaker": [SPEAKER]}
    base = f"/v1/instances/{party.instance.instance_id}/subject"
    assert len((await records.ask("POST", party, f"{base}/export", json=identity)).json["records"]) > 3
    assert (await records.ask("POST", party, f"{base}/opt-out", json={"subject": f"{MARKER}-out"})).status == 200
    for odd in (f"{{{MARKER}", json.dumps({"number": MARKER}), MARKER):  # what is refused is told, too
        await records.ask("POST", party, f"{base}/export", data=odd.encode())
    await records.ask("PUT", party, records.path(party, "cases", MARKER), data=MARKER.encode())
    assert records.caller is not None
    spoken = wav(500)[:44] + (MARKER + NUMBER).encode() * 200
    assert (await records.caller.put(party, "c-1", "voice", spoken)).status == 201


def copies(records: RecordSite) -> list[Path]:
    return list(records.site.state.glob("records/indexes/*.index"))


def test_what_is_looked_for_would_be_found(tmp_path: Path) -> None:
    for form in FORMS:
        (tmp_path / "file").write_bytes(b"x" + form + b"y")
        assert leaks(tmp_path) != []
    (tmp_path / "file").write_bytes(os.urandom(4096))
    assert leaks(tmp_path) == []
    (tmp_path / MARKER).touch()
    assert leaks(tmp_path) != []


@pytest.mark.slow
async def test_no_class_is_in_clear_in_any_file_while_it_runs_or_after_it_was_killed(tmp_path: Path) -> None:
    """In the state, its database with log and shared memory, temporary files (also removed ones), indexes, the log."""
    async with record_site(tmp_path) as records:
        records.site.settings = replace(records.site.settings, log=LogSettings(level="DEBUG"))
        acme = records.site.acme
        async with process_node(records.site) as running:
            records.caller = running.caller
            await fill(records, acme)
            await until(lambda: len(copies(records)) == 2)
            assert leaks(tmp_path, running.pid) == []
            running.kill()
            assert leaks(tmp_path) == []
            assert b"http.request" in running.log.read_bytes()  # at DEBUG
            assert {"TMPDIR"} <= set(running.environ)
            await running.start()
            assert await records.find(acme, "ai_content", "text", MARKER.partition("-")[0])
            assert leaks(tmp_path, running.pid) == []
            _is_there(running, records)


def _is_there(running: ProcessNode, records: RecordSite) -> None:
    """See that what was looked through is what was written: the database with its log, and what waits."""
    names = {path.name for path in records.site.state.rglob("*")}
    assert {"records.db", "records.db-wal", "records.db-shm"} <= names
    assert list(records.site.state.glob("artifacts/*/*"))
    assert running.lives[-1].poll() is None


@asynccontextmanager
async def stolen(records: RecordSite, directory: Path) -> AsyncIterator[None]:
    """Serve a copy of the state and of the configuration by another key server."""
    state, config_dir = directory / "state", directory / "config"
    shutil.copytree(records.site.state, state)
    shutil.copytree(records.site.settings.config_dir, config_dir)
    async with running_key_server(directory / "theirs") as theirs:
        before = records.site.settings
        records.site.settings = replace(before, state_dir=state, config_dir=config_dir, kms=endpoint_of(theirs))
        try:
            async with serving(records):
                yield
        finally:
            records.site.settings = before


async def test_a_stolen_copy_opens_nothing_by_another_key_server(tmp_path: Path) -> None:
    async with record_site(tmp_path / "site") as records:
        acme = records.site.acme
        async with serving(records):
            for data_class in KEPT:
                assert (await records.put(acme, data_class, "r", data(data_class))).status == 201
            word = MARKER.partition("-")[0]
            for data_class in ("ai_content", "cases"):
                assert await records.find(acme, data_class, "text", word)
            await until(lambda: len(copies(records)) == 2)
        (tmp_path / "thief").mkdir()
        async with stolen(records, tmp_path / "thief"):
            for data_class in KEPT:
                asked = {"one": records.path(acme, data_class, "r"), "all": records.path(acme, data_class)}
                asked |= {
                    each.name: records.path(acme, data_class, **{each.name: NUMBER}) for each in _first(data_class)
                }
                if data_class in {"ai_content", "cases"}:
                    asked["words"] = records.path(acme, data_class, text=word)
                for path in asked.values():
                    answer = await records.ask("GET", acme, path)
                    assert answer.status in {403, 503}, (data_class, path, answer)
                    assert MARKER.encode() not in answer.body
        async with serving(records):  # it is the keys, and not the copy
            for data_class in KEPT:
                assert (await records.get(acme, data_class, "r")).json == data(data_class)


def _first(data_class: str) -> Sequence[Field]:
    return POLICIES[data_class].fields[:1]


async def test_a_stolen_copy_of_the_key_servers_data_opens_nothing_without_its_root_key(tmp_path: Path) -> None:
    async with running_key_server(tmp_path / "ours") as keys, keys.client("admin") as admin:
        made = (await admin.create_key())["KeyMetadata"]["KeyId"]
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "ours", copy)
    (copy / "root.key").unlink()
    with pytest.raises(HaltError), open_authority(key_server_config(copy)):
        pytest.fail("it opened")
    shutil.copyfile(tmp_path / "ours" / "root.key", copy / "root.key")
    (copy / "root.key").chmod(0o600)
    with open_authority(key_server_config(copy)) as authority:
        assert authority.vault.key(made) is not None
