"""The service: one task tree; start, drain, stop.

Start is recovery, never cleaning: the names are scanned, what waits is delivered, intake opens. Stop refuses new work,
lets what is in hand end within its deadline, and leaves the rest as it is on disk, where the next start finds it.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from pipeline.audit.keeper import AuditKeeper
from pipeline.canary import Canary
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.eventlogs import EventLogs
from pipeline.delivery.holds import Holds
from pipeline.delivery.keywatch import KeyWatch
from pipeline.delivery.publisher import Publisher
from pipeline.errors import DeferError
from pipeline.health import Health
from pipeline.ids import InstanceId
from pipeline.intake.http import HttpIntake
from pipeline.intake.journal import Journal
from pipeline.intake.missing import MissingWatch
from pipeline.intake.queue import QueueIntake
from pipeline.intake.recorder import Recorder
from pipeline.intake.sweep import Sweep
from pipeline.interim.commit import GroupCommit
from pipeline.interim.poison import returned
from pipeline.interim.states import State
from pipeline.interim.store import InterimStore
from pipeline.jobs import Ask, Jobs, Report
from pipeline.process import uncollected
from pipeline.receipts import ReceiptFolder
from pipeline.records.publishing import RecordPublisher
from pipeline.records.sweeping import Sweeper
from pipeline.records.upkeep import Upkeep
from pipeline.retiredkeys import RetiredKeys
from pipeline.tenants import Tenants

log = structlog.get_logger()

_POLL_S = 0.05

Listen = Callable[[HttpIntake, anyio.Event], Coroutine[Any, Any, None]]
"""Serve HTTP until the event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Everything that runs, chosen and connected by the composition root."""

    store: InterimStore
    commits: GroupCommit
    tenants: Tenants
    holds: Holds
    is_gone: Callable[[InstanceId], bool]
    """Whether an instance was removed from the configuration."""
    journal: Journal
    recorder: Recorder
    sweep: Sweep
    intake: HttpIntake
    queues: tuple[QueueIntake, ...]
    dispatcher: Dispatcher
    keywatch: KeyWatch
    retired_keys: RetiredKeys
    publishers: tuple[tuple[str, Publisher], ...]
    """By the name of what they send to."""
    event_logs: EventLogs
    folder: ReceiptFolder
    missing: MissingWatch
    upkeep: Upkeep
    sweeper: Sweeper
    record_publisher: RecordPublisher
    health: Health
    canary: Canary | None
    audit: AuditKeeper
    jobs: Jobs
    listen: Listen


class Service:
    """Runs the parts."""

    def __init__(self, parts: Parts, *, drain: timedelta) -> None:
        self._parts = parts
        self._drain = drain
        self.ready = False
        """Intake may acknowledge: the store was scanned."""

    @property
    def phase(self) -> str | None:
        """What it is doing if it does not serve."""
        if self._parts.intake.stopping:
            return "stopping"
        return None if self.ready else "starting"

    async def run(self, stop: anyio.Event, prepare: Callable[[], Awaitable[None]], started: Callable[[], None]) -> None:
        """Serve until `stop`; give back when everything acknowledged is durable and nothing runs any more.

        Args:
            stop: set to end.
            prepare: what has to be there before anything is served; requests are answered 503 meanwhile.
            started: called when all is up.

        """
        parts = self._parts
        async with anyio.create_task_group() as writers:
            writers.start_soon(parts.commits.run, name="group commit")
            try:
                await self._serve(stop, prepare, started)
                await parts.audit.sign(all_of_it=True)
            finally:
                parts.journal.close()
                parts.commits.stop()

    async def configured(self) -> None:
        """Look again at what is held, at poison that a person gave back, and for jobs: somebody told us to."""
        store, dispatcher = self._parts.store, self._parts.dispatcher
        dispatcher.add_all(returned(store.index, await anyio.to_thread.run_sync(store.moved_poison)))
        await self._drop_holds()
        dispatcher.retry_now()
        self._parts.jobs.look()

    async def perform(self, ask: Ask) -> Report:
        """Do one job and nothing else; for a command, while no service runs."""
        parts = self._parts
        async with anyio.create_task_group() as writers:
            writers.start_soon(parts.commits.run, name="group commit")
            try:
                await self._recover()
                report = await parts.jobs.perform(ask)
            finally:
                parts.journal.close()
                parts.commits.stop()
        return report

    async def _serve(
        self, stop: anyio.Event, prepare: Callable[[], Awaitable[None]], started: Callable[[], None]
    ) -> None:
        parts = self._parts
        closed = anyio.Event()
        async with anyio.create_task_group() as listener:
            listener.start_soon(parts.listen, parts.intake, closed, name="http")
            async with anyio.create_task_group() as stages:
                stages.start_soon(self._start, stages, prepare, started, name="start")
                await stop.wait()
                parts.intake.stopping = True
                log.info("service.draining", open=len(parts.recorder.receptions()))
                await self._drain_intake()
                stages.cancel_scope.cancel()
            for reception in parts.recorder.receptions():
                await parts.recorder.let_go(reception)
            closed.set()
        log.info("service.stopped", sealed=parts.store.index.count(State.SEALED))

    async def _start(
        self, stages: TaskGroup, prepare: Callable[[], Awaitable[None]], started: Callable[[], None]
    ) -> None:
        await prepare()
        await self._recover()
        for name, stage in self._stages().items():
            stages.start_soon(stage, name=name)
        self.ready = True
        started()

    async def _recover(self) -> None:
        with uncollected():
            await self._recover_names()

    async def _recover_names(self) -> None:
        parts = self._parts
        scanned = await anyio.to_thread.run_sync(parts.store.scan)
        parts.holds.load()
        await self._drop_holds()
        await anyio.to_thread.run_sync(parts.missing.load)
        for (instance, key), (artifacts, size_bytes) in parts.store.index.by_data_key().items():
            tenant_of = parts.tenants.get(instance)
            if tenant_of is not None:
                tenant_of.ring.used(key, artifacts, size_bytes)
        waiting = [name for name in parts.store.index if name.is_waiting]
        parts.dispatcher.add_all(waiting)
        log.info(
            "service.recovered",
            open=parts.store.index.count(State.OPEN),
            sealed=len(waiting),
            moved_aside=scanned.moved_aside,
            finished=scanned.finished,
        )

    async def _drop_holds(self) -> None:
        """Drop what is held of instances that were removed; what the disk refuses now is done the next time."""
        try:
            await self._parts.holds.drop_gone(self._parts.is_gone)
        except DeferError as error:
            log.warning("holds.deferred", reason=error.reason)

    def _stages(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, None]]]:
        parts = self._parts
        stages: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "delivery": parts.dispatcher.run,
            "keys": parts.keywatch.run,
            "retired keys": parts.retired_keys.run,
            "sweep": parts.sweep.run,
            "receipts": parts.folder.run,
            "event logs": parts.event_logs.run,
            "missing": parts.missing.run,
            "records": parts.upkeep.run,
            "retention": parts.sweeper.run,
            "records out": parts.record_publisher.run,
            "health": parts.health.run,
            "volume": parts.store.room.run,
            "audit": parts.audit.run,
            "jobs": parts.jobs.run,
        }
        if parts.canary is not None:
            stages["canary"] = parts.canary.run
        stages |= {f"events out to {name}": publisher.run for name, publisher in parts.publishers}
        stages |= {f"queue {number}": queue.run for number, queue in enumerate(parts.queues)}
        return stages

    async def _drain_intake(self) -> None:
        """Let bodies that are under way end; at the deadline break them off, durable as far as they came."""
        recorder = self._parts.recorder
        with anyio.move_on_after(self._drain.total_seconds()):
            while any(reception.attached for reception in recorder.receptions()):  # noqa: ASYNC110
                await anyio.sleep(_POLL_S)
        for reception in recorder.receptions():
            reception.scope.cancel()
        while any(reception.attached for reception in recorder.receptions()):  # noqa: ASYNC110
            await anyio.sleep(_POLL_S)
