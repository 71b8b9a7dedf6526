"""Writes audit logs, each one total order shared by the service and by commands. Used by one thread at a time.

Who appends holds the log's lock (flock), and reads on first if others have appended. A line counts once it was synced:
what a power cut leaves behind the last good line, torn or with holes, was never acknowledged. It is cut, kept aside,
and the next record says so. What no power cut explains is not mended: the log refuses until a person has looked.
"""

import contextlib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.audit.chain import NO_HASH, FileName, file_names, leaf_hash, link_of, linked
from pipeline.audit.records import about_log
from pipeline.errors import AuditBrokenError, PipelineError, StoreIoError
from pipeline.ports import FileSystem

_OPEN_LOGS = 128
"""Logs kept open, each with two handles."""
_LONGEST_BYTES = 16 * 2**20
"""A file that is longer is followed by a new one, also within its hour."""
_PIECE = 2**20
LOCK = "lock"
"""Locked by whoever appends; one byte longer with each file that is begun."""
_CUT = re.compile(r"(?P<index>[0-9]{12})\.(?P<sha256>[0-9a-f]{64})\.cut")
_EARLIER = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\..+\.jsonl")
"""Files from before logs were chained."""

LeastSize = Callable[[str], int]
"""Tell how many records a log must have, by what is known of it apart from the store; by its folder's name."""


Tell = Callable[[str, str, str], None]
"""Say what happened to a log: an event, the log's name, and words for a person."""


def say_nothing(_event: str, _log: str, _detail: str) -> None:
    """Say nothing: what a command can't do ends it."""


def at_least_nothing(_log: str) -> int:
    """Know nothing."""
    return 0


@dataclass(slots=True)
class _Log:
    """A log as this process left it."""

    lock: int
    begun: int
    """Length of the lock file."""
    handle: int
    file: FileName
    size_bytes: int
    count: int
    last: str
    """Hex hash of the last line."""
    notes: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    """Records about the log itself that go before the next one."""


@dataclass(frozen=True, slots=True)
class _Scan:
    """How far the lines of a file follow each other."""

    end: int
    count: int
    last: str
    cut: bytes = b""
    """What a power cut left behind `end`."""


class ChainedLogs:
    """Keeps the logs open that were written last."""

    def __init__(self, files: FileSystem, least: LeastSize = at_least_nothing, tell: Tell = say_nothing) -> None:
        self.troubles: dict[str, str] = {}
        """Why nothing can be written to a log now, by its folder's name."""
        self._files = files
        self._least = least
        self._tell = tell
        self._open: OrderedDict[str, _Log] = OrderedDict()
        self._written: dict[str, int] = {}
        """How many records each log had when this process last wrote to it."""
        self._amends: dict[str, tuple[str, int, int]] = {}
        """By log: a file, how long it should be, and how long it is with what could not be synced. See `_amend`."""

    def append(self, directory: str, records: list[bytes], hour: str) -> None:
        """Write records and sync them. All or nothing, also after a crash.

        Raises:
            AuditBrokenError: the log is not what was written to it.
            StoreFullError, StoreIoError, StoreBusyError: it can't be written now.

        """
        name = directory.rpartition("/")[2]
        try:
            self._append(directory, records, hour)
        except FileNotFoundError as error:
            self._trouble(name, "its folder has gone from under it")
            raise StoreIoError("an audit log has gone from under it") from error
        except PipelineError as error:
            self._trouble(name, str(error))
            raise
        if self.troubles.pop(name, None):
            self._tell("audit.resumed", name, "it is written to again")

    def stands(self, directory: str) -> bool:
        """Tell whether the last that is known of a log is good. Asks no more of the disk than a name."""
        if directory.rpartition("/")[2] in self.troubles:
            return False
        known = self._open.get(directory)
        return known is None or self._files.is_at(known.handle, f"{directory}/{known.file}")

    def close_file(self, directory: str, hour: str) -> None:
        """Begin a new file, unless the last one is of this hour, or empty: what is in it stays as it is from now on.

        Raises as `append` does.
        """
        with self._locked(directory, hour) as known:
            if known.size_bytes and known.file.hour != hour:
                self._go_on_in_new_file(directory, known, hour)

    def close(self) -> None:
        """Let all handles go."""
        for directory in list(self._open):
            self._let_go(directory)

    # --- inside

    def _append(self, directory: str, records: list[bytes], hour: str) -> None:
        with self._locked(directory, hour) as known:
            notes = [about_log(event, details, like=records[0]) for event, details in known.notes]
            if known.size_bytes and (known.file.hour != hour or known.size_bytes >= _LONGEST_BYTES):
                self._go_on_in_new_file(directory, known, hour)
            count, last, lines = known.count, known.last, []
            for record in (*notes, *records):
                line = linked(record, count, last)
                lines.append(line)
                count, last = count + 1, leaf_hash(line).hex()
            self._write(directory, known, b"\n".join(lines) + b"\n")
            known.count, known.last = count, last
            known.notes.clear()
            self._written[directory] = count
            if not self._files.is_at(known.handle, f"{directory}/{known.file}"):
                raise FileNotFoundError(directory)

    @contextmanager
    def _locked(self, directory: str, hour: str) -> Iterator[_Log]:
        """Hold a log's lock, and know all that is in it. Whatever goes wrong lets the log go: it is read again."""
        known = self._open.get(directory)
        try:
            if known is not None:
                self._files.lock(known.lock)
                known = self._read_on(directory, known)
            if known is None:
                known = self._opened(directory, hour)
            self._open.move_to_end(directory)
            yield known
        except BaseException:
            self._let_go(directory)
            raise
        self._files.unlock(known.lock)
        if len(self._open) > _OPEN_LOGS:
            self._let_go(next(iter(self._open)))

    def _read_on(self, directory: str, known: _Log) -> _Log | None:
        """Read what others appended. None if more has happened than that: the log is to be opened anew."""
        is_there = self._files.is_at(known.handle, f"{directory}/{known.file}")
        size_bytes = self._files.size(known.handle)
        if is_there and known.begun == self._files.size(known.lock) and size_bytes >= known.size_bytes:
            if size_bytes == known.size_bytes:
                return known
            scan = _scan(self._files, known.handle, known.size_bytes, known.count, known.last)
            if scan is not None and not scan.cut:
                known.size_bytes, known.count, known.last = scan.end, scan.count, scan.last
                return known
        self._let_go(directory)
        return None

    def _opened(self, directory: str, hour: str) -> _Log:
        least = max(self._written.get(directory, 0), self._least(directory.rpartition("/")[2]))
        lock = self._opened_lock(directory, is_new=least == 0)
        handle = None
        try:
            self._files.lock(lock)
            self._amend(directory)
            handle, file, scan = self._read(directory, hour)
            _check_size(scan.count, least)
            self._cut(directory, handle, scan)
            # Also what is there already: the process that wrote it may have died before it did this.
            self._files.sync(handle)
            self._files.sync_directory(directory)
            notes = self._notes(directory, scan.count)
        except BaseException:
            for each in (lock, handle):
                if each is not None:
                    self._files.close(each)
            raise
        begun = self._files.size(lock)
        known = self._open[directory] = _Log(lock, begun, handle, file, scan.end, scan.count, scan.last, notes)
        return known

    def _opened_lock(self, directory: str, *, is_new: bool) -> int:
        path = f"{directory}/{LOCK}"
        try:
            return self._files.open(path, write=True)
        except FileNotFoundError:
            if not is_new and not file_names(self._files.names(directory)):
                raise AuditBrokenError("an audit log is gone: what was there must come back first") from None
        self._files.make_directory(directory)
        try:
            return self._files.create(path)
        except FileExistsError:  # another process was quicker
            return self._files.open(path, write=True)

    def _read(self, directory: str, hour: str) -> tuple[int, FileName, _Scan]:
        """Open the last file, or make the first, and see where its lines end."""
        names = file_names(self._files.names(directory))
        if not names:
            file = FileName(0, hour)
            return self._begun(directory, file), file, _Scan(0, 0, NO_HASH)
        file, last = names[-1], NO_HASH
        if file.first:
            last = self._last_of(directory, names)
        handle = self._files.open(f"{directory}/{file}", write=True)
        try:
            scan = _scan(self._files, handle, 0, file.first, last)
        except BaseException:
            self._files.close(handle)
            raise
        if scan is None:
            self._files.close(handle)
            raise AuditBrokenError("an audit log's lines do not follow each other: see `pipeline audit verify`")
        return handle, file, scan

    def _last_of(self, directory: str, names: list[FileName]) -> str:
        """Give the hash of the line before the last file's first. It is not checked what stands before it."""
        file = names[-1]
        if len(names) > 1:
            handle = self._files.open(f"{directory}/{names[-2]}")
            try:
                line = _last_line(self._files, handle)
            finally:
                self._files.close(handle)
            link = link_of(line)
            if link is not None and link.index == file.first - 1:
                return leaf_hash(line).hex()
        raise AuditBrokenError("an audit log lacks a file, or the end of one: see `pipeline audit verify`")

    def _cut(self, directory: str, handle: int, scan: _Scan) -> None:
        """Keep aside what a power cut left of lines, then cut it off. May be broken off, and done again."""
        if not scan.cut:
            return
        path = f"{directory}/{scan.count:012}.{hashlib.sha256(scan.cut).hexdigest()}.cut"
        self._files.unlink(path)
        aside = self._files.create(path)
        try:
            self._files.append(aside, [scan.cut])
            self._files.sync(aside)
        finally:
            self._files.close(aside)
        self._files.sync_directory(directory)
        self._files.truncate(handle, scan.end)
        self._tell("audit.tail_cut", directory.rpartition("/")[2], f"{len(scan.cut)} bytes that a crash left")

    def _notes(self, directory: str, count: int) -> list[tuple[str, dict[str, object]]]:
        """Tell what the next record, number `count`, has to say of the log itself."""
        names = sorted(self._files.names(directory))
        cut = [name for name in names if (match := _CUT.fullmatch(name)) and int(match["index"]) == count]
        notes: list[tuple[str, dict[str, object]]] = []
        earlier = [name for name in names if _EARLIER.fullmatch(name)]
        if count == 0 and earlier:
            adopted = [{"file": name, "sha256": self._digest(f"{directory}/{name}")} for name in earlier]
            notes.append(("EarlierLogsAdopted", {"files": adopted}))
        if cut:
            notes.append(("LogTailCut", {"files": cut}))
        return notes

    def _digest(self, path: str) -> str:
        digest, at = hashlib.sha256(), 0
        handle = self._files.open(path)
        try:
            while piece := self._files.read(handle, at, _PIECE):
                digest.update(piece)
                at += len(piece)
        finally:
            self._files.close(handle)
        return digest.hexdigest()

    def _go_on_in_new_file(self, directory: str, known: _Log, hour: str) -> None:
        """Begin a file. Others see by the lock's length that one was begun, even if it then could not be made."""
        self._files.append(known.lock, [b"."])
        self._files.sync(known.lock)
        file = FileName(known.count, hour)
        handle = self._begun(directory, file)
        self._files.close(known.handle)
        known.handle, known.file, known.size_bytes = handle, file, 0
        known.begun = self._files.size(known.lock)

    def _begun(self, directory: str, file: FileName) -> int:
        """Make a file, its name durable. One whose name is in doubt is removed: it could not be made durable later."""
        path = f"{directory}/{file}"
        handle = self._files.create(path)
        try:
            self._files.sync_directory(directory)
        except BaseException:
            self._files.close(handle)
            self._amends[directory] = path, 0, 0
            with contextlib.suppress(PipelineError):
                self._amend(directory)
            raise
        return handle

    def _write(self, directory: str, known: _Log, text: bytes) -> None:
        self._files.append(known.handle, [text])
        try:
            self._files.sync(known.handle)
        except PipelineError:
            # After a failed sync the page cache may lie: the lines are cut off again, by a handle that is not this one.
            path = f"{directory}/{known.file}"
            self._amends[directory] = path, known.size_bytes, known.size_bytes + len(text)
            with contextlib.suppress(PipelineError, FileNotFoundError):
                self._amend(directory)
            raise
        known.size_bytes += len(text)

    def _amend(self, directory: str) -> None:
        """Undo what could not be made durable, unless others have built on it: lines, or the name of an empty file."""
        if directory not in self._amends:
            return
        path, size_bytes, doubtful_bytes = self._amends[directory]
        with contextlib.suppress(FileNotFoundError):
            handle = self._files.open(path, write=True)
            try:
                if self._files.size(handle) == doubtful_bytes:
                    if doubtful_bytes:
                        self._files.truncate(handle, size_bytes)
                    else:
                        self._files.unlink(path)
            finally:
                self._files.close(handle)
        del self._amends[directory]

    def _let_go(self, directory: str) -> None:
        known = self._open.pop(directory, None)
        if known is not None:
            self._files.close(known.handle)
            self._files.close(known.lock)

    def _trouble(self, name: str, why: str) -> None:
        if self.troubles.get(name) != why:
            self._tell("audit.refused", name, why)
        self.troubles[name] = why


def _check_size(count: int, least: int) -> None:
    if count < least:
        raise AuditBrokenError(
            f"an audit log has {count} records, and had {least}: what is missing must come back first"
        )


def _scan(files: FileSystem, handle: int, offset: int, count: int, last: str) -> _Scan | None:
    """Follow the lines of a file from `offset`. None if they break off in a way that no power cut explains."""
    rest, at, end = b"", offset, offset
    while piece := files.read(handle, at, _PIECE):
        at += len(piece)
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        for number, line in enumerate(lines):
            link = link_of(line)
            if link is None or link.index != count or link.previous != last:
                if b"\0" not in line:
                    return None
                left = b"\n".join([*lines[number:], rest])
                return _Scan(end, count, last, left + files.read(handle, at, files.size(handle) - at))
            count, last, end = count + 1, leaf_hash(line).hex(), end + len(line) + 1
    return _Scan(end, count, last, rest)


def _last_line(files: FileSystem, handle: int) -> bytes:
    """Give the last whole line of a file; nothing if there is none."""
    end, tail = files.size(handle), b""
    while end > 0 and tail.count(b"\n") < 2:
        start = max(0, end - _PIECE)
        tail = files.read(handle, start, end - start) + tail
        end = start
    return tail.rpartition(b"\n")[0].rpartition(b"\n")[2]
