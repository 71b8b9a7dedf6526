"""F12: a bit flips in media, manifest, header, tail, receipt or file name.

It is found before anything is uploaded, the artifact is put aside with its bytes, and nothing damaged passes as good.
"""

import json
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE
from pipeline.delivery.buffers import BufferPool
from pipeline.delivery.deliverer import Deliverer
from pipeline.delivery.proof import Receipt, Subject, read_receipt, verify, write_receipt
from pipeline.errors import DeferError, RejectError, SegmentForgedError
from pipeline.ids import ArtifactId, Kind, RecordingId
from pipeline.interim.states import ArtifactName, State, parse_name
from pipeline.ports import ObjectFacts, PutRequest
from tests.e2e.test_commands import answered, held
from tests.held_store import ACME
from tests.s3_strict import StrictDestination
from tests.store_fixture import Node, World, instance, node, source
from tests.unit.keyring_fakes import ARN, A

BODY = random.Random(12).randbytes(900)


@dataclass
class Delivery:
    """A node with one sealed recording, and a bucket that is watched."""

    process: Node
    bucket: StrictDestination
    deliverer: Deliverer
    name: ArtifactName

    @property
    def path(self) -> Path:
        return self.process.world.root / "artifacts" / self.name.path

    async def attempt(self, name: ArtifactName) -> str:
        """Try to deliver; tell what came of it."""
        try:
            await self.deliverer.deliver(name)
        except RejectError as error:
            return error.reason
        except DeferError:
            return "deferred"
        return "delivered"


@asynccontextmanager
async def delivery(root: Path, kind: Kind = Kind.VOICE) -> AsyncIterator[Delivery]:
    async with node(World(root=root)) as process:
        if kind is Kind.CHAT:
            await process.events.take(process.a, json.dumps(chat()).encode())
            await process.chats.end(process.a, "c-1", even_if_empty=False)
        else:
            reception = await process.recorder.begin(process.a, source())
            for at in range(0, len(BODY), 300):  # three segments of media
                await process.send(reception, BODY[at : at + 300])
                await reception.writer.sync()
            await process.recorder.finish(reception, None)
        bucket = StrictDestination(process.a.instance.storage[kind])
        deliverer = Deliverer(
            store=process.store,
            tenants=process.tenants,
            trail=process.trail,
            destinations=lambda _instance, _storage: bucket,
            keys=lambda _instance, _arn: process.world.kms,
            head_allowed=lambda _instance, _kind: True,
            pool=BufferPool(16 * 2**20),
            clock=process.world.clock,
            settle_volume=None,
            random=lambda: 0.0,
        )
        yield Delivery(process, bucket, deliverer, process.sealed[0])


def chat() -> dict[str, object]:
    item = {"AbsoluteTime": "2026-11-23T09:00:01.000Z", "Id": "i-1", "Type": "MESSAGE", "Content": "hello"}
    detail = {"instanceArn": instance(A).arn, "contactId": "c-1", "item": item}
    return {"detail-type": "Chat Message", "source": "pipeline.chat", "detail": detail}


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


@pytest.mark.parametrize("kind", [Kind.VOICE, Kind.CHAT])
async def test_no_artifact_with_a_flipped_bit_is_delivered(tmp_path: Path, kind: Kind) -> None:
    """Each byte that stands in clear, and every fifth that is sealed: media, records, manifest.

    All but what is sealed of a recording's head: it is no part of what is delivered, and has a test of its own.
    """
    async with delivery(tmp_path, kind) as test:
        whole = test.path.read_bytes()
        starts = _segments(whole)
        clear = {*range(HEADER_SIZE), *(start + at for start in starts for at in range(FRAME_PREFIX))}
        for at in sorted(clear | {*range(0, len(whole), 5), len(whole) - 1}):
            if kind is Kind.VOICE and starts[0] + 4 < at < starts[1]:
                continue
            test.path.write_bytes(flipped(whole, at, at % 8))
            assert await test.attempt(test.name) == "integrity", at
        assert test.bucket.objects == {}
        test.path.write_bytes(whole)
        assert await test.attempt(test.name) == "delivered"  # so it was the flips


async def test_damage_to_what_is_not_delivered_does_not_hold_back_what_is_whole(tmp_path: Path) -> None:
    async with delivery(tmp_path) as test:
        whole = test.path.read_bytes()
        test.path.write_bytes(flipped(whole, _segments(whole)[0] + FRAME_PREFIX + 40, 5))
        assert await test.attempt(test.name) == "delivered"
        assert [stored.body for stored in test.bucket.objects.values()] == [BODY]


def _segments(whole: bytes) -> list[int]:
    """Give where each segment's prefix stands."""
    at, found = HEADER_SIZE, []
    while at < len(whole):
        found.append(at)
        at += FRAME_PREFIX + int.from_bytes(whole[at : at + 4])
    return found


def _without(whole: bytes, number: int) -> bytes:
    starts = [*_segments(whole), len(whole)]
    return whole[: starts[number - 1]] + whole[starts[number] :]


def _swapped(whole: bytes) -> bytes:
    _, first, second, third, *_ = _segments(whole)
    return whole[:first] + whole[second:third] + whole[first:second] + whole[third:]


Damage = Callable[[bytes], bytes]
TAILS: dict[str, Damage] = {
    "cut by a byte": lambda whole: whole[:-1],
    "cut to its header": lambda whole: whole[:HEADER_SIZE],
    "cut to nothing": lambda _whole: b"",
    "without its manifest": lambda whole: whole[: _segments(whole)[-1]],
    "without its last media": lambda whole: _without(whole, -2),
    "longer by zeros": lambda whole: whole + bytes(4_096),
    "longer by itself": lambda whole: whole + whole[HEADER_SIZE:],
    "its last block zeroed": lambda whole: whole[:-512] + bytes(512),
    "two segments changed places": _swapped,
}


@pytest.mark.parametrize("which", TAILS)
async def test_a_damaged_artifact_is_put_aside_with_its_bytes_and_told(tmp_path: Path, which: str) -> None:
    async with delivery(tmp_path) as test:
        damaged = TAILS[which](test.path.read_bytes())
        test.path.write_bytes(damaged)
        with pytest.raises(RejectError) as rejected:
            await test.deliverer.deliver(test.name)
        assert rejected.value.reason == "integrity"
        await test.deliverer.reject(test.name, rejected.value)
        (poison,) = test.process.world.names()
        assert (poison.standing, poison.poison) == (State.POISON, "integrity")
        assert (tmp_path / "artifacts" / poison.path).read_bytes() == damaged
        assert test.bucket.objects == {}
        told = json.loads(test.process.world.events().splitlines()[-1])["detail"]
        assert (told["recordingStatus"], told["failureInfo"]["code"]) == ("FAILED", "INTEGRITY")


async def test_a_large_artifact_damaged_at_its_end_leaves_no_object_and_no_upload(tmp_path: Path) -> None:
    """Its first parts have left when the damage is met: the upload is given up."""
    body = random.Random(1).randbytes(21 * 2**20)
    async with delivery(tmp_path) as test:
        await test.process.upload(source("large"), *(body[at : at + 2**20] for at in range(0, len(body), 2**20)))
        large = test.process.sealed[-1]
        path = tmp_path / "artifacts" / large.path
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, len(whole) - 300_000, 3))
        assert await test.attempt(large) == "integrity"
        assert test.bucket.objects == {}
        assert await test.bucket.unfinished("") == []
        path.write_bytes(whole)
        assert await test.attempt(large) == "delivered"


# --- the file's name

HARMLESS = {"tag", "sequence"}
"""What says nothing of the bytes: by which a repeat is found, and the number of the next status event."""


def neighbours(text: str) -> Iterator[str]:
    """Give every name that is one bit away and that a file can have."""
    for at, letter in enumerate(text):
        for bit in range(8):
            other = chr(ord(letter) ^ 1 << bit)
            if other not in "/\0":
                yield text[:at] + other + text[at + 1 :]


def changed(name: ArtifactName, other: ArtifactName) -> set[str]:
    return {field for field in ArtifactName.__struct_fields__ if getattr(name, field) != getattr(other, field)}


async def test_no_artifact_with_a_flipped_bit_in_its_name_is_delivered_as_another(tmp_path: Path) -> None:
    async with delivery(tmp_path) as test:
        whole = test.path.read_bytes()
        fields: set[str] = set()
        strangers = 0
        for text in neighbours(str(test.name)):
            try:
                name = parse_name(text)
            except SegmentForgedError:
                strangers += 1
                continue
            (field,) = changed(test.name, name)
            fields.add(field)
            if field in HARMLESS:
                continue
            path = tmp_path / "artifacts" / name.path
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(whole)
            index = test.process.store.index  # as a scan that finds that name alone leaves it
            index.remove(test.name.artifact_id)
            index.put(name)
            outcome = await test.attempt(name)
            index.remove(name.artifact_id)
            assert outcome == ("deferred" if field == "instance_id" else "integrity"), text
        assert strangers > 500
        assert fields == {"artifact_id", "instance_id", "key_id", "generation", "size_bytes", *HARMLESS}
        assert test.bucket.objects == {}


@pytest.mark.parametrize("field", sorted(HARMLESS))
async def test_a_flip_in_what_says_nothing_of_the_bytes_changes_nothing_of_them(tmp_path: Path, field: str) -> None:
    async with delivery(tmp_path) as test:
        text = next(each for each in neighbours(str(test.name)) if _is_in(test.name, each, field))
        test.path.rename(test.path.with_name(text))
        test.process.store.index.remove(test.name.artifact_id)
        test.process.store.index.put(parse_name(text))
        assert await test.attempt(parse_name(text)) == "delivered"
        (stored,) = test.bucket.objects.values()
        assert stored.body == BODY
        assert stored.facts.metadata["rid"] == str(test.name.artifact_id)


def _is_in(name: ArtifactName, text: str, field: str) -> bool:
    try:
        return changed(name, parse_name(text)) == {field}
    except SegmentForgedError:
        return False


async def test_a_name_that_is_none_any_more_is_kept_aside(tmp_path: Path) -> None:
    async with delivery(tmp_path) as test:
        whole, store_id = test.path.read_bytes(), test.process.store_id
        test.path.rename(test.path.with_name(str(test.name).replace(".sealed", ".seal\x65e")))
    async with node(World(root=tmp_path), store_id=store_id) as process:
        assert len(process.store.index) == 0
        assert [path.read_bytes() for path in process.world.lost()] == [whole]


# --- the receipt


def receipt() -> Receipt:
    artifact = ArtifactId(UUID("01a208b9-9dc0-7e08-9d5a-3f1c8e2b6a90"))
    subject = Subject(
        recording_id=RecordingId(artifact),
        artifact_id=artifact,
        instance_id=A,
        kind=Kind.VOICE,
        generation=1,
        sha256="ab" * 32,
        item_digests=("0123456789abcdef",),
        quality=("SUSPECT_SILENT",),
    )
    request = PutRequest("p/2026/11/23/c-1.wav", 3_000, "AAAAAAAAAAA=", "audio/wav", subject.metadata)
    facts = ObjectFacts(
        request.key, crc64nvme=request.crc64nvme, encryption="aws:kms", kms_key_arn=ARN, version_id="v-1"
    )
    storage = instance(A).storage[Kind.VOICE]
    made = verify(subject, request, storage, facts, datetime(2026, 11, 23, 14, 21, 40, tzinfo=UTC))
    assert isinstance(made, Receipt)
    return made


def test_no_receipt_with_a_flipped_bit_says_anything_else() -> None:
    whole = write_receipt(receipt())
    assert read_receipt(whole) == receipt()
    refused = 0
    for at in range(len(whole)):
        for bit in range(8):
            try:
                assert read_receipt(flipped(whole, at, bit)) == receipt(), at
            except SegmentForgedError:
                refused += 1
    assert refused > len(whole) * 7.5  # but for the names of fields, of which the last may be lost


# --- pipeline verify

PLACES: dict[str, Callable[[bytes], int]] = {
    "header": lambda _whole: 50,
    "a segment's length": lambda whole: _segments(whole)[1] + 3,
    "a segment's type": lambda whole: _segments(whole)[1] + 4,
    "a segment's offset": lambda whole: _segments(whole)[1] + 12,
    "the head": lambda whole: _segments(whole)[0] + FRAME_PREFIX + 40,
    "media": lambda whole: _segments(whole)[1] + FRAME_PREFIX + 500,
    "the manifest": lambda whole: _segments(whole)[-1] + FRAME_PREFIX + 40,
    "the last byte": lambda whole: len(whole) - 1,
}


async def test_verify_names_each_of_them(tmp_path: Path) -> None:
    async with held(tmp_path) as test:
        names: dict[str, str] = {}
        for place, position in PLACES.items():
            name = await test.store.hold(ACME, Kind.VOICE, place.encode() + BODY, contact=f"c-{len(names)}")
            path = test.state / "artifacts" / name.path
            whole = path.read_bytes()
            path.write_bytes(flipped(whole, position(whole), 2))
            names[str(name.artifact_id)] = place
        sound = await test.store.hold(ACME, Kind.VOICE, BODY, contact="c-sound")
        settled = await test.store.hold(ACME, Kind.VOICE, BODY, contact="c-settled")
        await test.store.deliver(settled)
        path = test.state / "artifacts" / settled.delivered().path
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, whole.index(b"acme-recordings"), 0))
        names[str(settled.artifact_id)] = "the receipt"
        lost = await test.store.hold(ACME, Kind.VOICE, BODY, contact="c-lost")
        path = test.state / "artifacts" / lost.path
        path.rename(path.with_name(path.name.replace(".voice.", ".woice.")))
        answer = answered(await test.run("verify", "--read-data", "--json"), 1)
        found = {problem["what"] for problem in answer["problems"]}
        assert {place for what, place in names.items() if what not in found} == set()
        assert found - set(names) == {f"{lost.shard}/{str(lost).replace('.voice.', '.woice.')}"}
        assert str(sound.artifact_id) not in found


def test_a_receipt_of_before_there_was_a_check_is_read() -> None:
    assert read_receipt(re.sub(rb',"check":"[0-9a-f]{16}"', b"", write_receipt(receipt()))) == receipt()
