from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from pipeline.errors import (
    HoldCode,
    KeyUnavailableError,
    RefuseError,
    StoppingError,
    StoreIoError,
    WriterClosedError,
)
from pipeline.ids import Kind
from pipeline.instances import Limits
from pipeline.intake.recorder import WrongOffsetError
from pipeline.interim.states import State
from tests.store_fixture import MARKER, Node, World, after_power_cut, instance, node, source
from tests.unit.keyring_fakes import ARN, A

BODY = MARKER + bytes(range(256)) * 20
IDLE = timedelta(minutes=16).total_seconds()


def statuses(world: World) -> list[tuple[str, int]]:
    """Give what was told, each once: a repeat is known by its id."""
    events = [msgspec.json.decode(line)["detail"] for line in world.events().splitlines()]
    told = {event["eventDeduplicationId"]: (event["recordingStatus"], event["generation"]) for event in events}
    return list(told.values())


async def only(process: Node, body: bytes = BODY) -> None:
    """One sealed artifact, of these bytes, and nothing beside it."""
    assert [name.state for name in process.store.index] == [State.SEALED]
    assert process.world.names() == list(process.store.index)
    assert await process.media(next(iter(process.store.index))) == body
    assert process.recorder.receptions() == []


# --- whole bodies


async def test_a_body_is_sealed_durably_before_it_is_answered(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY[:100], BODY[100:])
        process.files.done.clear()
        answer = await process.recorder.finish(reception, sha256(BODY).hexdigest())
        await only(process)
        name = process.sealed[0]
        opened, sealed = process.store.path(reception.name), process.store.path(name)
        order = [each for each in process.files.done if each[1] in {opened, sealed, str(Path(sealed).parent)}]
        assert [operation for operation, _ in order][:5] == ["append", "append", "sync", "rename", "sync_directory"]
        assert answer.sha256 == sha256(BODY).hexdigest()
        assert (answer.generation, answer.size_bytes) == (1, len(BODY))
        assert answer.recording_id == answer.artifact_id == str(name.artifact_id)
    assert statuses(world) == [("INITIATED", 1), ("COMPLETED", 1)]
    assert world.holds(MARKER) == []
    assert world.holds(b"call-1") == []


async def test_an_empty_body_is_a_recording_too(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        answer = await process.upload(source())
        assert answer.size_bytes == 0
        await only(process, b"")


async def test_the_same_bytes_again_get_the_same_answer_and_leave_nothing_behind(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        first = await process.upload(source(), BODY)
        assert await process.upload(source(), BODY[:7], BODY[7:]) == first
        await only(process)
    async with node(world) as process:
        assert await process.upload(source(), BODY) == first
        await only(process)
        assert len(process.files.handles) <= 2
    assert statuses(world) == [("INITIATED", 1), ("COMPLETED", 1)]


async def test_the_same_bytes_after_delivery_get_the_same_answer(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        first = await process.upload(source(), BODY)
        name = process.sealed[0]
        await process.store.settle(name, msgspec.json.encode(first), (), ())
        assert await process.upload(source(), BODY) == first
        assert process.store.index.count(State.DELIVERED) == len(process.store.index) == 1
        second = await process.upload(source(), b"other")
        assert (second.generation, second.recording_id) == (2, first.recording_id)


async def test_other_bytes_are_the_next_generation_of_the_same_recording(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        answers = [await process.upload(source(), body) for body in (b"one", b"two", b"three", b"two")]
        assert [answer.generation for answer in answers] == [1, 2, 3, 2]
        assert {answer.recording_id for answer in answers} == {answers[0].artifact_id}
        assert len({answer.artifact_id for answer in answers}) == 3


async def test_sources_of_different_instances_and_kinds_never_meet(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        answers = [
            await process.upload(source(), BODY),
            await process.upload(source(), BODY, tenant=process.b),
            await process.upload(source(kind=Kind.SCREEN), BODY),
            await process.upload(source("call-2"), BODY),
        ]
        assert [answer.generation for answer in answers] == [1] * 4
        assert len({answer.recording_id for answer in answers}) == 4


@pytest.mark.parametrize("others", [0, 1])
async def test_an_earlier_body_that_is_dropped_while_it_is_looked_at_stops_nothing(tmp_path: Path, others: int) -> None:
    """Another generation is asked then; if there is none, this is a new recording."""
    world = World(root=tmp_path)
    async with node(world) as process:
        first = await process.break_off(source(), b"one")
        for _ in range(others):
            await process.break_off(source(), b"something else")
    async with node(world) as process:

        def meanwhile(_number: int, operation: str, path: str) -> None:
            if operation == "open" and str(first.name) in path and process.store.index.get(first.name.artifact_id):
                Path(path).unlink()
                process.store.index.remove(first.name.artifact_id)

        process.files.before = meanwhile
        answer = await process.upload(source(), b"another")
        assert answer.recording_id == (str(first.recording_id) if others else answer.artifact_id)


async def test_an_earlier_body_that_can_not_be_read_is_asked_for_again(tmp_path: Path) -> None:
    """It is there: to take the new one for another recording would be wrong."""
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.break_off(source(), b"one")
    async with node(world) as process:
        process.files.refuse("open", ".open")
        with pytest.raises(StoreIoError):
            await process.upload(source(), b"one and two")
        assert (await process.upload(source(), b"one and two")).generation == 1


async def test_a_damaged_earlier_generation_does_not_stop_a_new_one(tmp_path: Path) -> None:
    for damage in (b"junk", b""):
        async with node(World(root=tmp_path / damage.decode())) as process:
            await process.upload(source(), BODY)
            Path(process.store.path(process.sealed[0])).write_bytes(damage)
            answer = await process.upload(source(), BODY)
            assert answer.generation == 2


@pytest.mark.parametrize("receipt", [b"{", b"\xff", b"{}", b'{"recordingId":"no id"}'])
async def test_a_damaged_receipt_does_not_stop_a_new_generation(tmp_path: Path, receipt: bytes) -> None:
    """F12."""
    async with node(World(root=tmp_path)) as process:
        first = await process.upload(source(), BODY)
        await process.store.settle(process.sealed[0], receipt, (), ())
        answer = await process.upload(source(), BODY)
        assert (answer.generation, answer.recording_id) == (2, first.recording_id)


# --- broken off


async def test_a_body_that_broke_off_is_durable_as_far_as_it_came(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.break_off(source(), BODY[:1000])
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") == 1000
    async with node(after_power_cut(world, process.files.durable(), tmp_path / "after")) as process:
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") == 1000


async def test_a_body_that_broke_off_and_comes_again_whole_is_one_recording(tmp_path: Path) -> None:
    for restart in (False, True):
        world = World(root=tmp_path / str(restart))
        async with node(world) as process:
            broken = await process.break_off(source(), BODY[:1000])
            began = str(broken.recording_id)
            if not restart:
                answer = await process.upload(source(), BODY)
                await only(process)
        if restart:
            async with node(world) as process:
                answer = await process.upload(source(), BODY)
                await only(process)
        assert (answer.generation, answer.recording_id) == (1, began)
        assert answer.artifact_id != began
        assert statuses(world) == [("INITIATED", 1), ("COMPLETED", 1)]


async def test_what_was_acknowledged_is_durable_in_the_new_body_before_the_old_one_goes(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        old = (await process.break_off(source(), BODY[:1000])).writer.path
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY)
        process.files.done.clear()
        await process.recorder.finish(reception, None)
        synced = process.files.done.index(("sync", reception.writer.path))
        assert synced < process.files.done.index(("rename", f"{old}.tmp"))


async def test_other_bytes_after_a_break_leave_the_first_ones_to_be_recovered(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.break_off(source(), b"the beginning")
        answer = await process.upload(source(), b"something else")
        assert answer.generation == 2
        world.clock.advance(IDLE)
        await process.sweep.once()
        assert sorted((name.generation, name.state) for name in world.names()) == [(1, "sealed"), (2, "sealed")]
    assert statuses(world) == [("INITIATED", 1), ("INITIATED", 2), ("COMPLETED", 2), ("COMPLETED", 1)]


async def test_a_body_without_a_byte_that_broke_off_leaves_nothing(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.break_off(source())
        assert world.paths() == []
        assert len(process.store.index) == 0
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") is None
        answer = await process.upload(source(), BODY)
        assert answer.generation == 1


async def test_a_restart_in_the_middle_of_a_body_is_a_break(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY[:1000])
        await process.sweep.once()
        await process.send(reception, b"never acknowledged")
    async with node(world) as process:
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") == 1000
        reception = await process.recorder.resume(process.a, source(), 1000)
        await process.send(reception, BODY[1000:])
        answer = await process.recorder.finish(reception, sha256(BODY).hexdigest())
        assert answer.recording_id == answer.artifact_id
        await only(process)
    assert statuses(world) == [("INITIATED", 1), ("COMPLETED", 1)]
    assert world.holds(MARKER) == []


# --- resumed


async def test_an_upload_goes_on_at_its_offset_and_nowhere_else(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.break_off(source(), BODY[:1000])
        for offset in (0, 999, 1001):
            with pytest.raises(WrongOffsetError) as refused:
                await process.recorder.resume(process.a, source(), offset)
            assert refused.value.offset == 1000
        reception = await process.recorder.resume(process.a, source(), 1000)
        await process.send(reception, BODY[1000:2000])
        await process.recorder.let_go(reception)
        reception = await process.recorder.resume(process.a, source(), 2000)
        await process.send(reception, BODY[2000:])
        await process.recorder.finish(reception, None)
        await only(process)


async def test_an_upload_of_which_nothing_is_held_is_resumed_from_the_beginning(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        with pytest.raises(WrongOffsetError) as refused:
            await process.recorder.resume(process.a, source(), 10)
        assert refused.value.offset == 0
        reception = await process.recorder.resume(process.a, source(), 0)
        await process.send(reception, BODY)
        await process.recorder.finish(reception, None)
        await only(process)


async def test_a_half_open_connection_is_taken_over_and_can_write_no_more(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        dead = await process.recorder.begin(process.a, source())
        await process.send(dead, BODY[:1000])
        await dead.writer.sync()
        await process.send(dead, b"not acknowledged")
        alive = await process.recorder.resume(process.a, source(), 1000)
        assert dead.scope.cancel_called
        for late in (dead.append(b"late", 0.0), process.recorder.finish(dead, None)):
            with pytest.raises(WriterClosedError):
                await late
        await process.recorder.let_go(dead)
        await process.send(alive, BODY[1000:])
        await process.recorder.finish(alive, None)
        await only(process)
        assert not [path for path in process.files.handles.values() if "/artifacts/" in path]


# --- refused


async def test_bytes_that_are_not_what_their_source_says_are_dropped(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY)
        with pytest.raises(RefuseError) as refused:
            await process.recorder.finish(reception, "0" * 64)
        assert refused.value.field == "X-Recording-Sha256"
        assert world.paths() == []
        await process.recorder.let_go(reception)
        await process.upload(source(), BODY)
        await only(process)


async def test_a_body_over_its_limit_is_dropped_and_told(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY)
        await process.recorder.refuse(reception)
        assert world.paths() == []
        assert b"SOURCE_REJECTED" in world.events()


async def test_an_instance_may_have_so_many_recordings_open(tmp_path: Path) -> None:
    world = World(root=tmp_path, instances={A: instance(A, limits=Limits(open_recordings=2))})
    async with node(world) as process:
        first, _ = [await process.recorder.begin(process.a, source(f"call-{number}")) for number in range(2)]
        with pytest.raises(StoppingError):
            await process.recorder.begin(process.a, source("call-3"))
        await process.send(first, BODY)
        await process.recorder.finish(first, None)
        await process.recorder.begin(process.a, source("call-3"))


async def test_no_recording_is_begun_under_a_key_that_is_refused(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    world.kms.refuses[ARN] = KeyUnavailableError(HoldCode.KEY_DISABLED, "disabled")
    async with node(world) as process:
        with pytest.raises(KeyUnavailableError):
            await process.recorder.begin(process.a, source())
    assert world.paths() == []


# --- idle


async def test_a_silent_recording_is_recovered_exactly_once(tmp_path: Path) -> None:
    for restart in (False, True):
        world = World(root=tmp_path / str(restart))
        async with node(world) as process:
            await process.break_off(source(), BODY)
            if not restart:
                await _idle_twice(process)
        if restart:
            async with node(world) as process:
                await process.sweep.once()
                await _idle_twice(process)
        assert statuses(world) == [("INITIATED", 1), ("COMPLETED", 1)]
        assert [b"RECOVERED" in line for line in world.events().splitlines() if b"COMPLETED" in line] == [True]


async def _idle_twice(process: Node) -> None:
    process.world.clock.advance(IDLE / 2)
    await process.sweep.once()
    assert process.sealed == []
    process.world.clock.advance(IDLE / 2 + 60)
    await process.sweep.once()
    await only(process)
    process.world.clock.advance(IDLE)
    await process.sweep.once()
    await only(process)


async def test_what_is_being_sent_again_is_not_recovered_meanwhile(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.break_off(source(), BODY[:1000])
        reception = await process.recorder.begin(process.a, source())
        for piece in (BODY[:1000], BODY[1000:]):
            world.clock.advance(IDLE)
            reception.touched = world.clock.monotonic()
            await process.sweep.once()
            await process.send(reception, piece)
        answer = await process.recorder.finish(reception, None)
        assert answer.generation == 1
        await only(process)


async def test_a_silent_connection_is_let_go_and_its_recording_stays_open(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY)
        world.clock.advance(61)
        await process.sweep.once()
        assert reception.scope.cancel_called
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") == len(BODY)


async def test_live_bytes_are_durable_within_a_sweep(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        receptions = [await process.recorder.begin(process.a, source(f"call-{number}")) for number in range(5)]
        for reception in receptions:
            await process.send(reception, BODY)
        await process.sweep.once()
        assert [reception.writer.durable_bytes for reception in receptions] == [len(BODY)] * 5


async def test_a_sweep_survives_a_file_that_is_gone(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        broken = await process.break_off(source(), BODY)
        await process.break_off(source("call-2"), BODY)
    async with node(world) as process:
        Path(broken.writer.path).unlink()
        await process.sweep.once()
        world.clock.advance(IDLE)
        await process.sweep.once()
        assert len(process.sealed) == 1
