"""The other classes of data of an instance: data keys and rows of every scope that no other instance names.

A scope that another configured instance names too is its as well: it stays, and the receipt says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

import anyio.to_thread
import msgspec

from pipeline.crypt.ringfile import SUFFIX, RingFile
from pipeline.erasure.progress import ErasedKey
from pipeline.errors import StoreIoError
from pipeline.instances import Instance
from pipeline.ports import FileSystem
from pipeline.records.indexcopies import INDEXES
from pipeline.records.indexcopies import SUFFIX as INDEX
from pipeline.records.rows import RecordEngine, RowChange, RowConflictError
from pipeline.records.scopes import Scope
from pipeline.smallfiles import UNFINISHED, read_whole, remove

_PAGE = 500
_SIZE_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Scopes:
    """What goes and what stays."""

    rings: tuple[Scope, ...]
    """Whose data keys are destroyed."""
    shelves: tuple[Scope, ...]
    """Whose rows are removed."""
    shared: tuple[str, ...]
    """Names of those that another instance has, too."""


def scopes_of(instance: Instance, others: Iterable[Instance]) -> Scopes:
    """Tell which scopes of an instance are its alone."""
    mine = {place.scope.shelf: place.scope for place in instance.places.values()}
    theirs = [place.scope for other in others for place in other.places.values()]
    owners, shelves = {scope.owner for scope in theirs}, {scope.shelf for scope in theirs}
    rings = {scope.owner: scope for scope in mine.values() if scope.owner not in owners}
    shared = {f"{scope.policy.data_class}: {scope.name}" for scope in mine.values() if scope.owner in owners}
    return Scopes(
        rings=tuple(rings.values()),
        shelves=tuple(scope for scope in mine.values() if scope.shelf not in shelves),
        shared=tuple(sorted(shared)),
    )


class RecordsErasure:
    """Erases them in the store at `root`. Idempotent."""

    def __init__(self, root: str, files: FileSystem, engine: RecordEngine) -> None:
        self._root = root
        self._files = files
        self._engine = engine

    def keys(self, scopes: Scopes) -> list[ErasedKey]:
        """Tell which data keys there are. Raises `StoreIoError`."""
        found = []
        for folder, name in self._key_files(scopes):
            raw = read_whole(self._files, f"{folder}/{name}", _SIZE_LIMIT) or b""
            try:
                file = msgspec.json.decode(raw, type=RingFile)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            arns = tuple(wrapped.kms_key_arn for wrapped in file.wrapped)
            found.append(ErasedKey(key_id=UUID(int=file.key_id.int), created_at=file.created_at, kms_key_arns=arns))
        return found

    def destroy_keys(self, scopes: Scopes) -> None:
        """Remove every wrapped data key, durably. Raises `StoreIoError`."""
        folders = set()
        for folder, name in self._key_files(scopes):
            self._files.unlink(f"{folder}/{name}")
            folders.add(folder)
        for folder in folders:
            self._files.sync_directory(folder)

    async def count(self, scopes: Scopes) -> int:
        """Count the rows. Raises `StoreIoError`."""
        return sum([await self._walk(scope, remove=False) for scope in scopes.shelves])

    async def remove(self, scopes: Scopes) -> int:
        """Remove the rows, overwritten in the file, and what is derived of them; give the number of rows.

        Raises `StoreIoError`, `StoreFullError`.
        """
        number = sum([await self._walk(scope, remove=True) for scope in scopes.shelves])
        await self._engine.settled()
        await anyio.to_thread.run_sync(self._remove_copies, scopes)
        return number

    async def left(self, scopes: Scopes) -> list[str]:
        """Name what is there still."""
        keys = await anyio.to_thread.run_sync(lambda: list(self._key_files(scopes)))
        copies = await anyio.to_thread.run_sync(self._copies, scopes)
        rows = await self.count(scopes)
        return [*(f"{folder}/{name}" for folder, name in keys), *copies, *([f"{rows} records"] if rows else [])]

    # --- inside

    async def _walk(self, scope: Scope, *, remove: bool) -> int:
        after, count = 0, 0
        while page := await self._engine.page(scope.shelf, after, _PAGE):
            after = page[-1].number
            count += len(page)
            if remove:
                try:
                    await self._engine.write([RowChange(scope.shelf, row.tag, row.version, None) for row in page])
                except RowConflictError as error:  # nobody should write here any more
                    raise StoreIoError("records of it change still") from error
        return count

    def _copies(self, scopes: Scopes) -> list[str]:
        """Name the copies of indexes of words."""
        folder = f"{self._root}/{INDEXES}"
        names = set(self._files.names(folder))
        wanted = [f"{scope.shelf.hex()}{ending}" for scope in scopes.shelves for ending in (INDEX, INDEX + UNFINISHED)]
        return [f"{folder}/{name}" for name in wanted if name in names]

    def _remove_copies(self, scopes: Scopes) -> None:
        for path in self._copies(scopes):
            remove(self._files, path)

    def _key_files(self, scopes: Scopes) -> list[tuple[str, str]]:
        folders = [f"{self._root}/{scope.directory}" for scope in scopes.rings]
        return [(folder, name) for folder in folders for name in sorted(self._files.names(folder)) if SUFFIX in name]
