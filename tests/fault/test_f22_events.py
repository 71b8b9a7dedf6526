"""F22: events that come twice, before their recording, after it, or whose recording or end never comes.

What was announced is here in the end, or told as FAILED once; and whatever comes late turns that good.
"""

import json
from collections import Counter
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from pipeline.ids import Kind
from pipeline.intake.missinglog import read_missing
from pipeline.interim.states import State
from tests.store_fixture import Node, World, instance, node, source
from tests.unit.keyring_fakes import ARN, A, refusal
from tests.unit.test_event_intake import CONTACT, contact_event, message, started, take
from tests.watching import AFTER, UNENDED, missing_watch

MINUTE = 60.0


def statuses(world: World) -> list[tuple[str, int, str | None]]:
    """Give status, sequence and failure of every status event in order."""
    details = [json.loads(line)["detail"] for line in world.events().splitlines()]
    return [(each["recordingStatus"], each["sequence"], each.get("failureInfo", {}).get("code")) for each in details]


def ids(world: World) -> set[str]:
    return {json.loads(line)["detail"]["recordingId"] for line in world.events().splitlines()}


def event_ids(world: World) -> set[str]:
    return {json.loads(line)["detail"]["eventDeduplicationId"] for line in world.events().splitlines()}


def ended(kind: str = "voice", source_id: str = "call-1") -> dict[str, Any]:
    return {**started(kind, source_id), "detail-type": "Recording Stopped"}


INITIATED = ("INITIATED", 1, None)
FAILED = ("FAILED", 2, "SOURCE_MISSING")


async def pass_time(world: World, process: Node, watch: Any, by: timedelta) -> None:
    """Let time pass, and the watch look meanwhile."""
    await watch.once()
    for _ in range(10):
        world.clock.advance(by.total_seconds() / 10)
        await watch.once()


async def test_what_never_comes_is_told_once_after_its_end_and_the_deadline(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started())
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
        assert statuses(world) == [INITIATED]  # it may still be recording
        await take(process, contact_event("DISCONNECTED", disconnectTimestamp="2026-11-23T12:30:00Z"))
        await pass_time(world, process, watch, AFTER - timedelta(minutes=1))
        assert statuses(world) == [INITIATED]
        await pass_time(world, process, watch, timedelta(minutes=2))
        assert statuses(world) == [INITIATED, FAILED]
        await pass_time(world, process, watch, UNENDED)
        assert statuses(world) == [INITIATED, FAILED]
        assert len(watch) == 1
        assert len(ids(world)) == 1


async def test_an_end_that_is_lost_only_makes_the_deadline_longer(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started())
        await pass_time(world, process, watch, UNENDED - timedelta(minutes=1))
        assert statuses(world) == [INITIATED]
        await pass_time(world, process, watch, timedelta(minutes=2))
        assert statuses(world) == [INITIATED, FAILED]


async def test_the_end_of_one_recording_says_nothing_of_another_of_its_contact(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), started(source_id="call-2"), ended())
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
        assert [status for status in statuses(world) if status == FAILED] == [FAILED]
        assert watch.awaited == 1


@pytest.mark.parametrize("late", [timedelta(minutes=1), timedelta(days=2)])
async def test_what_comes_late_is_the_recording_that_was_announced_and_good(tmp_path: Path, late: timedelta) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), ended())
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
        await pass_time(world, process, watch, late)
        answer = await process.upload(source(contact=CONTACT), b"bytes")
        await pass_time(world, process, watch, timedelta(minutes=2))
        assert statuses(world) == [INITIATED, FAILED, ("COMPLETED", 3, None)]
        assert ids(world) == {answer.recording_id}
        assert len(watch) == 0
    assert read_missing(f"{tmp_path}/missing", process.files) == []


async def test_a_restart_tells_nothing_twice_and_late_bytes_are_known_after_it(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), ended())
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
    for _ in range(3):
        async with node(world) as process:
            watch = missing_watch(process)
            await pass_time(world, process, watch, UNENDED)
            assert len(watch) == 1
    assert statuses(world) == [INITIATED, FAILED]
    world.clock.advance(timedelta(days=1).total_seconds())
    async with node(world) as process:
        missing_watch(process)
        answer = await process.upload(source(contact=CONTACT), b"bytes")
    assert statuses(world) == [INITIATED, FAILED, ("COMPLETED", 3, None)]
    assert ids(world) == {answer.recording_id}
    async with node(world) as process:
        watch = missing_watch(process)
        await watch.once()
        assert len(watch) == 0


RULED = instance(A, expects=("voice.wav", "screen.mp4", "chat"))


async def test_a_contact_that_met_an_agent_has_to_bring_what_a_rule_says(tmp_path: Path) -> None:
    world = World(root=tmp_path, instances={A: RULED})
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, contact_event("INITIATED", "VOICE"), contact_event("CONNECTED_TO_AGENT", "VOICE"))
        await process.upload(source(f"{CONTACT}/voice.wav", contact=CONTACT), b"bytes")
        await take(process, contact_event("COMPLETED", "VOICE"))
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
    for _ in range(2):
        async with node(world) as process:
            await pass_time(world, process, missing_watch(process), UNENDED)
    assert Counter(statuses(world)) == {INITIATED: 2, ("COMPLETED", 2, None): 1, FAILED: 1}
    async with node(world) as process:
        missing_watch(process)
        screen = source(f"{CONTACT}/screen.mp4", Kind.SCREEN, contact=CONTACT)
        answer = await process.upload(screen, b"late")
    assert statuses(world)[-1] == ("COMPLETED", 3, None)
    assert len(ids(world)) == 2
    assert answer.recording_id in ids(world)


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_a_rule_holds_in_any_order_of_events_and_once(tmp_path: Path, order: tuple[int, ...]) -> None:
    world = World(root=tmp_path, instances={A: RULED})
    met = {"connectedToAgentTimestamp": "2026-11-23T12:00:05Z"}
    events = [
        contact_event("QUEUED", "VOICE"),
        contact_event("DISCONNECTED", "VOICE", disconnectTimestamp="2026-11-23T12:10:00Z", agentInfo=met),
        contact_event("COMPLETED", "VOICE"),
    ]
    async with node(world) as process:
        watch = missing_watch(process)
        for index in order:
            await take(process, events[index])
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
    assert Counter(statuses(world)) == {INITIATED: 2, FAILED: 2}


@pytest.mark.parametrize(
    "detail",
    [
        pytest.param({"agentInfo": {"connectedToAgentTimestamp": "1970-01-01T00:00:00.001Z"}}, id="not set"),
        pytest.param({"agentInfo": []}, id="odd"),
        pytest.param({}, id="given up in the queue"),
    ],
)
async def test_a_contact_that_met_nobody_has_to_bring_nothing(tmp_path: Path, detail: dict[str, Any]) -> None:
    world = World(root=tmp_path, instances={A: RULED})
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, contact_event("QUEUED", **detail), contact_event("COMPLETED", **detail))
        await pass_time(world, process, watch, UNENDED)
        assert watch.awaited == 0
    assert statuses(world) == []


async def test_a_deadline_goes_on_through_a_restart_but_leaves_sources_time_to_come_back(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), ended())
        await watch.once()
    world.clock.advance(AFTER.total_seconds() * 2)
    async with node(world) as process:
        watch = missing_watch(process)
        await pass_time(world, process, watch, timedelta(minutes=14))
        assert statuses(world) == [INITIATED]
        await pass_time(world, process, watch, timedelta(minutes=2))
        assert statuses(world) == [INITIATED, INITIATED, FAILED]
        assert len(event_ids(world)) == 2  # the first two are one: what an earlier run told is not known for sure


async def test_what_came_before_the_restart_is_not_missed_after_it(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await take(process, started(), ended())
        await process.upload(source(contact=CONTACT), b"bytes")
    async with node(world) as process:
        watch = missing_watch(process)
        await pass_time(world, process, watch, AFTER * 2)
        assert watch.awaited == len(watch) == 0
    assert ("FAILED", 2, "SOURCE_MISSING") not in statuses(world)


async def test_what_was_announced_before_receipts_began_is_not_judged(tmp_path: Path) -> None:
    """Its receipt, if there was one, is gone: nobody can tell whether it came."""
    world = World(root=tmp_path)
    async with node(world) as process:
        await take(process, started(), ended())
    world.clock.advance(timedelta(hours=73).total_seconds())
    async with node(world) as process:
        watch = missing_watch(process)
        await pass_time(world, process, watch, timedelta(hours=1))
        assert watch.awaited == len(watch) == 0
    assert statuses(world) == [INITIATED]


async def test_events_that_come_after_their_recording_await_nothing(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await process.upload(source(contact=CONTACT), b"bytes")
        await take(process, started(), ended(), contact_event("COMPLETED"))
        await pass_time(world, process, watch, AFTER * 2)
        assert watch.awaited == len(watch) == 0
    assert "FAILED" not in {status for status, _, _ in statuses(world)}


async def test_a_recording_that_is_coming_in_is_not_missing(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), ended())
        reception = await process.recorder.begin(process.a, source(contact=CONTACT))
        await process.send(reception, b"bytes")
        await pass_time(world, process, watch, AFTER * 2)
        assert statuses(world) == [INITIATED]
        await process.recorder.finish(reception, None)
        await watch.once()
        assert watch.awaited == len(watch) == 0


async def test_a_body_without_a_byte_does_not_count_as_having_come(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), ended())
        await process.break_off(source(contact=CONTACT))
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
        assert statuses(world) == [INITIATED, FAILED]


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_had_begun_when_it_was_announced_and_never_came_is_told_from_its_beginning(
    tmp_path: Path, *, restarted: bool
) -> None:
    """Its announcement left INITIATED to the body, and that was dropped."""
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        empty = await process.recorder.begin(process.a, source(contact=CONTACT))
        await take(process, started(), ended())
        await process.recorder.let_go(empty)
        if not restarted:
            await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
    if restarted:
        async with node(world) as process:
            await pass_time(world, process, missing_watch(process), AFTER + timedelta(minutes=1))
    assert statuses(world) == [INITIATED, FAILED]


async def test_a_refused_body_is_told_as_refused_only(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), ended())
        reception = await process.recorder.begin(process.a, source(contact=CONTACT))
        await process.send(reception, b"bytes")
        await process.recorder.refuse(reception)
        await pass_time(world, process, watch, AFTER * 2)
        assert [code for _, _, code in statuses(world)] == [None, "SOURCE_REJECTED"]


async def test_a_chat_that_comes_as_messages_is_the_one_that_was_announced(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started("chat", "chat-7"))
        await take(process, message(1), message(2, final=True))
        await pass_time(world, process, watch, UNENDED * 2)
        assert watch.awaited == len(watch) == 0
    assert statuses(world) == [INITIATED, ("COMPLETED", 2, None)]


async def test_the_same_events_again_and_again_tell_nothing_more(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        for _ in range(3):
            await take(process, started(), ended(), contact_event("COMPLETED"))
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
        for _ in range(3):
            await take(process, started(), ended(), contact_event("COMPLETED"))
        await pass_time(world, process, watch, UNENDED * 2)
        assert statuses(world) == [INITIATED, FAILED]


async def test_a_contact_that_was_forgotten_keeps_what_it_awaits(tmp_path: Path) -> None:
    """The table of contacts is bounded; what a forgotten one announced is still awaited, under its id."""
    world = World(root=tmp_path)
    async with node(world) as process:
        process.contacts._limit = 1
        watch = missing_watch(process)
        await take(process, started())
        other = contact_event("INITIATED")
        other["detail"]["contactId"] = "another"
        await take(process, other)
        assert process.contacts.get(A, CONTACT) is None
        await take(process, ended())
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
        assert statuses(world) == [INITIATED, FAILED]
        assert len(ids(world)) == 1


async def test_what_can_not_be_written_is_told_later(tmp_path: Path) -> None:
    """Each of the two writes fails once. What a reader may see twice bears the same de-duplication id."""
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), ended())
        process.files.refuse("append", "/events/", times=1)
        process.files.refuse("append", "/missing/", times=1)
        await pass_time(world, process, watch, AFTER + timedelta(minutes=5))
        await pass_time(world, process, watch, timedelta(minutes=20))
        assert set(statuses(world)) == {INITIATED, FAILED}
        told = {json.loads(line)["detail"]["eventDeduplicationId"] for line in world.events().splitlines()}
        assert len(told) == 2
        assert len(read_missing(f"{tmp_path}/missing", process.files)) == 1


async def test_without_its_key_an_instance_is_not_judged(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started(), ended())
        world.kms.refuses[ARN] = refusal()
        await pass_time(world, process, watch, AFTER * 2)
        assert statuses(world) == [INITIATED]
        del world.kms.refuses[ARN]
        await pass_time(world, process, watch, timedelta(minutes=10))
        assert statuses(world) == [INITIATED, FAILED]


async def test_old_ones_are_let_go(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process, kept_days=3)
        await take(process, started(), ended())
        await pass_time(world, process, watch, AFTER + timedelta(minutes=1))
        assert len(watch) == 1
        await pass_time(world, process, watch, timedelta(days=5))
        assert len(watch) == 0
    assert list((tmp_path / "missing" / str(A)).iterdir()) == []


async def test_a_silent_source_is_sealed_with_a_flag_and_was_not_missing(tmp_path: Path) -> None:
    """The end event is lost, and the connection with it."""
    world = World(root=tmp_path)
    async with node(world) as process:
        watch = missing_watch(process)
        await take(process, started())
        await process.break_off(source(contact=CONTACT), b"as far as it came")
        for _ in range(20):
            world.clock.advance(MINUTE)
            await process.sweep.once()
        await pass_time(world, process, watch, UNENDED * 2)
        assert process.store.index.count(State.SEALED) == 1
        assert watch.awaited == len(watch) == 0
    assert statuses(world) == [INITIATED, ("COMPLETED", 2, None)]
    assert json.loads(world.events().splitlines()[-1])["detail"]["quality"][-1] == "RECOVERED"
