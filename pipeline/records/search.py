"""Search by words: one index for each scope, in memory, built of what is sealed when it is first asked.

Beside the records lies a sealed copy of each, under a data key of the index's own class, so that a restart need not
build it. Both are derived: while the content's KMS key is refused the index is closed at once and its copy removed, and
built again when the key is back. An index follows every change before it answers. Queries are audited, without their
words, before the answer leaves.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import anyio
import anyio.to_thread
import msgspec
import structlog

from pipeline.errors import HoldCode, HoldError, PipelineError, RefuseError, SegmentForgedError
from pipeline.ids import InstanceId
from pipeline.instances import Instance
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.ports import Clock, FileSystem
from pipeline.records import finding, sealing
from pipeline.records.classes import POLICIES
from pipeline.records.indexcopies import SUFFIX, key_id_of, opened_copy, sealed_copy
from pipeline.records.policy import IndexKind, OnRevoke, Policy
from pipeline.records.rows import RecordEngine, Row
from pipeline.records.sealing import Record
from pipeline.records.shelves import Shelf, Shelves
from pipeline.records.store import CheckRoom, RecordStore, key_of
from pipeline.smallfiles import UNFINISHED, remove, write_pieces
from pipeline.trail import Trail

log = structlog.get_logger()

TEXT = "text"
"""The name by which words are asked for, as an index is."""
_PAGE = 64
_IDLE_S = 900.0
"""After which an index that nobody asks leaves memory; its copy stays."""
_KEEP_EVERY_S = 60.0
_KEEP_SHARE = 50
"""A copy is written again after so many times as long as that took, at the soonest."""
_ASK_EVERY_S = 3600.0
"""How often the KMS key is asked for that a copy depends on which nobody uses."""


class TextIndex(Protocol):
    """An index of words by document. Blocks."""

    def versions(self) -> Mapping[bytes, tuple[int, int]]:
        """Give number and version of the document of each tag."""
        ...

    def put(self, documents: Iterable[tuple[bytes, tuple[int, int], str]]) -> None:
        """Put documents, in place of those of the same tag."""
        ...

    def remove(self, tags: Iterable[bytes]) -> None:
        """Take documents away."""
        ...

    def found(self, text: str, limit: int) -> Sequence[bytes]:
        """Give the tags of documents that have all the words, the best first. Raises `RefuseError` for none."""
        ...

    def dumped(self) -> bytes:
        """Give all of it, to be made again from."""
        ...

    def close(self) -> None:
        """Let go of all of it."""
        ...


MakeIndex = Callable[[bytes | None], TextIndex]
"""Make an empty index, or one of what another gave. Raises `SegmentForgedError` if it can't be."""


@dataclass(slots=True)
class _Index:
    index: TextIndex | None = None
    followed: int = -1
    """How many changes of the shelf it has seen."""
    asked: float = 0.0
    is_kept: bool = True
    """Whether its copy is the same."""
    keep_at: float = 0.0
    lock: anyio.Lock = field(default_factory=anyio.Lock)

    def drop(self) -> None:
        """Close it at once."""
        if self.index is not None:
            self.index.close()
        self.index, self.followed, self.is_kept = None, -1, True


def index_policy(policy: Policy) -> Policy | None:
    """Give the row that says what its index is; `None` if its words can't be searched."""
    if policy.index is IndexKind.DEDICATED:
        return policy
    derived = (row for row in POLICIES.values() if row.configured_as == policy.data_class)
    return next((row for row in derived if row.index is IndexKind.DEDICATED), None)


@dataclass(kw_only=True)
class SearchIndexes:
    """The indexes: those that are in memory, and the copies at `root`."""

    shelves: Shelves
    store: RecordStore
    engine: RecordEngine
    commits: GroupCommit
    trail: Trail
    clock: Clock
    files: FileSystem
    root: str
    check_room: CheckRoom
    make: MakeIndex
    _indexes: dict[bytes, _Index] = field(default_factory=dict)
    _ask_at: float = 0.0

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
                await self._usable(caller.instance_id, shelf)
                await self._follow(caller.instance_id, shelf, index)
            except HoldError as error:
                if error.code is not HoldCode.KEY_UNREACHABLE:
                    await self._drop(scope.shelf, index, shelf)
                raise
            assert index.index is not None
            index.asked = self.clock.monotonic()
            tags = await anyio.to_thread.run_sync(index.index.found, text, limit)
        await self._tell(caller.instance_id, policy, shelf, "IndexQueried", found=len(tags))
        return await self.store.of_tags(caller, shelf, tags)

    async def tend(self) -> None:
        """Drop what is refused or served no more, close what nobody asks, and keep copies of the rest."""
        now, owners = self.clock.monotonic(), self.shelves.owners()
        is_time = now >= self._ask_at
        if is_time:
            self._ask_at = now + _ASK_EVERY_S
        copies = await anyio.to_thread.run_sync(self._copies)
        for shelf_id in {*self._indexes, *copies}:
            index = self._indexes.setdefault(shelf_id, _Index())
            if index.lock.locked():
                continue  # a question is being answered, and finds out by itself
            async with index.lock:
                if shelf_id not in owners:
                    await self._drop(shelf_id, index, None)
                    continue
                shelf, (instance, *_) = owners[shelf_id]
                try:
                    if index.index is not None or is_time:
                        await self._usable(instance, shelf)
                except HoldError as error:
                    if error.code is not HoldCode.KEY_UNREACHABLE:
                        await self._drop(shelf_id, index, shelf)
                except PipelineError:
                    continue
                else:
                    await self._keep(instance, shelf, index)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in memory."""
        return all(index.index is None for index in self._indexes.values())

    # --- inside

    async def _usable(self, instance: InstanceId, shelf: Shelf) -> None:
        """See that the content's key, and the index's own, can be used. Raises as `Shelf.active`."""
        await shelf.active()
        own = self._own(instance, shelf)
        if own is not None:
            await own.active()

    def _own(self, instance: InstanceId, shelf: Shelf) -> Shelf | None:
        """Give the shelf whose data keys an index's copy is sealed under; `None` if the service has no KMS key."""
        policy, of_instance = index_policy(shelf.scope.policy), self.shelves.of(instance)
        assert policy is not None
        data_class = shelf.scope.policy.data_class
        names = [name for (of_class, name), each in of_instance.items() if each is shelf and of_class == data_class]
        own = next((of_instance.get((policy.data_class, name)) for name in names), None)
        return None if own is None or own.keys is None else own

    async def _follow(self, instance: InstanceId, shelf: Shelf, index: _Index) -> None:
        """Bring the index up to what is there."""
        changes = self.engine.changes(shelf.scope.shelf)
        if index.index is not None and index.followed == changes:
            return
        if index.index is None:
            index.index = await self._copied(instance, shelf) or self.make(None)
        there = {tag: (number, version) for number, tag, version in await self.engine.versions(shelf.scope.shelf)}
        known = await anyio.to_thread.run_sync(index.index.versions)
        new = [tag for tag, version in there.items() if known.get(tag) != version]
        gone = set(known) - set(there)
        for start in range(0, len(new), _PAGE):
            rows = await self.engine.rows(shelf.scope.shelf, new[start : start + _PAGE])
            await anyio.to_thread.run_sync(index.index.put, await self._opened(shelf, rows))
        if gone:
            await anyio.to_thread.run_sync(index.index.remove, gone)
        index.followed = changes
        index.is_kept = index.is_kept and not new and not gone

    async def _opened(self, shelf: Shelf, rows: Sequence[Row]) -> list[tuple[bytes, tuple[int, int], str]]:
        blind = await shelf.blind()
        documents = []
        for row in rows:
            key = await key_of(self.engine, shelf, blind, row)
            record = sealing.open_record(key, blind, shelf.scope, row)
            documents.append((row.tag, (row.number, row.version), words_of(record)))
        return documents

    async def _drop(self, shelf_id: bytes, index: _Index, shelf: Shelf | None) -> None:
        """Close an index at once, and remove its copy if its row says so, or nobody is served it any more.

        One that can't be removed now is tried again.
        """
        index.drop()
        policy = None if shelf is None else index_policy(shelf.scope.policy)
        if policy is not None and policy.on_revoke is not OnRevoke.DROP:
            return
        with contextlib.suppress(PipelineError):
            if shelf_id in await anyio.to_thread.run_sync(self._copies):
                await anyio.to_thread.run_sync(remove, self.files, self._path(shelf_id))
                log.info("index.dropped", shelf=shelf_id.hex())

    async def _tell(self, instance: InstanceId, policy: Policy, shelf: Shelf, verb: str, **details: Any) -> None:
        line = self.trail.changed(instance, verb, dataClass=policy.data_class, scope=shelf.scope.name, **details)
        await self.commits.commit(Commit(lines=(line,)))

    # --- copies

    def _path(self, shelf_id: bytes) -> str:
        return f"{self.root}/{shelf_id.hex()}{SUFFIX}"

    def _copies(self) -> set[bytes]:
        """Tell which shelves' copies there are; what a crash left of one that was being written is removed."""
        found = set()
        for name in self.files.names(self.root):
            if name.endswith(SUFFIX + UNFINISHED):
                self.files.unlink(f"{self.root}/{name}")
            with contextlib.suppress(ValueError):
                found.add(bytes.fromhex(name.removesuffix(SUFFIX)))
        return found

    async def _copied(self, instance: InstanceId, shelf: Shelf) -> TextIndex | None:
        """Make an index of its copy; `None` if there is none. One that does not open is removed, and that is told."""
        own = self._own(instance, shelf)
        copy = None if own is None else await anyio.to_thread.run_sync(self._read, self._path(shelf.scope.shelf))
        if own is None or copy is None:
            return None
        try:
            key = await own.opening(key_id_of(copy))
            content = await anyio.to_thread.run_sync(opened_copy, key, own.scope, copy)
            return await anyio.to_thread.run_sync(self.make, content)
        except SegmentForgedError as error:
            log.error("index.refused", scope=shelf.scope.name, detail=str(error))  # noqa: TRY400
            await self._tell(instance, own.scope.policy, shelf, "IndexRefused", reason=error.reason)
            await anyio.to_thread.run_sync(remove, self.files, self._path(shelf.scope.shelf))
            return None

    def _read(self, path: str) -> bytes | None:
        try:
            handle = self.files.open(path)
        except FileNotFoundError:
            return None
        try:
            return self.files.read(handle, 0, self.files.size(handle))
        finally:
            self.files.close(handle)

    async def _keep(self, instance: InstanceId, shelf: Shelf, index: _Index) -> None:
        """Write a copy if it is time, and let go of an index that nobody asks and whose copy is good."""
        now, own = self.clock.monotonic(), self._own(instance, shelf)
        if index.index is not None and not index.is_kept and own is not None and now >= index.keep_at:
            index.keep_at = now + _KEEP_EVERY_S
            try:
                async with own.sealing() as key:
                    content = await anyio.to_thread.run_sync(index.index.dumped)
                    self.check_room(instance, len(content))
                    pieces = sealed_copy(key, own.scope, content)
                    path = self._path(shelf.scope.shelf)
                    await anyio.to_thread.run_sync(partial(write_pieces, self.files, path, pieces))
                index.is_kept = True
            except PipelineError as error:
                log.warning("index.not_kept", scope=shelf.scope.name, reason=error.reason, detail=str(error))
            took_s = self.clock.monotonic() - now
            index.keep_at = now + max(_KEEP_EVERY_S, _KEEP_SHARE * took_s)
        if index.index is not None and now - index.asked > _IDLE_S and (index.is_kept or own is None):
            index.drop()


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
