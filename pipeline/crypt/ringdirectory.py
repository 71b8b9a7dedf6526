"""The directory of one key ring: a file for each data key, written aside, synced, renamed, never edited in place.

Synchronous: runs in a thread. Two writers don't meet: each data key has a file of its own.
"""

from uuid import UUID

from pipeline.crypt.ringfile import SIZE_LIMIT, SUFFIX
from pipeline.errors import StoreIoError
from pipeline.ids import KeyId
from pipeline.ports import FileSystem
from pipeline.smallfiles import remove, write_whole


class RingDirectory:
    """Reads and writes ring files."""

    def __init__(self, files: FileSystem, path: str) -> None:
        self._files = files
        self._path = path

    def read(self) -> dict[KeyId, bytes]:
        """Read all ring files; one that can't be read comes out empty.

        Raises:
            StoreIoError: the directory itself can't be read.

        """
        found: dict[KeyId, bytes] = {}
        for name in self._files.names(self._path):
            key_id = _key_id(name)
            if key_id is None:
                continue
            try:
                found[key_id] = self._read(f"{self._path}/{name}")
            except FileNotFoundError:
                continue
            except StoreIoError:
                found[key_id] = b""
        return found

    def write(self, key_id: KeyId, content: bytes) -> None:
        """Make a ring file durable.

        Raises:
            StoreFullError, StoreIoError: it is not there, or not durable; its key must not be used.

        """
        write_whole(self._files, f"{self._path}/{key_id.hex}{SUFFIX}", content)

    def remove(self, key_id: KeyId) -> None:
        """Remove a ring file, durably; nothing happens if it is gone already.

        Raises:
            StoreIoError: it may be there still, or again.

        """
        remove(self._files, f"{self._path}/{key_id.hex}{SUFFIX}")

    def _read(self, path: str) -> bytes:
        handle = self._files.open(path)
        try:
            return self._files.read(handle, 0, SIZE_LIMIT)
        finally:
            self._files.close(handle)


def _key_id(name: str) -> KeyId | None:
    stem, dot, ending = name.partition(".")
    if dot + ending != SUFFIX:
        return None
    try:
        key_id = KeyId(UUID(hex=stem))
    except ValueError:
        return None
    return key_id if key_id.hex == stem else None
