"""A record store over a node of `store_fixture`, with every class configured for both instances. For tests only."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

from pipeline.adapters.fulltext import FtsIndex
from pipeline.adapters.sqlite import SqliteEngine
from pipeline.audit.notes import Signer
from pipeline.crypt.duty import KEY_LIFE
from pipeline.crypt.keyring import KeyRing
from pipeline.delivery.lanes import Backoff
from pipeline.ids import InstanceId
from pipeline.instances import Instance
from pipeline.ports import EventSink, FileSystem
from pipeline.records.classes import POLICIES
from pipeline.records.indexcopies import INDEXES
from pipeline.records.policy import FromConfig, KeyMode, ScopeKind
from pipeline.records.publishing import RecordPublisher
from pipeline.records.scopes import Placed, ScopeConfig
from pipeline.records.search import SearchIndexes
from pipeline.records.shelves import RingKeys, ServiceKey, Shelf, Shelves
from pipeline.records.speakers import Speakers
from pipeline.records.store import RecordStore
from pipeline.records.subjects import Subjects
from pipeline.records.sweeping import Sweeper
from tests.store_fixture import Node, World
from tests.unit.keyring_fakes import ARN, CACHE, OLD_ARN

SERVICE_ARN = OLD_ARN
"""The operator's KMS key; the instances' own is `ARN`."""
SIGNERS: dict[InstanceId, Signer] = {}
"""What the instances' audit logs sign with."""
KEPT = [row.data_class for row in POLICIES.values() if row.kept]
"""Classes of the record store."""
ACCOUNT = "111122223333"


def arn_of(data_class: str, instance_id: InstanceId, account: str = ACCOUNT) -> str:
    """Name a domain or resource of an instance's own."""
    return f"arn:aws:{data_class.replace('_', '-')}:eu-central-1:{account}:domain/{instance_id}"


def configs(
    instance_id: InstanceId, *, customer: str | None = ARN, account: str = ACCOUNT, days: int = 366
) -> tuple[ScopeConfig, ...]:
    """Configure each class for an instance; with a customer's key where there may be one."""
    found = []
    for row in POLICIES.values():
        if row.configured_as or row.data_class.startswith("recordings_"):
            continue
        named = row.key_scope in {ScopeKind.DOMAIN, ScopeKind.RESOURCE, ScopeKind.OBJECT_TYPE}
        of_type = row.key_scope is ScopeKind.OBJECT_TYPE
        found.append(
            ScopeConfig(
                data_class=row.data_class,
                arn=arn_of("profiles_domain" if of_type else row.data_class, instance_id, account) if named else None,
                object_type="CTR" if of_type else None,
                kms_key_arn=customer if row.key_mode is not KeyMode.OWNED else None,
                expiration_days=days if isinstance(row.retention, FromConfig) else None,
            )
        )
    return tuple(found)


def with_records(instance: Instance, **options: str | None) -> Instance:
    """Configure every class for an instance."""
    return replace(instance, records=configs(instance.instance_id, account=instance.account_id, **options))  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Records:
    """One run of the record store."""

    shelves: Shelves
    engine: SqliteEngine
    store: RecordStore
    subjects: Subjects
    search: SearchIndexes
    sweeper: Sweeper
    held: set[InstanceId]
    """Under a legal hold."""
    process: Node
    service: ServiceKey = field(default_factory=lambda: ServiceKey(SERVICE_ARN))
    """The operator's KMS key."""

    @property
    def speakers(self) -> Speakers:
        return Speakers(self.engine, self.process.commits, self.process.trail, self.process.world.clock)

    def shelf(self, data_class: str, instance_id: InstanceId) -> Shelf:
        return self.shelves.get(instance_id, data_class)

    def caller(self, instance_id: InstanceId) -> Instance:
        return self.process.world.instances[instance_id]

    def publisher(self, *sinks: EventSink) -> RecordPublisher:
        """Make what hands case events on."""
        clock = self.process.world.clock
        backoff = Backoff(timedelta(seconds=1), timedelta(seconds=1), lambda: 0.5)
        return RecordPublisher(
            self.shelves, self.engine, sinks, self.process.commits, self.process.trail, clock, backoff
        )

    def configure(self, **instances: Instance) -> None:
        """Serve with another configuration."""
        for instance in instances.values():
            self.process.world.instances[instance.instance_id] = instance
        self.shelves.adopt(self.process.world.instances.values(), self.service)


@asynccontextmanager
async def records_over(process: Node) -> AsyncIterator[Records]:
    """Open the record store of a node; its instances get every class unless they name some themselves."""
    world = process.world
    world.instances = {
        each: instance if instance.records else with_records(instance) for each, instance in world.instances.items()
    }
    shelves = Shelves(lambda _, place, keys: ring(world, place, keys, process.volume.files))
    engine = SqliteEngine(f"{world.root}/records/records.db")
    try:
        held: set[InstanceId] = set()
        store = RecordStore(
            engine, process.commits, process.trail, world.clock, process.store.room.check, held.__contains__
        )
        subjects = Subjects(
            shelves=shelves,
            store=store,
            engine=engine,
            commits=process.commits,
            trail=process.trail,
            clock=world.clock,
            files=process.volume.files,
            root=f"{world.root}/records",
            sign=lambda instance, text: SIGNERS.setdefault(instance, Signer.make(f"test/{instance}")).note(text),
        )
        sweeper = Sweeper(shelves, engine, process.commits, process.trail, world.clock, held.__contains__)
        records = Records(
            shelves=shelves,
            engine=engine,
            store=store,
            subjects=subjects,
            search=SearchIndexes(
                shelves=shelves,
                store=store,
                engine=engine,
                commits=process.commits,
                trail=process.trail,
                clock=world.clock,
                files=process.volume.files,
                root=f"{world.root}/{INDEXES}",
                check_room=process.store.room.check,
                make=FtsIndex,
            ),
            sweeper=sweeper,
            held=held,
            process=process,
        )
        records.configure()
        yield records
    finally:
        engine.close()


def ring(world: World, place: Placed, keys: RingKeys, files: FileSystem) -> KeyRing:
    """Make a shelf's ring, as the node does."""
    scope = place.scope
    return KeyRing(
        instance_id=scope.owner,
        data_class=scope.policy.data_class,
        context=scope.context,
        current_arn=keys.current,
        previous_arn=keys.previous,
        directory=f"{world.root}/{scope.directory}",
        files=files,
        service=world.kms,
        clock=world.clock,
        cache=CACHE,
        seal_grace=timedelta(0),
        random=lambda: 0.5,
        life=scope.policy.data_key_life or KEY_LIFE,
    )
