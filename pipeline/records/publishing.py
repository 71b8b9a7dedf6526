"""Case events go out: sealed while they wait, handed on in order, then removed. Best effort, as Amazon Connect's are.

What could not be handed on in its class's time is poison: it stays, sealed, and is told, until a person deletes it.
"""

from collections.abc import Sequence

import anyio
import structlog

from pipeline.delivery.lanes import Backoff
from pipeline.errors import DeferError, PipelineError, SegmentForgedError
from pipeline.ids import InstanceId
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.ports import Clock, EventSink
from pipeline.records import sealing
from pipeline.records.policy import Transient
from pipeline.records.removing import remove
from pipeline.records.rows import RecordEngine, Row, RowChange, RowConflictError
from pipeline.records.sealing import Record
from pipeline.records.shelves import Shelf, Shelves
from pipeline.records.store import key_of, sealed_again
from pipeline.trail import Trail

log = structlog.get_logger()

POISON = "poison"
"""The part of a record that nobody took in time."""
_BATCH = 50
_LOOK_EVERY_S = 1.0


class RecordPublisher:
    """Hands on what is transient: records whose row keeps them only until that is done."""

    def __init__(
        self,
        shelves: Shelves,
        engine: RecordEngine,
        sinks: Sequence[EventSink],
        commits: GroupCommit,
        trail: Trail,
        clock: Clock,
        backoff: Backoff,
    ) -> None:
        self._shelves = shelves
        self._engine = engine
        self._sinks = sinks
        self._commits = commits
        self._trail = trail
        self._clock = clock
        self._backoff = backoff

    async def run(self) -> None:
        """Hand on until cancelled."""
        failures = 0
        while True:
            try:
                sent = await self.once()
            except PipelineError as error:
                failures += 1
                log.warning("records.publishing_deferred", reason=error.reason, detail=str(error))
                await anyio.sleep(self._backoff.delay_s(failures))
                continue
            failures = 0
            if not sent:
                await anyio.sleep(_LOOK_EVERY_S)

    async def once(self) -> int:
        """Hand on some of each shelf; give how many.

        Raises:
            DeferError: a sink did not take them, or a key can't be used; other shelves' were handed on.

        """
        sent = 0
        trouble: PipelineError | None = None
        for shelf, instances in self._shelves.owners().values():
            if isinstance(shelf.scope.policy.retention, Transient) and shelf.keys is not None:
                try:
                    await self._poison(shelf)
                    sent += await self._of_shelf(shelf, instances[0])
                except (DeferError, SegmentForgedError) as error:
                    trouble = error
        if trouble is not None:
            raise trouble
        return sent

    async def _of_shelf(self, shelf: Shelf, instance: InstanceId) -> int:
        rows = [row for row in await self._engine.page(shelf.scope.shelf, 0, 10 * _BATCH) if row.part != POISON]
        rows = rows[:_BATCH]
        if not rows or not self._sinks:
            return 0
        opened = [await self._opened(shelf, row) for row in rows]
        for sink in self._sinks:
            await sink.send([record.body for record in opened])
        scope = shelf.scope
        line = self._trail.changed(
            instance, "RecordsHandedOn", dataClass=scope.policy.data_class, scope=scope.name, count=len(rows)
        )
        await self._commits.commit(Commit(lines=(line,)))
        await remove(self._engine, rows)  # what was put again meanwhile is handed on again
        return len(rows)

    async def _poison(self, shelf: Shelf) -> None:
        """Set those aside whose time is over."""
        now = self._clock.now().timestamp()
        late = [
            row
            for row in await self._engine.page(shelf.scope.shelf, 0, _BATCH)
            if row.expires is not None and row.expires < now
        ]
        for row in late:
            record = await self._opened(shelf, row)
            blind = await shelf.blind()
            async with shelf.sealing() as key:
                aside = Row(row.shelf, row.tag, row.version, row.key_id, row.sealed, None, POISON)
                kept = Record(record.id, record.body, record.content_type, row.version, record.put_at, POISON)
                await self._change(sealed_again(shelf, key, blind, aside, kept))
            log.error("record.poison", data_class=shelf.scope.policy.data_class, record=row.tag.hex())

    async def _opened(self, shelf: Shelf, row: Row) -> Record:
        blind = await shelf.blind()
        return sealing.open_record(await key_of(self._engine, shelf, blind, row), blind, shelf.scope, row)

    async def _change(self, change: RowChange) -> None:
        try:
            await self._engine.write([change])
        except RowConflictError:
            return  # put again meanwhile: it is handed on again
