"""Group commit: many artifacts share the syncs of one trip to the disk.

What a commit asks for happens in this order, each step durable before the next:

1. sync artifact files and the directories of new ones, and volumes of buckets on this machine;
2. write small files aside (receipts) and sync them;
3. append lines to the logs (audit, status events) and sync those;
4. rename, and sync each directory whose names changed;
5. unlink what the renames made superfluous (not synced: the scan at start does it again).

A commit is acknowledged only when all of it holds; a failing one takes no other with it, but for what they share.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.to_thread

from pipeline.errors import PipelineError, StoreIoError
from pipeline.interim.logs import AppendLogs, LogLine
from pipeline.ports import FileSystem

_LARGEST_GROUP = 256
"""Commits in one group. More would only make the first of them wait longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What has to be durable together. Paths are full paths; `files` are (path, content), written aside first."""

    handles: tuple[int, ...] = ()
    directories: tuple[str, ...] = ()
    """Those that got a new name before this commit."""
    volumes: tuple[str, ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()
    lines: tuple[LogLine, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    unlinks: tuple[str, ...] = ()


@dataclass(slots=True)
class _Pending:
    commit: Commit
    done: anyio.Event = field(default_factory=anyio.Event)
    error: PipelineError | None = None


class GroupCommit:
    """Collects commits while one group is on the disk; the next group takes all that came meanwhile."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._logs = AppendLogs(files)
        self._queue: list[_Pending] = []
        self._wake = anyio.Event()
        self._limiter = anyio.CapacityLimiter(1)
        self._stopping = False

    async def commit(self, commit: Commit) -> None:
        """Wait until `commit` is durable. Not cancellable: its handles are in use until then.

        Raises:
            StoreFullError, StoreIoError: a step failed; nothing of what follows it in the list above was done.

        """
        pending = _Pending(commit)
        self._queue.append(pending)
        self._wake.set()
        with anyio.CancelScope(shield=True):
            await pending.done.wait()
        if pending.error is not None:
            raise pending.error

    async def run(self) -> None:
        """Serve commits until `stop`, and then those that were handed in before it."""
        try:
            while self._queue or not self._stopping:
                if not self._queue:
                    await self._wake.wait()
                self._wake = anyio.Event()
                group, self._queue = self._queue[:_LARGEST_GROUP], self._queue[_LARGEST_GROUP:]
                if group:
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(self._carry_out, group, limiter=self._limiter)
                    for pending in group:
                        pending.done.set()
        finally:
            self._logs.close()

    def stop(self) -> None:
        """Let `run` return once the queue is empty."""
        self._stopping = True
        self._wake.set()

    # --- in the thread

    def _carry_out(self, group: list[_Pending]) -> None:
        for pending in group:
            self._attempt([pending], partial(self._sync_files, pending.commit))
        self._shared(group, lambda commit: commit.directories, self._files.sync_directory)
        self._shared(group, lambda commit: commit.volumes, self._files.sync_volume)
        for pending in _alive(group):
            self._attempt([pending], partial(self._write_aside, pending.commit))
        self._append_lines(_alive(group))
        for pending in _alive(group):
            self._attempt([pending], partial(self._rename, pending.commit))
        self._shared(group, _changed_directories, self._files.sync_directory)
        for pending in _alive(group):
            self._attempt([pending], partial(self._unlink, pending.commit))

    def _attempt(self, concerned: Iterable[_Pending], step: Callable[[], None]) -> None:
        try:
            step()
        except PipelineError as error:
            for pending in concerned:
                pending.error = error
        except FileNotFoundError as error:
            for pending in concerned:
                pending.error = StoreIoError("a file of the store has gone from under it")
                pending.error.__cause__ = error

    def _shared(
        self, group: list[_Pending], wanted: Callable[[Commit], Iterable[str]], step: Callable[[str], None]
    ) -> None:
        by_path: dict[str, list[_Pending]] = defaultdict(list)
        for pending in _alive(group):
            for path in wanted(pending.commit):
                by_path[path].append(pending)
        for path, concerned in by_path.items():
            self._attempt(concerned, partial(step, path))

    def _append_lines(self, group: list[_Pending]) -> None:
        by_log: dict[str, list[_Pending]] = defaultdict(list)
        lines: dict[str, list[bytes]] = defaultdict(list)
        for pending in group:
            for line in pending.commit.lines:
                by_log[line.path].append(pending)
                lines[line.path].append(line.line)
        for path, concerned in by_log.items():
            self._attempt(concerned, partial(self._logs.append, path, lines[path]))

    def _sync_files(self, commit: Commit) -> None:
        for handle in commit.handles:
            self._files.sync(handle)

    def _write_aside(self, commit: Commit) -> None:
        for path, content in commit.files:
            aside = path + ".tmp"
            self._files.unlink(aside)
            handle = self._files.create(aside)
            try:
                self._files.append(handle, [content])
                self._files.sync(handle)
            finally:
                self._files.close(handle)

    def _rename(self, commit: Commit) -> None:
        for path, _ in commit.files:
            self._files.rename(path + ".tmp", path)
        for source, target in commit.renames:
            self._files.rename(source, target)

    def _unlink(self, commit: Commit) -> None:
        for path in commit.unlinks:
            self._files.unlink(path)


def _alive(group: list[_Pending]) -> list[_Pending]:
    return [pending for pending in group if pending.error is None]


def _changed_directories(commit: Commit) -> set[str]:
    changed = {path.rpartition("/")[0] for path, _ in commit.files}
    for source, target in commit.renames:
        changed |= {source.rpartition("/")[0], target.rpartition("/")[0]}
    return changed
