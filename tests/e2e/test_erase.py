"""`pipeline erase` beside a running service and without one: what goes, what stays, and what the receipt says."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner

from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk
from pipeline.adapters.kms import AwsKeyService
from pipeline.audit.notes import opened
from pipeline.audit.signing import SigningKeys
from pipeline.cli import app
from pipeline.crypt.grants import GrantFolder, make_grant, terms
from pipeline.ids import RECORDINGS_CLASS
from pipeline.keyports import KmsCall
from tests.e2e.journey import contact_event, message, wav
from tests.e2e.test_commands import logging_aside
from tests.node import Caller, node, until
from tests.proxy import proxied
from tests.sites import Party, Site, key_server_site

pytestmark = pytest.mark.aws

BODY = wav(20_000)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the test's own process as it is, and what commands print without the service's log."""
    with logging_aside():
        monkeypatch.setattr("pipeline.process.harden", lambda: None)
        monkeypatch.setattr("pipeline.logs.configure", lambda *_: None)
        yield


async def pipeline(site: Site, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run a command beside the servers; give its exit code, its last JSON line and what it said to a person."""
    given = [*arguments, "--config", str(site.write_settings()), "--json"]
    result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, given, catch_exceptions=False))
    return result.exit_code, json.loads(result.stdout.splitlines()[-1]) if result.stdout else {}, result.stderr


async def send(caller: Caller, party: Party, *contacts: str) -> list[str]:
    ids = []
    for contact in contacts:
        answer = await caller.put(party, contact, "voice.wav", BODY)
        assert answer.status == 201
        ids.append(answer.json["artifactId"])
    return ids


def naming(site: Site, text: str) -> list[str]:
    """Give what is in the store by that name, but for what is to stay."""
    kept = {"audit", "events", "receipts", "erased", "discards", "jobs"}
    return [
        str(path.relative_to(site.state))
        for path in site.state.rglob("*")
        if path.is_file() and text in str(path) and path.relative_to(site.state).parts[0] not in kept
    ]


def statuses(site: Site, party: Party) -> list[tuple[str, str]]:
    details = [event["detail"] for event in site.events(party)]
    return [(each["recordingStatus"], each.get("failureInfo", {}).get("code", "")) for each in details]


async def granted(site: Site, party: Party, kms: Any) -> None:
    """Give the instance a grant on its KMS key, as adding it by command does."""

    async def untold(_call: KmsCall) -> None:
        pass

    instance = party.instance
    wanted = terms(str(instance.instance_id), RECORDINGS_CLASS, instance.recordings_context, site.service_arn)
    folder = GrantFolder(Disk(), f"{site.state}/keys/{instance.instance_id}")
    await make_grant(AwsKeyService(kms, untold), folder, SystemClock(), instance.kms_key_arn, wanted)


async def test_an_instance_is_erased_beside_a_running_service_and_the_other_goes_on(tmp_path: Path) -> None:
    async with (
        key_server_site(tmp_path) as (site, keys),
        proxied(site.settings.s3) as proxy,
        keys.client("admin") as admin,
    ):
        site.settings = replace(site.settings, s3=proxy.endpoint)
        acme, arn = str(site.acme.instance.instance_id), site.acme.instance.kms_key_arn
        await granted(site, site.acme, admin)
        async with node(site) as caller:
            await send(caller, site.acme, "c-1", "c-2")
            await until(lambda: len(site.published(site.acme)) == 2)
            proxy.closed = True
            await send(caller, site.acme, "c-3")
            await caller.post(site.acme, [contact_event(site.acme, "c-4"), message(site.acme, "c-4", "i", "hello")])
            assert (await pipeline(site, "backup", str(tmp_path / "backup")))[0] == 0
            erase = ("erase", "instance", "acme", "--reason", "contract ended")
            code, hold, _ = await pipeline(site, "legal-hold", "add", "acme", "--contact", "c-9", "--reason", "x")
            assert code == 0
            code, _, said = await pipeline(site, *erase, "--yes", "--force")
            assert (code, "legal hold" in said) == (3, True)
            await pipeline(site, "legal-hold", "release", hold["placed"]["holdId"], "--reason", "y")
            assert (await pipeline(site, *erase, "--yes"))[0] == 3  # undelivered recordings
            assert (await pipeline(site, *erase, "--force"))[0] == 3  # nobody said that it is meant
            assert (await caller.put(site.acme, "c-5", "voice.wav", BODY)).status == 201  # nothing has happened
            proxy.closed = False
            await until(lambda: len(site.published(site.acme)) == 4)
            proxy.closed = True
            await send(caller, site.acme, "c-6")
            code, receipt, _ = await pipeline(site, *erase, "--yes", "--force")
            assert (code, receipt["status"]) == (0, "COMPLETED")
            assert (await caller.put(site.acme, "c-7", "voice.wav", BODY)).status in {401, 404}
            proxy.closed = False
            await send(caller, site.borealis, "c-1")
            await until(lambda: len(site.published(site.borealis)) == 1)
        assert naming(site, acme) == []
        assert naming(site, site.acme.instance.instance_id.hex) == []
        assert (await admin.list_grants(KeyId=arn))["Grants"] == []
        assert receipt["grants"] == {arn: "retired"}
        assert statuses(site, site.acme).count(("FAILED", "ERASED")) == 2  # c-6, and the chat
        check_receipt(site, receipt)
        assert len(await site.objects(site.acme)) == 4  # what was delivered stays
        code, _, said = await pipeline(site, *erase, "--yes", "--force")
        assert (code, "no instance of that alias" in said) == (3, True)
        async with node(site) as caller:  # and a start knows nothing of it
            assert (await caller.put(site.acme, "c-8", "voice.wav", BODY)).status in {401, 404}


def check_receipt(site: Site, receipt: dict[str, Any]) -> None:
    """Find it on disk as it was told, in the audit trail by its digest, and naming what is still there."""
    raw = Path(receipt["receipt"]).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == receipt["receiptSha256"]
    said = json.loads(raw)
    assert {name: receipt[name] for name in said} == said
    note = Path(receipt["receipt"]).with_suffix(".note").read_text()
    key = SigningKeys(site.settings.config_dir).verifier(str(site.acme.instance.instance_id))
    assert opened(note, key).encode() == raw
    (record,) = [each for each in site.audit(site.acme) if each["eventName"] == "InstanceErased"]
    assert record["requestParameters"]["receiptSha256"] == receipt["receiptSha256"]
    places = {copy["place"]: copy for copy in said["copies"]}
    assert any(place.startswith("backup ") for place in places)
    assert "4 delivered objects" in places[f"s3://{site.acme.bucket}"]["holds"]
    assert len(said["dataKeys"]) >= 1
    assert said["undelivered"] == 2


async def test_an_erasure_that_no_service_does_is_done_by_the_command_and_told_once(tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, _):
        async with node(site) as caller:
            await send(caller, site.acme, "c-1")
            await until(lambda: len(site.published(site.acme)) == 1)
        code, receipt, _ = await pipeline(site, "erase", "instance", "acme", "--reason", "over", "--yes")
        assert (code, receipt["undelivered"], receipt["forced"]) == (0, 0, False)
        assert naming(site, str(site.acme.instance.instance_id)) == []
        assert len(list((site.state / "receipts").rglob("*.jsonl"))) == 1


async def test_a_recording_is_erased_where_it_lies_and_named_where_it_was_delivered(tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, _), proxied(site.settings.s3) as proxy:
        site.settings = replace(site.settings, s3=proxy.endpoint)
        async with node(site) as caller:
            (delivered,) = await send(caller, site.acme, "c-1")
            await until(lambda: len(site.published(site.acme)) == 1)
            proxy.closed = True
            gone, stays = await send(caller, site.acme, "c-2", "c-3")
            assert (await pipeline(site, "backup", str(tmp_path / "backup")))[0] == 0
            erase = ("erase", "recording", gone, "--reason", "on request")
            code, hold, _ = await pipeline(site, "legal-hold", "add", "acme", "--contact", "c-2", "--reason", "x")
            code, _, said = await pipeline(site, *erase, "--yes")
            assert (code, "legal hold" in said) == (3, True)
            await pipeline(site, "legal-hold", "release", hold["placed"]["holdId"], "--reason", "y")
            assert (await pipeline(site, *erase))[0] == 3
            code, receipt, _ = await pipeline(site, *erase, "--yes", "--shred")
            assert (code, receipt["method"].split(",")[0]) == (0, "removal")
            assert len(receipt["dataKeysDestroyed"]) == 1
            assert [each["place"] for each in receipt["kept"]] == ["audit", "receipts", "events", "journal", "records"]
            assert [copy["place"].split()[0] for copy in receipt["copies"]] == ["backup"]
            assert naming(site, gone.replace("-", "")) == []
            assert len(naming(site, stays.replace("-", ""))) == 1
            code, kept, _ = await pipeline(site, "erase", "recording", delivered, "--reason", "on request", "--yes")
            assert code == 0
            assert kept["copies"][0]["place"].startswith(f"s3://{site.acme.bucket}/connect/acme/")
            assert (await pipeline(site, "erase", "recording", gone, "--reason", "again", "--yes"))[0] == 3
            assert (await caller.put(site.acme, "c-2", "voice.wav", BODY)).status == 201  # its source sends again
            proxy.closed = False
            await until(lambda: len(site.published(site.acme)) == 3)
        assert statuses(site, site.acme).count(("FAILED", "ERASED")) == 1
