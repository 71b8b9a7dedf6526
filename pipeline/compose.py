"""The composition root: the one place that chooses adapters and connects the parts.

Settings in, a running service out. Nothing else constructs an adapter for the service.
"""

import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import structlog

from pipeline import config, embedded, listening
from pipeline.adapters.aws import Service as Api
from pipeline.adapters.aws import open_client
from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk, locked
from pipeline.adapters.eventbridge import EventBridgeSink
from pipeline.adapters.kms import AwsKeyService
from pipeline.adapters.s3 import S3Destination
from pipeline.adapters.sqs import SqsQueue, SqsSink
from pipeline.audit.records import Actor
from pipeline.crypt.keyring import KeyRing
from pipeline.delivery.buffers import BufferPool
from pipeline.delivery.deliverer import Deliverer
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.holds import Holds
from pipeline.delivery.lanes import Backoff
from pipeline.delivery.probe import ProbeAnswer
from pipeline.delivery.publisher import Publisher
from pipeline.ids import InstanceId, Kind
from pipeline.instances import Instance, Storage
from pipeline.intake.access import RateLimit
from pipeline.intake.chats import Chats
from pipeline.intake.contacts import ContactTable
from pipeline.intake.events import EventIntake
from pipeline.intake.http import HttpIntake
from pipeline.intake.journal import Journal
from pipeline.intake.moves import Moves
from pipeline.intake.queue import QueueIntake
from pipeline.intake.recorder import Recorder
from pipeline.intake.replay import RecordingNames, Replay
from pipeline.intake.sweep import Sweep
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.store import InterimStore
from pipeline.ports import EventQueue, EventSink, KmsCall
from pipeline.process import harden, settle
from pipeline.provision import demo_token_file, provision_demo
from pipeline.receipts import ReceiptFolder
from pipeline.service import Parts, Service
from pipeline.settings import QueueSource, Settings
from pipeline.tenants import Tenants
from pipeline.trail import Trail

log = structlog.get_logger()

SERVICE = Actor("Service", "pipeline")


class Clients:
    """AWS clients, one per API and Region, opened when first needed and closed together."""

    def __init__(self, stack: AsyncExitStack, settings: Settings) -> None:
        self._stack = stack
        self._endpoints = {
            "kms": settings.kms,
            "s3": settings.s3,
            "sqs": settings.sqs,
            "events": settings.events,
        }
        self._open: dict[tuple[str, str], Any] = {}

    async def get(self, service: Api, region: str | None = None) -> Any:
        """Give the client of an API. A configured URL serves every Region; AWS itself has one for each."""
        endpoint = self._endpoints[service]
        if endpoint.url is None and region is not None:
            endpoint = replace(endpoint, region=region)
        key = service, endpoint.region
        if key not in self._open:
            self._open[key] = await self._stack.enter_async_context(open_client(service, endpoint))
        return self._open[key]


class Node:
    """What all parts share, and the parts that depend on the configuration."""

    def __init__(self, settings: Settings, clients: Clients) -> None:
        self.settings = settings
        self.clients = clients
        self.clock = SystemClock()
        self.files = Disk()
        self.root = str(settings.state_dir)
        self.commits = GroupCommit(self.files, volume=self.root)
        self.trail = Trail(self.root, actor=SERVICE, writer="service", clock=self.clock)
        self.tenants = Tenants(self._ring)
        self._key_clients: dict[str, Any] = {}
        self._bucket_clients: dict[InstanceId, Any] = {}
        self._heads: dict[tuple[InstanceId, Kind], bool] = {}

    async def configure(self) -> None:
        """Read the instance files; one that is bad leaves what was in force before."""
        loaded = await anyio.to_thread.run_sync(config.load_instances, self.settings.config_dir)
        for path, problem in loaded.problems.items():
            log.error("config.refused", file=path.name, field=problem.field, detail=str(problem))
        instances = dict(loaded.instances)
        bad = {path.stem for path in loaded.problems}
        for known in self.tenants.instances():
            if str(known.instance_id) in bad:
                instances.setdefault(known.instance_id, known)
        for instance in instances.values():
            await self._prepare(instance)
        before = {id(tenant.ring) for tenant in self.tenants}
        self.tenants.replace(instances)
        for tenant in self.tenants:
            if id(tenant.ring) not in before:
                await tenant.ring.load()
        log.info("config.loaded", instances=len(instances), refused=len(loaded.problems))

    def destination(self, instance: Instance, storage: Storage) -> S3Destination:
        """Give a bucket as its storage configuration names it."""
        return S3Destination(self._bucket_clients[instance.instance_id], storage)

    def keys(self, instance: Instance, key_arn: str) -> AwsKeyService:
        """Give the key service for a KMS key, each call told to the instance's audit trail."""
        return AwsKeyService(self._key_clients[_region_of(key_arn)], partial(self._tell, instance))

    def head_allowed(self, instance: InstanceId, kind: Kind) -> bool:
        """Tell what the destination's probe found; without one it is tried."""
        return self._heads.get((instance, kind), True)

    # --- inside

    async def _prepare(self, instance: Instance) -> None:
        instance_id = instance.instance_id
        arns = [
            instance.kms_key_arn,
            instance.previous_kms_key_arn,
            *(each.kms_key_arn for each in instance.storage.values()),
        ]
        for region in {_region_of(arn) for arn in arns if arn is not None}:
            self._key_clients[region] = await self.clients.get("kms", region)
        self._bucket_clients[instance_id] = await self.clients.get("s3", instance.region)
        for kind in instance.storage:
            raw = config.load_probe(self.settings.config_dir, instance_id, kind)
            if raw is not None:
                self._heads[instance_id, kind] = msgspec.json.decode(raw, type=ProbeAnswer).head

    def _ring(self, instance: Instance) -> KeyRing:
        return KeyRing(
            instance_id=instance.instance_id,
            context=instance.recordings_context,
            current_arn=instance.kms_key_arn,
            previous_arn=instance.previous_kms_key_arn,
            directory=f"{self.root}/keys/{instance.instance_id}",
            files=self.files,
            service=self.keys(instance, instance.kms_key_arn),
            clock=self.clock,
            cache=self.settings.keys.cache,
            seal_grace=self.settings.keys.seal_grace,
            random=random.random,
        )

    async def _tell(self, instance: Instance, call: KmsCall) -> None:
        await self.commits.commit(Commit(lines=(self.trail.key_use(instance, call),)))


def _region_of(key_arn: str) -> str:
    return key_arn.split(":")[3]


def connect(
    node: Node,
    store: InterimStore,
    listener: socket.socket,
    sinks: Mapping[str, EventSink],
    queues: Sequence[tuple[EventQueue, QueueSource]],
) -> Service:
    """Connect the parts of the service."""
    settings, clock, files, commits = node.settings, node.clock, node.files, node.commits
    names = RecordingNames(clock)
    contacts = ContactTable(names)
    journal = Journal(f"{node.root}/journal", files, commits, clock)
    replay = Replay(journal, contacts, names)
    holds = Holds(f"{node.root}/holds", files, commits, node.trail)
    deliverer = Deliverer(
        store=store,
        tenants=node.tenants,
        trail=node.trail,
        destinations=node.destination,
        keys=node.keys,
        head_allowed=node.head_allowed,
        pool=BufferPool(settings.delivery.bytes_in_flight),
        clock=clock,
        settle_volume=settings.delivery.settle_volume,
    )
    dispatcher = Dispatcher(
        store=store,
        holds=holds,
        deliver=deliverer.deliver,
        reject=deliverer.reject,
        clock=clock,
        random=random.random,
        settings=settings.delivery,
    )
    recorder = Recorder(
        store=store, moves=Moves(store, node.trail, dispatcher.add), contacts=contacts, replay=replay, clock=clock
    )
    chats = Chats(store, recorder, clock)
    events = EventIntake(journal=journal, chats=chats, contacts=contacts, replay=replay, trail=node.trail)
    backoff = Backoff(settings.delivery.retry_first, settings.delivery.retry_most, random.random)
    intake = HttpIntake(
        settings=settings.http,
        tenants=node.tenants,
        recorder=recorder,
        events=events,
        limits=RateLimit(clock),
        clock=clock,
        is_ready=lambda: service.ready,
    )

    async def listen(app: HttpIntake, stop: anyio.Event) -> None:
        await listening.serve(app, listener, stop)

    parts = Parts(
        store=store,
        commits=commits,
        tenants=node.tenants,
        holds=holds,
        journal=journal,
        recorder=recorder,
        sweep=Sweep(
            store=store,
            tenants=node.tenants,
            recorder=recorder,
            chats=chats,
            clock=clock,
            settings=settings.store,
            body_idle=settings.http.body_idle,
            seal_grace=settings.keys.seal_grace,
        ),
        intake=intake,
        queues=tuple(QueueIntake(queue, source, node.tenants, events) for queue, source in queues),
        dispatcher=dispatcher,
        publishers=tuple(
            Publisher(name, sink, f"{node.root}/events", files, commits, backoff) for name, sink in sinks.items()
        ),
        folder=ReceiptFolder(store, journal, node.tenants, clock, settings.store),
        listen=listen,
    )
    service = Service(parts, drain=settings.drain)
    return service


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[tuple[Service, Node, str]]:
    """Assemble the service that `settings` describe, holding its store and its address; give its URL, too.

    Raises:
        HaltError: the store, its lock or the address can't be used.

    """
    state = Path(settings.state_dir)
    config.make_private_directory(state)
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(f"{state}/lock"))
        listener = stack.enter_context(listening.listening(settings.http.host, settings.http.port))
        clients = Clients(stack, settings)
        node = Node(settings, clients)
        store = InterimStore(node.root, node.files, node.commits, free_bytes=settings.store.free_bytes)
        store_id = store.open(config.load_store_id(settings.config_dir))
        config.save_store_id(settings.config_dir, store_id)
        await node.configure()
        sinks: dict[str, EventSink] = {}
        if settings.events_out.queue_url is not None:
            sinks["sqs"] = SqsSink(await clients.get("sqs"), settings.events_out.queue_url)
        if settings.events_out.bus_name is not None:
            sinks["bus"] = EventBridgeSink(await clients.get("events"), settings.events_out.bus_name)
        queues = [(SqsQueue(await clients.get("sqs"), source.queue_url), source) for source in settings.queues]
        service = connect(node, store, listener, sinks, queues)
        yield service, node, listening.url_of(listener)


async def run(settings: Settings, stop: anyio.Event, started: Callable[[str], None]) -> None:
    """Serve until `stop`; tell the URL when everything is up.

    Raises:
        HaltError: it can't be served safely.

    """
    if not settings.embedded:
        await _serve(settings, stop, started, _nothing)
        return
    with embedded.opened(settings) as known:
        for concern in embedded.concerns(known):
            log.warning("embedded.concern", detail=concern)
        servers = embedded.Servers(known)
        ended = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(servers.run, ended, name="embedded servers")
            try:
                await _serve(known.settings(settings), stop, started, partial(_provision, known, servers, settings))
            finally:
                ended.set()


async def _serve(
    settings: Settings, stop: anyio.Event, started: Callable[[str], None], prepare: Callable[[], Awaitable[None]]
) -> None:
    async with assembled(settings) as (service, node, url), anyio.create_task_group() as group:

        async def prepared() -> None:
            await prepare()
            await node.configure()

        group.start_soon(_reload_on_hangup, service, node, name="reload")
        await service.run(stop, prepared, lambda: started(url))
        group.cancel_scope.cancel()


async def _nothing() -> None:
    """Prepare nothing: the servers are others'."""


async def _provision(known: embedded.Embedded, servers: embedded.Servers, settings: Settings) -> None:
    """Wait for the embedded servers; on the first start make the demo instance."""
    await servers.ready.wait()
    instance, token = await provision_demo(known, settings.config_dir)
    if token is not None:
        log.info(
            "embedded.demo_instance",
            instance=str(instance.instance_id),
            token_file=str(demo_token_file(known)),
        )


async def _reload_on_hangup(service: Service, node: Node) -> None:
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            await node.configure()
            service.configured()


async def _stop_on_signal(stop: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("service.signal", signal=number.name)
            stop.set()


def _started(url: str) -> None:
    settle()
    log.info("service.started", url=url)


async def _main(settings: Settings) -> None:
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_stop_on_signal, stop, name="signals")
        await run(settings, stop, _started)
        group.cancel_scope.cancel()


def serve(settings: Settings) -> int:
    """Run the service until it is told to stop; give the exit code. What `pipeline serve` does."""
    harden()
    # Until the handler is there a reload means nothing: the configuration is about to be read anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    anyio.run(_main, settings, backend_options={"use_uvloop": True})
    return 0
