"""`FileSystem` over another one: its refusals are told to whoever watches the volume, and may draw on the ballast.

Only what writes is told of: a file that can't be read is that artifact's trouble. Nothing is done twice but what a
full disk refused without having begun it; a sync never.
"""

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from pipeline.errors import StoreBlockedError, StoreFullError, StoreIoError
from pipeline.ports import Buffer, FileSystem

_P = ParamSpec("_P")
_T = TypeVar("_T")

Failed = Callable[[StoreIoError], None]
"""Take note that the volume refused to write."""
MakeRoom = Callable[[], bool]
"""Let some of the room go that is kept for this; tell whether there was any."""


Present = Callable[[], None]
"""Raise `StoreIoError` if the volume is not there: no directory is made in its place."""


def no_room() -> bool:
    """Have none that is kept."""
    return False


class WatchedFiles:
    """The same files, watched."""

    def __init__(self, files: FileSystem, failed: Failed, present: Present, make_room: MakeRoom = no_room) -> None:
        self._files = files
        self._failed = failed
        self._present = present
        self._make_room = make_room

    def create(self, path: str) -> int:
        return self._tried(self._files.create, path)

    def open(self, path: str, *, write: bool = False) -> int:
        return self._files.open(path, write=write)

    def append(self, handle: int, buffers: Sequence[Buffer]) -> None:
        self._tried(self._files.append, handle, buffers)

    def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        return self._files.read(handle, offset, size_bytes)

    def read_into(self, handle: int, offset: int, buffer: memoryview) -> int:
        return self._files.read_into(handle, offset, buffer)

    def size(self, handle: int) -> int:
        return self._files.size(handle)

    def allocate(self, handle: int, size_bytes: int) -> None:
        self._tried(self._files.allocate, handle, size_bytes)

    def truncate(self, handle: int, size_bytes: int) -> None:
        self._tried(self._files.truncate, handle, size_bytes)

    def sync(self, handle: int) -> None:
        self._once(self._files.sync, handle)

    def close(self, handle: int) -> None:
        self._files.close(handle)

    def rename(self, source: str, target: str) -> None:
        self._tried(self._files.rename, source, target)

    def unlink(self, path: str) -> None:
        self._tried(self._files.unlink, path)

    def make_directory(self, path: str) -> None:
        self._present()
        self._tried(self._files.make_directory, path)

    def lock(self, handle: int) -> None:
        self._files.lock(handle)

    def unlock(self, handle: int) -> None:
        self._files.unlock(handle)

    def is_at(self, handle: int, path: str) -> bool:
        return self._files.is_at(handle, path)

    def sync_directory(self, path: str) -> None:
        self._once(self._files.sync_directory, path)

    def sync_volume(self, path: str) -> None:
        # Perhaps of another volume, a bucket's; and what it may report is reported by the files' own syncs.
        self._files.sync_volume(path)

    def names(self, path: str) -> list[str]:
        return self._files.names(path)

    def sorted_out(self, path: str) -> tuple[list[str], list[str]]:
        return self._files.sorted_out(path)

    def free_bytes(self, path: str) -> int:
        return self._files.free_bytes(path)

    def free_inodes(self, path: str) -> int | None:
        return self._files.free_inodes(path)

    # --- inside

    def _once(self, operation: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T:
        try:
            return operation(*given, **named)
        except StoreIoError as error:
            if not isinstance(error, StoreBlockedError):
                self._failed(error)
            raise
        except StoreFullError:
            self._make_room()  # for the next one: what a failed sync covered is not synced again
            raise

    def _tried(self, operation: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T:
        try:
            return operation(*given, **named)
        except StoreIoError as error:
            if not isinstance(error, StoreBlockedError):
                self._failed(error)
            raise
        except StoreFullError:
            if not self._make_room():
                raise
        return self._once(operation, *given, **named)
