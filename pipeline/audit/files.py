"""Files beside a log: read whole or in pieces, and held as locks."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.ports import FileSystem

_PIECE = 2**20


def whole(files: FileSystem, path: str, size_bytes: int | None = None) -> bytes | None:
    """Read a file, or its first bytes; None if there is none."""
    try:
        handle = files.open(path)
    except FileNotFoundError:
        return None
    try:
        end = files.size(handle) if size_bytes is None else min(size_bytes, files.size(handle))
        return files.read(handle, 0, end)
    finally:
        files.close(handle)


@contextmanager
def held(files: FileSystem, path: str) -> Iterator[None]:
    """Hold a lock file while the block runs; it is made if it is missing."""
    try:
        handle = files.open(path, write=True)
    except FileNotFoundError:
        files.make_directory(path.rpartition("/")[0])
        with contextlib.suppress(FileExistsError):
            files.close(files.create(path))
        handle = files.open(path, write=True)
    try:
        files.lock(handle)
        yield
    finally:
        files.close(handle)


def pieces(files: FileSystem, path: str, start: int, end: int | None) -> Iterator[bytes]:
    """Read a file from `start`, to its end if no other is given."""
    handle = files.open(path)
    try:
        at, last = start, files.size(handle) if end is None else end
        while at < last and (piece := files.read(handle, at, min(_PIECE, last - at))):
            yield piece
            at += len(piece)
    finally:
        files.close(handle)
