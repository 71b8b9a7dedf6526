"""The delivery schedule in virtual time, over instances that are only numbers. For tests only."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import anyio

from pipeline.audit.records import Actor
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.holds import Holds
from pipeline.delivery.lanes import Lane
from pipeline.errors import RejectError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind
from pipeline.interim.commit import GroupCommit
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.settings import DeliverySettings
from pipeline.trail import Trail
from tests.inline_threads import inline_threads
from tests.model_disk import ModelDisk
from tests.simulation.virtual import WorldClock
from tests.simulation.world import silent

Attempt = Callable[[int, ArtifactName], Awaitable[None]]
"""Try an artifact of the instance of that number."""


@dataclass
class Schedule:
    """What is delivered, when, and how often it was tried."""

    clock: WorldClock
    holds: Holds
    store: InterimStore
    attempt: Attempt
    dispatcher: Dispatcher = field(init=False)
    arrived: dict[ArtifactId, float] = field(default_factory=dict)
    started: list[tuple[float, int, ArtifactId]] = field(default_factory=list)
    waited: dict[int, list[float]] = field(default_factory=dict)
    """By instance: how long each delivered artifact took from its arrival."""
    under_way: dict[int, int] = field(default_factory=dict)
    most_under_way: dict[int, int] = field(default_factory=dict)
    _done: int = 0
    _wanted: int = 0
    _all_done: anyio.Event = field(default_factory=anyio.Event)

    def arrive(self, instance: int, kind: Kind = Kind.VOICE) -> ArtifactName:
        """Let a sealed artifact of an instance arrive now."""
        artifact = ArtifactId(UUID(int=len(self.arrived) + 1))
        name = ArtifactName(
            artifact,
            InstanceId(UUID(int=instance)),
            kind,
            KeyId(UUID(int=1)),
            f"{artifact.int:016x}",
            1,
            2,
            State.SEALED,
            1,
        )
        self.store.index.put(name)
        self.arrived[artifact] = self.clock.monotonic()
        self.dispatcher.add(name)
        return name

    async def deliver(self, name: ArtifactName) -> None:
        instance = name.instance_id.int
        self.started.append((self.clock.monotonic(), instance, name.artifact_id))
        self.under_way[instance] = self.under_way.get(instance, 0) + 1
        self.most_under_way[instance] = max(self.most_under_way.get(instance, 0), self.under_way[instance])
        try:
            await self.attempt(instance, name)
        finally:
            self.under_way[instance] -= 1
        self.store.index.put(name.delivered())
        self.waited.setdefault(instance, []).append(self.clock.monotonic() - self.arrived[name.artifact_id])
        self._done += 1
        if self._done == self._wanted:
            self._all_done.set()

    async def reject(self, name: ArtifactName, error: RejectError) -> None:
        self.store.index.put(name.rejected(error.reason))

    def lane(self, instance: int, kind: Kind = Kind.VOICE) -> Lane:
        return self.dispatcher._lanes[InstanceId(UUID(int=instance)), kind]

    async def delivered(self, count: int) -> None:
        """Wait until so many are."""
        self._wanted, self._all_done = count, anyio.Event()
        if self._done < count:
            await self._all_done.wait()


@asynccontextmanager
async def schedule(
    attempt: Attempt, *, settings: DeliverySettings | None = None, seed: int = 1
) -> AsyncIterator[Schedule]:
    """Run the schedule until the block ends, in a virtual loop."""
    clock, disk = WorldClock(datetime(2026, 11, 23, tzinfo=UTC)), ModelDisk()
    with inline_threads(), silent():
        commits = GroupCommit(disk)
        trail = Trail("/state", actor=Actor("Service", "test"), clock=clock)
        holds = Holds("/state/holds", disk, commits, trail)
        store = InterimStore("/state", disk, commits, free_bytes=0)
        store.open(None)
        holds.load()
        made = Schedule(clock, holds, store, attempt)
        made.dispatcher = Dispatcher(
            store=store,
            holds=holds,
            deliver=made.deliver,
            reject=made.reject,
            clock=clock,
            random=random.Random(seed).random,
            settings=settings or DeliverySettings(),
        )
        async with anyio.create_task_group() as group:
            group.start_soon(commits.run, name="group commit")
            async with anyio.create_task_group() as stages:
                stages.start_soon(made.dispatcher.run, name="delivery")
                yield made
                stages.cancel_scope.cancel()
            commits.stop()
