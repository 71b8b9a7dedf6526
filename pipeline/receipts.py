"""Old receipts leave the store: folded, day by day, into one log per instance that is not read at start.

Journal files and event logs that nobody needs any more leave at the same time. What is old is told by a clock that a
jump of the machine's own does not put ahead. While anything of an instance is under a legal hold its journal stays.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice

import anyio
import anyio.to_thread
import structlog

from pipeline.delivery.proof import Receipt, read_receipt
from pipeline.errors import PipelineError, SegmentForgedError, StoreIoError
from pipeline.ids import InstanceId
from pipeline.intake.journal import Journal
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.ports import Clock
from pipeline.settings import StoreSettings
from pipeline.steady import Steady
from pipeline.tenants import Tenants
from pipeline.trail import Trail

log = structlog.get_logger()

AT_ONCE = 100
"""So many receipts of an instance leave together, told by one audit record."""
_EVERY_S = 600.0


class ReceiptFolder:
    """Folds what is older than the receipt window."""

    def __init__(
        self,
        store: InterimStore,
        journal: Journal,
        tenants: Tenants,
        trail: Trail,
        clock: Clock,
        settings: StoreSettings,
        keeps_all: Callable[[InstanceId], bool],
    ) -> None:
        """`keeps_all` tells whether a legal hold forbids to remove what an instance's events said."""
        self._store = store
        self._journal = journal
        self._tenants = tenants
        self._trail = trail
        self._steady = Steady(clock)
        self._settings = settings
        self._keeps_all = keeps_all

    async def run(self) -> None:
        """Look every ten minutes until cancelled; not at once: a clock may be set soon after its machine's start."""
        while True:
            await anyio.sleep(_EVERY_S)
            try:
                await self.once()
            except PipelineError as error:
                log.warning("receipts.deferred", reason=error.reason)

    async def once(self) -> int:
        """Fold what is due; give the number of receipts."""
        now = self._steady.now()
        oldest = now - self._settings.receipt_window
        old = [
            name
            for name in self._store.index
            if name.standing is State.DELIVERED and _begun(name) <= oldest  # else younger still is its receipt
        ]
        old.sort(key=lambda name: (name.instance_id, name.artifact_id))
        folded = 0
        for instance_id, names in groupby(old, key=lambda name: name.instance_id):
            for batch in batched(names, AT_ONCE):
                folded += await self._fold(instance_id, batch, now, oldest)
        for tenant in self._tenants:
            first = now.date() - timedelta(days=self._settings.journal_days)
            instance_id = tenant.instance.instance_id
            if not await anyio.to_thread.run_sync(self._keeps_all, instance_id):
                await anyio.to_thread.run_sync(self._journal.sweep, instance_id, first)
        return folded

    async def _fold(
        self, instance_id: InstanceId, names: Sequence[ArtifactName], now: datetime, oldest: datetime
    ) -> int:
        due = {name: found for name in names if (found := await self._due(name, oldest)) is not None}
        if due:
            artifacts = [
                {"artifactId": str(name.artifact_id), "recordingId": str(receipt.recording_id)}
                for name, (receipt, _) in due.items()
            ]
            line = self._trail.changed(instance_id, "ReceiptsFolded", artifacts=artifacts)
            log = f"{self._store.root}/receipts/{instance_id}/{now.date()}.jsonl"
            await self._store.fold({name: raw for name, (_, raw) in due.items()}, log, (line,))
        return len(due)

    async def _due(self, name: ArtifactName, oldest: datetime) -> tuple[Receipt, bytes] | None:
        """Read a receipt; None if it is too young, or can't be read: it stays where it is and stops no other."""
        try:
            raw = await anyio.to_thread.run_sync(self._store.receipt, name)
            receipt = read_receipt(raw)
        except (SegmentForgedError, StoreIoError) as error:
            log.warning("receipts.unreadable", artifact=str(name.artifact_id), reason=error.reason)
            return None
        return (receipt, raw) if receipt.delivered_at <= oldest else None


def batched(names: Iterable[ArtifactName], size: int) -> Iterator[list[ArtifactName]]:
    """Give them in lists of at most that many."""
    waiting = iter(names)
    while batch := list(islice(waiting, size)):
        yield batch


def _begun(name: ArtifactName) -> datetime:
    """Tell when an artifact was begun: its UUIDv7 says so."""
    return datetime.fromtimestamp((name.artifact_id.int >> 80) / 1000, UTC)
