from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from pipeline.errors import PipelineError, StoppingError, StoreFullError, StoreIoError
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import LogLine
from tests.store_fixture import WatchedDisk, settled


@asynccontextmanager
async def running(files: WatchedDisk) -> AsyncIterator[GroupCommit]:
    commits = GroupCommit(files)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(commits.run)
            yield commits
            commits.stop()
    finally:
        files.close_all()


def written(files: WatchedDisk, path: Path, content: bytes = b"x") -> int:
    handle = files.create(str(path))
    files.append(handle, [content])
    return handle


async def outcome(commits: GroupCommit, commit: Commit) -> str:
    try:
        await commits.commit(commit)
    except PipelineError as error:
        return error.reason
    return "done"


async def together(commits: GroupCommit, *wanted: Commit) -> list[str]:
    """Hand all of them in at once, so that they share a group."""
    found = [""] * len(wanted)

    async def one(index: int) -> None:
        found[index] = await outcome(commits, wanted[index])

    async with anyio.create_task_group() as group:
        for index in range(len(wanted)):
            group.start_soon(one, index)
    return found


def whole(root: Path, files: WatchedDisk, name: str) -> Commit:
    handle = written(files, root / f"{name}.open")
    return Commit(
        handles=(handle,),
        directories=(str(root),),
        volumes=(str(root),),
        files=((f"{root}/{name}.done", b"receipt"),),
        lines=(LogLine(f"{root}/logs/audit.jsonl", name.encode()),),
        renames=((f"{root}/{name}.open", f"{root}/{name}.sealed"),),
        unlinks=(f"{root}/{name}.sealed",),
    )


async def test_each_step_is_durable_before_the_next(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with running(files) as commits:
        commit = whole(tmp_path, files, "a")
        files.done.clear()
        await commits.commit(commit)
    short = [(operation, Path(path).name) for operation, path in files.operations() if operation != "read"]
    root = tmp_path.name
    assert short[:-1] == [
        ("unlink", "a.done.tmp"),
        ("create", "a.done.tmp"),
        ("append", "a.done.tmp"),
        ("sync", "a.open"),
        ("sync_directory", root),
        ("sync_volume", root),
        ("sync", "a.done.tmp"),
        ("close", "a.done.tmp"),
        ("open", "audit.jsonl"),
        ("make_directory", "logs"),
        ("create", "audit.jsonl"),
        ("sync_directory", "logs"),
        ("append", "audit.jsonl"),
        ("sync", "audit.jsonl"),
        ("rename", "a.done"),
        ("rename", "a.sealed"),
        ("sync_directory", root),
        ("unlink", "a.sealed"),
        ("close", "audit.jsonl"),
    ]


async def test_a_group_shares_what_can_be_shared(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with running(files) as commits:
        wanted = [whole(tmp_path, files, name) for name in "abcdef"]
        files.done.clear()
        assert await together(commits, *wanted) == ["done"] * 6
    assert files.operations("sync_directory").count(("sync_directory", str(tmp_path))) == 2
    assert len(files.operations("sync_volume")) == 1
    assert [path for _, path in files.operations("sync") if path.endswith(".jsonl")] == [f"{tmp_path}/logs/audit.jsonl"]
    assert (tmp_path / "logs/audit.jsonl").read_bytes() == b"a\nb\nc\nd\ne\nf\n"


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("sync", "bad.open"),
        ("create", "bad.done.tmp"),
        ("append", "bad.done.tmp"),
        ("sync", "bad.done.tmp"),
        ("rename", "bad.done"),
        ("rename", "bad.sealed"),
    ],
)
@pytest.mark.parametrize("error", [StoreIoError("EIO"), StoreFullError("ENOSPC")])
async def test_a_failing_commit_takes_no_other_with_it(
    tmp_path: Path, operation: str, part: str, error: PipelineError
) -> None:
    files = WatchedDisk()
    async with running(files) as commits:
        wanted = [whole(tmp_path, files, name) for name in ("good", "bad", "fine")]
        files.refuse(operation, part, error=error)
        assert await together(commits, *wanted) == ["done", error.reason, "done"]
        assert await outcome(commits, Commit(lines=(LogLine(f"{tmp_path}/logs/audit.jsonl", b"later"),))) == "done"
    assert (tmp_path / "good.done").exists()
    assert (tmp_path / "fine.done").exists()
    assert not (tmp_path / "good.sealed").exists()


@pytest.mark.parametrize("part", ["sync", "append"])
async def test_those_that_share_a_failing_log_all_fail_and_no_other(tmp_path: Path, part: str) -> None:
    files = WatchedDisk()
    async with running(files) as commits:
        one, two = (whole(tmp_path, files, name) for name in ("one", "two"))
        apart = Commit(lines=(LogLine(f"{tmp_path}/logs/other.jsonl", b"apart"),))
        files.refuse(part, "audit.jsonl")
        assert await together(commits, one, two, apart) == ["store-io", "store-io", "done"]
    assert (tmp_path / "one.open").exists()
    assert not (tmp_path / "one.done").exists()


async def test_what_failed_early_does_nothing_of_what_follows(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with running(files) as commits:
        commit = whole(tmp_path, files, "bad")
        files.done.clear()
        files.refuse("sync", "bad.open")
        assert await outcome(commits, commit) == "store-io"
    assert not files.operations("append", "rename", "sync_directory", "sync_volume")[1:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.done.tmp", "bad.open"]


async def test_a_large_group_is_brought_on_its_way_at_once_and_still_synced_one_by_one(tmp_path: Path) -> None:
    files = WatchedDisk()
    commits = GroupCommit(files, volume=str(tmp_path))
    async with anyio.create_task_group() as group:
        group.start_soon(commits.run)
        handles = [written(files, tmp_path / f"{number}") for number in range(10)]
        files.refuse("sync_volume", times=9)
        files.refuse("sync", "/7")
        found = await together(commits, *(Commit(handles=(handle,)) for handle in handles))
        assert found == ["done"] * 7 + ["store-io"] + ["done"] * 2
        files.done.clear()
        assert await together(commits, *(Commit(handles=(handle,)) for handle in handles[:7])) == ["done"] * 7
        assert not files.operations("sync_volume")
        commits.stop()
    files.close_all()


async def test_a_file_that_has_gone_is_trouble_with_the_disk(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with running(files) as commits:
        gone = Commit(renames=((f"{tmp_path}/gone", f"{tmp_path}/other"),))
        assert await outcome(commits, gone) == "store-io"


async def test_a_handle_that_two_commits_share_is_synced_once_and_fails_for_both(tmp_path: Path) -> None:
    """A second sync after a failed one succeeds, and lies."""
    files = WatchedDisk()
    async with running(files) as commits:
        handle = written(files, tmp_path / "journal")
        files.refuse("sync", "journal")
        assert await together(commits, Commit(handles=(handle,)), Commit(handles=(handle,))) == ["store-io"] * 2
    assert len(files.operations("sync")) == 1


async def test_names_that_could_not_be_made_durable_are_given_back(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with running(files) as commits:
        handle = written(files, tmp_path / "a.open")
        commit = Commit(handles=(handle,), renames=((f"{tmp_path}/a.open", f"{tmp_path}/a.sealed"),))
        files.refuse("sync_directory")
        assert await outcome(commits, commit) == "store-io"
        assert [path.name for path in tmp_path.iterdir()] == ["a.open"]


async def test_a_failed_log_sync_is_not_repeated_on_the_same_handle_and_its_lines_are_cut(tmp_path: Path) -> None:
    for error in (StoreIoError("EIO"), StoreFullError("ENOSPC at fsync")):
        files = WatchedDisk()
        log = tmp_path / f"{error.reason}.jsonl"
        async with running(files) as commits:
            await commits.commit(Commit(lines=(LogLine(str(log), b"one"),)))
            files.refuse("sync", log.name, error=error)
            assert await outcome(commits, Commit(lines=(LogLine(str(log), b"two"),))) == error.reason
            assert log.read_bytes() == b"one\n"
            assert files.done[-1] == ("close", str(log))
            await commits.commit(Commit(lines=(LogLine(str(log), b"three"),)))
        assert log.read_bytes() == b"one\nthree\n"


async def test_a_commit_can_not_be_cancelled(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with running(files) as commits:
        commit = whole(tmp_path, files, "a")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await commits.commit(commit)
        assert (tmp_path / "a.done").exists()


async def test_stop_drains_what_was_handed_in(tmp_path: Path) -> None:
    files = WatchedDisk()
    commits = GroupCommit(files)
    log = LogLine(f"{tmp_path}/log", b"line")
    async with anyio.create_task_group() as group:
        for _ in range(600):
            group.start_soon(commits.commit, Commit(lines=(log,)))
        await settled()
        commits.stop()
        await commits.run()
    assert (tmp_path / "log").read_bytes() == b"line\n" * 600
    assert not files.handles


async def test_nobody_waits_for_ever_for_a_commit_that_comes_too_late(tmp_path: Path) -> None:
    commits = GroupCommit(WatchedDisk())
    commits.stop()
    await commits.run()
    with anyio.fail_after(1), pytest.raises(StoppingError):
        await commits.commit(Commit(lines=(LogLine(f"{tmp_path}/log", b"line"),)))


async def test_nobody_waits_for_ever_when_the_group_commit_itself_dies(tmp_path: Path) -> None:
    files = WatchedDisk()
    commits = GroupCommit(files)

    def die(_number: int, operation: str, _path: str) -> None:
        if operation == "append":
            raise MemoryError

    files.before = die
    found: list[str] = []

    async def one() -> None:
        found.append(await outcome(commits, Commit(lines=(LogLine(f"{tmp_path}/log", b"line"),))))

    with anyio.fail_after(2), pytest.RaisesGroup(MemoryError):
        async with anyio.create_task_group() as group:
            for _ in range(300):
                group.start_soon(one)
            await settled()
            group.start_soon(commits.run)
    assert found == ["stopping"] * 300
    files.close_all()


async def test_cancelling_the_group_commit_ends_the_group_that_is_on_the_disk(tmp_path: Path) -> None:
    files = WatchedDisk()
    commits = GroupCommit(files)
    async with anyio.create_task_group() as group:
        group.start_soon(commits.run)
        group.start_soon(partial(commits.commit, Commit(lines=(LogLine(f"{tmp_path}/log", b"line"),))))
        await settled()
        group.cancel_scope.cancel()
    assert (tmp_path / "log").read_bytes() == b"line\n"
