"""Retention: what a class's row lets go, and when. Legal holds come before it; handing on, where that is awaited, too.

Nothing is opened and no KMS key is asked: the time stands beside the sealed record.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import structlog

from pipeline.errors import PipelineError
from pipeline.ids import InstanceId
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.ports import Clock
from pipeline.records.policy import Transient
from pipeline.records.removing import remove
from pipeline.records.rows import RecordEngine, Row
from pipeline.records.shelves import Shelf, Shelves
from pipeline.records.store import IsHeld
from pipeline.trail import Trail

log = structlog.get_logger()

BATCH = 500
_EVERY_S = 600.0


@dataclass(slots=True)
class Swept:
    """What a sweep did, or would do: records by class."""

    removed: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    """Whose time is over, and which a legal hold keeps."""
    unknown: int = 0
    """Of scopes that are configured no more: kept."""


class Sweeper:
    """Removes what has had its time."""

    def __init__(
        self,
        shelves: Shelves,
        engine: RecordEngine,
        commits: GroupCommit,
        trail: Trail,
        clock: Clock,
        is_held: IsHeld,
    ) -> None:
        self._shelves = shelves
        self._engine = engine
        self._commits = commits
        self._trail = trail
        self._clock = clock
        self._is_held = is_held

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                swept = await self.sweep()
                if swept.removed or swept.held:
                    log.info("records.swept", removed=dict(swept.removed), held=dict(swept.held))
            except PipelineError as error:
                log.warning("records.sweep_deferred", reason=error.reason, detail=str(error))
            await anyio.sleep(_EVERY_S)

    async def sweep(self, only: InstanceId | None = None, *, dry: bool = False) -> Swept:
        """Remove every record whose time is over, or those of one instance; with `dry` only count them.

        Raises:
            StoreFullError, StoreIoError: the disk refuses; what was removed stays removed.

        """
        swept, owners, after = Swept(), self._shelves.owners(), 0
        now = int(self._clock.now().timestamp())
        while rows := await self._engine.expired(now, after, BATCH):
            after = rows[-1].number
            by_shelf: dict[bytes, list[Row]] = {}
            for row in rows:
                by_shelf.setdefault(row.shelf, []).append(row)
            for shelf_id, some in by_shelf.items():
                if shelf_id not in owners:
                    swept.unknown += len(some)
                    continue
                shelf, instances = owners[shelf_id]
                if only is not None and only not in instances:
                    continue
                await self._of_shelf(shelf, instances, some, swept, dry=dry)
        return swept

    async def _of_shelf(
        self, shelf: Shelf, instances: Sequence[InstanceId], rows: Sequence[Row], swept: Swept, *, dry: bool
    ) -> None:
        policy = shelf.scope.policy
        if isinstance(policy.retention, Transient):
            return  # who hands them on tells what became of them
        for instance in instances:
            if await anyio.to_thread.run_sync(self._is_held, instance):
                swept.held[policy.data_class] += len(rows)
                return
        if not dry:
            await self._remove(shelf, instances[0], rows)
        swept.removed[policy.data_class] += len(rows)

    async def _remove(self, shelf: Shelf, instance: InstanceId, rows: Sequence[Row]) -> None:
        line = self._trail.changed(
            instance,
            "RecordsExpired",
            dataClass=shelf.scope.policy.data_class,
            scope=shelf.scope.name,
            count=len(rows),
            records=[row.tag.hex() for row in rows],
        )
        await self._commits.commit(Commit(lines=(line,)))
        await remove(self._engine, rows)  # what was put anew meanwhile has its time again
