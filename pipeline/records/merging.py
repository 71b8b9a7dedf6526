"""Records that are not put whole, but made of what comes about them bit by bit."""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from pipeline.crypt.blind import BlindKey
from pipeline.crypt.segments import DataKey
from pipeline.errors import RecordBusyError, SegmentForgedError
from pipeline.ports import Clock
from pipeline.records import finding, sealing
from pipeline.records.drafts import Draft, checked
from pipeline.records.rows import RecordEngine, Row, RowChange, RowConflictError
from pipeline.records.shelves import Shelf
from pipeline.records.store import key_of, next_version

log = structlog.get_logger()

_ATTEMPTS = 8
"""To merge into records that others change at the same time."""

Merge = Callable[[Mapping[str, Any] | None], bytes | None]
"""Make a record of what is there, `None` if nothing is; `None` leaves it as it is."""


class Merging:
    """Merges into the records of classes without parts. What is opened for that is given to nobody."""

    def __init__(self, engine: RecordEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def merge(self, shelf: Shelf, merges: Mapping[str, Merge]) -> int:
        """Merge into records, by id, all or none; give how many changed, when that is durable.

        A record that does not open, or is no JSON object, stays as it is, and is told in the log.

        Raises:
            DeferError: merge again.

        """
        for _ in range(_ATTEMPTS):
            async with shelf.sealing() as key:
                changes = await self._changes(shelf, key, merges)
                if not changes:
                    return 0
                try:
                    await self._engine.write(changes)
                except RowConflictError:
                    continue  # somebody else was quicker: merge with what is there now
                return len(changes)
        raise RecordBusyError("others change the record all the time; nothing of this was kept")

    async def _changes(self, shelf: Shelf, key: DataKey, merges: Mapping[str, Merge]) -> list[RowChange]:
        blind = await shelf.blind()
        tags = {record_id: [sealing.tag_of(each, record_id) for each in blind] for record_id in merges}
        rows = await self._engine.rows(shelf.scope.shelf, [tag for known in tags.values() for tag in known])
        there = {row.tag: row for row in rows}
        now = self._clock.now()
        changes = []
        for record_id, merge in merges.items():
            row = next((there[tag] for tag in tags[record_id] if tag in there), None)
            known = None
            if row is not None:
                known = await self._members(shelf, blind, row)
                if known is None:
                    continue
            body = merge(known)
            if body is None:
                continue
            ready = checked(Draft(id=record_id, body=body), shelf.scope.policy)
            tag, version = (tags[record_id][0], 0) if row is None else (row.tag, row.version)
            changes.append(next_version(shelf, ready, key, blind[0], tag, version, now))
        return changes

    async def _members(self, shelf: Shelf, blind: list[BlindKey], row: Row) -> Mapping[str, Any] | None:
        data_class = shelf.scope.policy.data_class
        try:
            record = sealing.open_record(await key_of(self._engine, shelf, blind, row), blind, shelf.scope, row)
        except SegmentForgedError:
            again = await self._engine.rows(row.shelf, [row.tag])
            if not again or again[0].key_id != row.key_id or again[0].version != row.version:
                raise RecordBusyError("the record was sealed again just now; merge again") from None
            log.error("record.forged", data_class=data_class)  # noqa: TRY400
            return None
        found = finding.members(record.content_type, record.body)
        if found is None:
            log.warning("record.not_merged", data_class=data_class)
        return found
