"""A node's parts from intake to receipts, as the composition root connects them, over a world in memory. No HTTP.

Sizes are scaled down, so that bodies of some hundred bytes take the ways of large ones: see `scaled`.
"""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import structlog

import pipeline.delivery.upload
import pipeline.ids
import pipeline.intake.history
import pipeline.interim.reader
import pipeline.interim.scan
import pipeline.interim.store
import tests.s3_strict
from pipeline.audit.records import Actor
from pipeline.crypt.keyring import KeyRing
from pipeline.delivery.buffers import BufferPool
from pipeline.delivery.deliverer import Deliverer
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.holds import Holds
from pipeline.delivery.keywatch import KeyWatch
from pipeline.delivery.lanes import Backoff
from pipeline.delivery.publisher import Publisher
from pipeline.ids import InstanceId
from pipeline.instances import Instance
from pipeline.intake.chats import Chats
from pipeline.intake.contacts import ContactTable
from pipeline.intake.events import EventIntake
from pipeline.intake.journal import Journal
from pipeline.intake.moves import Moves
from pipeline.intake.recorder import Recorder
from pipeline.intake.replay import RecordingNames, Replay
from pipeline.intake.sweep import Sweep
from pipeline.interim.commit import GroupCommit
from pipeline.interim.store import InterimStore
from pipeline.interim.volume import Volume
from pipeline.keyports import KeyService
from pipeline.ports import FileSystem
from pipeline.receipts import ReceiptFolder
from pipeline.settings import DeliverySettings, StoreSettings
from pipeline.tenants import Tenant, Tenants
from pipeline.trail import Trail
from tests.model_disk import ModelDisk
from tests.simulation.outside import Bucket, Connection, Kms, Sink, Weather
from tests.simulation.promises import Promises
from tests.simulation.virtual import WorldClock
from tests.store_fixture import instance
from tests.unit.keyring_fakes import CACHE, GRACE, A

ROOT = "/state"
IDLE = timedelta(seconds=30)
STORE = StoreSettings(media_idle=IDLE, chat_idle=IDLE)
DELIVERY = DeliverySettings(workers=4, retry_most=timedelta(seconds=20), probe_most=timedelta(seconds=60))
_T = TypeVar("_T")
PART_BYTES = 200
MOST_BYTES = 4096
"""Of any body."""
SHARDS = tuple("0123")
BALLAST_BYTES = 4096


@contextmanager
def scaled(chance: random.Random) -> Iterator[None]:
    """Let everything be small and quick, and nothing left to chance but `chance`.

    Parts have 200 bytes, buffers few KiB, the store four folders; threads run in their callers' place; nothing is
    logged; ids and all else that the interpreter draws from the system come from a seed. Salts come from the
    cryptography library and stay what they are: nothing depends on them.
    """
    drawn = random.Random(chance.getrandbits(64))
    with pytest.MonkeyPatch.context() as patch, silent():
        for module, name, value in (
            (pipeline.delivery.upload, "PART_BYTES", PART_BYTES),
            (pipeline.delivery.upload, "MIB", 1),
            (tests.s3_strict, "SMALLEST_PART", PART_BYTES),
            (pipeline.interim.reader, "SEGMENT_LIMIT", MOST_BYTES),
            (pipeline.intake.history, "_PIECE", MOST_BYTES),
            (pipeline.interim.store, "SHARDS", SHARDS),
            (pipeline.interim.scan, "SHARDS", SHARDS),
            (pipeline.ids, "secrets", SimpleNamespace(randbits=lambda bits: drawn.getrandbits(bits) & ~0xC)),
            (anyio.to_thread, "run_sync", partial(_run_in_place, chance)),
            (os, "urandom", drawn.randbytes),
            (random, "_urandom", drawn.randbytes),
        ):
            patch.setattr(module, name, value)
        yield


@contextmanager
def silent() -> Iterator[None]:
    """Log nothing: it would take most of the time."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        structlog.configure(**before)


async def _run_in_place(
    chance: random.Random,
    function: Callable[..., _T],
    *args: Any,
    abandon_on_cancel: bool = False,
    limiter: anyio.CapacityLimiter | None = None,
) -> _T:
    """Do what `anyio.to_thread.run_sync` does, without a thread: others get their turn before it, and maybe after."""
    assert not abandon_on_cancel, "a call that is left behind needs a thread"
    await asyncio.sleep(0)
    result = function(*args)
    if chance.random() < 0.25:
        await anyio.lowlevel.cancel_shielded_checkpoint()
    return result


@dataclass(kw_only=True)
class World:
    """What outlives a process."""

    chance: random.Random
    disk: ModelDisk = field(default_factory=ModelDisk)
    weather: Weather = field(default_factory=Weather)
    clock: WorldClock = field(default_factory=WorldClock)
    instances: dict[InstanceId, Instance] = field(default_factory=lambda: {A: instance(A)})
    buckets: dict[InstanceId, Bucket] = field(default_factory=dict)
    kms: Kms = field(init=False)
    keys: KeyService | None = None
    """Another key service than `kms`."""
    sink: Sink = field(init=False)
    store_id: str | None = None
    """What the configuration knows."""
    promises: Promises = field(default_factory=Promises)
    store: StoreSettings = STORE
    delivery: DeliverySettings = DELIVERY

    def __post_init__(self) -> None:
        self.kms = Kms(self.weather)
        self.sink = Sink(self.weather)
        for each in self.instances:
            self.buckets.setdefault(each, Bucket())

    def copy(self, disk: ModelDisk) -> "World":
        """Give the same moment once more, on another disk, in good weather."""
        weather = Weather()
        copy = World(
            chance=self.chance,
            disk=disk,
            weather=weather,
            clock=self.clock.copy(),
            instances=self.instances,
            buckets={each: bucket.copy() for each, bucket in self.buckets.items()},
            store_id=self.store_id,
            promises=self.promises.copy(),
            store=self.store,
            delivery=self.delivery,
        )
        copy.kms, copy.sink = self.kms.copy(weather), self.sink.copy(weather)
        return copy


@dataclass(kw_only=True)
class Node:
    """One run of a process over a world."""

    world: World
    commits: GroupCommit
    store: InterimStore
    tenants: Tenants
    contacts: ContactTable
    journal: Journal
    replay: Replay
    recorder: Recorder
    chats: Chats
    events: EventIntake
    sweep: Sweep
    holds: Holds
    dispatcher: Dispatcher
    keywatch: KeyWatch
    publisher: Publisher
    folder: ReceiptFolder

    def tenant(self, instance_id: InstanceId = A) -> Tenant:
        """One instance."""
        return self.tenants[instance_id]


@asynccontextmanager
async def node(
    world: World, *, delivers: bool = True, sweeps: bool = True, watches: bool = False
) -> AsyncIterator[Node]:
    """Start a process as the service does, and end it as a stop does; some of what runs by itself may be left out."""
    made = made_node(world)
    for tenant in made.tenants:
        await tenant.ring.load()
    made.store.scan()
    made.holds.load()
    async with anyio.create_task_group() as writers:
        writers.start_soon(made.commits.run, name="group commit")
        try:
            async with anyio.create_task_group() as stages:
                for name in made.store.index:
                    made.tenant(name.instance_id).ring.used(name.key_id, 1, name.size_bytes or 0)
                    if name.is_waiting:
                        made.dispatcher.add(name)
                if delivers:
                    stages.start_soon(made.dispatcher.run, name="delivery")
                if watches:
                    stages.start_soon(made.keywatch.run, name="keys")
                if sweeps:
                    stages.start_soon(made.sweep.run, name="sweep")
                    stages.start_soon(made.store.room.run, name="volume")
                yield made
                stages.cancel_scope.cancel()
            for reception in made.recorder.receptions():
                await made.recorder.let_go(reception)
                await made.recorder.detach(reception)
        finally:
            made.journal.close()
            made.commits.stop()


def made_node(world: World) -> Node:
    """Connect the parts."""
    clock, chance = world.clock, world.chance
    volume = Volume(ROOT, world.disk, clock, ballast_bytes=BALLAST_BYTES)
    files = volume.files
    commits = GroupCommit(volume.reserved)
    store = InterimStore(ROOT, files, commits, free_bytes=BALLAST_BYTES, volume=volume)
    world.store_id = store.open(world.store_id)
    trail = Trail(ROOT, actor=Actor("Service", "test"), clock=clock)
    names = RecordingNames(clock)
    contacts = ContactTable(names)
    journal = Journal(f"{ROOT}/journal", files, commits, clock)
    replay = Replay(journal, contacts, names)
    holds = Holds(f"{ROOT}/holds", files, commits, trail)
    tenants = Tenants(lambda each: _ring(world, each, files))
    tenants.replace(world.instances)
    deliverer = Deliverer(
        store=store,
        tenants=tenants,
        trail=trail,
        destinations=lambda each, storage: Connection(world.buckets[each.instance_id], storage, world.weather, chance),
        keys=lambda _instance, _arn: world.keys or world.kms,
        head_allowed=lambda _instance, _kind: True,
        pool=BufferPool(16 * 2**20),
        clock=clock,
        settle_volume=None,
        random=chance.random,
    )
    dispatcher = Dispatcher(
        store=store,
        holds=holds,
        deliver=deliverer.deliver,
        reject=deliverer.reject,
        clock=clock,
        random=chance.random,
        settings=world.delivery,
    )
    moves = Moves(store, trail, dispatcher.add)
    recorder = Recorder(store=store, moves=moves, contacts=contacts, replay=replay, clock=clock)
    chats = Chats(store, recorder, clock)
    return Node(
        world=world,
        commits=commits,
        store=store,
        tenants=tenants,
        contacts=contacts,
        journal=journal,
        replay=replay,
        recorder=recorder,
        chats=chats,
        events=EventIntake(
            room=store.room, journal=journal, chats=chats, contacts=contacts, replay=replay, trail=trail
        ),
        sweep=Sweep(
            store=store,
            tenants=tenants,
            recorder=recorder,
            chats=chats,
            clock=clock,
            settings=world.store,
            body_idle=IDLE,
            seal_grace=GRACE,
        ),
        holds=holds,
        dispatcher=dispatcher,
        keywatch=KeyWatch(
            tenants=tenants,
            holds=holds,
            dispatcher=dispatcher,
            clock=clock,
            random=chance.random,
            settings=world.delivery,
        ),
        publisher=Publisher(
            "sqs",
            world.sink,
            f"{ROOT}/events",
            files,
            commits,
            Backoff(timedelta(seconds=1), timedelta(seconds=20), chance.random),
        ),
        folder=ReceiptFolder(store, journal, tenants, trail, clock, world.store, lambda _instance: False),
    )


def _ring(world: World, each: Instance, files: FileSystem) -> KeyRing:
    return KeyRing(
        instance_id=each.instance_id,
        context=each.recordings_context,
        current_arn=each.kms_key_arn,
        previous_arn=None,
        directory=f"{ROOT}/keys/{each.instance_id}",
        files=files,
        service=world.keys or world.kms,
        clock=world.clock,
        cache=CACHE,
        seal_grace=GRACE,
        random=world.chance.random,
    )
