"""What lies in the store: artifacts, what is sealed in them, names, ring files, receipts.

Only the documented refusal comes out, or what was sealed. Keys are the same in every run: a finding can be tried again.
"""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from uuid import UUID

from pipeline.crypt import ringfile
from pipeline.crypt.contents import (
    decode_head,
    decode_manifest,
    decode_records,
    encode_head,
    encode_manifest,
    encode_records,
)
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.delivery.proof import Receipt, Subject, read_receipt, verify, write_receipt
from pipeline.errors import KeyUnavailableError, SegmentForgedError
from pipeline.ids import RECORDINGS_CLASS, ArtifactId, InstanceId, KeyId, Kind, RecordingId
from pipeline.interim.reader import ArtifactReader
from pipeline.interim.recovery import recover
from pipeline.interim.states import ArtifactName, State, parse_name
from pipeline.ports import ObjectFacts, PutRequest
from tests.model_disk import ModelDisk
from tests.s3_strict import STORAGE

_VECTOR = Path(__file__).parents[2] / "fixtures" / "vectors" / "artifact-1.txt"
_NOW = datetime(2026, 11, 23, 14, 5, tzinfo=UTC)
_ARN = "arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000002"


class _Sealed:
    """The artifact of the test vector: its file, and what each segment holds."""

    def __init__(self) -> None:
        lines = [line.split(": ", 1) for line in _VECTOR.read_text().splitlines() if ": " in line]
        lines = [line for line in lines if not line[0].startswith("#")]
        said = dict(lines)
        self.key = DataKey(KeyId(UUID(said["data key id"])), bytes.fromhex(said["data key"]))
        self.instance = InstanceId(UUID(said["instance id"]))
        self.artifact = ArtifactId(UUID(said["artifact id"]))
        self.raw = b"".join(bytes.fromhex(value) for name, value in lines if name in {"header", "prefix", "sealed"})
        self.contents = [bytes.fromhex(value) for name, value in lines if name == "plaintext"]
        kinds = [SegmentType(int(value)) for name, value in lines if name == "type"]
        held = list(zip(kinds, self.contents, strict=True))
        self.media = b"".join(plaintext for kind, plaintext in held if kind is SegmentType.MEDIA)
        self.head = decode_head(self.contents[0])
        self.manifest = decode_manifest(self.contents[-1])
        self.records = [
            record for kind, plaintext in held[1:] if kind is SegmentType.EVENT for record in decode_records(plaintext)
        ]

    def name(self, state: State) -> ArtifactName:
        size = None if state is State.OPEN else len(self.media)
        return ArtifactName(self.artifact, self.instance, Kind.VOICE, self.key.key_id, "0" * 16, 1, 2, state, size)


_SEALED = _Sealed()
_CONTEXT = {"pipeline:dataClass": "recordings_interim", "pipeline:instanceId": str(_SEALED.instance)}


def sealed() -> Sequence[bytes]:
    return [_SEALED.raw]


def unfinished() -> Sequence[bytes]:
    raw = _SEALED.raw
    return [raw, raw[:-400], raw[: len(raw) // 2], raw[:400]]


def _on_disk(data: bytes) -> tuple[ModelDisk, int]:
    disk = ModelDisk()
    disk.make_directory("/s")
    handle = disk.create("/s/a")
    disk.append(handle, [data])
    return disk, handle


def read(data: bytes) -> None:
    """Open everything; what opens is what was sealed."""
    disk, handle = _on_disk(data)
    with contextlib.suppress(SegmentForgedError):
        reader = ArtifactReader(disk, handle, _SEALED.name(State.SEALED), _SEALED.key)
        for entry in reader.entries:
            with contextlib.suppress(SegmentForgedError):
                assert reader.open(entry) == _SEALED.contents[entry.index]
        with contextlib.suppress(SegmentForgedError):
            assert reader.head() == _SEALED.head
        with contextlib.suppress(SegmentForgedError):
            records = list(reader.records())
            assert records == _SEALED.records[: len(records)]  # only the manifest tells whether they are all
        _read_media(reader)
        assert reader.manifest() == _SEALED.manifest


def _read_media(reader: ArtifactReader) -> None:
    size = min(reader.media_bytes, 2**20)
    for start, end in ((0, size), (size // 3, size // 2), (0, 10**9)):
        buffer = bytearray(min(end, 2**21) - start)
        with contextlib.suppress(SegmentForgedError):
            reader.read_into(start, memoryview(buffer))
            assert bytes(buffer) == _SEALED.media[start:end]


def recover_again(data: bytes) -> None:
    """Recover it as an open artifact: a beginning of what was sealed, and the same again."""
    disk, handle = _on_disk(data)
    seen: list[bytes] = []
    try:
        found = recover(disk, handle, _SEALED.name(State.OPEN), _SEALED.key, "/s/lost", seen.append)
    except SegmentForgedError:
        assert disk.read(handle, 0, len(data) + 1) == data
        return
    if found is None:
        assert disk.read(handle, 0, len(data) + 1) == data
        return
    assert found.head == _SEALED.head
    assert _SEALED.media.startswith(b"".join(seen))
    assert disk.size(handle) == found.end
    again = recover(disk, handle, _SEALED.name(State.OPEN), _SEALED.key, "/s/lost-again")
    assert again is not None
    assert (again.end, again.index, again.digests.sha256) == (found.end, found.index, found.digests.sha256)


# --- what is sealed in it


def contents() -> Sequence[bytes]:
    return [*_SEALED.contents, encode_records(_SEALED.records * 2)]


def decode(data: bytes) -> None:
    """Read it as each kind of content; what can be read is written and read again as the same."""
    with contextlib.suppress(SegmentForgedError):
        head = decode_head(data)
        assert decode_head(encode_head(head)) == head
    with contextlib.suppress(SegmentForgedError):
        records = decode_records(data)
        if records:
            assert [each.type for each in decode_records(encode_records(records))] == [each.type for each in records]
    with contextlib.suppress(SegmentForgedError):
        manifest = decode_manifest(data)
        assert decode_manifest(encode_manifest(manifest)[-1]) == manifest


# --- names


def names() -> Sequence[bytes]:
    return [str(_SEALED.name(state)).encode() for state in (State.OPEN, State.SEALED, State.DELIVERED)] + [
        str(_SEALED.name(State.SEALED).rejected("integrity")).encode()
    ]


def name(data: bytes) -> None:
    """Read it as a file's name; one that can be read is written as it was."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(SegmentForgedError):
        assert str(parse_name(text)) == text


# --- ring files


@cache
def _ring_file() -> ringfile.RingFile:
    name_key_id = UUID(int=9)
    return ringfile.RingFile(
        key_id=_SEALED.key.key_id,
        instance_id=_SEALED.instance,
        data_class="recordings_interim",
        created_at=_NOW,
        context_sha256=ringfile.context_sha256(_CONTEXT),
        name_key_id=name_key_id,
        name_key=ringfile.seal_name_key(_SEALED.key, _SEALED.instance, name_key_id, b"n" * 32),
        wrapped=(ringfile.Wrapped(kms_key_arn=_ARN, blob=b"wrapped" * 20, wrapped_at=_NOW),),
    )


def ring_files() -> Sequence[bytes]:
    return [_ring_file().encode()]


def ring_file(data: bytes) -> None:
    """Read it as the ring file of a configured key; its name key is the ring's or is refused."""
    with contextlib.suppress(KeyUnavailableError):
        file = ringfile.parse(
            data[: ringfile.SIZE_LIMIT], _SEALED.key.key_id, _SEALED.instance, RECORDINGS_CLASS, _CONTEXT, {_ARN}
        )
        assert file.wrapped_under(_ARN) is not None
        assert ringfile.open_name_key(_SEALED.key, file) == b"n" * 32


# --- receipts


@cache
def _receipt() -> Receipt:
    subject = Subject(
        recording_id=RecordingId(_SEALED.artifact),
        artifact_id=_SEALED.artifact,
        instance_id=_SEALED.instance,
        kind=Kind.VOICE,
        generation=1,
        sha256="ab" * 32,
        item_digests=("0123456789abcdef",),
    )
    request = PutRequest("p/a.wav", 3_000, "AAAAAAAAAAA=", "audio/wav", subject.metadata)
    facts = ObjectFacts("p/a.wav", crc64nvme="AAAAAAAAAAA=", encryption="aws:kms", kms_key_arn=STORAGE.kms_key_arn)
    made = verify(subject, request, STORAGE, facts, _NOW)
    assert isinstance(made, Receipt)
    return made


def receipts() -> Sequence[bytes]:
    return [write_receipt(_receipt())]


def receipt(data: bytes) -> None:
    """Read it as a receipt; what can be read is written and read again as the same."""
    with contextlib.suppress(SegmentForgedError):
        found = read_receipt(data)
        assert read_receipt(write_receipt(found)) == found
