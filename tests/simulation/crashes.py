"""Crashes from a seed: a world is lived in, and at chosen moments its power is cut; what is left starts again.

A moment is a copy of all that outlives a process, taken at a step of the disk or of a bucket while everything is under
way. Each cut loses another legal part of what was not synced then. What is left is booted, everything acknowledged is
looked for, and one in so many is drained: every source gets to the end of what it wanted, and the buckets are compared.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Any, Self

import anyio

from pipeline.errors import HoldCode, StoreFullError, StoreIoError
from pipeline.ids import InstanceId
from tests.model_disk import ModelDisk
from tests.model_steps import KEPT, LOST, Standing
from tests.simulation.oracle import check_delivered, check_held, check_tidy, drain
from tests.simulation.promises import Body, BrokenPromiseError
from tests.simulation.traffic import Manner, Traffic, plan
from tests.simulation.virtual import run
from tests.simulation.world import Node, World, node, scaled
from tests.store_fixture import instance
from tests.unit.keyring_fakes import A, B

MOMENTS = 24
"""Of one life."""
CUTS = 3
"""Of one moment."""
LIVES = 3
DRAINED = 8
"""One crash in so many is drained."""


@dataclass
class Count:
    """What was done."""

    crashes: int = 0
    """Power cuts, and ends of the process alone, that were recovered from and checked."""
    drained: int = 0
    """Those among them after which everything was delivered, too."""
    fingerprint: int = 0
    """Changes with every name and length on any disk that was left: two runs of a seed end with the same."""

    def crashed(self, left: ModelDisk, *, drained: bool) -> None:
        """Count one."""
        self.crashes += 1
        self.drained += drained
        for path, data in left.tree().items():
            self.fingerprint = zlib.crc32(f"{path} {len(data)}".encode(), self.fingerprint)


class Moments:
    """Copies of a world, at steps that a seed chooses: each is as likely as any other."""

    def __init__(self, world: World, chance: random.Random, most: int) -> None:
        self._world = world
        self._chance = chance
        self._most = most
        self._seen = 0
        self.taken: list[World] = []

    def __enter__(self) -> Self:
        self._world.disk.before = self._on_disk
        for bucket in self._world.buckets.values():
            bucket.on_step = self._on_step
        return self

    def now(self) -> None:
        """Take one more, whatever there is already."""
        self.taken.append(self._world.copy(self._world.disk.snapshot()))

    def __exit__(self, *_: object) -> None:
        self._world.disk.before = lambda _number, _operation, _path: None
        for bucket in self._world.buckets.values():
            bucket.on_step = lambda _step: None

    def _on_disk(self, _number: int, operation: str, _path: str) -> None:
        if operation not in {"read", "open", "names"}:
            self._on_step(operation)

    def _on_step(self, _step: str) -> None:
        self._seen += 1
        place = len(self.taken) if len(self.taken) < self._most else self._chance.randrange(self._seen)
        if place >= self._most:
            return
        if place == len(self.taken):
            self.now()
        else:
            self.taken[place] = self._world.copy(self._world.disk.snapshot())


def cut(moment: World, chance: random.Random) -> World:
    """Cut the power, or end the process alone: give what is left."""
    disk = moment.disk
    kind = chance.random()
    if kind < 0.15:
        left = disk.crash()
    elif kind < 0.25:
        left = disk.crash(default=KEPT)
    elif kind < 0.45:  # all or nothing of each step, in the order in which they were done
        steps = disk.unsynced()
        upto = chance.randint(0, len(steps))
        left = disk.crash({step.number: KEPT if at < upto else LOST for at, step in enumerate(steps)})
    elif kind < 0.65 and not any(step.standing is Standing.DOUBTFUL for step in disk.unsynced()):
        # The process alone: what was not synced is there, and still isn't synced. Without a refused sync before it:
        # only the process that saw it knows that what can be read is not on the disk.
        left = disk.snapshot()
    else:
        left = disk.crash(disk.any_choice(chance))
    left.capacity_bytes = None
    return moment.copy(left)


async def live(world: World, bodies: list[tuple[Body, Manner]], chance: random.Random) -> list[World]:
    """Live for a while, and badly; give moments of it."""
    with Moments(world, chance, MOMENTS) as moments:
        async with node(world) as process, anyio.create_task_group() as actors:
            traffic = Traffic(process, chance)
            actors.start_soon(_storms, world, chance)
            actors.start_soon(_follow, process)
            with anyio.move_on_after(chance.choice((3, 10, 40, 200))):
                async with anyio.create_task_group() as sources:
                    for body, manner in bodies:
                        sources.start_soon(_source, traffic, body, manner, chance)
                    for talk in list(world.promises.talks.values()):
                        sources.start_soon(traffic.talk, talk)
                await anyio.sleep(chance.choice((0, 5, 60)))
            actors.cancel_scope.cancel()
    world.disk.failures.clear()
    check_tidy(world)
    return moments.taken


async def _source(traffic: Traffic, body: Body, manner: Manner, chance: random.Random) -> None:
    async with anyio.create_task_group() as both:
        if chance.random() < 0.3:
            both.start_soon(traffic.announce, body)
        await anyio.sleep(chance.random() * 2)
        await traffic.upload(body, manner)


async def _follow(process: Node) -> None:
    await process.publisher.run()


async def _storms(world: World, chance: random.Random) -> None:
    """Let one thing go wrong after another, and some at once."""
    weather = world.weather
    while True:
        weather.slow = 0.3
        weather.trouble = chance.choice((0.0, 0.1, 0.3))
        weather.foreign = chance.choice((0.0, 0.0, 0.2))
        weather.bucket_down = chance.random() < 0.15
        weather.bucket_denied = chance.random() < 0.1
        weather.key_down = chance.random() < 0.1
        weather.sink_down = chance.random() < 0.2
        refusals = (HoldCode.KEY_DISABLED, HoldCode.KEY_ACCESS_DENIED, HoldCode.KEY_PENDING_DELETION)
        weather.key_refused = chance.choice(refusals) if chance.random() < 0.1 else None
        world.disk.capacity_bytes = world.disk.used_bytes + chance.randint(0, 2000) if chance.random() < 0.1 else None
        if chance.random() < 0.3:
            _fault(world.disk, chance)
        await anyio.sleep(chance.random() * 20)


def _fault(disk: ModelDisk, chance: random.Random) -> None:
    """Let one of the next operations fail, once."""
    error = chance.choice((StoreIoError("EIO"), StoreFullError("ENOSPC")))
    operation = chance.choice(("sync", "sync", "sync_directory", "append", "rename", "create", "read", "open"))
    disk.refuse(operation, chance.choice(("", "", "artifacts", "journal", "audit", "events")), error=error)


async def recover(
    world: World, bodies: list[tuple[Body, Manner]], chance: random.Random, *, drains: bool
) -> list[World]:
    """Boot what is left, look for everything, let sources ask for theirs; and maybe let everybody finish.

    Gives moments of it: one of any step, and the one when the sources were told.
    """
    with Moments(world, chance, 1) as moments:
        async with node(world, delivers=drains, sweeps=False) as process:
            await check_held(process)
            traffic = Traffic(process, chance)
            for body, manner in bodies:
                if manner is Manner.RESUMED or manner is Manner.ABANDONED:
                    await traffic.ask(body)
            moments.now()
            if drains:
                if chance.random() < 0.7:
                    for body, manner in bodies:
                        if manner is not Manner.ABANDONED:
                            await traffic.repeat(body)
                    for talk in list(world.promises.talks.values()):
                        await traffic.talk(talk)
                await drain(process)
                check_delivered(process)
    check_tidy(world)
    return moments.taken


async def again_and_again(
    moment: World, bodies: list[tuple[Body, Manner]], chance: random.Random, count: Count
) -> None:
    """Crash, recover, and maybe crash in the middle of that."""
    while True:
        left = cut(moment, chance)
        drains = count.crashes % DRAINED == 0
        moments = await recover(left, bodies, chance, drains=drains)
        count.crashed(left.disk, drained=drains)
        if chance.random() < 0.6:
            return
        moment = chance.choice(moments)


async def explore(chance: random.Random, count: Count, most: int) -> None:
    """Live some lives, one after another, each from a cut of the one before; cut every moment of each."""
    instances: list[InstanceId] = [A, B] if chance.random() < 0.25 else [A]
    bodies, talks = plan(chance, instances)
    world = World(chance=chance, instances={each: instance(each) for each in instances})
    for body, _ in bodies:
        world.promises.add(body)
    world.promises.talks = {talk.contact: talk for talk in talks}
    for _ in range(LIVES):
        moments = await live(world, bodies, chance)
        for moment in moments:
            for _ in range(CUTS):
                await again_and_again(moment, bodies, chance, count)
                if count.crashes >= most:
                    return
        if not moments:
            return
        world = cut(chance.choice(moments), chance)


@dataclass(frozen=True, slots=True)
class Found:
    """What one seed came to."""

    seed: int
    crashes: int
    drained: int
    fingerprint: int = 0
    broken: str | None = None
    """The name of the promise's error, if one was broken."""
    message: str = ""


def simulate(seed: int, most: int = 10**9) -> Found:
    """Live and crash as a seed says, up to `most` crashes, until the first promise is broken."""
    chance = random.Random(seed)
    count = Count()
    broken: BrokenPromiseError | None = None
    try:
        with scaled(chance):
            run(explore(chance, count, most), chance)
    except* BrokenPromiseError as errors:
        broken = first(errors)
    if broken is None:
        return Found(seed, count.crashes, count.drained, count.fingerprint)
    return Found(seed, count.crashes, count.drained, count.fingerprint, type(broken).__name__, str(broken))


def first(error: BaseException) -> Any:
    """Give the first error of nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
