"""Copy files that others write to meanwhile: each as far as it is whole, whatever it is called by then.

Nothing is opened that is sealed. What the disk does not give back is named and left out; the rest is copied.
Synchronous.
"""

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Frame
from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.interim.logs import whole_size, written
from pipeline.ports import FileSystem

_PIECE = 2**20
_UNFINISHED = ".tmp"
_EARLIER = re.compile(r"(.+)\.[0-9]{8}\.jsonl")
_GROWING = (".open", ".journal")
"""Endings of files in the artifact layout that are still written to."""


@dataclass(frozen=True, slots=True)
class Copied:
    """One file of a backup, by its path in it."""

    path: str
    size_bytes: int
    sha256: str


class Copies:
    """What was copied so far into the folder `target`."""

    def __init__(self, files: FileSystem, target: str, moved: Callable[[int], None] = lambda _bytes: None) -> None:
        """Begin with nothing; `moved` is told the bytes copied so far."""
        self.files = files
        self.copied: dict[str, Copied] = {}
        self.unread: list[str] = []
        """What the disk does not give back, or is neither file nor folder."""
        self._target = target
        self._moved = moved
        self._bytes = 0

    def file(self, source: str, path: str) -> bool:
        """Copy one file; False if it is gone. One of that path that was copied before is replaced."""
        try:
            handle = self.files.open(source)
        except FileNotFoundError:
            return False
        except StoreIoError:
            self.unread.append(path)
            return True
        try:
            self._write(handle, path, _whole(self.files, handle, path))
        finally:
            self.files.close(handle)
        return True

    def folder(self, source: str, path: str, without: Collection[str] = ()) -> None:
        """Copy a folder and all in it, but for some names at its top.

        Folders in it come first: what lies there (checkpoints) speaks of the logs beside them, which only grow. Files
        that are made meanwhile don't count, but those that a log was moved to.
        """
        for name in sorted(set(self.files.sorted_out(source)[1]) - set(without)):
            try:
                self.folder(f"{source}/{name}", f"{path}/{name}")
            except StoreIoError:  # a link, or a pipe
                self.unread.append(f"{path}/{name}")
        seen = {name for name in self.files.sorted_out(source)[0] if not name.endswith(_UNFINISHED)} - set(without)
        for name in sorted(seen, key=_order):
            self.file(f"{source}/{name}", f"{path}/{name}")
        while moved := {name for name in self.files.sorted_out(source)[0] if _EARLIER.fullmatch(name)} - seen:
            for name in sorted(moved | {written(match[1]) for each in moved if (match := _EARLIER.fullmatch(each))}):
                self.file(f"{source}/{name}", f"{path}/{name}")
            seen |= moved

    def drop(self, path: str) -> None:
        """Take back what was copied."""
        del self.copied[path]
        self.files.unlink(f"{self._target}/{path}")

    def _write(self, handle: int, path: str, end: int) -> None:
        target = f"{self._target}/{path}"
        self.files.make_directory(target.rpartition("/")[0])
        self.files.unlink(target)
        digest, at = hashlib.sha256(), 0
        copy = self.files.create(target)
        try:
            while at < end and (piece := self.files.read(handle, at, min(_PIECE, end - at))):
                self.files.append(copy, [piece])
                digest.update(piece)
                at += len(piece)
                self._bytes += len(piece)
                self._moved(self._bytes)
        except StoreIoError:
            self.unread.append(path)
            self.copied.pop(path, None)
            self.files.unlink(target)
            return
        finally:
            self.files.close(copy)
        self.copied[path] = Copied(path, at, digest.hexdigest())


def _order(name: str) -> tuple[bool, str]:
    """Put a cursor before its log: it must not say that more was sent than the log holds."""
    return not name.endswith(".cursor"), name


def _whole(files: FileSystem, handle: int, path: str) -> int:
    """Tell how much of a file is whole; all of one that nobody writes to."""
    if path.endswith(".jsonl"):
        return whole_size(files, handle)
    size = files.size(handle)
    if not path.endswith(_GROWING):
        return size
    at = HEADER_SIZE
    while at < size:
        try:
            frame = Frame.parse(files.read(handle, at, FRAME_PREFIX))
        except SegmentForgedError:
            # Cut off, or damaged. The latter is for recovery to judge, which has the key.
            return size if size - at >= FRAME_PREFIX else at
        end = at + FRAME_PREFIX + frame.sealed_size
        if end > size:
            return at
        at = end
    return at if at <= size else 0
