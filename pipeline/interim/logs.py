"""Append-only line logs beside the artifacts: status events, audit records, folded receipts.

A line counts once its log was synced. A torn last line (no line feed) was by definition never acknowledged and is cut
when the log is opened again. Used by one thread at a time.
"""

import contextlib
from collections import OrderedDict
from dataclasses import dataclass

from pipeline.errors import PipelineError
from pipeline.ports import FileSystem

_OPEN_LOGS = 128
"""Handles kept open: an instance has two logs, and few instances write at once."""
_TAIL = 64 * 1024


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line, without its line feed, for the log at `path`."""

    path: str
    line: bytes


class AppendLogs:
    """Keeps the logs open that were written last."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._open: OrderedDict[str, int] = OrderedDict()

    def append(self, path: str, lines: list[bytes]) -> None:
        """Write lines and sync them. All or nothing, also after a crash: see the torn line above."""
        handle = self._handle(path)
        end = self._files.size(handle)
        try:
            self._files.append(handle, [b"\n".join(lines) + b"\n"])
            self._files.sync(handle)
        except PipelineError:
            # After a failed sync the page cache may lie: this handle is never used again, and the lines are cut off,
            # so that the next ones are not written behind a hole.
            with contextlib.suppress(PipelineError):
                self._files.truncate(handle, end)
            self._files.close(self._open.pop(path))
            raise

    def close(self) -> None:
        """Let all handles go."""
        while self._open:
            self._files.close(self._open.popitem()[1])

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
        try:
            handle = self._files.open(path, write=True)
        except FileNotFoundError:
            self._files.make_directory(directory)
            handle = self._files.create(path)
        try:
            whole = _whole_lines(self._files, handle)
            if whole < self._files.size(handle):
                self._files.truncate(handle, whole)
            # Also of a log that was there: the process that made it may have died before it did this.
            self._files.sync_directory(directory)
        except BaseException:
            self._files.close(handle)
            raise
        return handle


def _whole_lines(files: FileSystem, handle: int) -> int:
    """Length of the log up to its last line feed."""
    end = files.size(handle)
    while end > 0:
        start = max(0, end - _TAIL)
        at = files.read(handle, start, end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
