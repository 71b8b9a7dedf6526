"""Small files that are replaced as a whole: written aside, synced, renamed, never edited in place.

Synchronous: callers choose the thread. A file has one writer at a time.
"""

from collections.abc import Iterable

from pipeline.ports import FileSystem

UNFINISHED = ".tmp"
"""Ending of a file that is being written; what a crash leaves of it was never used, and is never read."""


def write_whole(files: FileSystem, path: str, content: bytes) -> None:
    """Put a file in place, durably.

    Raises:
        StoreFullError, StoreIoError: it is not there, or not durable; what was there before may be.

    """
    write_pieces(files, path, [content])


def write_pieces(files: FileSystem, path: str, pieces: Iterable[bytes]) -> None:
    """Put a file in place that comes in pieces. Raises as `write_whole`."""
    directory, aside = path.rpartition("/")[0], path + UNFINISHED
    files.make_directory(directory)
    files.unlink(aside)  # a crash may have left one
    try:
        handle = files.create(aside)
        try:
            for piece in pieces:
                files.append(handle, [piece])
            files.sync(handle)
        finally:
            files.close(handle)
        files.rename(aside, path)
    except BaseException:
        files.unlink(aside)
        raise
    files.sync_directory(directory)


def read_whole(files: FileSystem, path: str, limit: int) -> bytes | None:
    """Read a file, at most `limit` bytes of it; None if there is none.

    Raises:
        StoreIoError: it can't be read.

    """
    try:
        handle = files.open(path)
    except FileNotFoundError:
        return None
    try:
        return files.read(handle, 0, limit)
    finally:
        files.close(handle)


def remove(files: FileSystem, path: str) -> None:
    """Remove a file, durably; nothing happens if it is gone already.

    Raises:
        StoreIoError: it may be there still, or again.

    """
    files.unlink(path)
    files.sync_directory(path.rpartition("/")[0])
