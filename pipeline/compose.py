"""The composition root: every part of the service, connected. `pipeline.running` chooses the adapters and runs it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

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
from pipeline.jobs import Jobs
from pipeline.legalholds import keeps_all
from pipeline.node import Node
from pipeline.ports import EventQueue, EventSink
from pipeline.receipts import ReceiptFolder
from pipeline.recordparts import record_parts
from pipeline.records.rows import RecordEngine
from pipeline.retiredkeys import RetiredKeys
from pipeline.service import Listen, Parts, Service
from pipeline.settings import QueueSource
from pipeline.surroundings import ServersUp

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
