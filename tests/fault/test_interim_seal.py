"""Trouble while a body is taken or sealed: many at once, a disk that refuses, a crash midway (F2, F7, F9, F21)."""

from pathlib import Path

import anyio
import msgspec
import pytest

from pipeline.errors import StoreFullError, StoreIoError, WriterClosedError
from pipeline.ids import Kind
from pipeline.intake.reception import Answer
from pipeline.intake.recorder import WrongOffsetError
from pipeline.interim.states import State
from tests.store_fixture import MARKER, Node, World, node, settled, source

BODY = MARKER + bytes(range(256)) * 20


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


# --- at the same time


async def test_the_same_bytes_at_the_same_time_are_one_recording(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        answers: list[Answer] = []

        async def send() -> None:
            answers.append(await process.upload(source(), BODY[:999], BODY[999:]))

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(send)
        assert len(answers) == 8
        assert all(answer == answers[0] for answer in answers)
        await only(process)


async def test_different_bytes_at_the_same_time_are_generations_of_their_own(tmp_path: Path) -> None:
    """Two that begin while an earlier one is looked up must not get the same number."""
    async with node(World(root=tmp_path)) as process:
        await process.upload(source(), b"first")
        answers: list[Answer] = []

        async def send(number: int) -> None:
            answers.append(await process.upload(source(), b"body %d" % number))

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(send, number)
        assert sorted(answer.generation for answer in answers) == [2, 3, 4, 5, 6, 7]
        assert len({answer.recording_id for answer in answers}) == 1


# --- taken over


async def test_a_taken_over_writer_that_is_on_the_disk_ends_before_the_new_one_looks(tmp_path: Path) -> None:
    """Two writers on one file would leave segments that don't open."""
    async with node(World(root=tmp_path)) as process:
        dead = await process.recorder.begin(process.a, source())
        await process.send(dead, BODY)
        await dead.writer.sync()
        async with anyio.create_task_group() as group:
            group.start_soon(process.send, dead, bytes(3 * 2**20))
            await settled()
            offset = await process.recorder.offset(process.a, Kind.VOICE, "call-1")
            with pytest.raises(WrongOffsetError) as refused:
                await process.recorder.resume(process.a, source(), offset or 0)
        alive = await process.recorder.resume(process.a, source(), refused.value.offset)
        await process.send(alive, b"end")
        await process.recorder.finish(alive, None)
        await only(process, BODY + bytes(refused.value.offset - len(BODY)) + b"end")


async def test_two_who_resume_at_once_do_not_both_write(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.break_off(source(), BODY[:1000])
    async with node(world) as process:
        outcomes: list[str] = []

        async def resume() -> None:
            try:
                reception = await process.recorder.resume(process.a, source(), 1000)
                await process.send(reception, BODY[1000:])
                await process.recorder.finish(reception, None)
            except (WrongOffsetError, WriterClosedError) as error:
                outcomes.append(error.reason)
            else:
                outcomes.append("sealed")

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(resume)
        assert outcomes.count("sealed") <= 1
        if "sealed" not in outcomes:
            offset = await process.recorder.offset(process.a, Kind.VOICE, "call-1") or 0
            reception = await process.recorder.resume(process.a, source(), offset)
            await process.send(reception, BODY[offset:])
            await process.recorder.finish(reception, None)
        await only(process)


async def test_an_artifact_that_many_ask_for_after_a_restart_is_opened_once(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.break_off(source(), BODY[:1000])
    async with node(world) as process:
        found: list[int | None] = []

        async def ask() -> None:
            found.append(await process.recorder.offset(process.a, Kind.VOICE, "call-1"))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
        assert found == [1000] * 5
        assert len([path for path in process.files.handles.values() if path.endswith(".open")]) == 1


async def test_whoever_asks_while_it_is_sealed_or_dropped_does_not_open_it_again(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:

        async def ask() -> None:
            for _ in range(30):
                await process.recorder.offset(process.a, Kind.VOICE, "call-1")
                await anyio.lowlevel.checkpoint()

        for body in (b"", BODY):
            reception = await process.recorder.begin(process.a, source())
            await process.send(reception, body)
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await settled()
                if body:
                    await process.recorder.finish(reception, None)
                else:
                    await process.recorder.let_go(reception)
        await only(process)


# --- trouble with the disk while it is sealed (F7, F9)


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("append", ".open"),
        ("sync", ".open"),
        ("append", "/audit/"),
        ("sync", "/audit/"),
        ("append", "/events/"),
        ("rename", ".sealed"),
        ("sync_directory", "/artifacts/"),
    ],
)
@pytest.mark.parametrize("restart", [False, True])
async def test_a_seal_that_failed_is_not_answered_and_sending_again_makes_one_recording(
    tmp_path: Path, operation: str, part: str, restart: bool
) -> None:
    error = StoreFullError("ENOSPC") if restart else StoreIoError("EIO")
    world = World(root=tmp_path)
    async with node(world) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY)
        process.files.refuse(operation, part, error=error)
        with pytest.raises((StoreIoError, StoreFullError)):
            await process.recorder.finish(reception, None)
        await process.recorder.let_go(reception)
        assert process.sealed == []
        assert not [path for path in process.files.handles.values() if path.endswith(".open")]
        if not restart:
            answer = await process.upload(source(), BODY)
            await only(process)
    if restart:
        async with node(world) as process:
            answer = await process.upload(source(), BODY)
            await only(process)
    assert (answer.generation, answer.recording_id) == (1, str(reception.recording_id))
    assert {status for status, _ in statuses(world)} == {"INITIATED", "COMPLETED"}


async def test_what_a_failed_sync_left_is_rewritten_before_it_is_trusted(tmp_path: Path) -> None:
    """F7: the same inode is never synced again."""
    async with node(World(root=tmp_path)) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY[:1000])
        await reception.writer.sync()
        inode = Path(reception.writer.path).stat().st_ino
        await process.send(reception, BODY[1000:2000])
        process.files.refuse("sync", ".open")
        await process.recorder.let_go(reception)
        offset = await process.recorder.offset(process.a, Kind.VOICE, "call-1")
        assert offset == 2000
        assert Path(reception.writer.path).stat().st_ino != inode
        alive = await process.recorder.resume(process.a, source(), 2000)
        await process.send(alive, BODY[2000:])
        await process.recorder.finish(alive, None)
        await only(process)


async def test_a_crash_between_manifest_and_rename_is_finished_on_reopening(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, BODY)
        process.files.refuse("rename", ".sealed")
        with pytest.raises(StoreIoError):
            await process.recorder.finish(reception, None)
    assert len(world.paths(".open")) == 1
    async with node(world) as process:
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") is None
        await only(process)
        assert [str(name.artifact_id) for name in process.sealed] == [str(reception.recording_id)]
