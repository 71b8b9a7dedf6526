"""The composition root: the one place that chooses adapters and connects the parts.

Settings in, a running service out. Nothing else constructs an adapter for the service.
"""

import random
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from pipeline import config, listening
from pipeline.adapters.disk import locked
from pipeline.adapters.eventbridge import EventBridgeSink
from pipeline.adapters.sqlite import SqliteEngine
from pipeline.adapters.sqs import SqsQueue, SqsSink
from pipeline.auditing import kept_audit
from pipeline.canary import Canary
from pipeline.delivery.buffers import BufferPool
from pipeline.delivery.deliverer import Deliverer
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.eventlogs import EventLogs
from pipeline.delivery.holds import Holds
from pipeline.delivery.keywatch import KeyWatch
from pipeline.delivery.lanes import Backoff
from pipeline.delivery.publisher import Publisher
from pipeline.duties import handlers
from pipeline.erasure.letgo import Hands
from pipeline.health import Health, Watched
from pipeline.intake.access import RateLimit
from pipeline.intake.chats import Chats
from pipeline.intake.contacts import ContactTable
from pipeline.intake.events import EventIntake
from pipeline.intake.http import HttpIntake
from pipeline.intake.journal import Journal
from pipeline.intake.missing import MissingWatch
from pipeline.intake.moves import Moves
from pipeline.intake.queue import QueueIntake
from pipeline.intake.recorder import Recorder
from pipeline.intake.recordevents import RecordEvents
from pipeline.intake.replay import RecordingNames, Replay
from pipeline.intake.sweep import Sweep
from pipeline.intake.unrepeated import Unrepeated
from pipeline.interim.store import InterimStore
from pipeline.jobs import Ask, Jobs, Report
from pipeline.legalholds import keeps_all
from pipeline.node import Clients, Node
from pipeline.permissions import open_to_others_in
from pipeline.ports import EventQueue, EventSink
from pipeline.process import harden, settle
from pipeline.receipts import ReceiptFolder
from pipeline.recordparts import record_parts
from pipeline.records.rows import RecordEngine
from pipeline.retiredkeys import RetiredKeys
from pipeline.service import Listen, Parts, Service
from pipeline.settings import QueueSource, Settings
from pipeline.surroundings import ServersUp, Surroundings, surroundings

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Taking:
    """The parts that take recordings and events, whatever they come by."""

    contacts: ContactTable
    journal: Journal
    replay: Replay
    recorder: Recorder
    chats: Chats
    events: EventIntake


def connect(
    node: Node,
    store: InterimStore,
    listen: Listen,
    sinks: Mapping[str, EventSink],
    queues: Sequence[tuple[EventQueue, QueueSource]],
    servers_up: ServersUp | None,
    engine: RecordEngine,
) -> Service:
    """Connect the parts of the service."""
    settings, clock, files, commits = node.settings, node.clock, node.files, node.commits
    holds = Holds(f"{node.root}/holds", files, commits, node.trail)
    dispatcher = _dispatcher(node, store, holds)
    kept = record_parts(node, engine, store.room.check, tuple(sinks.values()))
    taking = _taking(node, store, dispatcher, kept.events)
    recorder = taking.recorder
    missing = _missing(node, store, taking)
    hands = Hands(
        store=store,
        recorder=recorder,
        journal=taking.journal,
        contacts=taking.contacts,
        replay=taking.replay,
        missing=missing,
        holds=holds,
        dispatcher=dispatcher,
    )
    publishers = _publishers(node, sinks)
    canary = _canary(node, store, recorder)
    audit = kept_audit(node)
    watched = Watched(
        store=store,
        tenants=node.tenants,
        holds=holds,
        recorder=recorder,
        missing=missing,
        publishers=publishers,
        canary=canary,
        clock=clock,
        refused_files=lambda: node.refused_files,
        audit=lambda: {**audit.troubles, **commits.audit.troubles},
        servers_up=servers_up,
        unrepeated=Unrepeated(),
    )
    health = Health(watched, settings.health, lambda: service.phase)
    intake = HttpIntake(
        unrepeated=watched.unrepeated,
        settings=settings.http,
        tenants=node.tenants,
        recorder=recorder,
        events=taking.events,
        records=kept.routes,
        subjects=kept.subjects,
        limits=RateLimit(clock),
        clock=clock,
        is_ready=lambda: service.ready,
        report=health.report,
    )
    parts = Parts(
        store=store,
        commits=commits,
        tenants=node.tenants,
        holds=holds,
        is_gone=node.is_gone,
        journal=taking.journal,
        recorder=recorder,
        sweep=_sweep(node, store, recorder, taking.chats),
        intake=intake,
        queues=tuple(QueueIntake(queue, source, node.tenants, taking.events) for queue, source in queues),
        dispatcher=dispatcher,
        keywatch=KeyWatch(
            tenants=node.tenants,
            holds=holds,
            dispatcher=dispatcher,
            clock=clock,
            random=random.random,
            settings=settings.delivery,
        ),
        retired_keys=RetiredKeys(
            node.root,
            tenants=node.tenants,
            files=files,
            commits=commits,
            trail=node.trail,
            clock=clock,
            keeps_all=partial(keeps_all, settings.config_dir),
        ),
        publishers=publishers,
        event_logs=EventLogs(
            f"{node.root}/events", files, [each for _, each in publishers], settings.events_out.kept_bytes
        ),
        folder=ReceiptFolder(
            store,
            taking.journal,
            node.tenants,
            node.trail,
            clock,
            settings.store,
            partial(keeps_all, settings.config_dir),
        ),
        missing=missing,
        upkeep=kept.upkeep,
        sweeper=kept.sweeper,
        record_publisher=kept.publisher,
        health=health,
        canary=canary,
        audit=audit,
        jobs=Jobs(
            f"{node.root}/jobs",
            files=files,
            commits=commits,
            trail=node.trail,
            clock=clock,
            handlers=handlers(node, hands, engine, kept.sweeper),
        ),
        listen=listen,
    )
    service = Service(parts, drain=settings.drain)
    return service


def _taking(node: Node, store: InterimStore, dispatcher: Dispatcher, records: RecordEvents) -> Taking:
    names = RecordingNames(node.clock)
    contacts = ContactTable(names)
    journal = Journal(f"{node.root}/journal", node.files, node.commits, node.clock)
    replay = Replay(journal, contacts, names)
    moves = Moves(store, node.trail, dispatcher.add)
    recorder = Recorder(store=store, moves=moves, contacts=contacts, replay=replay, clock=node.clock)
    chats = Chats(store, recorder, node.clock)
    events = EventIntake(
        room=store.room,
        journal=journal,
        chats=chats,
        contacts=contacts,
        replay=replay,
        trail=node.trail,
        records=records,
    )
    return Taking(contacts=contacts, journal=journal, replay=replay, recorder=recorder, chats=chats, events=events)


def _dispatcher(node: Node, store: InterimStore, holds: Holds) -> Dispatcher:
    settings = node.settings.delivery
    deliverer = Deliverer(
        store=store,
        tenants=node.tenants,
        trail=node.trail,
        destinations=node.destination,
        keys=node.keys,
        head_allowed=node.head_allowed,
        pool=BufferPool(settings.bytes_in_flight),
        clock=node.clock,
        settle_volume=settings.settle_volume,
    )
    return Dispatcher(
        store=store,
        holds=holds,
        deliver=deliverer.deliver,
        reject=deliverer.reject,
        clock=node.clock,
        random=random.random,
        settings=settings,
    )


def _missing(node: Node, store: InterimStore, taking: Taking) -> MissingWatch:
    return MissingWatch(
        f"{node.root}/missing",
        store=store,
        tenants=node.tenants,
        contacts=taking.contacts,
        replay=taking.replay,
        files=node.files,
        commits=node.commits,
        trail=node.trail,
        clock=node.clock,
        settings=node.settings.missing,
        receipt_window=node.settings.store.receipt_window,
    )


def _publishers(node: Node, sinks: Mapping[str, EventSink]) -> tuple[tuple[str, Publisher], ...]:
    settings = node.settings.delivery
    backoff = Backoff(settings.retry_first, settings.retry_most, random.random)
    return tuple(
        (name, Publisher(name, sink, f"{node.root}/events", node.files, node.commits, backoff))
        for name, sink in sinks.items()
    )


def _canary(node: Node, store: InterimStore, recorder: Recorder) -> Canary | None:
    if node.settings.canary.instance is None:
        return None
    return Canary(
        f"{node.root}/canary.json",
        store=store,
        tenants=node.tenants,
        recorder=recorder,
        files=node.files,
        commits=node.commits,
        clock=node.clock,
        settings=node.settings.canary,
    )


def _sweep(node: Node, store: InterimStore, recorder: Recorder, chats: Chats) -> Sweep:
    return Sweep(
        store=store,
        tenants=node.tenants,
        recorder=recorder,
        chats=chats,
        clock=node.clock,
        settings=node.settings.store,
        body_idle=node.settings.http.body_idle,
        seal_grace=node.settings.keys.seal_grace,
    )


@asynccontextmanager
async def assembled(
    settings: Settings, servers_up: ServersUp | None = None
) -> AsyncIterator[tuple[Service, Node, str]]:
    """Assemble the service that `settings` describe, holding its store and its address; give its URL, too.

    Raises:
        HaltError: the store, its lock or the address can't be used.

    """
    async with _holding_store(settings) as stack:
        listener = stack.enter_context(listening.listening(settings.http.host, settings.http.port))
        service, node = await _assemble(
            settings, stack, lambda app, end: listening.serve(app, listener, end), servers_up
        )
        yield service, node, listening.url_of(listener)


@asynccontextmanager
async def _holding_store(settings: Settings) -> AsyncIterator[AsyncExitStack]:
    state = Path(settings.state_dir)
    config.make_private_directory(state)
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(f"{state}/lock"))
        yield stack


async def _assemble(
    settings: Settings, stack: AsyncExitStack, listen: Listen, servers_up: ServersUp | None
) -> tuple[Service, Node]:
    clients = Clients(stack, settings)
    node = Node(settings, clients)
    store = InterimStore(
        node.root,
        node.files,
        node.commits,
        free_bytes=settings.store.free_bytes,
        volume=node.volume,
        quota_of=node.quota_of,
    )
    known = config.load_store_id(settings.config_dir)
    store_id = store.open(known)
    if store_id != known:
        config.save_store_id(settings.config_dir, store_id)
    await node.configure()
    sinks: dict[str, EventSink] = {}
    if settings.events_out.queue_url is not None:
        sinks["sqs"] = SqsSink(await clients.get("sqs"), settings.events_out.queue_url)
    if settings.events_out.bus_name is not None:
        sinks["bus"] = EventBridgeSink(await clients.get("events"), settings.events_out.bus_name)
    queues = [(SqsQueue(await clients.get("sqs"), source.queue_url), source) for source in settings.queues]
    engine = SqliteEngine(f"{node.root}/records/records.db")
    stack.callback(engine.close)
    return connect(node, store, listen, sinks, queues, servers_up, engine), node


async def run(settings: Settings, stop: anyio.Event, started: Callable[[str], None]) -> None:
    """Serve until `stop`; tell the URL when everything is up.

    Raises:
        HaltError: it can't be served safely.

    """
    async with surroundings(settings) as given:
        await _serve(given, stop, started)


async def perform(settings: Settings, ask: Ask) -> Report:
    """Do one job on a store that no service runs on, and nothing else.

    Raises:
        HaltError: the store can't be used, or a service holds it after all.
        DeferError: not even its report can be written.

    """
    async with surroundings(settings) as given, _holding_store(given.settings) as stack:
        service, node = await _assemble(given.settings, stack, _deaf, given.are_up)
        await given.prepare()
        await node.configure()
        return await service.perform(ask)


async def _deaf(_app: HttpIntake, _end: anyio.Event) -> None:
    """Listen to nobody."""


async def _serve(given: Surroundings, stop: anyio.Event, started: Callable[[str], None]) -> None:
    async with (
        assembled(given.settings, given.are_up) as (service, node, url),
        anyio.create_task_group() as group,
    ):

        async def prepared() -> None:
            await given.prepare()
            await node.begin_telling()
            await node.configure()

        group.start_soon(_reload_on_hangup, service, node, name="reload")
        is_up = anyio.Event()
        group.start_soon(_look_at_permissions, Path(given.settings.state_dir), is_up, name="permissions")

        def tell() -> None:
            is_up.set()
            started(url)

        await service.run(stop, prepared, tell)
        group.cancel_scope.cancel()


async def _look_at_permissions(state: Path, is_up: anyio.Event) -> None:
    """Say once which of what is held others of this machine may read: what is made here never is.

    Only when the service is up: looking at a hundred thousand files would keep the start waiting.
    """
    await is_up.wait()
    found = await anyio.to_thread.run_sync(lambda: list(open_to_others_in(state)), abandon_on_cancel=True)
    if found:
        some = ", ".join(str(path) for path in found[:3])
        log.error("permissions.open", paths=len(found), some=some, detail="chmod -R go= on the state directory")


async def _reload_on_hangup(service: Service, node: Node) -> None:
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            await node.configure()
            await service.configured()


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
