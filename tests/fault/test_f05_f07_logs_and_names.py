"""F5, F7: what a failed sync or a torn write leaves of a log, or of a name, is never built upon.

Each on a modelled disk, where what a failed sync covered is in doubt for ever: the power cut at the end tells.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from pipeline.adapters.disk import Disk
from pipeline.delivery.lanes import Backoff
from pipeline.delivery.publisher import Publisher
from pipeline.errors import StoreIoError
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import AppendLogs, LogLine, Rotation, whole_lines
from tests.inline_threads import inline_threads
from tests.model_disk import ModelDisk
from tests.model_steps import Write

LOG = "/d/log.jsonl"
EIO = StoreIoError("EIO")


def a_disk() -> ModelDisk:
    disk = ModelDisk()
    disk.make_directory("/d")
    return disk


@asynccontextmanager
async def committing(disk: ModelDisk) -> AsyncIterator[GroupCommit]:
    commits = GroupCommit(disk)
    with inline_threads():
        async with anyio.create_task_group() as group:
            group.start_soon(commits.run)
            yield commits
            commits.stop()


def test_lines_that_could_not_be_synced_nor_cut_off_are_cut_before_the_log_goes_on() -> None:
    disk = a_disk()
    logs = AppendLogs(disk)
    logs.append(LOG, [b"first"])
    disk.refuse("sync", error=EIO)
    disk.refuse("truncate", error=EIO, times=2)
    with pytest.raises(StoreIoError):
        logs.append(LOG, [b"doubtful"])
    with pytest.raises(StoreIoError):  # it can't be cut yet: rather no line than one behind a hole
        logs.append(LOG, [b"refused"])
    logs.append(LOG, [b"second"])
    assert disk.crash().tree()[LOG] == b"first\nsecond\n"


@pytest.mark.parametrize("refused", [1, 2])
def test_a_log_whose_name_could_not_be_synced_is_made_anew(refused: int) -> None:
    disk = a_disk()
    logs = AppendLogs(disk)
    disk.refuse("sync_directory", error=EIO)
    disk.refuse("unlink", error=EIO, times=refused - 1)
    for _ in range(refused):
        with pytest.raises(StoreIoError):
            logs.append(LOG, [b"refused"])
    logs.append(LOG, [b"line"])
    assert disk.crash().tree() == {LOG: b"line\n"}


@pytest.mark.parametrize("refused", [1, 2])
def test_a_log_whose_number_could_not_be_synced_does_not_go_on_without_what_it_held(refused: int) -> None:
    disk = a_disk()
    logs = AppendLogs(disk, Rotation("/d", 5))
    logs.append(LOG, [b"first"])
    disk.refuse("sync_directory", error=EIO)
    disk.refuse("rename", "/d/log.jsonl", error=EIO, times=refused - 1)
    for _ in range(refused):
        with pytest.raises(StoreIoError):
            logs.append(LOG, [b"refused"])
    logs.append(LOG, [b"second"])
    assert disk.crash().tree() == {"/d/log.00000001.jsonl": b"first\n", LOG: b"second\n"}


def test_a_line_with_a_hole_is_no_line_and_takes_no_other_with_it() -> None:
    disk = a_disk()
    logs = AppendLogs(disk)
    logs.append(LOG, [b"first"])
    disk.append(disk.open(LOG, write=True), [b"x" * 6000 + b"\n"])
    (step,) = disk.unsynced()
    assert isinstance(step, Write)
    left = disk.crash({step.number: step.fates()[-1]})  # its last page alone
    AppendLogs(left).append(LOG, [b"second"])
    log = left.tree()[LOG]
    assert len(log) > 6000
    assert whole_lines(log) == [b"first", b"second"]


async def test_what_follows_a_hole_is_published() -> None:
    disk = a_disk()
    sink = Sink()
    disk.append(disk.create(LOG), [b"first\n", bytes(300) + b"rest of a line\n", b"second\n"])
    async with committing(disk) as commits:
        publisher = Publisher("sink", sink, "/d", disk, commits, Backoff(timedelta(1), timedelta(1), lambda: 1.0))
        assert await publisher.once() == 2
        assert await publisher.once() == 0
    assert sink.taken == [b"first", b"second"]


class Sink:
    """Takes everything."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    async def send(self, events: Sequence[bytes]) -> None:
        self.taken += events


async def test_a_name_that_can_not_be_given_back_at_once_is_given_back_later() -> None:
    disk = a_disk()
    disk.close(disk.create("/d/open"))
    async with committing(disk) as commits:
        disk.refuse("sync_directory", error=EIO)
        disk.refuse("rename", "/d/open", error=EIO, times=3)
        with pytest.raises(StoreIoError):
            await commits.commit(Commit(renames=(("/d/open", "/d/sealed"),)))
        behind = [commits.is_behind]
        await commits.commit(Commit(lines=(LogLine(LOG, b"another's"),)))
        behind.append(commits.is_behind)
        await commits.commit(Commit())
        assert [*behind, commits.is_behind] == [True, True, False]
        assert sorted(disk.names("/d")) == ["log.jsonl", "open"]


async def test_what_the_disk_will_not_remove_fails_no_commit_and_is_removed_later() -> None:
    disk = a_disk()
    for name in ("one", "two", "other"):
        disk.close(disk.create(f"/d/{name}"))
    async with committing(disk) as commits:
        disk.refuse("unlink", error=EIO, times=2)
        await commits.commit(Commit(unlinks=("/d/one", "/d/two")))
        await commits.commit(Commit(unlinks=("/d/other",)))
        await commits.commit(Commit(files=(("/d/two", b"a new one"),)))
        await commits.commit(Commit())
    assert disk.tree() == {"/d/two": b"a new one"}


def test_a_directory_that_could_not_be_made_durable_is_removed(tmp_path: Path) -> None:
    class Failing(Disk):
        def sync_directory(self, path: str) -> None:
            raise StoreIoError(f"EIO {path}")

    with pytest.raises(StoreIoError):
        Failing().make_directory(f"{tmp_path}/a")
    assert list(tmp_path.iterdir()) == []
    Disk().make_directory(f"{tmp_path}/a")
    with pytest.raises(StoreIoError):
        Failing().make_directory(f"{tmp_path}/a/b/c")
    assert list((tmp_path / "a").iterdir()) == []
