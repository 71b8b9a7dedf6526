"""F15: what another version of the program wrote is read, brought to this one, or refused clearly.

Never guessed at, never removed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pipeline.canary import read_arrival
from pipeline.crypt.artifact import Header
from pipeline.crypt.contents import Record, encode_records
from pipeline.crypt.segments import SegmentType
from pipeline.delivery.holds import Holds, read_holds
from pipeline.errors import HaltError, HoldCode, KeyUnavailableError, SegmentForgedError
from pipeline.intake.journal import JournalEntry
from pipeline.intake.missinglog import read_missing
from pipeline.interim.marker import FORMAT_VERSION
from pipeline.interim.states import State
from tests.fault.test_f16_clock import delivered, folder, world_at
from tests.store_fixture import WatchedDisk, World, node, source
from tests.unit.keyring_fakes import A
from tests.unit.test_event_intake import CONTACT, started, take
from tests.unit.test_publisher import Sink, publisher, tell


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(json.dumps(document).encode())


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- the store


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, 99])
async def test_a_store_of_an_unknown_version_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.upload(source(), b"bytes")
    rewrite(tmp_path / "store.json", lambda marker: marker.update(formatVersion=version, more="of a newer one"))
    before = snapshot(tmp_path)
    with pytest.raises(HaltError, match=f"format version {version}"):
        async with node(world):
            pass
    assert snapshot(tmp_path) == before


def as_version_1(root: Path) -> None:
    """Give a store the folders of version 1: 256, by the last two digits of the artifact id."""
    rewrite(root / "store.json", lambda marker: marker.update(formatVersion=1))
    for path in [each for each in (root / "artifacts").rglob("*") if each.is_file()]:
        old = root / "artifacts" / path.name.partition(".")[0][-2:]
        old.mkdir(exist_ok=True)
        path.rename(old / path.name)


async def test_a_store_of_version_1_is_brought_to_this_one(tmp_path: Path) -> None:
    world, _ = world_at(tmp_path)
    async with node(world) as process:
        for number in range(20):
            await process.upload(source(f"call-{number}"), b"bytes of %d" % number)
        await delivered(process, "gone")
        await process.break_off(source("broken"), b"as far as it came")
        names = {str(name) for name in process.store.index}
    as_version_1(tmp_path)
    async with node(world) as process:
        assert {str(name) for name in process.store.index} == names
        sealed = [name for name in process.store.index if name.is_waiting]
        bodies = sorted([await process.media(name) for name in sealed])
        assert bodies == sorted(b"bytes of %d" % number for number in range(20))
        assert process.store.index.count(State.DELIVERED) == 1
    assert json.loads((tmp_path / "store.json").read_bytes())["formatVersion"] == FORMAT_VERSION


async def test_a_migration_that_broke_off_anywhere_is_taken_up_again(tmp_path: Path) -> None:
    """And from its first step on the earlier program refuses the store."""
    world = World(root=tmp_path)
    async with node(world) as process:
        for number in range(3):
            await process.upload(source(f"call-{number}"), b"bytes")
        names = {str(name) for name in process.store.index}
    as_version_1(tmp_path)
    broken = 0
    while True:
        files = WatchedDisk()
        files.refuse("rename", "artifacts/", times=1)
        try:
            async with node(world, files=files) as process:
                assert {str(name) for name in process.store.index} == names
                break
        except HaltError:
            broken += 1
            assert json.loads((tmp_path / "store.json").read_bytes())["formatVersion"] == FORMAT_VERSION
            for path in sorted((tmp_path / "artifacts").glob("??/*"))[:1]:  # one more gets through
                path.rename(tmp_path / "artifacts" / path.parent.name[-1] / path.name)
    assert broken == 3


# --- artifacts


async def test_an_artifact_of_another_version_is_kept_and_not_read(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.upload(source(), b"bytes")
    [path] = world.paths(".sealed")
    raw = path.read_bytes()
    path.write_bytes(raw[:8] + b"\x02" + raw[9:])
    with pytest.raises(SegmentForgedError, match="version 1: version"):
        Header.parse(path.read_bytes()[:96])
    async with node(world) as process:
        [name] = process.store.index
        with pytest.raises(SegmentForgedError, match="version"):
            await process.media(name)
    assert path.read_bytes()[9:] == raw[9:]


async def test_names_of_another_version_are_moved_aside_and_kept(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.upload(source(), b"bytes")
    [path] = world.paths(".sealed")
    newer = path.with_name(path.name.replace(".sealed", ".verified"))
    raw = path.read_bytes()
    path.rename(newer)
    async with node(world) as process:
        assert len(process.store.index) == 0
    [kept] = world.lost()
    assert kept.name.endswith(newer.name[:100]) or newer.name[:60] in kept.name
    assert kept.read_bytes() == raw


# --- the key ring


async def test_a_ring_file_of_another_version_holds_what_needs_it(tmp_path: Path) -> None:
    """Nothing turns to poison; new recordings take another data key; put right, all opens again."""
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.upload(source(), b"bytes")
    [path] = (tmp_path / "keys" / str(A)).iterdir()
    rewrite(path, lambda ring: ring.update(version=2))
    async with node(world) as process:
        [name] = process.store.index
        with pytest.raises(KeyUnavailableError, match="another format version") as held:
            await process.media(name)
        assert held.value.code is HoldCode.KEY_MISMATCH
        await process.upload(source("call-2"), b"more")
        assert await process.media(process.sealed[-1]) == b"more"
    rewrite(path, lambda ring: ring.update(version=1, more="of a newer one"))
    async with node(world) as process:
        assert await process.media(name) == b"bytes"


# --- the journal


async def test_a_journal_file_of_another_version_is_said_to_be_unread(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await take(process, started())
    [path] = (tmp_path / "journal").rglob("*.journal")
    raw = path.read_bytes()
    path.write_bytes(raw[:8] + b"\x02" + raw[9:])
    async with node(world) as process:
        with capture_logs() as logged:
            await process.replay.done(process.a)
        assert process.contacts.get(A, CONTACT) is None
    assert [each["event"] for each in logged] == ["journal.ends_early"]
    assert "version" in logged[0]["detail"]
    assert path.read_bytes()[9:] == raw[9:]


async def test_journal_records_of_a_newer_version_are_passed_over(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await take(process, started())
        [opened] = process.journal._open.values()
        for record in (Record("later", b'{"x":1}'), Record("event", b'{"other":1}')):  # type: ignore[arg-type]
            sealed = opened.sealer.seal(SegmentType.EVENT, encode_records([record]), 0)
            process.files.append(opened.handle, [sealed])
        await take(process, started(source_id="call-2"))
    async with node(world) as process:
        await process.replay.done(process.a)
        contact = process.contacts.get(A, CONTACT)
        assert contact is not None
        assert {each.source_id for each in contact.expected} == {"call-1", "call-2"}


def test_a_journal_entry_with_more_in_it_is_read() -> None:
    entry = msgspec.json.decode(b'{"event":{},"recordingId":"x","priority":7}', type=JournalEntry)
    assert entry.recording_id == "x"


# --- cursors, receipts, holds, and the small files


async def test_a_cursor_of_an_earlier_version_goes_on_where_it_was(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await tell(process, "1", "2", "3")
        (tmp_path / "events" / "a.sqs.cursor").write_bytes(b'{"offset":2}')
        sink = Sink()
        await publisher(process, sink).once()
        assert sink.taken == [b"2", b"3"]


@pytest.mark.parametrize("cursor", [b"", b"{", b'{"position":7}', b'{"offset":"end"}', b"\xff"])
async def test_a_cursor_that_can_not_be_read_sends_all_again(tmp_path: Path, cursor: bytes) -> None:
    async with node(World(root=tmp_path)) as process:
        await tell(process, "1", "2")
        (tmp_path / "events" / "a.sqs.cursor").write_bytes(cursor)
        sink = Sink()
        await publisher(process, sink).once()
        assert sink.taken == [b"1", b"2"]


async def test_a_receipt_with_more_in_it_counts_and_one_with_less_stays(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        for number in range(2):
            await delivered(process, f"call-{number}")
        more, less = world.paths(".done")
        rewrite(more, lambda receipt: receipt.update(witness="of a newer one"))
        rewrite(less, lambda receipt: receipt.pop("crc64nvme"))
        clock.advance(73 * 3600)
        collector = folder(process)
        clock.advance(73 * 3600)
        assert await collector.once() == 1
        assert world.paths(".done") == [less]
    [log] = (tmp_path / "receipts").rglob("*.jsonl")
    assert json.loads(log.read_bytes())["witness"] == "of a newer one"


async def test_a_hold_of_another_version_is_passed_over_and_kept(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    holds = tmp_path / "holds"
    holds.mkdir()
    known = {
        "instanceId": str(A),
        "scope": "voice",
        "code": "DESTINATION_MISSING",
        "message": "m",
        "inaccessibleSince": "2026-11-23T12:00:00Z",
    }
    (holds / "1.json").write_text(json.dumps(known | {"more": 1}))
    (holds / "2.json").write_text(json.dumps(known | {"scope": "screen", "code": "DESTINATION_ON_FIRE"}))
    (holds / "3.json").write_text("{}")
    async with node(world) as process:
        loaded = Holds(str(holds), process.files, process.commits, process.trail)
        loaded.load()
        assert [hold.scope for hold in loaded.all()] == ["voice"]
    assert len(list(holds.iterdir())) == 3
    assert [hold.code for hold in read_holds(str(holds), process.files)] == [HoldCode.DESTINATION_MISSING]


async def test_lines_about_missing_recordings_that_can_not_be_read_hide_no_other(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    day = tmp_path / "missing" / str(A)
    day.mkdir(parents=True)
    line = {
        "recordingId": str(A),
        "instanceId": str(A),
        "kind": "voice",
        "contact": "c",
        "tags": ["0" * 16],
        "announced": "2026-11-23T12:00:00Z",
        "givenUp": "2026-11-23T14:00:00Z",
        "more": 1,
    }
    (day / "2026-11-23.jsonl").write_text(f'{{}}\nnonsense\n{json.dumps(line)}\n{{"torn')
    (day / "notes").write_text("kept")
    async with node(world) as process:
        assert [str(each.recording_id) for each in read_missing(f"{tmp_path}/missing", process.files)] == [str(A)]


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"at":7}', b"\xff"])
async def test_what_the_canary_kept_may_be_of_another_version(tmp_path: Path, raw: bytes) -> None:
    async with node(World(root=tmp_path)) as process:
        (tmp_path / "canary.json").write_bytes(raw)
        assert read_arrival(f"{tmp_path}/canary.json", process.files) is None
