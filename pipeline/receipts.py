"""Old receipts leave the store: folded, day by day, into one log per instance that is not read at start.

Journal files and event logs that nobody needs any more leave at the same time. What is old is told by a clock that a
jump of the machine's own does not put ahead. While anything of an instance is under a legal hold its journal stays.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import anyio
import anyio.to_thread
import structlog

from pipeline.delivery.proof import read_receipt
from pipeline.errors import PipelineError, SegmentForgedError, StoreIoError
from pipeline.ids import InstanceId
from pipeline.intake.journal import Journal
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.ports import Clock
from pipeline.settings import StoreSettings
from pipeline.steady import Steady
from pipeline.tenants import Tenants

log = structlog.get_logger()

_EVERY_S = 600.0


class ReceiptFolder:
    """Folds what is older than the receipt window."""

    def __init__(
        self,
        store: InterimStore,
        journal: Journal,
        tenants: Tenants,
        clock: Clock,
        settings: StoreSettings,
        keeps_all: Callable[[InstanceId], bool],
    ) -> None:
        """`keeps_all` tells whether a legal hold forbids to remove what an instance's events said."""
        self._store = store
        self._journal = journal
        self._tenants = tenants
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
        folded = 0
        for name in [name for name in self._store.index if name.standing is State.DELIVERED]:
            if _begun(name) > oldest:  # younger still is its receipt
                continue
            raw = await self._due(name, oldest)
            if raw is not None:
                await self._store.fold(name, raw, f"{self._store.root}/receipts/{name.instance_id}/{now.date()}.jsonl")
                folded += 1
        for tenant in self._tenants:
            first = now.date() - timedelta(days=self._settings.journal_days)
            instance_id = tenant.instance.instance_id
            if not await anyio.to_thread.run_sync(self._keeps_all, instance_id):
                await anyio.to_thread.run_sync(self._journal.sweep, instance_id, first)
        return folded

    async def _due(self, name: ArtifactName, oldest: datetime) -> bytes | None:
        """Read a receipt; None if it is too young, or can't be read: it stays where it is and stops no other."""
        try:
            raw = await anyio.to_thread.run_sync(self._store.receipt, name)
            return raw if read_receipt(raw).delivered_at <= oldest else None
        except (SegmentForgedError, StoreIoError) as error:
            log.warning("receipts.unreadable", artifact=str(name.artifact_id), reason=error.reason)
            return None


def _begun(name: ArtifactName) -> datetime:
    """Tell when an artifact was begun: its UUIDv7 says so."""
    return datetime.fromtimestamp((name.artifact_id.int >> 80) / 1000, UTC)
