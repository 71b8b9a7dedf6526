"""F16: the wall clock jumps a day ahead or back, stands still, or changes to summer time. Nothing leaves or ends early.

Limits and timers are monotonic; wall time is for names and records only. What SigV4 makes of a wrong clock is tried
over the wire elsewhere.
"""

import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.adapters.clock import SystemClock
from pipeline.caseless import parse_time
from pipeline.delivery.proof import Receipt, Subject, verify, write_receipt
from pipeline.errors import PipelineError
from pipeline.ids import InstanceId, Kind, RecordingId
from pipeline.interim.states import State
from pipeline.ports import ObjectFacts, PutRequest
from pipeline.receipts import ReceiptFolder
from pipeline.settings import StoreSettings
from pipeline.steady import Steady
from tests.store_fixture import Node, WatchedDisk, World, node, source
from tests.unit.keyring_fakes import ARN, A
from tests.unit.test_event_intake import CONTACT, started, take
from tests.watching import AFTER, JumpingClock, missing_watch

DAY = timedelta(days=1)
JUMPS = [
    pytest.param(DAY, id="a day ahead"),
    pytest.param(-DAY, id="a day back"),
    pytest.param(10 * DAY, id="far ahead"),
]
CRC = "AAAAAAAAAAA="


def world_at(root: Path) -> tuple[World, JumpingClock]:
    clock = JumpingClock()
    return World(root=root, clock=clock), clock


async def delivered(process: Node, source_id: str = "call-1") -> None:
    """Upload and settle one recording, as if its bucket had proven it."""
    answer = await process.upload(source(source_id), b"bytes of " + source_id.encode())
    [name] = [each for each in process.store.index if str(each.artifact_id) == answer.artifact_id]
    subject = Subject(
        recording_id=RecordingId(name.artifact_id),
        artifact_id=name.artifact_id,
        instance_id=A,
        kind=Kind.VOICE,
        generation=1,
        sha256="ab" * 32,
    )
    storage = process.a.instance.storage[Kind.VOICE]
    request = PutRequest("key", name.size_bytes or 0, CRC, "audio/wav", subject.metadata)
    facts = ObjectFacts("key", crc64nvme=CRC, encryption="aws:kms", kms_key_arn=ARN)
    receipt = verify(subject, request, storage, facts, process.world.clock.now())
    assert isinstance(receipt, Receipt)
    await process.store.settle(name, write_receipt(receipt), (), ())


def folder(process: Node, held: Collection[InstanceId] = ()) -> ReceiptFolder:
    return ReceiptFolder(
        process.store,
        process.journal,
        process.tenants,
        process.trail,
        process.world.clock,
        StoreSettings(),
        held.__contains__,
    )


@pytest.mark.parametrize("jump", JUMPS)
async def test_receipts_and_journal_leave_by_the_time_that_passed(tmp_path: Path, jump: timedelta) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        collector = folder(process)
        await delivered(process)
        await take(process, started(source_id="another"))
        clock.jump(jump)
        clock.advance(timedelta(hours=71).total_seconds())
        assert await collector.once() == 0
        assert process.store.index.count(State.DELIVERED) == 1
        assert len(list((tmp_path / "journal" / str(A)).rglob("*.journal"))) == 1
        clock.jump(-jump)
        clock.advance(timedelta(hours=2).total_seconds())
        assert await collector.once() == 1


async def test_a_journal_stays_while_anything_of_its_instance_is_under_a_legal_hold(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        await take(process, started(source_id="another"))
        clock.advance(timedelta(days=9).total_seconds())
        await folder(process, {A}).once()
        assert len(list((tmp_path / "journal" / str(A)).rglob("*.journal"))) == 1
        await folder(process).once()
        assert list((tmp_path / "journal" / str(A)).rglob("*.journal")) == []


async def test_folding_is_recorded_before_a_receipt_leaves_and_a_record_names_all_it_tells_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.receipts.AT_ONCE", 2)
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        for number in range(3):
            await delivered(process, f"call-{number}")
        ids = {str(name.artifact_id) for name in process.store.index}
        clock.advance(timedelta(hours=73).total_seconds())
        assert isinstance(process.files, WatchedDisk)
        process.files.refuse("append", "/audit/")
        with pytest.raises(PipelineError):
            await folder(process).once()
        assert len(world.paths(".done")) == 3
        assert await folder(process).once() == 3
    texts = (path.read_text() for path in world.root.glob(f"audit/{A}/*.jsonl"))
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    told = [line["requestParameters"]["artifacts"] for line in lines if line["eventName"] == "ReceiptsFolded"]
    assert [len(each) for each in told] == [2, 1]
    assert {each["artifactId"] for batch in told for each in batch} == ids
    (log,) = (tmp_path / "receipts" / str(A)).glob("*.jsonl")
    assert {json.loads(line)["artifactId"] for line in log.read_text().splitlines()} == ids


async def test_a_receipt_that_can_not_be_read_stops_no_other(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        collector = folder(process)
        for number in range(3):
            await delivered(process, f"call-{number}")
        world.paths(".done")[1].write_bytes(b"{}")
        clock.advance(timedelta(hours=73).total_seconds())
        assert await collector.once() == 2
        assert process.store.index.count(State.DELIVERED) == 1


@pytest.mark.parametrize("jump", JUMPS)
async def test_nothing_open_is_sealed_before_its_idle_time_has_passed(tmp_path: Path, jump: timedelta) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        await process.break_off(source(), b"bytes")
        await process.sweep.once()
        clock.jump(jump)
        clock.advance(timedelta(minutes=14).total_seconds())
        await process.sweep.once()
        assert process.store.index.count(State.OPEN) == 1
        clock.advance(timedelta(minutes=2).total_seconds())
        await process.sweep.once()
        assert process.store.index.count(State.OPEN) == 0


async def test_with_a_clock_that_stands_still_everything_goes_on(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    clock.stick()
    async with node(world) as process:
        watch = missing_watch(process)
        await take(
            process, started(source_id="never"), {**started(source_id="never"), "detail-type": "Recording Stopped"}
        )
        answers = [await process.upload(source(f"call-{number}"), b"bytes") for number in range(20)]
        assert len({answer.artifact_id for answer in answers}) == 20
        await process.break_off(source("broken"), b"bytes")
        await watch.once()
        clock.advance(AFTER.total_seconds() + 60)
        await process.sweep.once()
        await watch.once()
        assert process.store.index.count(State.OPEN) == 0
        assert len(watch) == 1


@pytest.mark.parametrize("jump", JUMPS)
async def test_what_is_awaited_is_not_given_up_by_a_jump(tmp_path: Path, jump: timedelta) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), {**started(), "detail-type": "Recording Stopped"})
        await watch.once()
        clock.jump(jump)
        clock.advance(AFTER.total_seconds() - 60)
        await watch.once()
        assert (len(watch), watch.awaited) == (0, 1)
        clock.advance(120)
        await watch.once()
        assert (len(watch), watch.awaited) == (1, 0)


@pytest.mark.parametrize("jump", JUMPS)
async def test_events_of_a_wrong_day_are_known_when_the_clock_is_right_again(tmp_path: Path, jump: timedelta) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        await take(process, started(source_id="before"))
        clock.jump(jump)
        await take(process, started(source_id="meanwhile"))
    clock.jump(-jump)
    async with node(world) as process:
        await process.replay.done(process.a)
        contact = process.contacts.get(A, CONTACT)
        assert contact is not None
        assert {each.source_id for each in contact.expected} == {"before", "meanwhile"}


@pytest.mark.parametrize("jump", JUMPS)
async def test_what_was_sealed_before_a_jump_opens_after_it(tmp_path: Path, jump: timedelta) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        await process.upload(source("before"), b"before")
        clock.jump(jump)
        await process.upload(source("after"), b"after")
        assert [await process.media(name) for name in process.sealed] == [b"before", b"after"]
        assert (await process.upload(source("before"), b"before")).generation == 1


async def test_after_the_clock_was_set_back_the_newest_body_is_still_the_newest(tmp_path: Path) -> None:
    """Artifact ids begin with the time: the later of two bodies has the lesser id then."""
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        await process.break_off(source(), b"first")
        clock.jump(-DAY)
        await process.break_off(source(), b"the second")
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") == len(b"the second")
        answer = await process.upload(source(), b"the second and the rest")
        assert answer.generation == 2
        assert process.store.index.count(State.OPEN) == 1


def test_steady_time_never_runs_ahead() -> None:
    clock = JumpingClock()
    steady, began = Steady(clock), clock.now()
    clock.advance(10)
    clock.jump(DAY)
    assert steady.now() == began + timedelta(seconds=10)
    assert steady.jumped_s() == DAY.total_seconds()
    clock.jump(-2 * DAY)
    assert steady.now() == began + timedelta(seconds=10) - DAY
    assert steady.jumped_s() == -DAY.total_seconds()


@contextmanager
def time_zone(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", name)
        time.tzset()
        yield
    time.tzset()


def test_summer_time_moves_nothing() -> None:
    """The machine is in Berlin, at the hour that there is twice: our times are UTC, and others' are read as such."""
    with time_zone("Europe/Berlin"):
        assert time.tzname == ("CET", "CEST")
        assert SystemClock().now().utcoffset() == timedelta(0)
        assert parse_time("2026-10-25T02:30:00", "time") == datetime(2026, 10, 25, 2, 30, tzinfo=UTC)
        first, again = (parse_time(f"2026-10-25T02:30:00{zone}", "time") for zone in ("+02:00", "+01:00"))
        assert first is not None
        assert again is not None
        assert again - first == timedelta(hours=1)
