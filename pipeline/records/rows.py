"""The port below the record store: rows of ciphertext and keyed hashes, kept durably."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.ids import KeyId


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it is at rest: ciphertext, and keyed hashes."""

    shelf: bytes
    """16 bytes: the class and scope that it belongs to."""
    tag: bytes
    """16 bytes: the keyed hash of its id."""
    version: int
    key_id: KeyId
    sealed: bytes = field(repr=False)
    expires: int | None = None
    """Unix seconds after which retention removes it."""
    part: str = ""
    number: int = 0
    """Given by the engine, growing: the order in which records came to be."""


@dataclass(frozen=True, slots=True)
class RowChange:
    """One change to one row, if that is as expected; else nothing of its transaction is done."""

    shelf: bytes
    tag: bytes
    expected: int
    """The version that is there; 0: there is none."""
    row: Row | None
    """What is to be there, perhaps under another tag; `None` removes it."""
    blinds: Sequence[bytes] | None = ()
    """Its entries in blind indexes: keyed hashes, the index's name in them. They replace those that were; `None`: those
    stay."""


class RowConflictError(Exception):
    """A row is not at the version that was expected. Nothing of the transaction was done."""


class RecordEngine(Protocol):
    """Keeps rows. It sees ciphertext and keyed hashes only.

    Raises `StoreFullError`, `StoreIoError`, and nothing else but where a method says so.
    """

    async def write(self, changes: Sequence[RowChange]) -> None:
        """Do all of `changes`, or nothing; durable on return. Several callers share one trip to the disk.

        What is removed or replaced is overwritten in the file, too, and `settled` says when. Raises `RowConflictError`.
        """
        ...

    async def settled(self) -> bool:
        """Overwrite what was removed or replaced, if that was not yet done; tell whether it is now, wherever it was."""
        ...

    async def rows(self, shelf: bytes, tags: Sequence[bytes]) -> list[Row]:
        """Give the rows of these tags that there are."""
        ...

    async def versions(self, shelf: bytes) -> list[tuple[int, bytes, int]]:
        """Give number, tag and version of every row of a shelf, in order."""
        ...

    async def found(self, shelf: bytes, digests: Sequence[bytes], limit: int) -> list[Row]:
        """Give rows that have one of these index entries, in order of their numbers."""
        ...

    async def page(self, shelf: bytes, after: int, limit: int) -> list[Row]:
        """Give rows of a shelf whose number is above `after`, in order."""
        ...

    async def under(self, shelf: bytes, keys: Sequence[KeyId], limit: int) -> list[Row]:
        """Give rows that are sealed under one of these data keys."""
        ...

    async def count(self, shelf: bytes, keys: Sequence[KeyId] | None = None) -> int:
        """Count the rows of a shelf, or those that are sealed under one of these data keys."""
        ...

    async def expired(self, before: int, after: int, limit: int) -> list[Row]:
        """Give rows of all shelves whose time was over before `before` and whose number is above `after`, in order."""
        ...

    def changes(self, shelf: bytes) -> int:
        """Tell how many transactions have changed a shelf since this process began."""
        ...
