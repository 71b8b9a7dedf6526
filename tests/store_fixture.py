"""A node's inner half, from intake to sealed artifact, on the real disk. For tests only.

`WatchedDisk` remembers the order of what was done, refuses on demand, and knows what a power cut would leave.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import anyio

from pipeline.adapters.disk import Disk
from pipeline.audit.records import Actor
from pipeline.crypt.keyring import KeyRing
from pipeline.errors import StoreIoError
from pipeline.ids import RECORDINGS, InstanceId, Kind
from pipeline.instances import Instance, Limits, Storage
from pipeline.intake.chats import Chats
from pipeline.intake.contacts import ContactTable
from pipeline.intake.events import EventIntake
from pipeline.intake.journal import Journal
from pipeline.intake.moves import Moves
from pipeline.intake.reception import Answer, Reception, Source
from pipeline.intake.recorder import Recorder
from pipeline.intake.replay import RecordingNames, Replay
from pipeline.intake.sweep import Sweep
from pipeline.interim.commit import GroupCommit
from pipeline.interim.states import ArtifactName, parse_name
from pipeline.interim.store import InterimStore
from pipeline.interim.volume import Volume
from pipeline.ports import Buffer, FileSystem
from pipeline.settings import StoreSettings
from pipeline.tenants import Tenant, Tenants
from pipeline.trail import Trail
from tests import markers
from tests.unit.keyring_fakes import ARN, CACHE, GRACE, A, B, FakeClock, StrictKms

HOUR_S = 3_600.0
"""Between refusals of a disk that are to be accidents: those that follow each other soon are taken for its end."""
MARKER = markers.MEDIA
"""Begins every payload that is searched for afterwards."""


def _storage(kind: Kind) -> Storage:
    return Storage(
        association_id=f"{kind}-1", bucket="acme-recordings", prefix="p", kms_key_arn=ARN, bucket_owner="111122223333"
    )


def instance(
    instance_id: InstanceId,
    *,
    limits: Limits | None = None,
    token_sha256: tuple[str, ...] = (),
    expects: tuple[str, ...] = (),
) -> Instance:
    return Instance(
        instance_id=instance_id,
        alias="acme",
        account_id="111122223333",
        region="eu-central-1",
        kms_key_arn=ARN,
        token_sha256=token_sha256,
        storage={kind: _storage(kind) for kind in RECORDINGS},
        limits=limits or Limits(),
        expects=expects,
    )


# --- a disk that is watched


@dataclass
class Refusal:
    """What a disk refuses: an operation, on paths that hold `part`, `times` in all."""

    operation: str
    part: str
    error: Exception
    times: int


class WatchedDisk:
    """`Disk`, with a memory."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.done: list[tuple[str, str]] = []
        self.refusals: list[Refusal] = []
        self.free: int | None = None
        self.inodes: int | None = None
        self.before: Callable[[int, str, str], None] = lambda _number, _operation, _path: None
        """Called before each operation with its number; may raise."""
        self.handles: dict[int, str] = {}
        self._contents: dict[int, bytes] = {}
        self._entries: dict[str, dict[str, int]] = {}
        self._files: dict[str, int] = {}
        """Which file a path names now; files are numbered as they are made."""
        self._opened: dict[int, int] = {}

    def refuse(self, operation: str, part: str = "", *, error: Exception | None = None, times: int = 1) -> None:
        self.refusals.append(Refusal(operation, part, error or StoreIoError(f"no {operation}"), times))

    def operations(self, *wanted: str) -> list[tuple[str, str]]:
        return [(operation, path) for operation, path in self.done if not wanted or operation in wanted]

    def close_all(self) -> None:
        """Do what the system does with a process that died."""
        for handle in list(self.handles):
            self.close(handle)

    def durable(self) -> dict[str, bytes]:
        """Tell what a power cut would leave: synced contents under synced names."""
        return {
            f"{directory}/{name}": self._contents.get(file, b"")
            for directory, entries in self._entries.items()
            for name, file in entries.items()
        }

    def adopt(self, handle: int, path: str) -> int:
        """Watch a file that is open."""
        self.handles[handle] = path
        self._opened[handle] = self._files.setdefault(path, len(self.done))
        return handle

    # --- the port

    def create(self, path: str) -> int:
        self._do("create", path)
        handle = self.disk.create(path)
        self._files[path] = len(self.done)
        return self.adopt(handle, path)

    def open(self, path: str, *, write: bool = False) -> int:
        self._do("open", path)
        return self.adopt(self.disk.open(path, write=write), path)

    def append(self, handle: int, buffers: Sequence[Buffer]) -> None:
        self._do("append", self.handles[handle])
        self.disk.append(handle, buffers)

    def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        self._do("read", self.handles[handle])
        return self.disk.read(handle, offset, size_bytes)

    def read_into(self, handle: int, offset: int, buffer: memoryview) -> int:
        self._do("read", self.handles[handle])
        return self.disk.read_into(handle, offset, buffer)

    def size(self, handle: int) -> int:
        return self.disk.size(handle)

    def allocate(self, handle: int, size_bytes: int) -> None:
        self._do("allocate", self.handles[handle])
        self.disk.allocate(handle, size_bytes)

    def truncate(self, handle: int, size_bytes: int) -> None:
        self._do("truncate", self.handles[handle])
        self.disk.truncate(handle, size_bytes)

    def sync(self, handle: int) -> None:
        self._do("sync", self.handles[handle])
        self._contents[self._opened[handle]] = self.disk.read(handle, 0, self.disk.size(handle))

    def close(self, handle: int) -> None:
        self.done.append(("close", self.handles.pop(handle)))
        self.disk.close(handle)

    def rename(self, source: str, target: str) -> None:
        self._do("rename", target)
        self.disk.rename(source, target)
        if source in self._files:
            self._files[target] = self._files.pop(source)

    def unlink(self, path: str) -> None:
        self._do("unlink", path)
        self.disk.unlink(path)
        self._files.pop(path, None)

    def make_directory(self, path: str) -> None:
        if not Path(path).is_dir():
            self._do("make_directory", path)
            Path(path).mkdir(mode=0o700, parents=True)

    def lock(self, handle: int) -> None:
        self.disk.lock(handle)

    def unlock(self, handle: int) -> None:
        self.disk.unlock(handle)

    def is_at(self, handle: int, path: str) -> bool:
        return self.disk.is_at(handle, path)

    def sync_directory(self, path: str) -> None:
        self._do("sync_directory", path)
        inside = ((Path(name), file) for name, file in self._files.items() if name.startswith(f"{path}/"))
        self._entries[path] = {name.name: file for name, file in inside if str(name.parent) == path}

    def sync_volume(self, path: str) -> None:
        self._do("sync_volume", path)

    def names(self, path: str) -> list[str]:
        return self.disk.names(path)

    def sorted_out(self, path: str) -> tuple[list[str], list[str]]:
        return self.disk.sorted_out(path)

    def free_inodes(self, path: str) -> int | None:
        return self.disk.free_inodes(path) if self.inodes is None else self.inodes

    def free_bytes(self, path: str) -> int:
        return self.disk.free_bytes(path) if self.free is None else self.free

    def _do(self, operation: str, path: str) -> None:
        self.before(len(self.done), operation, path)
        self.done.append((operation, path))
        for refusal in self.refusals:
            if refusal.times and refusal.operation == operation and refusal.part in path:
                refusal.times -= 1
                raise refusal.error


# --- a node


@dataclass(kw_only=True)
class World:
    """What outlives a process: the disk, the key service, the time."""

    root: Path
    clock: FakeClock = field(default_factory=FakeClock)
    kms: StrictKms = field(default_factory=StrictKms)
    instances: dict[InstanceId, Instance] = field(default_factory=lambda: {each: instance(each) for each in (A, B)})
    free_bytes: int = 0
    """Size of the ballast, too."""
    grace: timedelta = GRACE

    def paths(self, ending: str = "") -> list[Path]:
        """Files of the store's artifacts."""
        return sorted(
            path for path in (self.root / "artifacts").rglob("*") if path.is_file() and path.name.endswith(ending)
        )

    def names(self) -> list[ArtifactName]:
        return [parse_name(path.name) for path in self.paths()]

    def lost(self) -> list[Path]:
        return sorted((self.root / "lost+found").iterdir())

    def events(self, instance_id: InstanceId = A) -> bytes:
        path = self.root / "events" / f"{instance_id}.jsonl"
        return path.read_bytes() if path.exists() else b""

    def holds(self, marker: bytes) -> list[Path]:
        """Every file that holds these bytes in clear, by name or content."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return [path for path in files if marker in path.read_bytes() or marker.decode() in str(path)]


@dataclass(kw_only=True)
class Node:
    """One run of a process over a world."""

    world: World
    files: WatchedDisk
    commits: GroupCommit
    volume: Volume
    store: InterimStore
    tenants: Tenants
    trail: Trail
    contacts: ContactTable
    journal: Journal
    replay: Replay
    recorder: Recorder
    chats: Chats
    events: EventIntake
    sweep: Sweep
    sealed: list[ArtifactName]
    store_id: str

    @property
    def a(self) -> Tenant:
        return self.tenants[A]

    @property
    def b(self) -> Tenant:
        return self.tenants[B]

    async def upload(self, source: Source, *pieces: bytes, tenant: Tenant | None = None) -> Answer:
        """Send a whole body."""
        reception = await self.recorder.begin(tenant or self.a, source)
        await self.send(reception, *pieces)
        return await self.recorder.finish(reception, None)

    async def break_off(self, source: Source, *pieces: bytes) -> Reception:
        """Send some of a body and go away."""
        reception = await self.recorder.begin(self.a, source)
        await self.send(reception, *pieces)
        await self.recorder.let_go(reception)
        return reception

    async def send(self, reception: Reception, *pieces: bytes) -> None:
        for piece in pieces:
            await reception.append(piece, self.world.clock.monotonic())

    async def media(self, name: ArtifactName | None) -> bytes:
        """Open a sealed artifact and give all its media."""
        assert name is not None
        key = await self.tenants[name.instance_id].ring.opening(name.key_id)
        with self.store.reading(name, key) as reader:
            reader.manifest()
            body = bytearray(reader.media_bytes)
            reader.read_into(0, memoryview(body))
            return bytes(body)


def after_power_cut(world: World, durable: Mapping[str, bytes], root: Path) -> World:
    """Make the world that is left of one at another place."""
    for path, content in durable.items():
        target = root / Path(path).relative_to(world.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    clock = FakeClock()
    clock.seconds = world.clock.seconds
    return World(root=root, clock=clock, kms=world.kms)


def source(source_id: str = "call-1", kind: Kind = Kind.VOICE, contact: str = "contact-1") -> Source:
    return Source(kind=kind, contact=contact, source_id=source_id, content_type="audio/wav")


@asynccontextmanager
async def node(world: World, *, files: WatchedDisk | None = None, store_id: str | None = None) -> AsyncIterator[Node]:
    """Run a process; leaving is like `kill -9` for whatever is open then."""
    made = _made(world, files or WatchedDisk(), store_id)
    for tenant in made.tenants:
        await tenant.ring.load()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(made.commits.run, name="group commit")
            try:
                yield made
            finally:
                made.journal.close()
                made.commits.stop()
    finally:
        made.files.close_all()


def _made(world: World, files: WatchedDisk, store_id: str | None) -> Node:
    root = str(world.root)
    volume = Volume(root, files, world.clock, ballast_bytes=world.free_bytes)
    commits = GroupCommit(volume.reserved)
    store = InterimStore(
        root,
        volume.files,
        commits,
        free_bytes=world.free_bytes,
        volume=volume,
        quota_of=lambda each: world.instances[each].limits.held_bytes,
    )
    store_id = store.open(store_id)
    store.scan()
    trail = Trail(root, actor=Actor("Service", "test"), clock=world.clock)
    names = RecordingNames(world.clock)
    contacts = ContactTable(names)
    journal = Journal(f"{root}/journal", volume.files, commits, world.clock)
    replay = Replay(journal, contacts, names)
    sealed: list[ArtifactName] = []
    recorder = Recorder(
        store=store, moves=Moves(store, trail, sealed.append), contacts=contacts, replay=replay, clock=world.clock
    )
    chats = Chats(store, recorder, world.clock)
    tenants = Tenants(lambda each: _ring(world, each, volume.files))
    tenants.replace(world.instances)
    return Node(
        world=world,
        files=files,
        commits=commits,
        volume=volume,
        store=store,
        tenants=tenants,
        trail=trail,
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
            clock=world.clock,
            settings=StoreSettings(),
            body_idle=timedelta(seconds=60),
            seal_grace=world.grace,
        ),
        sealed=sealed,
        store_id=store_id,
    )


def _ring(world: World, each: Instance, files: FileSystem) -> KeyRing:
    return KeyRing(
        instance_id=each.instance_id,
        context=each.recordings_context,
        current_arn=each.kms_key_arn,
        previous_arn=None,
        directory=f"{world.root}/keys/{each.instance_id}",
        files=files,
        service=world.kms,
        clock=world.clock,
        cache=CACHE,
        seal_grace=world.grace,
        random=lambda: 0.5,
    )


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)
