"""Group commit: many artifacts share the syncs of one trip to the disk.

What a commit asks for happens in this order, each step durable before the next:

1. write small files (receipts) aside;
2. sync artifact files, the directories of new ones, volumes of buckets on this machine, and the files of step 1;
3. append lines to the logs (audit, status events) and sync those;
4. rename, and sync each directory whose names changed;
5. unlink what the renames made superfluous (not synced: the scan at start does it again; what the disk refuses to
   remove is tried again with later commits).

A commit is acknowledged only when all of it holds, but for the last step; a failing one takes no other with it, but
for what they share.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog

from pipeline.audit.appender import ChainedLogs, LeastSize, at_least_nothing
from pipeline.errors import PipelineError, StoppingError, StoreIoError
from pipeline.interim.logs import AppendLogs, LogLine, Rotation
from pipeline.ports import FileSystem

log = structlog.get_logger()

_T = TypeVar("_T")

_WORTH_A_FLUSH = 8
"""Commits in a group from which on one sync of the volume costs less than it saves."""
_SLOW_FLUSH_S = 0.25
_NO_FLUSH_S = 60.0
_LARGEST_GROUP = 256
"""Commits in one group. More would only make the first of them wait longer."""


class Commit(msgspec.Struct, frozen=True, kw_only=True):
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
class Pending:
    """A commit that was handed in."""

    commit: Commit
    done: anyio.Event = field(default_factory=anyio.Event)
    error: PipelineError | None = None

    async def wait(self) -> None:
        """Wait until it is durable. Not cancellable: its handles are in use until then. Raises as `commit` does."""
        with anyio.CancelScope(shield=True):
            await self.done.wait()
        if self.error is not None:
            raise self.error


class GroupCommit:
    """Collects commits while one group is on the disk; the next group takes all that came meanwhile."""

    def __init__(
        self,
        files: FileSystem,
        *,
        volume: str | None = None,
        rotation: Rotation | None = None,
        least: LeastSize = at_least_nothing,
    ) -> None:
        """`volume` is a path on the volume that the commits are for: see `_flush`, which needs it."""
        self._files = files
        self._volume = volume
        self._no_flush_until = 0.0
        self._logs = AppendLogs(files, rotation, least=least, tell=_tell)
        self._queue: list[Pending] = []
        self._in_hand: list[Pending] = []
        self._undone: list[tuple[str, str]] = []
        """Renames that the disk would not undo yet: their files are not where they should be."""
        self._left: dict[str, None] = {}
        """What is superfluous, and the disk would not remove yet; oldest first."""
        self._wake = anyio.Event()
        self._limiter = anyio.CapacityLimiter(1)
        self._stopping = False
        self._ended = False

    async def commit(self, commit: Commit) -> None:
        """Wait until `commit` is durable. Not cancellable: its handles are in use until then.

        Raises:
            StoreFullError, StoreIoError: a step failed; nothing of what follows it in the list above was done, and
                `renames` were undone. A handle that was not synced must not be synced again.
            StoppingError: the service ends; it may or may not be durable.

        """
        await self.submit(commit).wait()

    def submit(self, commit: Commit) -> Pending:
        """Hand a commit in without waiting for it. Its handles must stay open until it is done."""
        pending = Pending(commit)
        if self._ended:
            pending.error = _ended()
            pending.done.set()
        else:
            self._queue.append(pending)
            self._wake.set()
        return pending

    @property
    def is_behind(self) -> bool:
        """A file is not where it should be: the next commit, even an empty one, tries to put it there."""
        return bool(self._undone)

    @property
    def audit(self) -> ChainedLogs:
        """The audit logs: how they are."""
        return self._logs.audit

    async def run(self) -> None:
        """Serve commits until `stop`, and then those that were handed in before it."""
        try:
            while self._queue or not self._stopping:
                if not self._queue:
                    await self._wake.wait()
                self._wake = anyio.Event()
                group, self._queue = self._queue[:_LARGEST_GROUP], self._queue[_LARGEST_GROUP:]
                if not group:
                    continue
                self._in_hand = group
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._carry_out, group, limiter=self._limiter)
                for pending in group:
                    pending.done.set()
        finally:
            # Whoever waits can't be cancelled, so nobody may be left waiting.
            self._ended = True
            for pending in self._in_hand + self._queue:
                if not pending.done.is_set():
                    pending.error = pending.error or _ended()
                    pending.done.set()
            self._logs.close()

    def stop(self) -> None:
        """Let `run` return once the queue is empty."""
        self._stopping = True
        self._wake.set()

    # --- in the thread

    def _carry_out(self, group: list[Pending]) -> None:
        self._undo_renames()
        aside: dict[int, list[Pending]] = {}
        for pending in group:
            self._attempt([pending], partial(self._write_aside, pending, aside))
        self._flush(group)
        # A handle that several commits share is synced once: after a failed sync a second one would succeed and lie.
        self._shared(group, lambda commit: commit.handles, self._files.sync)
        self._shared(group, lambda commit: commit.directories, self._files.sync_directory)
        self._shared(group, lambda commit: commit.volumes, self._files.sync_volume)
        for handle, concerned in aside.items():
            self._attempt(concerned, partial(self._files.sync, handle))
            self._files.close(handle)
        self._append_lines(_alive(group))
        for pending in _alive(group):
            self._attempt([pending], partial(self._rename, pending.commit))
        renamed = _alive(group)
        self._flush(renamed)
        self._shared(group, _changed_directories, self._files.sync_directory)
        for pending in renamed:
            if pending.error is not None:
                self._undone += reversed(pending.commit.renames)
        self._undo_renames()
        self._unlink([path for pending in _alive(group) for path in pending.commit.unlinks])

    def _attempt(self, concerned: Iterable[Pending], step: Callable[[], None]) -> None:
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
        self, group: list[Pending], wanted: Callable[[Commit], Iterable[_T]], step: Callable[[_T], None]
    ) -> None:
        """Do a step once for everything that somebody wants it for."""
        wanting: dict[_T, list[Pending]] = defaultdict(list)
        for pending in _alive(group):
            for each in wanted(pending.commit):
                wanting[each].append(pending)
        for each, concerned in wanting.items():
            self._attempt(concerned, partial(step, each))

    def _append_lines(self, group: list[Pending]) -> None:
        by_log: dict[str, list[Pending]] = defaultdict(list)
        lines: dict[str, list[bytes]] = defaultdict(list)
        hours: dict[str, str | None] = {}
        for pending in group:
            for line in pending.commit.lines:
                by_log[line.path].append(pending)
                lines[line.path].append(line.line)
                hours[line.path] = line.hour
        for path, concerned in by_log.items():
            self._attempt(concerned, partial(self._logs.append, path, lines[path], hours[path]))

    def _flush(self, group: list[Pending]) -> None:
        """Bring all of a large group on its way at once; the syncs that follow, which alone count, then wait little.

        32 artifacts: 13 ms instead of 33. Not on a volume where others' writes make it slow.
        """
        started = time.monotonic()
        if self._volume is None or len(group) < _WORTH_A_FLUSH or started < self._no_flush_until:
            return
        with contextlib.suppress(PipelineError):
            self._files.sync_volume(self._volume)
        if time.monotonic() - started > _SLOW_FLUSH_S:
            self._no_flush_until = time.monotonic() + _NO_FLUSH_S

    def _write_aside(self, pending: Pending, opened: dict[int, list[Pending]]) -> None:
        for path, content in pending.commit.files:
            aside = path + ".tmp"
            self._files.unlink(aside)
            handle = self._files.create(aside)
            opened[handle] = [pending]
            self._files.append(handle, [content])

    def _rename(self, commit: Commit) -> None:
        for path, _ in commit.files:
            self._left.pop(path, None)  # a new one now
            self._files.rename(path + ".tmp", path)
        for source, target in commit.renames:
            self._files.rename(source, target)

    def _undo_renames(self) -> None:
        """Give names back that could not be made durable: whoever asked goes on under the old ones."""
        while self._undone:
            source, target = self._undone[0]
            try:
                self._files.rename(target, source)
            except FileNotFoundError:
                pass
            except PipelineError:
                return
            del self._undone[0]

    def _unlink(self, paths: list[str]) -> None:
        """Remove what is superfluous, and one of those that the disk would not remove before. None fails its commit."""
        for path in (*list(self._left)[:1], *paths):
            self._left.pop(path, None)
            try:
                self._files.unlink(path)
            except PipelineError:
                self._left[path] = None


def _tell(event: str, name: str, detail: str) -> None:
    """Log what happened to an audit log. All but its resuming is an alarm."""
    (log.info if event == "audit.resumed" else log.error)(event, log=name, detail=detail)


def _ended() -> StoppingError:
    return StoppingError("the service is stopping; what was not confirmed is not durable")


def _alive(group: list[Pending]) -> list[Pending]:
    return [pending for pending in group if pending.error is None]


def _changed_directories(commit: Commit) -> set[str]:
    changed = {path.rpartition("/")[0] for path, _ in commit.files}
    for source, target in commit.renames:
        changed |= {source.rpartition("/")[0], target.rpartition("/")[0]}
    return changed
