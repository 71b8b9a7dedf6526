import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.errors import HoldCode, KeyUnavailableError, RefuseError, StoreIoError
from pipeline.ids import InstanceId, Kind
from pipeline.intake.events import MAX_EVENT_BYTES, ForeignInstanceError
from pipeline.intake.journal import JournalEntry
from pipeline.interim.states import State
from tests.store_fixture import MARKER, Node, World, instance, node, source
from tests.unit.keyring_fakes import ARN, A, B

CONTACT = "cccc3333-0000-4000-8000-000000000003"


def event(detail_type: str, instance_id: InstanceId | None = A, **detail: Any) -> dict[str, Any]:
    arn = {} if instance_id is None else {"instanceArn": instance(instance_id).arn}
    return {
        "id": "e-1",
        "source": "aws.connect" if "Connect" in detail_type else "pipeline",
        "detail-type": detail_type,
        "time": "2026-11-23T12:00:00Z",
        "detail": {"contactId": CONTACT, **arn, **detail},
    }


def contact_event(event_type: str, channel: str = "CHAT", **detail: Any) -> dict[str, Any]:
    return event("Amazon Connect Contact Event", eventType=event_type, channel=channel, **detail)


def message(number: int, **detail: Any) -> dict[str, Any]:
    item = {
        "Id": f"i-{number}",
        "AbsoluteTime": f"2026-11-23T12:00:{number:02}Z",
        "Type": "MESSAGE",
        "Content": MARKER.decode(),
    }
    return event("Chat Message", item=item, **detail)


def started(kind: str = "voice", source_id: str = "call-1", **detail: Any) -> dict[str, Any]:
    return event("Recording Started", recordingKind=kind, sourceId=source_id, **detail)


async def take(process: Node, *events: dict[str, Any]) -> int:
    return await process.events.take(process.a, json.dumps(list(events)).encode())


def told(world: World) -> dict[str, str]:
    """Status and recording of every event that went out, by its de-duplication id."""
    details = [msgspec.json.decode(line)["detail"] for line in world.events().splitlines()]
    return {each["eventDeduplicationId"]: f"{each['recordingStatus']} {each['recordingId']}" for each in details}


async def test_events_are_durable_and_known_after_a_restart(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        events = [
            contact_event("INITIATED", initiationTimestamp="2026-11-23T11:00:00Z"),
            started(),
            started("screen", "s-1"),
        ]
        assert await take(process, *events) == 3
        before = process.contacts.get(A, CONTACT)
        assert before is not None
        assert len(before.expected) == 2
    async with node(world) as process:
        await process.replay.done(process.a)
        assert process.contacts.get(A, CONTACT) == before
    assert [line.split()[0] for line in told(world).values()] == ["INITIATED", "INITIATED"]
    assert world.holds(b"cccc3333-0000-4000-8000") == [tmp_path / "events" / f"{A}.jsonl"]


async def test_an_announced_recording_keeps_its_id_through_bytes_and_restarts(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await take(process, started())
        announced = process.contacts.get(A, CONTACT)
        assert announced is not None
    async with node(world) as process:
        answer = await process.upload(source(contact=CONTACT), b"bytes")
    assert answer.recording_id == str(announced.expected[0].recording_id)
    assert answer.artifact_id != answer.recording_id
    assert list(told(world).values()) == [f"INITIATED {answer.recording_id}", f"COMPLETED {answer.recording_id}"]


async def test_the_same_event_twice_changes_nothing(tmp_path: Path) -> None:
    """F22."""
    world = World(root=tmp_path)
    async with node(world) as process:
        for _ in range(3):
            await take(process, started(), contact_event("INITIATED"))
        known = process.contacts.get(A, CONTACT)
        assert known is not None
        assert len(known.expected) == 1
    assert len(told(world)) == 1
    async with node(world) as process:
        await process.replay.done(process.a)
        assert process.contacts.get(A, CONTACT) == known


async def test_an_event_that_comes_after_its_recording_announces_no_other(tmp_path: Path) -> None:
    """F22."""
    world = World(root=tmp_path)
    async with node(world) as process:
        answer = await process.upload(source(contact=CONTACT), b"bytes")
        await take(process, started())
    assert {line.split()[1] for line in told(world).values()} == {answer.recording_id}


async def test_events_that_were_not_durable_count_when_they_come_again(tmp_path: Path) -> None:
    """The first time they were merged in memory only: the second must still write and tell everything."""
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.a.ring.active()
        process.files.refuse("sync", ".journal")
        with pytest.raises(StoreIoError):
            await take(process, started())
        known = process.contacts.get(A, CONTACT)
        assert known is not None
        assert told(world) == {}
        await take(process, started())
        assert list(told(world).values()) == [f"INITIATED {known.expected[0].recording_id}"]
    async with node(world) as process:
        await process.replay.done(process.a)
        assert process.contacts.get(A, CONTACT) == known


async def test_bytes_that_come_before_their_announcement_is_durable_tell_that_they_begun(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.a.ring.active()
        process.files.refuse("sync", ".journal")
        with pytest.raises(StoreIoError):
            await take(process, started())
        answer = await process.upload(source(contact=CONTACT), b"bytes")
        expected = [f"INITIATED {answer.recording_id}", f"COMPLETED {answer.recording_id}"]
        assert list(told(world).values()) == expected
        await take(process, started())
    assert list(told(world).values()) == expected


async def test_bytes_that_come_to_a_later_run_tell_again_that_they_begun(tmp_path: Path) -> None:
    """A crash between the journal and the log of events: the one may be durable without the other."""
    world = World(root=tmp_path)
    log = tmp_path / "events" / f"{A}.jsonl"
    async with node(world) as process:
        await take(process, started(source_id="call-1"))
        await take(process, started(source_id="call-2"))
    before = list(told(world))
    log.write_bytes(b"")
    async with node(world) as process:
        for number in (1, 2):
            await process.upload(source(f"call-{number}", contact=CONTACT), b"bytes of %d" % number)
    assert set(before) < set(told(world))


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_had_begun_when_it_was_announced_and_was_dropped_is_told_when_it_comes(
    tmp_path: Path, *, restarted: bool
) -> None:
    """Nothing was told with the announcement, and what would have been with the first bytes was dropped with them."""
    world = World(root=tmp_path)
    async with node(world) as process:
        empty = await process.recorder.begin(process.a, source(contact=CONTACT))
        await take(process, started())
        await process.recorder.let_go(empty)
        await take(process, contact_event("QUEUED"))  # vouches for what was written before it
        assert told(world) == {}
        if not restarted:
            answer = await process.upload(source(contact=CONTACT), b"bytes")
    if restarted:
        async with node(world) as process:
            answer = await process.upload(source(contact=CONTACT), b"bytes")
    assert list(told(world).values()) == [f"INITIATED {answer.recording_id}", f"COMPLETED {answer.recording_id}"]


async def test_a_foreign_instance_is_refused_and_nothing_of_the_list_is_taken(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        with pytest.raises(ForeignInstanceError) as refused:
            await take(
                process, started(), message(1), event("Recording Started", B, recordingKind="voice", sourceId="x")
            )
        assert refused.value.field == "[2].detail.instanceArn"
        assert process.contacts.get(A, CONTACT) is None
        assert world.paths() == []
        assert list(tmp_path.rglob("*.journal")) == []
        assert await take(process, event("Recording Started", None, recordingKind="voice", sourceId="x")) == 1


@pytest.mark.parametrize(
    "bad", [{}, {"detail-type": "Chat Message", "detail": {}}, started("fax"), message(1, final="yes")]
)
async def test_one_bad_event_takes_the_whole_list_with_it(tmp_path: Path, bad: dict[str, Any]) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        with pytest.raises(RefuseError):
            await take(process, started(), message(1), bad)
        assert process.contacts.get(A, CONTACT) is None
        assert world.paths() == []
        assert told(world) == {}


async def test_an_event_too_large_for_a_segment_is_refused_by_its_place(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        for size, is_taken in ((MAX_EVENT_BYTES - 2000, True), (MAX_EVENT_BYTES, False), (2 * MAX_EVENT_BYTES, False)):
            for large in (contact_event("QUEUED", notes="x" * size), message(1, notes="x" * size)):
                if is_taken:
                    assert await take(process, started(), large) == 2
                    continue
                with pytest.raises(RefuseError) as refused:
                    await take(process, started(), large)
                assert refused.value.field == "[1]"


async def test_a_chat_is_sealed_by_its_end_however_that_is_told(tmp_path: Path) -> None:
    ends = {
        "final": [event("Chat Message", final=True)],
        "final with an item": [message(2, final=True)],
        "completed": [contact_event("COMPLETED")],
        "stopped": [event("Recording Stopped", recordingKind="chat", sourceId="x")],
        "chat.ended": [
            event("Chat Message", item={"Id": "end", "AbsoluteTime": "2026-11-23T12:01:00Z", "Type": "CHAT_ENDED"})
        ],
    }
    for how, last in ends.items():
        async with node(World(root=tmp_path / how)) as process:
            await take(process, message(1))
            assert process.sealed == []
            await take(process, *last)
            await take(process, *last)
            assert [name.kind for name in process.sealed] == [Kind.CHAT], how


async def test_an_end_that_could_not_be_carried_out_is_when_it_comes_again(tmp_path: Path) -> None:
    for last in (contact_event("COMPLETED"), message(2, final=True)):
        world = World(root=tmp_path / str(len(json.dumps(last))))
        async with node(world) as process:
            await take(process, message(1))
            process.files.refuse("rename", ".sealed")
            with pytest.raises(StoreIoError):
                await take(process, last)
            assert process.sealed == []
            await take(process, last)
            assert [name.state for name in process.store.index] == [State.SEALED]


async def test_an_empty_chat_is_a_recording_if_its_end_was_told_by_its_source(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await take(process, contact_event("COMPLETED"))
        assert process.sealed == []
        await take(process, event("Chat Message", final=True))
        assert len(process.sealed) == 1


async def test_a_chat_that_was_announced_has_one_recording_id(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await take(process, message(1))
        await take(process, started("chat", "chat-source"))
        await take(process, message(2, final=True))
    assert len({line.split()[1] for line in told(world).values()}) == 1
    world = World(root=tmp_path / "the other way")
    async with node(world) as process:
        await take(process, started("chat", "chat-source"))
        await take(process, message(1), message(2, final=True))
    assert len({line.split()[1] for line in told(world).values()}) == 1


async def test_one_list_may_hold_a_whole_chat(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        events = [message(number) for number in range(10)]
        assert await take(process, *events, contact_event("INITIATED"), message(3), message(11, final=True)) == 13
        assert len(process.sealed) == 1
    assert world.holds(MARKER) == []


async def test_nothing_is_taken_while_the_key_is_refused(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    world.kms.refuses[ARN] = KeyUnavailableError(HoldCode.KEY_DISABLED, "disabled")
    async with node(world) as process:
        for each in (started(), message(1), contact_event("INITIATED")):
            with pytest.raises(KeyUnavailableError):
                await take(process, each)
        world.kms.refuses.clear()
        world.clock.advance(60)
        await take(process, started())
        assert len(told(world)) == 1


async def test_an_event_that_can_not_be_read_any_more_does_not_stop_the_replay(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.journal.append(process.a, [JournalEntry(msgspec.Raw(b'{"detail-type":"Chat Message"}'))], [])
        await take(process, started())
    async with node(world) as process:
        await process.upload(source(contact=CONTACT), b"bytes")
        assert len(told(world)) == 2
