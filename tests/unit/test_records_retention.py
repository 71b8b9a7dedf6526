"""Retention, one person's data, and keys of single subjects: what goes, what stays, and what the receipt says."""

import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.audit.notes import opened as opened_note
from pipeline.errors import LegalHoldError, RefuseError, SegmentForgedError
from pipeline.records.classes import POLICIES
from pipeline.records.drafts import Draft
from pipeline.records.sealing import Record
from pipeline.records.subjectkeys import OptedOutError
from tests import markers
from tests.intake_server import CANARY, TOKENS, Server, is_problem, serving, world_at
from tests.records_fixture import KEPT, SIGNERS, Records, records_over
from tests.store_fixture import World, node
from tests.unit.keyring_fakes import A, B

DAY_S = 86_400
NUMBER = markers.NUMBER
DATA = {
    "PhoneNumber": NUMBER,
    "CustomerEndpoint": {"Address": NUMBER},
    "DestinationPhoneNumber": NUMBER,
    "CustomerSpeakerId": "speaker-1",
    "EmailAddress": "Erika@Example.com",
}
BODY = json.dumps(DATA).encode()


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Records]:
    async with node(World(root=root)) as process, records_over(process) as records:
        yield records


async def put(records: Records, data_class: str, record_id: str = "r-1", **more: Any) -> None:
    if POLICIES[data_class].parts:
        more.setdefault("part", "voiceprint")
    draft = Draft(id=record_id, body=more.pop("body", BODY), **more)
    await records.store.put(records.caller(A), records.shelf(data_class, A), draft)


async def get(records: Records, data_class: str, record_id: str = "r-1") -> Record | None:
    return await records.store.get(records.caller(A), records.shelf(data_class, A), record_id)


LIVES = {
    "contact_metadata": 731,
    "appintegrations_data": 31,
    "profiles_domain": 366,
    "profiles_object_type": 366,
    "voiceid": 1096,
}
"""Most days that a record put now stays."""


@pytest.mark.parametrize("data_class", KEPT)
async def test_a_record_goes_when_its_time_is_over_and_not_before(data_class: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        await put(records, data_class)
        clock = records.process.world.clock
        clock.advance((LIVES.get(data_class, 5000) - 4) * DAY_S)
        await records.sweeper.sweep()
        assert await get(records, data_class) is not None
        clock.advance(5 * DAY_S)
        if data_class not in LIVES:
            await records.sweeper.sweep()
            assert await get(records, data_class) is not None
            return
        assert (await records.sweeper.sweep(dry=True)).removed[data_class] >= 1
        assert await get(records, data_class) is not None
        await records.sweeper.sweep(B)
        assert await get(records, data_class) is not None
        records.held.add(A)
        assert (await records.sweeper.sweep()).held[data_class] >= 1
        assert await get(records, data_class) is not None
        records.held.clear()
        await records.sweeper.sweep()
        assert await records.engine.count(records.shelf(data_class, A).scope.shelf) == 0
        if data_class != "voiceid":
            assert await get(records, data_class) is None


@pytest.mark.parametrize(
    ("part", "days"), [("audio", 1), ("voiceprint", 1096), ("speaker", 1096), ("utterances", 1096), ("metadata", None)]
)
async def test_the_parts_of_voice_id_have_lives_of_their_own(part: str, days: int | None, tmp_path: Path) -> None:
    """Utterances go with their speaker's key: nothing renewed it for three years."""
    async with opened(tmp_path) as records:
        shelf = records.shelf("voiceid", A)
        await put(records, "voiceid", part=part)
        records.process.world.clock.advance((days or 5000) * DAY_S + 60)
        await records.sweeper.sweep()
        if days is None:
            assert await get(records, "voiceid") is not None
        elif part == "utterances":
            with pytest.raises(SegmentForgedError, match="subject"):
                await get(records, "voiceid")
        else:
            assert await get(records, "voiceid") is None
        assert await records.engine.count(shelf.scope.shelf) <= (2 if part == "audio" else 1)


async def test_a_speaker_who_is_met_again_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        await put(records, "voiceid", "v", part="voiceprint")
        await put(records, "voiceid", "u", part="utterances")
        for _ in range(3):
            records.process.world.clock.advance(700 * DAY_S)
            await records.sweeper.sweep()
            await put(records, "voiceid", "v", part="voiceprint")
        assert await get(records, "voiceid", "u") is not None


async def test_opting_out_destroys_what_a_copy_of_the_file_holds_too(tmp_path: Path) -> None:
    """A crypto-shred: rows that somebody kept open no more, for only the key that is gone opened them."""
    async with opened(tmp_path) as records:
        shelf = records.shelf("voiceid", A)
        await put(records, "voiceid", "v-1", part="voiceprint")
        await put(records, "voiceid", "a-1", part="audio", body=b"RIFF", content_type="audio/wav", subject="speaker-1")
        await put(records, "voiceid", "v-2", part="voiceprint", body=b'{"CustomerSpeakerId": "speaker-2"}')
        with sqlite3.connect(f"{tmp_path}/records/records.db") as connection:
            copy = connection.execute("SELECT * FROM record WHERE part IN ('voiceprint', 'audio')").fetchall()
        found = await records.store.find(records.caller(A), shelf, "speaker", "speaker-1")
        assert {record.id for record in found} == {"v-1", "a-1"}
        receipt = await records.subjects.opt_out(records.caller(A), shelf, "speaker-1", ["backup-1"])
        assert len(receipt["removed"][0]["records"]) == 2
        assert receipt["removed"][0]["keyDestroyed"] is not None
        assert receipt["remainsIn"] == [{"backup": "backup-1", "until": "it is destroyed"}]
        assert await get(records, "voiceid", "v-1") is None
        assert await get(records, "voiceid", "v-2") is not None
        with sqlite3.connect(f"{tmp_path}/records/records.db") as connection:
            connection.executemany("INSERT OR IGNORE INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?)", copy)
        with pytest.raises(SegmentForgedError, match="subject"):
            await get(records, "voiceid", "v-1")
        with pytest.raises(OptedOutError):
            await put(records, "voiceid", "v-3", part="voiceprint")
        kept = list((tmp_path / "records" / "receipts" / str(A)).glob("*.json"))
        assert [json.loads(each.read_bytes())["receiptId"] for each in kept] == [str(receipt["receiptId"])]
        assert b"speaker-1" not in kept[0].read_bytes()


async def test_who_is_not_known_yet_can_opt_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        shelf = records.shelf("voiceid", A)
        receipt = await records.subjects.opt_out(records.caller(A), shelf, "speaker-1", [])
        assert (receipt["removed"][0]["records"], receipt["removed"][0]["keyDestroyed"]) == ([], None)
        with pytest.raises(OptedOutError):
            await put(records, "voiceid")
        assert (await records.store.page(records.caller(A), shelf))[0] == []
        await put(records, "voiceid", body=b'{"CustomerSpeakerId": "speaker-2"}')


async def test_a_persons_data_is_given_out_and_removed_across_classes(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        for data_class in KEPT:
            await put(records, data_class)
            await put(records, data_class, "other", body=b'{"PhoneNumber": "+12025550100"}')
        who = {"number": ["+49 30 901820"], "speaker": ["speaker-1"], "email": ["erika@example.com "]}
        out = await records.subjects.export(records.caller(A), who)
        found = Counter(each["dataClass"] for each in out["records"])
        indexed = {name for name in KEPT if POLICIES[name].fields}
        assert found == dict.fromkeys(indexed, 1)
        assert set(out["notSearched"]) == set(KEPT) - indexed
        (print_,) = [each for each in out["records"] if each.get("part") == "voiceprint"]
        assert print_["data"] is None, "voiceprints are never given out"
        records.held.add(A)
        with pytest.raises(LegalHoldError):
            await records.subjects.erase(records.caller(A), who, [])
        assert len((await records.subjects.export(records.caller(A), who))["records"]) == len(indexed)
        records.held.clear()
        receipt = await records.subjects.erase(records.caller(A), who, ["backup-1"])
        assert {each["dataClass"] for each in receipt["removed"]} == indexed
        for told in (out, receipt):
            assert told["contacts"] == ["r-1"]
            assert [each["what"] for each in told["notIncluded"]] == ["recordings and transcripts"]
        _check_receipt(records, receipt)
        assert (await records.subjects.export(records.caller(A), who))["records"] == []
        for data_class in KEPT:
            assert await get(records, data_class, "other") is not None
            assert (await get(records, data_class) is None) == (data_class in indexed)
        await put(records, "voiceid")  # removed on request, not opted out
        nobody: list[dict[str, list[str]]] = [{}, {"number": []}, {"face": ["x"]}, {"number": [" "]}]
        for wrong in nobody:
            with pytest.raises(RefuseError):
                await records.subjects.erase(records.caller(A), wrong, [])


def _check_receipt(records: Records, receipt: Mapping[str, Any]) -> None:
    """See that it is kept as it was given, signed by the audit log's key, and the audit trail has its digest."""
    root = records.process.world.root
    path = root / "records" / "receipts" / str(A) / f"{receipt['receiptId']}.json"
    text = path.read_text()
    assert json.loads(text) == json.loads(msgspec.json.encode(receipt))
    assert opened_note(path.with_suffix(".note").read_text(), SIGNERS[A].verifier) == text
    with pytest.raises(RefuseError):
        opened_note(path.with_suffix(".note").read_text().replace("erasure", "erosion"), SIGNERS[A].verifier)
    files = (root / "audit" / str(A)).glob("*.jsonl")
    lines = [json.loads(each) for file in files for each in file.read_bytes().splitlines()]
    told = [each["requestParameters"] for each in lines if each["eventName"] == "SubjectReceipt"]
    assert told[-1]["sha256"] == sha256(text.encode()).hexdigest()


async def ask(server: Server, what: str, document: object, token: str = TOKENS[A]) -> Any:
    path = f"/v1/instances/{A}/subject/{what}"
    return await server.ask("POST", path, json.dumps(document).encode(), token=token)


async def test_a_person_is_asked_about_by_http(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        records = server.records
        await put(records, "profiles_domain")
        reply = await ask(server, "export", {"number": [NUMBER]})
        (found,) = reply.json["records"]
        assert (found["id"], found["data"]) == ("r-1", DATA)
        assert (await ask(server, "export", {"number": [NUMBER]}, TOKENS[B])).status == 404
        assert (await ask(server, CANARY, {})).status == 404
        assert is_problem(await server.ask("GET", f"/v1/instances/{A}/subject/export"), 405, "method")
        for bad in (CANARY, {"number": CANARY}, [CANARY]):
            assert is_problem(await ask(server, "export", bad), 400, "refused", "subject")
        assert (await ask(server, "opt-out", {"subject": "s", "class": "cases"})).status == 400
        assert (await ask(server, "opt-out", {"subject": "s", "class": CANARY})).status == 404
        receipt = (await ask(server, "opt-out", {"subject": "speaker-1"})).json
        assert receipt["what"] == "opt-out"
        refused = await server.ask("PUT", f"/v1/instances/{A}/records/voiceid/x?part=audio", BODY)
        assert is_problem(refused, 400, "opted-out", "subject")
        records.held.add(A)
        assert is_problem(await ask(server, "erase", {"number": [NUMBER]}), 423, "legal-hold")
        there = f"/v1/instances/{A}/records/profiles_domain/r-1"
        assert is_problem(await server.ask("DELETE", there), 423, "legal-hold")
        records.held.clear()
        assert (await ask(server, "erase", {"number": [NUMBER]})).json["remainsIn"][0]["backup"] == "backup-1"
        assert (await server.ask("GET", there)).status == 404
        assert server.process.world.holds(b"30901820") == []
