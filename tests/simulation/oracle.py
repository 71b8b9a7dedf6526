"""The oracle: after a crash everything acknowledged is held, and once faults have stopped, delivered exactly once."""

import json
from collections import Counter, defaultdict
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import anyio
import msgspec

from pipeline.audit.appender import ChainedLogs
from pipeline.ids import InstanceId, Kind
from pipeline.intake.chats import items_of
from pipeline.intake.history import following
from pipeline.intake.recorder import TRANSCRIPT
from pipeline.interim.logs import whole_lines
from pipeline.interim.reader import ArtifactReader
from pipeline.interim.states import ArtifactName, State, parse_name
from tests.audit_logs import HOUR, chained, files_of, record
from tests.model_disk import ModelDisk
from tests.s3_strict import Stored
from tests.simulation.outside import FOREIGN, Bucket
from tests.simulation.promises import (
    MARKER,
    Body,
    DuplicatedError,
    LeakError,
    LostError,
    PlaintextError,
    Promises,
    Talk,
    WrongBytesError,
)
from tests.simulation.world import IDLE, ROOT, Node, World

_MOVES = {
    State.OPEN: set(),
    State.SEALED: {"ArtifactOpened", "ArtifactSealed"},
    State.DELIVERED: {"ArtifactOpened", "ArtifactSealed", "ArtifactDelivered"},
    State.POISON: {"ArtifactRejected"},
}
"""What the audit log must have told of an artifact by where it stands."""
PATIENCE_S = 4 * 3600.0
"""Virtual time in which everything has to be delivered once nothing is in the way."""


# --- held


async def check_held(process: Node) -> None:
    """Find everything that was acknowledged, on the disk or in its bucket, byte for byte."""
    promises = process.world.promises
    for body in promises.bodies.values():
        if body.acknowledged:
            found = [await _media(process, name) for name in await _generations(process, body.kind, body)]
            wanted = body.data if body.answer is not None else body.data[: body.acknowledged]
            if not any(data[: len(wanted)] == wanted for data in found):
                raise LostError(f"of {body.source_id} {len(wanted)} bytes were acknowledged; held: {_sizes(found)}")
    for talk in promises.talks.values():
        if talk.acknowledged:
            items = [
                item for name in await _generations(process, Kind.CHAT, talk) for item in await _items(process, name)
            ]
            missing = set(talk.items[: talk.acknowledged]) - set(items)
            if missing:
                raise LostError(f"of {talk.contact} items were acknowledged and are not held: {sorted(missing)}")
    for instance_id, contact in promises.announced:
        tenant = process.tenant(instance_id)
        await process.replay.done(tenant)
        if process.contacts.get(instance_id, contact) is None:
            raise LostError(f"events of {contact} were acknowledged and are not known")


async def _generations(process: Node, kind: Kind, what: Body | Talk) -> list[ArtifactName]:
    source_id = what.source_id if isinstance(what, Body) else TRANSCRIPT + what.contact
    tags = await process.tenant(what.instance_id).ring.tags(kind, source_id)
    return process.store.index.generations(what.instance_id, tags)


async def _settled(process: Node, name: ArtifactName) -> ArtifactName | None:
    """Let an open artifact be recovered, and give its name after that."""
    if name.standing is State.OPEN:
        await process.recorder.reopen(process.tenant(name.instance_id), name)
    return process.store.index.get(name.artifact_id)


async def _media(process: Node, name: ArtifactName) -> bytes:
    settled = await _settled(process, name)
    return b"" if settled is None else await following(process.store, settled, partial(_read_media, process))


async def _read_media(process: Node, name: ArtifactName) -> bytes:
    if name.standing is State.DELIVERED:
        return _object(process, name).body
    with await _opened(process, name) as reader:
        data = bytearray(reader.media_bytes)
        reader.read_into(0, memoryview(data))
        return bytes(data)


async def _items(process: Node, name: ArtifactName) -> list[str]:
    settled = await _settled(process, name)
    return [] if settled is None else await following(process.store, settled, partial(_read_items, process))


async def _read_items(process: Node, name: ArtifactName) -> list[str]:
    if name.standing is State.DELIVERED:
        return [each["Id"] for each in json.loads(_object(process, name).body)["Transcript"]]
    with await _opened(process, name) as reader:
        return [each.item.id for each in items_of(reader)]


async def _opened(process: Node, name: ArtifactName) -> AbstractContextManager[ArtifactReader]:
    key = await process.tenant(name.instance_id).ring.opening(name.key_id)
    reception = process.recorder.reception(name.artifact_id)
    return process.store.reading(name, key, limit=reception.writer.end if reception else None)


def _object(process: Node, name: ArtifactName) -> Stored:
    receipt = json.loads(process.store.receipt(name))
    found = process.world.buckets[name.instance_id].objects.get(receipt["key"])
    if found is None:
        raise LostError(f"a receipt names an object that is not there: {receipt['key']}")
    if found.facts.metadata.get("sha256") != receipt["sha256"]:
        raise WrongBytesError(f"a receipt names an object that is another: {receipt['key']}")
    return found


# --- delivered


async def drain(process: Node) -> None:
    """Let everything be delivered, in bounded time: what sources left is sealed first. Nothing may be in the way."""
    deadline = anyio.current_time() + PATIENCE_S
    await process.sweep.once()
    await anyio.sleep(IDLE.total_seconds() + 1)
    while True:
        await process.sweep.once()
        index = process.store.index
        if not index.open() and not index.count(State.SEALED):
            break
        if anyio.current_time() > deadline:
            raise LostError(
                f"not delivered in time: {sorted(str(name) for name in index if name.state is not State.DELIVERED)}"
            )
        await anyio.sleep(5)
    while await process.publisher.once():
        pass


def check_delivered(process: Node) -> None:
    """Compare every bucket with what was promised."""
    world = process.world
    poison = [str(name) for name in process.store.index if name.standing is State.POISON]
    if poison:
        raise LostError(f"put aside for a person: {poison}")
    events = _told(world)
    for instance_id, bucket in world.buckets.items():
        _check_bucket(bucket)
        _check_objects(world.promises, instance_id, bucket, events[instance_id])
    for name in process.store.index:
        _object(process, name)


def _check_bucket(bucket: Bucket) -> None:
    if bucket.uploads:
        raise LeakError(f"{len(bucket.uploads)} multipart uploads are left")
    first: dict[str, bytes] = {}
    for key, data in bucket.written:
        if first.setdefault(key, data) != data:
            raise WrongBytesError(f"{key} was written twice, with different bytes")
        if bucket.objects[key].body != data:
            raise WrongBytesError(f"{key} holds something else than was written")
    generations = Counter(
        (stored.facts.metadata["rid"], stored.facts.metadata["gen"])
        for stored in bucket.objects.values()
        if stored.body != FOREIGN
    )
    twice = [each for each, count in generations.items() if count > 1]
    if twice:
        raise DuplicatedError(f"two objects of one generation: {twice}")


def _check_objects(promises: Promises, instance_id: InstanceId, bucket: Bucket, published: set[str]) -> None:
    delivered: defaultdict[bytes, list[Stored]] = defaultdict(list)
    said: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for key, stored in bucket.objects.items():
        if stored.body == FOREIGN:
            continue
        if _generation(stored) not in published:
            raise LostError(f"{key} was delivered, and no event says so")
        if stored.body.startswith(MARKER):
            delivered[promises.owner(stored.body).label].append(stored)
        else:
            said[key.rpartition("/")[2].partition("_")[0]] += json.loads(stored.body)["Transcript"]
    for body in promises.bodies.values():
        if body.instance_id == instance_id:
            _check_body(body, delivered.pop(body.label, []))
    for talk in promises.talks.values():
        if talk.instance_id == instance_id:
            _check_talk(talk, said.pop(talk.contact, []))
    if delivered or said:
        raise WrongBytesError("something was delivered that was never sent there")


def _check_body(body: Body, delivered: list[Stored]) -> None:
    sizes = Counter(len(stored.body) for stored in delivered)
    if max(sizes.values(), default=0) > 1:
        raise DuplicatedError(f"{body.source_id}: the same bytes in two objects, of {sorted(sizes.elements())} bytes")
    if body.acknowledged > max(sizes, default=0):
        raise LostError(f"of {body.source_id} {body.acknowledged} bytes were acknowledged; delivered: {sorted(sizes)}")
    if body.answer is not None:
        (whole,) = (stored for stored in delivered if len(stored.body) == len(body.data))
        if _generation(whole) != f"{body.answer.recording_id} {body.answer.generation}":
            raise WrongBytesError(f"{body.source_id} was delivered as another generation than its source was told")


def _check_talk(talk: Talk, said: list[dict[str, Any]]) -> None:
    times = Counter(item["Id"] for item in said)
    if max(times.values(), default=0) > 1:
        raise DuplicatedError(f"{talk.contact}: said twice: {times}")
    if missing := set(talk.items[: talk.acknowledged]) - set(times):
        raise LostError(f"{talk.contact}: acknowledged and not delivered: {sorted(missing)}")
    if not set(times) <= set(talk.items[: talk.sent]):
        raise WrongBytesError(f"{talk.contact}: never said: {sorted(times)}")
    if any(item["Content"] != f"{MARKER.decode()} {item['Id']}" for item in said):
        raise WrongBytesError(f"{talk.contact}: something else was said")


def _generation(stored: Stored) -> str:
    return f"{stored.facts.metadata['rid']} {stored.facts.metadata['gen']}"


def _told(world: World) -> dict[InstanceId, set[str]]:
    """Read which generations were said to be published, by events that also reached whoever follows them."""
    taken = set(world.sink.taken)
    tree = world.disk.tree()
    told: dict[InstanceId, set[str]] = {}
    for instance_id in world.buckets:
        log = tree.get(f"{ROOT}/events/{instance_id}.jsonl", b"")
        lines = whole_lines(log)
        if untaken := [line for line in lines if line not in taken]:
            raise LostError(f"{len(untaken)} events did not go out")
        details = [msgspec.json.decode(line)["detail"] for line in lines]
        if b"\0" not in log:  # of lines that no sync covered, a power cut may keep the last
            _check_order(details)
        told[instance_id] = {
            f"{each['recordingId']} {each['generation']}" for each in details if each["recordingStatus"] == "PUBLISHED"
        }
    return told


def _check_order(details: list[dict[str, Any]]) -> None:
    """See that what is told of one generation is told in order; a crash may repeat what was told."""
    last: dict[tuple[str, int], int] = {}
    seen: set[str] = set()
    for each in details:
        if each["eventDeduplicationId"] in seen:
            continue
        seen.add(each["eventDeduplicationId"])
        key = each["recordingId"], each["generation"]
        if each["sequence"] < last.get(key, 0):
            raise WrongBytesError(f"events of recording {key} are out of order")
        last[key] = each["sequence"]


# --- left behind


def check_tidy(world: World) -> None:
    """See that a process that ended left no handle open, and nothing readable on the disk."""
    if world.disk.handles:
        raise LeakError(f"left open: {sorted(path for path, _, _ in world.disk.handles.values())}")
    check_sealed(world.disk)
    check_audited(world)


def check_audited(world: World) -> None:
    """See that each audit log goes on as one whole chain, and has a record of every move of what is on the disk."""
    disk = world.disk.snapshot()
    disk.capacity_bytes = disk.inodes = None
    for instance_id in world.buckets:
        ChainedLogs(disk).append(f"{ROOT}/audit/{instance_id}", [record(0)], HOUR)
    tree = disk.tree()
    for instance_id in world.buckets:
        records = chained(files_of(tree, f"{ROOT}/audit/{instance_id}"))
        recorded = {(each["eventName"], each["requestParameters"].get("artifactId")) for each in records}
        paths = [path.rpartition("/")[2] for path in tree if path.startswith(f"{ROOT}/artifacts/")]
        names = [parse_name(name) for name in paths if not name.endswith(".tmp")]
        for name in names:
            moves = {(move, str(name.artifact_id)) for move in _MOVES[name.standing]}
            if name.instance_id == instance_id and not moves <= recorded:
                raise LostError(f"no audit record of a move: {sorted(moves - recorded)} of {name}")


def check_sealed(disk: ModelDisk) -> None:
    """See that no file holds what was said in clear, nor bears it as a name."""
    for path, data in disk.tree().items():
        if MARKER in data or MARKER.decode() in path:
            raise PlaintextError(f"readable: {path}")


def _sizes(found: list[bytes]) -> list[int]:
    return [len(data) for data in found]
