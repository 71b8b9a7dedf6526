"""A store is copied while it changes, at every step of the copying: nothing that was there before is missing."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

import pytest

from pipeline.backup.copies import Copies
from pipeline.backup.store import copy_store
from pipeline.crypt.artifact import Header, Sealer
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import StoreIoError
from pipeline.ids import ArtifactId, KeyId, Kind
from pipeline.interim.states import ArtifactName, Event, State
from tests.model_disk import ModelDisk
from tests.unit.keyring_fakes import A

ROOT, TARGET = "/state", "/backup"
KEY = DataKey(KeyId(UUID(int=77)), bytes(32))
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
INSTANCE = str(A)

Change = Callable[["Store"], None]


def named(number: int, *, shard: int = 0, generation: int = 1) -> ArtifactName:
    return ArtifactName(
        artifact_id=ArtifactId(UUID(int=number << 8 | shard)),
        instance_id=A,
        kind=Kind.VOICE,
        key_id=KEY.key_id,
        tag=f"{number:016x}",
        generation=generation,
        sequence=1,
        state=State.OPEN,
    )


class Store:
    """A store on a disk, as a service would change it."""

    def __init__(self, disk: ModelDisk) -> None:
        self.disk = disk

    def write(self, path: str, content: bytes) -> None:
        directory = f"{ROOT}/{path}".rpartition("/")[0]
        self.disk.make_directory(directory)
        handle = self.disk.create(f"{ROOT}/{path}")
        self.disk.append(handle, [content])
        self.disk.close(handle)

    def add(self, path: str, content: bytes) -> None:
        handle = self.disk.open(f"{ROOT}/{path}", write=True)
        self.disk.append(handle, [content])
        self.disk.close(handle)

    def read(self, path: str) -> bytes:
        return self.disk.tree()[f"{ROOT}/{path}"]

    def rename(self, source: ArtifactName, target: ArtifactName) -> None:
        self.disk.rename(f"{ROOT}/artifacts/{source.path}", f"{ROOT}/artifacts/{target.path}")

    def unlink(self, path: str) -> None:
        self.disk.unlink(f"{ROOT}/{path}")


@cache
def artifact(name: ArtifactName, body: bytes) -> bytes:
    """Seal a recording; the same bytes each time, though a seal is another each time."""
    header = Header(name.kind, A, name.artifact_id, name.key_id, NOW).pack()
    sealer = Sealer(KEY, header)
    return header + sealer.seal(SegmentType.EVENT, b"{}", 0) + sealer.seal(SegmentType.MEDIA, body, 0)


OPEN, SEALED, OLD, NEW = named(1, shard=9), named(2, shard=9), named(3, shard=9), named(4, shard=0, generation=2)
FOLDED = named(5, shard=9).sealed(Event.FINISHED, generation=1, size_bytes=1).delivered()
WAITING = SEALED.sealed(Event.FINISHED, generation=1, size_bytes=1)


def made() -> Store:
    store = Store(ModelDisk())
    for name in (OPEN, SEALED, OLD):
        at = WAITING if name is SEALED else name
        store.write(f"artifacts/{at.path}", artifact(name, b"body %d" % name.artifact_id.int))
    store.write(f"artifacts/{FOLDED.path}", b'{"receipt":5}')
    store.write(f"keys/{INSTANCE}/{KEY.key_id.hex}.json", b'{"wrapped":"old"}')
    store.write(f"journal/{INSTANCE}/2026-11-23/{'0' * 32}.{KEY.key_id.hex}.journal", artifact(named(9), b"event"))
    store.write(f"events/{INSTANCE}.jsonl", b'{"event":1}\n')
    store.write(f"events/{INSTANCE}.sqs.cursor", b'{"offset":12,"file":1}')
    store.write(f"receipts/{INSTANCE}/2026-11-23.jsonl", b'{"receipt":0}\n')
    store.write("audit/node/000000000000.h0.jsonl", b"0\n1\n")
    store.write("audit/node/checkpoints/00000001.txt", b"2")
    store.write("store.json", b"{}")
    store.write("ballast", bytes(1000))
    store.write("lock", b"1\n")
    return store


def seal(store: Store) -> None:
    store.add(f"artifacts/{OPEN.path}", b"more")
    store.rename(OPEN, OPEN.sealed(Event.FINISHED, generation=1, size_bytes=1))


def settle(store: Store) -> None:
    store.add(f"events/{INSTANCE}.jsonl", b'{"event":"published"}\n')
    store.write(f"artifacts/{WAITING.delivered().path}", b'{"receipt":2}')
    store.unlink(f"artifacts/{WAITING.path}")


def fold(store: Store) -> None:
    store.add(f"receipts/{INSTANCE}/2026-11-23.jsonl", b'{"receipt":5}\n')
    store.unlink(f"artifacts/{FOLDED.path}")


def absorb(store: Store) -> None:
    """Let a newer body take an unfinished one's place; it lies in a folder that was listed long before."""
    store.write(f"artifacts/{NEW.path}", artifact(NEW, b"body %d and more" % OLD.artifact_id.int))
    store.unlink(f"artifacts/{OLD.path}")
    store.rename(NEW, NEW.sealed(Event.FINISHED, generation=1, size_bytes=1))


def rotate(store: Store) -> None:
    log = f"{ROOT}/events/{INSTANCE}"
    store.disk.rename(f"{log}.jsonl", f"{log}.00000001.jsonl")
    store.write(f"events/{INSTANCE}.jsonl", b'{"event":"later"}\n')


def rewrap(store: Store) -> None:
    path = f"{ROOT}/keys/{INSTANCE}/{KEY.key_id.hex}.json"
    store.write(f"keys/{INSTANCE}/{KEY.key_id.hex}.json.tmp", b'{"wrapped":"new"}')
    store.disk.rename(f"{path}.tmp", path)


def destroy(store: Store) -> None:
    store.unlink(f"keys/{INSTANCE}/{KEY.key_id.hex}.json")


def chain(store: Store) -> None:
    """Let an audit log grow over the end of an hour, and be signed."""
    store.add("audit/node/000000000000.h0.jsonl", b"2\n")
    store.write("audit/node/000000000003.h1.jsonl", b"3\n")
    store.write("audit/node/checkpoints/00000002.txt", b"4")


CHANGES: list[Change] = [seal, settle, fold, absorb, rotate, rewrap, destroy, chain]


class Meddler:
    """Changes a store at a step of its being copied: all at once, or one change with each step from there on."""

    def __init__(self, store: Store, at: int, changes: list[Change], *, one_by_one: bool = False) -> None:
        self._store = store
        self._at = len(store.disk.done) + at
        self._left = list(changes)
        self._one_by_one = one_by_one
        self._busy = False

    def before(self, number: int, _operation: str, _path: str) -> None:
        if self._busy or not self._left or number < self._at:
            return
        self._busy = True
        now, self._left = (self._left[:1], self._left[1:]) if self._one_by_one else (self._left, [])
        for change in now:
            change(self._store)
        self._busy = False


def copied(store: Store, at: int = 0, changes: list[Change] | None = None, *, one_by_one: bool = False) -> Copies:
    """Copy the store, and let it change meanwhile."""
    store.disk.before = Meddler(store, at, changes or [], one_by_one=one_by_one).before
    copies = Copies(store.disk, TARGET)
    copy_store(copies, ROOT)
    return copies


def rest(copies: Copies, disk: ModelDisk) -> dict[str, bytes]:
    """Give what the copy holds, by its path in the store; the manifest will say the same."""
    tree = {path.removeprefix(f"{TARGET}/"): raw for path, raw in disk.tree().items() if path.startswith(TARGET)}
    assert set(tree) == set(copies.copied)
    assert all(copies.copied[path].size_bytes == len(raw) for path, raw in tree.items())
    return {path.removeprefix("store/"): raw for path, raw in tree.items()}


def check(found: dict[str, bytes], *, ring: bool = True) -> None:
    """Everything that was acknowledged before is there, once for each artifact."""
    names = [path for path in found if path.startswith("artifacts/")]
    ids = [path.rpartition("/")[2][:32] for path in names]
    assert len(ids) == len(set(ids))

    def held(name: ArtifactName) -> bytes:
        return next((found[path] for path in names if name.artifact_id.hex in path), b"")

    body = artifact(OPEN, b"body %d" % OPEN.artifact_id.int)
    assert held(OPEN).startswith(body)
    assert held(SEALED) in {artifact(SEALED, b"body %d" % SEALED.artifact_id.int), b'{"receipt":2}'}
    assert held(OLD) == artifact(OLD, b"body %d" % OLD.artifact_id.int) or (b"and more" not in held(OLD) and held(NEW))
    folded = found[f"receipts/{INSTANCE}/2026-11-23.jsonl"]
    assert held(FOLDED) == b'{"receipt":5}' or b'{"receipt":5}\n' in folded
    if ring:
        assert found[f"keys/{INSTANCE}/{KEY.key_id.hex}.json"] in {b'{"wrapped":"old"}', b'{"wrapped":"new"}'}
    events = b"".join(
        raw for path, raw in sorted(found.items()) if path.endswith(".jsonl") and path.startswith("events")
    )
    assert b'{"event":1}\n' in events
    if held(SEALED) == b'{"receipt":2}':
        assert b'{"event":"published"}\n' in events  # lines come with the move that they tell of
    assert found[f"events/{INSTANCE}.sqs.cursor"] == b'{"offset":12,"file":1}'
    chained = b"".join(raw for path, raw in sorted(found.items()) if path.startswith("audit/node/0")).split(b"\n")[:-1]
    assert chained == [b"%d" % number for number in range(len(chained))]  # no gap
    assert all(int(raw) <= len(chained) for path, raw in found.items() if path.startswith("audit/node/checkpoints"))
    assert not {"lock", "ballast"} & set(found)
    assert "store.json" in found
    assert any(path.endswith(".journal") for path in found)


def steps() -> int:
    store = made()
    before = len(store.disk.done)
    copied(store)
    return len(store.disk.done) - before


def cases() -> Iterator[Any]:
    """Give all changes together at every step, and each by itself at every fourth; as slow ones at the others."""
    yield pytest.param(CHANGES, 0, 1, id="all")
    for number, change in enumerate(CHANGES):
        for first in range(4):
            marks = [] if first == number % 4 else [pytest.mark.slow]
            yield pytest.param([change], first, 4, id=f"{change.__name__}-{first}", marks=marks)


@pytest.mark.parametrize(("changes", "first", "apart"), list(cases()))
def test_nothing_is_missing_whatever_happens_at_whichever_step(changes: list[Change], first: int, apart: int) -> None:
    undisturbed = made()
    before = len(undisturbed.disk.done)
    copied(undisturbed)
    done = undisturbed.disk.done[before:]
    ring_copied = next(number for number, (_, path) in enumerate(done) if path.startswith(f"{ROOT}/artifacts"))
    for at in range(first, len(done), apart):
        store = made()
        copies = copied(store, at, changes)
        check(rest(copies, store.disk), ring=destroy not in changes or at >= ring_copied)
        assert copies.unread == []


SEALED_NOW = OPEN.sealed(Event.FINISHED, generation=1, size_bytes=1)


def settle_opened(store: Store) -> None:
    store.write(f"artifacts/{SEALED_NOW.delivered().path}", b'{"receipt":1}')
    store.unlink(f"artifacts/{SEALED_NOW.path}")


def fold_opened(store: Store) -> None:
    store.add(f"receipts/{INSTANCE}/2026-11-23.jsonl", b'{"receipt":1}\n')
    store.unlink(f"artifacts/{SEALED_NOW.delivered().path}")


def test_nothing_is_missing_when_a_recording_goes_all_its_way_step_by_step() -> None:
    """An artifact is sealed, delivered and folded, each at a step of its own."""
    for at in range(steps()):
        store = made()
        copies = copied(store, at, [seal, settle_opened, fold_opened], one_by_one=True)
        found = rest(copies, store.disk)
        held = [raw for path, raw in found.items() if OPEN.artifact_id.hex in path]
        assert held or b'{"receipt":1}\n' in found[f"receipts/{INSTANCE}/2026-11-23.jsonl"]


def test_what_is_still_written_to_is_copied_as_far_as_it_is_whole() -> None:
    store = made()
    body = store.read(f"artifacts/{OPEN.path}")
    for torn in (b"\0", b"\0" * 12, Sealer(KEY, body[:96]).seal(SegmentType.EVENT, b"x" * 100, 0)[:-1]):
        store = made()
        store.add(f"artifacts/{OPEN.path}", torn)
        store.add(f"events/{INSTANCE}.jsonl", b'{"half')
        copies = copied(store)
        found = rest(copies, store.disk)
        assert found[f"artifacts/{OPEN.path}"] == body
        assert found[f"events/{INSTANCE}.jsonl"] == b'{"event":1}\n'


def test_what_is_damaged_is_copied_as_it_lies() -> None:
    store = made()
    store.add(f"artifacts/{OPEN.path}", b"\xff" * 100)
    copies = copied(store)
    assert rest(copies, store.disk)[f"artifacts/{OPEN.path}"] == store.read(f"artifacts/{OPEN.path}")


def test_what_the_disk_does_not_give_back_is_named_and_the_rest_is_copied() -> None:
    store = made()
    store.disk.refuse("read", WAITING.path, error=StoreIoError("no read"), times=None)
    copies = copied(store)
    assert copies.unread == [f"store/artifacts/{WAITING.path}"]
    found = rest(copies, store.disk)
    assert f"artifacts/{WAITING.path}" not in found
    assert f"artifacts/{OPEN.path}" in found


def test_what_is_not_ours_and_what_is_being_written_aside() -> None:
    store = made()
    store.write("artifacts/9/stranger", b"kept")
    store.write(f"artifacts/{WAITING.delivered().path}.tmp", b"half")
    store.write("holds/x.json.tmp", b"half")
    copies = copied(store)
    found = rest(copies, store.disk)
    assert found["artifacts/9/stranger"] == b"kept"
    assert not [path for path in found if path.endswith(".tmp")]
