"""Append-only line logs beside the artifacts: status events, audit records, folded receipts.

A line counts once its log was synced. What a power cut left of others was by definition never acknowledged: a last
line without its line feed is cut when the log is opened again, and a line with a hole in it (zeros, where blocks were
written out of order, or not at all) is no line for whoever reads. Used by one thread at a time.

Logs of one folder may go on in new files: `<log>.jsonl` is the one that is written, `<log>.<number>.jsonl` are earlier
ones, numbered from 1. The newest of those is never removed: its number tells the next.
"""

import contextlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import msgspec

from pipeline.audit.appender import ChainedLogs, LeastSize, Tell, at_least_nothing, say_nothing
from pipeline.errors import PipelineError
from pipeline.ports import FileSystem

_OPEN_LOGS = 128
"""Handles kept open: an instance has two logs, and few instances write at once."""
_TAIL = 64 * 1024
_SUFFIX = ".jsonl"
_EARLIER = re.compile(r"(?P<log>.+)\.(?P<number>[0-9]{8})")


class LogLine(msgspec.Struct, frozen=True):
    """One line, without its line feed, for the log at `path`."""

    path: str
    line: bytes
    hour: str | None = None
    """Of an audit record: then `path` is its log's folder, and the line gets its place in the chain."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """Which logs go on in new files, and when: those of one folder that are this long."""

    directory: str
    size_bytes: int


def numbered(log: str, number: int) -> str:
    """Name an earlier file of a log."""
    return f"{log}.{number:08}{_SUFFIX}"


def written(log: str) -> str:
    """Name the file of a log that is being written."""
    return f"{log}{_SUFFIX}"


def logs_in(names: Iterable[str]) -> dict[str, list[int]]:
    """Give the logs of a folder, and the numbers of each one's earlier files in order."""
    found: dict[str, list[int]] = {}
    for stem in sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)):
        match = _EARLIER.fullmatch(stem)
        numbers = found.setdefault(match["log"] if match else stem, [])
        if match:
            numbers.append(int(match["number"]))
    return found


class AppendLogs:
    """Keeps the logs open that were written last."""

    def __init__(
        self,
        files: FileSystem,
        rotation: Rotation | None = None,
        *,
        least: LeastSize = at_least_nothing,
        tell: Tell = say_nothing,
    ) -> None:
        self._files = files
        self._rotation = rotation
        self._open: OrderedDict[str, int] = OrderedDict()
        self._chained = ChainedLogs(files, least, tell)
        self._amends: dict[str, Callable[[], None]] = {}
        """What failed and has to be undone before a log goes on: it can be read, and may not be on the disk."""

    def append(self, path: str, lines: list[bytes], hour: str | None = None) -> None:
        """Write lines and sync them. All or nothing, also after a crash: see the torn line above, and `audit`."""
        if hour is not None:
            self._chained.append(path, lines, hour)
            return
        handle = self._handle(path)
        end = self._files.size(handle)
        if self._is_long(path, end):
            self._go_on_in_new_file(path)
            handle, end = self._handle(path), 0
        try:
            self._files.append(handle, [b"\n".join(lines) + b"\n"])
            self._files.sync(handle)
        except PipelineError:
            # After a failed sync the page cache may lie: this handle is never used again, and the lines are cut off,
            # so that the next ones are not written behind a hole.
            self._files.close(self._open.pop(path))
            self._amends[path] = partial(self._cut, path, end)
            with contextlib.suppress(PipelineError):
                self._amend(path)
            raise

    @property
    def audit(self) -> ChainedLogs:
        """The audit logs among them."""
        return self._chained

    def close(self) -> None:
        """Let all handles go."""
        self._chained.close()
        while self._open:
            self._files.close(self._open.popitem()[1])

    def _is_long(self, path: str, size_bytes: int) -> bool:
        known = self._rotation
        return known is not None and size_bytes >= known.size_bytes and path.rpartition("/")[0] == known.directory

    def _go_on_in_new_file(self, path: str) -> None:
        """Give a log's file a number. Durable before the new file is made: its name must not come first."""
        directory, _, name = path.rpartition("/")
        log = name.removesuffix(_SUFFIX)
        number = max(logs_in(self._files.names(directory)).get(log, ()), default=0) + 1
        self._files.close(self._open.pop(path))
        earlier = f"{directory}/{numbered(log, number)}"
        self._amends[path] = partial(self._files.rename, earlier, path)
        self._files.rename(path, earlier)
        self._files.sync_directory(directory)
        del self._amends[path]

    def _handle(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        handle = self._opened(path)
        self._open[path] = handle
        if len(self._open) > _OPEN_LOGS:
            self._files.close(self._open.popitem(last=False)[1])
        return handle

    def _opened(self, path: str) -> int:
        directory = path.rpartition("/")[0]
        self._amend(path)
        try:
            handle = self._files.open(path, write=True)
        except FileNotFoundError:
            self._files.make_directory(directory)
            self._amends[path] = partial(self._files.unlink, path)
            handle = self._files.create(path)
        try:
            whole = whole_size(self._files, handle)
            if whole < self._files.size(handle):
                self._files.truncate(handle, whole)
            # Also of a log that was there: the process that made it may have died before it did this.
            self._files.sync_directory(directory)
        except BaseException:
            self._files.close(handle)
            raise
        self._amends.pop(path, None)
        return handle

    def _amend(self, path: str) -> None:
        if path in self._amends:
            with contextlib.suppress(FileNotFoundError):  # it was not done
                self._amends[path]()
            del self._amends[path]

    def _cut(self, path: str, size_bytes: int) -> None:
        handle = self._files.open(path, write=True)
        try:
            self._files.truncate(handle, min(size_bytes, self._files.size(handle)))
        finally:
            self._files.close(handle)


def whole_lines(log: bytes) -> list[bytes]:
    """Give the lines of a log, or of a piece that begins with a line; none that has a hole in it."""
    return [line for line in log.split(b"\n")[:-1] if not has_hole(line)]


def has_hole(line: bytes) -> bool:
    """Tell what a power cut left from a line: JSON has no zero byte."""
    return b"\0" in line


def whole_size(files: FileSystem, handle: int) -> int:
    """Length of the log up to its last line feed."""
    end = files.size(handle)
    while end > 0:
        start = max(0, end - _TAIL)
        at = files.read(handle, start, end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
