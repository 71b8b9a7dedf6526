import threading
from datetime import timedelta
from itertools import product
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from pipeline.errors import HoldCode, KeyUnavailableError, PipelineError, StoreFullError, StoreIoError
from pipeline.intake.journal import JournalEntry
from pipeline.interim.logs import LogLine
from tests.store_fixture import MARKER, Node, World, node, settled
from tests.unit.keyring_fakes import ARN, A


def entry(number: int, recording_id: str | None = None, size: int = 0) -> JournalEntry:
    event = {"number": number, "secret": MARKER.decode() + "x" * size}
    return JournalEntry(msgspec.Raw(msgspec.json.encode(event)), recording_id)


async def replayed(process: Node) -> list[int]:
    return [msgspec.json.decode(each.entry.event)["number"] async for each in process.journal.replay(process.a)]


def files(world: World) -> list[Path]:
    return sorted((world.root / "journal").rglob("*.journal"))


async def test_events_are_durable_when_they_are_answered(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        log = LogLine(f"{tmp_path}/events/x.jsonl", b"{}")
        await process.journal.append(process.a, [entry(1), entry(2, "the id")], [log])
        [path] = files(world)
        done = [each for each in process.files.done if each[0] in {"sync", "sync_directory", "append"}]
        folder = str(path.parent)
        assert done[-5:] == [
            ("sync", str(path)),
            ("sync_directory", folder),
            ("sync_directory", f"{tmp_path}/events"),
            ("append", f"{tmp_path}/events/x.jsonl"),
            ("sync", f"{tmp_path}/events/x.jsonl"),
        ]
    assert world.holds(MARKER) == []
    async with node(world) as process:
        found = [each async for each in process.journal.replay(process.a)]
        assert [each.entry.recording_id for each in found] == [None, "the id"]
        assert await replayed(process) == [1, 2]


async def test_what_was_written_after_an_event_was_acknowledged_vouches_for_it(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        for number in range(3):
            await process.journal.append(process.a, [entry(number)], [])
        assert [each.vouched async for each in process.journal.replay(process.a)] == [True, True, False]
        [path] = files(world)
        path.write_bytes(path.read_bytes()[:-1])
        assert [each.vouched async for each in process.journal.replay(process.a)] == [True, False]


async def test_a_list_that_is_too_long_for_one_segment_is_spread(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.journal.append(process.a, [entry(number, size=400_000) for number in range(5)], [])
        assert await replayed(process) == [0, 1, 2, 3, 4]


async def test_runs_days_and_restarts_come_back_in_order(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    for number in range(3):
        async with node(world) as process:
            await process.journal.append(process.a, [entry(2 * number)], [])
            await process.journal.append(process.a, [entry(2 * number + 1)], [])
            world.clock.advance(timedelta(hours=16).total_seconds())
    async with node(world) as process:
        assert await replayed(process) == [0, 1, 2, 3, 4, 5]
        world.clock.advance(timedelta(hours=24).total_seconds())
        assert await replayed(process) == [0, 1, 2, 3, 4, 5]  # the newest are two days old: the service was away
        await process.journal.append(process.a, [entry(6)], [])
        assert await replayed(process) == [2, 3, 4, 5, 6]
        assert [each async for each in process.journal.replay(process.b)] == []
    assert len(files(world)) == 4


async def test_a_torn_tail_ends_its_file_and_nothing_else(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.journal.append(process.a, [entry(1)], [])
        await process.journal.append(process.a, [entry(2)], [])
    [path] = files(world)
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:100], whole[:50], b"", whole + b"junk", whole[:-30] + bytes(30)):
        path.write_bytes(torn)
        async with node(world) as process:
            found = await replayed(process)
            assert found == ([1, 2] if torn.startswith(whole) else [1] if len(torn) > 200 else [])


async def test_foreign_files_are_passed_over(tmp_path: Path) -> None:
    """F13."""
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.journal.append(process.a, [entry(1)], [])
        await process.journal.append(process.b, [entry(7)], [])
    mine = next(path for path in files(world) if str(A) in str(path))
    theirs = next(path for path in files(world) if str(A) not in str(path))
    folder = mine.parent
    (folder / "x.journal").write_bytes(b"junk")
    (folder / ".journal").write_bytes(b"junk")
    (folder / f"{'0' * 32}.{'z' * 32}.journal").write_bytes(b"junk")
    (folder / f"{'0' * 32}.{mine.name.split('.')[1]}.journal").mkdir()
    (folder / f"{'1' * 32}.{mine.name.split('.')[1]}.journal").symlink_to("/etc/passwd")
    (folder / f"{'2' * 32}.{'a' * 32}.journal").write_bytes(mine.read_bytes())
    (folder / f"{'3' * 32}.{mine.name.split('.')[1]}.journal").write_bytes(theirs.read_bytes())
    (folder / theirs.name).write_bytes(theirs.read_bytes())
    async with node(world) as process:
        assert await replayed(process) == [1]


async def test_a_key_that_can_not_be_had_now_is_waited_for_but_not_one_that_never_will(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.journal.append(process.a, [entry(1)], [])
    refused = KeyUnavailableError(HoldCode.KEY_DISABLED, "disabled")
    world.kms.refuses[f"{ARN} Decrypt"] = refused
    async with node(world) as process:
        with pytest.raises(KeyUnavailableError):
            await replayed(process)
    world.kms.refuses[f"{ARN} Decrypt"] = KeyUnavailableError(HoldCode.KEY_MISMATCH, "another's")
    async with node(world) as process:
        assert await replayed(process) == []


async def test_what_is_not_durable_is_not_answered_and_the_next_event_begins_a_new_file(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.a.ring.active()
        errors: list[PipelineError] = [StoreIoError("EIO"), StoreFullError("ENOSPC")]
        operations = ("sync", "append", "create", "sync_directory")
        for number, (operation, error) in enumerate(product(operations, errors)):
            process.files.refuse(operation, "/journal/", error=error)
            with pytest.raises(type(error)):
                await process.journal.append(process.a, [entry(100 + number)], [])
            assert not [path for path in process.files.handles.values() if path.endswith(".journal")]
            await process.journal.append(process.a, [entry(number)], [])
            assert number in await replayed(process)
            process.journal.close()


async def test_events_in_a_file_whose_sync_failed_before_theirs_fail_too(tmp_path: Path) -> None:
    """The next sync of the same file succeeds, and lies; and its descriptor must not be another's by then."""
    async with node(World(root=tmp_path)) as process:
        await process.journal.append(process.a, [entry(0)], [])
        outcomes: dict[int, str] = {}
        syncing, go_on = threading.Event(), threading.Event()

        def refuse_the_first(_number: int, operation: str, path: str) -> None:
            if operation == "sync" and path.endswith(".journal") and not syncing.is_set():
                syncing.set()
                go_on.wait(5)
                raise StoreIoError("EIO")

        async def append(number: int) -> None:
            try:
                await process.journal.append(process.a, [entry(number)], [])
            except StoreIoError:
                outcomes[number] = "refused"
            else:
                outcomes[number] = "durable"

        process.files.before = refuse_the_first
        async with anyio.create_task_group() as group:
            group.start_soon(append, 1)
            await anyio.to_thread.run_sync(syncing.wait, 5)
            for number in (2, 3):
                group.start_soon(append, number)
            await settled()
            go_on.set()
        assert outcomes == {1: "refused", 2: "refused", 3: "refused"}
        syncs = [path for operation, path in process.files.done if operation == "sync" and path.endswith(".journal")]
        assert len(set(syncs)) == 1
        assert syncs.count(syncs[0]) == 2  # the first of all, and the one that lied
        await process.journal.append(process.a, [entry(9)], [])
        assert 9 in await replayed(process)
        assert len([path for path in process.files.handles.values() if path.endswith(".journal")]) == 1


async def test_a_file_in_use_is_not_closed_at_midnight(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(process.journal.append, process.a, [entry(number)], [])
                await settled()
                world.clock.advance(timedelta(hours=24).total_seconds())
        opened = [path for path in process.files.handles.values() if path.endswith(".journal")]
        assert len(opened) == 1
    assert len(files(world)) >= 2


async def test_old_files_leave_and_foreign_ones_stay(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.journal.append(process.a, [entry(1)], [])
        folder = files(world)[0].parent
        (folder / "notes").write_bytes(b"kept")
        (folder.parent / "0-not-a-day").write_bytes(b"kept")
        (folder.parent / "2020").mkdir()
        (folder.parent / "2020" / "x.journal").write_bytes(b"kept")
        first = world.clock.now().date()
        assert process.journal.sweep(A, first) == 0
        world.clock.advance(timedelta(days=8).total_seconds())
        await process.journal.append(process.a, [entry(2)], [])
        assert process.journal.sweep(A, first + timedelta(days=1)) == 1
        assert process.journal.sweep(A, first + timedelta(days=1)) == 0
        assert len(files(world)) == 2
        assert (folder / "notes").exists()
        assert (folder.parent / "0-not-a-day").exists()
