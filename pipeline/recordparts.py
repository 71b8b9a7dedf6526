"""The parts of the service that hold the other classes of data, connected.

Part of the composition root.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.adapters.fulltext import FtsIndex
from pipeline.backup.made import all_made
from pipeline.delivery.lanes import Backoff
from pipeline.intake.recordevents import RecordEvents
from pipeline.intake.records import RecordRoutes
from pipeline.intake.subjects import SubjectRoutes
from pipeline.legalholds import keeps_all
from pipeline.node import Node
from pipeline.ports import EventSink
from pipeline.records.indexcopies import INDEXES
from pipeline.records.merging import Merging
from pipeline.records.publishing import RecordPublisher
from pipeline.records.rows import RecordEngine
from pipeline.records.search import SearchIndexes
from pipeline.records.speakers import Speakers
from pipeline.records.store import CheckRoom, RecordStore
from pipeline.records.subjects import Subjects
from pipeline.records.sweeping import Sweeper
from pipeline.records.upkeep import Upkeep


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordParts:
    """What serves records, and what does by itself what has to be done."""

    store: RecordStore
    events: RecordEvents
    routes: RecordRoutes
    subjects: SubjectRoutes
    sweeper: Sweeper
    upkeep: Upkeep
    publisher: RecordPublisher


def record_parts(node: Node, engine: RecordEngine, check_room: CheckRoom, sinks: Sequence[EventSink]) -> RecordParts:
    """Connect them."""
    settings, config_dir = node.settings, node.settings.config_dir
    is_held = partial(keeps_all, config_dir)
    store = RecordStore(engine, node.commits, node.trail, node.clock, check_room, is_held)
    subjects = Subjects(
        shelves=node.shelves,
        store=store,
        engine=engine,
        commits=node.commits,
        trail=node.trail,
        clock=node.clock,
        files=node.files,
        root=f"{node.root}/records",
        sign=lambda instance, text: node.audit_keys.signer(str(instance)).note(text),
    )

    search = SearchIndexes(
        shelves=node.shelves,
        store=store,
        engine=engine,
        commits=node.commits,
        trail=node.trail,
        clock=node.clock,
        files=node.files,
        root=f"{node.root}/{INDEXES}",
        check_room=check_room,
        make=FtsIndex,
    )
    backoff = Backoff(settings.delivery.retry_first, settings.delivery.retry_most, random.random)

    def backups() -> Sequence[str]:
        return [str(made.backup_id) for made in all_made(config_dir)]

    return RecordParts(
        store=store,
        events=RecordEvents(
            node.shelves,
            store,
            Merging(engine, node.clock),
            Speakers(engine, node.commits, node.trail, node.clock),
        ),
        routes=RecordRoutes(settings.http, node.shelves, store, search),
        subjects=SubjectRoutes(settings.http, subjects, backups),
        sweeper=Sweeper(node.shelves, engine, node.commits, node.trail, node.clock, is_held),
        upkeep=Upkeep(node.shelves, search, engine, node.clock),
        publisher=RecordPublisher(node.shelves, engine, sinks, node.commits, node.trail, node.clock, backoff),
    )
