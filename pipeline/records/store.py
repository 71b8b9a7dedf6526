"""The record store: put, get, delete, list and find, for every class alike.

Sealed before they reach the engine, opened after they leave it; what the class's row asks for is in the audit trail
before a change counts and before plaintext is given out. A put is acknowledged when it is durable.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import anyio.lowlevel
import anyio.to_thread
import structlog

from pipeline.crypt.blind import BlindKey
from pipeline.crypt.segments import DataKey
from pipeline.errors import LegalHoldError, RecordChangedError, RefuseError, SegmentForgedError
from pipeline.ids import InstanceId, KeyId
from pipeline.instances import Instance
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import LogLine
from pipeline.ports import Clock
from pipeline.records import finding, sealing, subjectkeys
from pipeline.records.drafts import ALWAYS, Checked, Condition, Draft, checked
from pipeline.records.policy import Audit, Field
from pipeline.records.retention import expiry
from pipeline.records.rows import RecordEngine, Row, RowChange, RowConflictError
from pipeline.records.sealing import Record
from pipeline.records.shelves import Shelf
from pipeline.records.subjectkeys import HIDDEN
from pipeline.trail import Trail

log = structlog.get_logger()

PAGE = 1000
"""Most records of one list."""
SUBJECTS = "speaker"
"""The part whose retention is that of a subject's key."""
_TOLD_AT_ONCE = 1000
"""Records that one audit record names, in 35 bytes each."""
_OTHERS_TURN = 64
"""Records that are sealed without a pause: some 5 ms."""
_ATTEMPTS = 8
"""To put a record that others put at the same time."""

CheckRoom = Callable[[InstanceId, int], None]
"""Refuse what there is no room for."""
IsHeld = Callable[[InstanceId], bool]
"""Tell whether a legal hold is on anything of an instance. Blocks."""


def never_held(_instance: InstanceId) -> bool:
    """Know of no legal hold."""
    return False


class RecordStore:
    """Every record of every class."""

    def __init__(
        self,
        engine: RecordEngine,
        commits: GroupCommit,
        trail: Trail,
        clock: Clock,
        check_room: CheckRoom,
        is_held: IsHeld = never_held,
    ) -> None:
        self._engine = engine
        self._commits = commits
        self._trail = trail
        self._clock = clock
        self._check_room = check_room
        self._is_held = is_held

    async def put(self, caller: Instance, shelf: Shelf, draft: Draft, condition: Condition = ALWAYS) -> int:
        """Put one record; give its version when it is durable, 1 for a new one.

        Raises:
            RecordChangedError: the condition does not hold.
            RefuseError, DeferError: as `put_all`.

        """
        return (await self.put_all(caller, shelf, [draft], condition))[0]

    async def put_all(
        self, caller: Instance, shelf: Shelf, drafts: Sequence[Draft], condition: Condition = ALWAYS
    ) -> list[int]:
        """Put records of one shelf, all or none; give their versions when all are durable.

        Raises:
            RefuseError: one of them can't be a record of this class.
            DeferError: put them again.

        """
        is_many = len(drafts) > 1
        ready = [
            checked(draft, shelf.scope.policy, f"[{number}]" if is_many else "") for number, draft in enumerate(drafts)
        ]
        self._check_room(caller.instance_id, sum(len(draft.body) for draft in drafts))
        for _ in range(_ATTEMPTS):
            async with shelf.sealing() as key:
                changes = await self._changes(shelf, key, ready, condition)
                await self._tell_changes(caller, shelf, "RecordPut", changes)
                try:
                    await self._engine.write(changes)
                except RowConflictError:
                    continue  # somebody else was quicker: seal for the version that is there now
            records = [change.row for change in changes if change.row is not None and change.row.part not in HIDDEN]
            return [row.version for row in records]
        raise RecordChangedError("others change the record all the time; nothing was changed")

    async def get(self, caller: Instance, shelf: Shelf, record_id: str) -> Record | None:
        """Give one record.

        Raises:
            SegmentForgedError: it is not what was sealed.
            DeferError: ask again.

        """

        async def rows(blind: Sequence[BlindKey]) -> list[Row]:
            return await self._engine.rows(shelf.scope.shelf, [sealing.tag_of(key, record_id) for key in blind])

        return next(iter(await self._read(caller, shelf, rows)), None)

    async def delete(self, caller: Instance, shelf: Shelf, record_id: str, condition: Condition = ALWAYS) -> bool:
        """Remove one record, durably, with its index entries; tell whether there was one.

        Raises:
            LegalHoldError: a legal hold keeps it.
            RecordChangedError, DeferError: as `put`.

        """
        await self.check_removal(caller.instance_id)
        blind = await shelf.blind()
        for _ in range(_ATTEMPTS):
            rows = await self._engine.rows(shelf.scope.shelf, [sealing.tag_of(key, record_id) for key in blind])
            condition.check(rows[0].version if rows else 0)
            if not rows:
                return False
            changes = [RowChange(row.shelf, row.tag, row.version, None) for row in rows]
            await self._tell_changes(caller, shelf, "RecordDeleted", changes)
            try:
                await self._engine.write(changes)
            except RowConflictError:
                continue
            return True
        raise RecordChangedError("others change the record all the time; nothing was changed")

    async def page(self, caller: Instance, shelf: Shelf, after: int = 0, limit: int = PAGE) -> tuple[list[Record], int]:
        """List records in the order in which they came to be; give where to go on, 0 at the end. Raises as `get`."""
        last: list[int] = []

        async def rows(_blind: Sequence[BlindKey]) -> list[Row]:
            found = await self._engine.page(shelf.scope.shelf, after, limit)
            last[:] = [row.number for row in found]
            return found

        records = await self._read(caller, shelf, rows)
        return records, last[-1] if len(last) == limit else 0

    async def find(self, caller: Instance, shelf: Shelf, index: str, value: str, limit: int = PAGE) -> list[Record]:
        """Find records by a blind index.

        Raises:
            RefuseError: the class has no such index.
            SegmentForgedError, DeferError: as `get`.

        """
        policy = shelf.scope.policy
        field = policy.field(index)
        if field is None:
            raise RefuseError("this class has no such index; see `pipeline classes show`", field="index")
        wanted = finding.normal(field.normal, value)

        async def rows(blind: Sequence[BlindKey]) -> list[Row]:
            digests = [key.digest(f"index/{index}", wanted) for key in blind]
            return await self._engine.found(shelf.scope.shelf, digests, limit)

        records = await self._read(caller, shelf, rows)
        # An index entry may be anybody's who can write to the file: what a record says itself decides.
        return [record for record in records if (field, wanted) in entries_of(shelf, record)]

    async def of_tags(self, caller: Instance, shelf: Shelf, tags: Sequence[bytes]) -> list[Record]:
        """Give the records of these tags, in their order. Raises as `get`."""
        place = {tag: number for number, tag in enumerate(tags)}

        async def rows(_blind: Sequence[BlindKey]) -> list[Row]:
            found = await self._engine.rows(shelf.scope.shelf, tags)
            return sorted(found, key=lambda row: place[row.tag])

        return await self._read(caller, shelf, rows)

    async def check_removal(self, instance: InstanceId) -> None:
        """Refuse to remove what a legal hold keeps: anything of the instance, as long as any hold is on it.

        Raises:
            LegalHoldError: it is so, or nobody can tell.

        """
        if await anyio.to_thread.run_sync(self._is_held, instance):
            raise LegalHoldError("a legal hold is on the instance, or on something of it: nothing is removed")

    # --- inside

    async def _changes(
        self, shelf: Shelf, key: DataKey, drafts: Sequence[Checked], condition: Condition
    ) -> list[RowChange]:
        blind = await shelf.blind()
        tags = [[sealing.tag_of(each, each_draft.draft.id) for each in blind] for each_draft in drafts]
        rows = await self._engine.rows(shelf.scope.shelf, [tag for known in tags for tag in known])
        there = {row.tag: row.version for row in rows}
        now = self._clock.now()
        subjects, changes = await self._subjects(shelf, key, blind, drafts, now)
        for number, (draft, known) in enumerate(zip(drafts, tags, strict=True)):
            if number % _OTHERS_TURN == _OTHERS_TURN - 1:
                await anyio.lowlevel.checkpoint()
            tag = next((each for each in known if each in there), known[0])
            version = there.get(tag, 0)
            condition.check(version)
            changes.append(next_version(shelf, draft, subjects.get(draft.subject, key), blind[0], tag, version, now))
            there[tag] = version + 1
        return changes

    async def _subjects(
        self, shelf: Shelf, key: DataKey, blind: Sequence[BlindKey], drafts: Sequence[Checked], now: datetime
    ) -> tuple[dict[str, DataKey], list[RowChange]]:
        """Give the keys of the drafts' subjects, where they have such, and what keeps those."""
        parts = {draft.subject: draft.part for draft in drafts if draft.subject}
        if not parts:
            return {}, []
        found = await subjectkeys.of(self._engine, shelf, blind, list(parts))
        expires = expiry(shelf.place, shelf.scope.policy.part(SUBJECTS), None, now)
        return subjectkeys.kept(shelf, key, blind[0], found, now, None if expires is None else int(expires.timestamp()))

    async def _read(
        self, caller: Instance, shelf: Shelf, rows: Callable[[Sequence[BlindKey]], Awaitable[list[Row]]]
    ) -> list[Record]:
        """Read rows and open them; once more, if one was sealed again meanwhile and its data key is gone."""
        blind = await shelf.blind()
        try:
            return await self._opened(caller, shelf, blind, await rows(blind))
        except SegmentForgedError:
            blind = await shelf.blind()
            found = await rows(blind)
        try:
            return await self._opened(caller, shelf, blind, found)
        except SegmentForgedError:
            log.error("record.forged", data_class=shelf.scope.policy.data_class)  # noqa: TRY400
            raise

    async def _opened(
        self, caller: Instance, shelf: Shelf, blind: Sequence[BlindKey], rows: Sequence[Row]
    ) -> list[Record]:
        """Open rows, and have that in the audit trail before any of it is given out."""
        keys: dict[KeyId, DataKey] = {}
        records = []
        rows = [row for row in rows if row.part not in HIDDEN]
        for row in rows:
            if row.key_id not in keys:
                keys[row.key_id] = await key_of(self._engine, shelf, blind, row)
            records.append(sealing.open_record(keys[row.key_id], blind, shelf.scope, row))
        if records and Audit.OPENINGS in shelf.scope.policy.audit:
            await self._tell(caller, shelf, "RecordOpened", [(row.tag, row.version) for row in rows])
        return records

    async def _tell_changes(self, caller: Instance, shelf: Shelf, verb: str, changes: Sequence[RowChange]) -> None:
        changes = [change for change in changes if change.row is None or change.row.part not in HIDDEN]
        audit = shelf.scope.policy.audit
        if Audit.CHANGES in audit:
            told = [(change.tag, change.expected + (change.row is not None)) for change in changes]
            await self._tell(caller, shelf, verb, told)
        elif Audit.COUNTS in audit:
            line = self._line(caller, shelf, f"{verb}s", count=len(changes))
            await self._commits.commit(Commit(lines=(line,)))

    async def _tell(self, caller: Instance, shelf: Shelf, verb: str, records: Sequence[tuple[bytes, int]]) -> None:
        """Name each record and its version; many of them share an audit record."""
        lines = []
        if len(records) == 1:
            ((tag, version),) = records
            lines.append(self._line(caller, shelf, verb, record=tag.hex(), version=version))
        else:
            for start in range(0, len(records), _TOLD_AT_ONCE):
                some = [f"{tag.hex()}:{version}" for tag, version in records[start : start + _TOLD_AT_ONCE]]
                lines.append(self._line(caller, shelf, verb, count=len(some), records=some))
        await self._commits.commit(Commit(lines=tuple(lines)))

    def _line(self, caller: Instance, shelf: Shelf, verb: str, **details: Any) -> LogLine:
        scope = shelf.scope
        return self._trail.changed(
            caller.instance_id, verb, dataClass=scope.policy.data_class, scope=scope.name, **details
        )


def next_version(
    shelf: Shelf, ready: Checked, key: DataKey, blind: BlindKey, tag: bytes, version: int, now: datetime
) -> RowChange:
    """Seal a draft as the next version of its record."""
    scope, draft = shelf.scope, ready.draft
    record = Record(draft.id, draft.body, draft.content_type, version + 1, now, draft.part or "", ready.subject)
    expires = expiry(shelf.place, ready.part, ready.found, now)
    row = Row(
        shelf=scope.shelf,
        tag=tag,
        version=version + 1,
        key_id=key.key_id,
        sealed=sealing.seal(key, scope, tag, record),
        expires=None if expires is None else int(expires.timestamp()),
        part=record.part,
    )
    return RowChange(scope.shelf, tag, version, row, blinds_of(shelf, blind, record, ready.found))


def sealed_again(shelf: Shelf, key: DataKey, blind: Sequence[BlindKey], row: Row, record: Record) -> RowChange:
    """Seal the same version of a record under another data key, its hashes by the key that is for writing."""
    scope, tag = shelf.scope, sealing.tag_of(blind[0], record.id)
    again = replace(row, tag=tag, key_id=key.key_id, sealed=sealing.seal(key, scope, tag, record))
    # What the tag was made by, the other hashes were made by, too.
    blinds = None if tag == row.tag else blinds_of(shelf, blind[0], record)
    return RowChange(row.shelf, row.tag, row.version, again, blinds)


async def key_of(engine: RecordEngine, shelf: Shelf, blind: Sequence[BlindKey], row: Row) -> DataKey:
    """Give the key that a row is sealed under: the scope's, or its subject's. Raises as `Shelf.opening`."""
    part = next((part for part in shelf.scope.policy.parts if part.name == row.part), None)
    if part is not None and part.shreds:
        return await subjectkeys.opening(engine, shelf, blind, row.key_id)
    return await shelf.opening(row.key_id)


def blinds_of(shelf: Shelf, blind: BlindKey, record: Record, found: Mapping[str, Any] | None = None) -> list[bytes]:
    """Make a record's index entries; `found` are its members, if they are known."""
    if record.part in HIDDEN:
        return subjectkeys.blinds_of(record)
    return [blind.digest(f"index/{field.name}", value) for field, value in entries_of(shelf, record, found)]


def entries_of(shelf: Shelf, record: Record, found: Mapping[str, Any] | None = None) -> list[tuple[Field, str]]:
    """List what a record is found by: what it says itself, and whose it is."""
    policy = shelf.scope.policy
    if not policy.fields:
        return []
    if found is None:
        found = finding.members(record.content_type, record.body)
    entries = finding.entries(policy, found)
    if record.subject:
        whose = (policy.fields[0], finding.normal(policy.fields[0].normal, record.subject))
        entries += [whose] if whose not in entries else []
    return entries
