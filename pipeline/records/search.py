"""Search by words: one index for each scope, in memory only, built of what is sealed when it is first asked.

A derived copy: while the content's KMS key is refused it is dropped at once, and built again when the key is back. It
follows every change before it answers. Queries are audited, without their words, before the answer leaves.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import anyio.to_thread
import msgspec

from pipeline.errors import HoldCode, HoldError, RefuseError
from pipeline.instances import Instance
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.records import finding, sealing
from pipeline.records.classes import POLICIES
from pipeline.records.policy import IndexKind, OnRevoke, Policy
from pipeline.records.rows import RecordEngine, Row
from pipeline.records.sealing import Record
from pipeline.records.shelves import Shelf, Shelves
from pipeline.records.store import RecordStore, key_of
from pipeline.trail import Trail

TEXT = "text"
"""The name by which words are asked for, as an index is."""
_PAGE = 200


class TextIndex(Protocol):
    """An index of words by document. Blocks."""

    def put(self, documents: Iterable[tuple[bytes, str]]) -> None:
        """Put documents, in place of those of the same tag."""
        ...

    def remove(self, tags: Iterable[bytes]) -> None:
        """Take documents away."""
        ...

    def found(self, text: str, limit: int) -> Sequence[bytes]:
        """Give the tags of documents that have all the words, the best first. Raises `RefuseError` for none."""
        ...

    def close(self) -> None:
        """Let go of all of it."""
        ...


@dataclass(slots=True)
class _Index:
    index: TextIndex | None = None
    versions: dict[bytes, int] = field(default_factory=dict)
    followed: int = -1
    """How many changes of the shelf it has seen."""
    lock: anyio.Lock = field(default_factory=anyio.Lock)

    def drop(self) -> None:
        """Close it at once."""
        if self.index is not None:
            self.index.close()
        self.index, self.versions, self.followed = None, {}, -1


def index_policy(policy: Policy) -> Policy | None:
    """Give the row that says what its index is; `None` if its words can't be searched."""
    if policy.index is IndexKind.DEDICATED:
        return policy
    derived = (row for row in POLICIES.values() if row.configured_as == policy.data_class)
    return next((row for row in derived if row.index is IndexKind.DEDICATED), None)


class SearchIndexes:
    """The indexes that are in memory."""

    def __init__(
        self,
        shelves: Shelves,
        store: RecordStore,
        engine: RecordEngine,
        commits: GroupCommit,
        trail: Trail,
        make: Callable[[], TextIndex],
    ) -> None:
        self._shelves = shelves
        self._store = store
        self._engine = engine
        self._commits = commits
        self._trail = trail
        self._make = make
        self._indexes: dict[bytes, _Index] = {}

    async def search(self, caller: Instance, shelf: Shelf, text: str, limit: int) -> list[Record]:
        """Find records by their words.

        Raises:
            RefuseError: the class has no such index, or no word was given.
            SegmentForgedError: a record is not what was sealed: nothing is answered.
            DeferError: a key can't be used now; the index is dropped then.

        """
        scope = shelf.scope
        policy = index_policy(scope.policy)
        if policy is None:
            raise RefuseError("this class has no such index; see `pipeline classes show`", field="index")
        index = self._indexes.setdefault(scope.shelf, _Index())
        async with index.lock:
            try:
                await shelf.active()
                await self._follow(shelf, index)
            except HoldError as error:
                if error.code is not HoldCode.KEY_UNREACHABLE:
                    index.drop()
                raise
            assert index.index is not None
            tags = await anyio.to_thread.run_sync(index.index.found, text, limit)
        line = self._trail.changed(
            caller.instance_id, "IndexQueried", dataClass=policy.data_class, scope=scope.name, found=len(tags)
        )
        await self._commits.commit(Commit(lines=(line,)))
        return await self._store.of_tags(caller, shelf, tags)

    def drop_refused(self) -> None:
        """Drop the index of every scope whose KMS key is refused, or which is served no more."""
        owners = self._shelves.owners()
        for shelf_id, index in self._indexes.items():
            if index.lock.locked():
                continue  # a question is being answered, and finds out by itself
            shelf = owners[shelf_id][0] if shelf_id in owners else None
            policy = None if shelf is None else index_policy(shelf.scope.policy)
            state = None if shelf is None or shelf.ring is None else shelf.ring.state.code
            drops = policy is None or policy.on_revoke is OnRevoke.DROP
            if shelf is None or (drops and state not in {None, HoldCode.KEY_UNREACHABLE}):
                index.drop()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in memory."""
        return all(index.index is None for index in self._indexes.values())

    # --- inside

    async def _follow(self, shelf: Shelf, index: _Index) -> None:
        """Bring the index up to what is there."""
        changes = self._engine.changes(shelf.scope.shelf)
        if index.index is not None and index.followed == changes:
            return
        if index.index is None:
            index.index = self._make()
        seen: dict[bytes, int] = {}
        after = 0
        while rows := await self._engine.page(shelf.scope.shelf, after, _PAGE):
            after = rows[-1].number
            seen |= {row.tag: row.version for row in rows}
            new = [row for row in rows if index.versions.get(row.tag) != row.version]
            if new:
                documents = await self._opened(shelf, new)
                await anyio.to_thread.run_sync(index.index.put, documents)
                index.versions |= {row.tag: row.version for row in new}
        gone = set(index.versions) - set(seen)
        await anyio.to_thread.run_sync(index.index.remove, gone)
        index.versions, index.followed = seen, changes

    async def _opened(self, shelf: Shelf, rows: Sequence[Row]) -> list[tuple[bytes, str]]:
        blind = await shelf.blind()
        documents = []
        for row in rows:
            key = await key_of(self._engine, shelf, blind, row)
            documents.append((row.tag, words_of(sealing.open_record(key, blind, shelf.scope, row))))
        return documents


def words_of(record: Record) -> str:
    """Give the text of a record: every text in its JSON, or all of it if it is text."""
    if finding.is_json(record.content_type):
        return "\n".join(_texts(msgspec.json.decode(record.body)))
    return record.body.decode(errors="replace") if record.content_type.lower().startswith("text/") else ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
