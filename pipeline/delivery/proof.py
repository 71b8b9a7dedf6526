"""Prove that an object in the bucket is a recording. No I/O, no clock.

A receipt is the only thing that lets a recording's media go, so it can't be made at will: `verify` makes it from what
the bucket said about the object, and `read_receipt` from a file that `verify`'s receipt was written to. An answer
counts only if it names our checksum of the whole object, `aws:kms`, and the configured KMS key by its full ARN.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec
from msgspec import Struct, structs

from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId, InstanceId, Kind, RecordingId
from pipeline.instances import Storage
from pipeline.ports import ObjectFacts, PutRequest

SSE_KMS = "aws:kms"
FULL_OBJECT = "FULL_OBJECT"

_proven: ContextVar[bool] = ContextVar("proven", default=False)
"""Set only while this module makes a receipt."""


class Receipt(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Proof that an object is in the instance's bucket, encrypted under the configured key.

    Raises `TypeError` when it is made anywhere but in this module.
    """

    recording_id: UUID
    artifact_id: UUID
    instance_id: UUID
    kind: str
    generation: int
    bucket: str
    key: str
    version_id: str | None = None
    size_bytes: int
    crc64nvme: str
    sha256: str
    kms_key_arn: str
    delivered_at: datetime
    item_digests: tuple[str, ...] = ()
    """Digests of a chat's item ids, by which a late repeat is known."""
    quality: tuple[str, ...] = ()
    """What was odd about the recording when it was sealed."""
    check: str = ""
    """Digest of all the rest. Stands in its file only: nothing else would show that a bit of it changed."""

    def __post_init__(self) -> None:
        if not _proven.get():
            raise TypeError("a receipt is made by proof.verify, or read by proof.read_receipt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The recording that a receipt is about."""

    recording_id: RecordingId
    artifact_id: ArtifactId
    instance_id: InstanceId
    kind: Kind
    generation: int
    sha256: str
    item_digests: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()

    @property
    def metadata(self) -> dict[str, str]:
        """What its object carries; never anything about a person, for encryption does not cover it."""
        return {"rid": str(self.recording_id), "gen": str(self.generation), "sha256": self.sha256}


class Verdict(StrEnum):
    """What an object that was found under one of our keys is."""

    MINE = "mine"
    """This recording, byte for byte, under the configured key."""
    MINE_WRONG_KEY = "mine-wrong-key"
    """This recording, byte for byte, under another KMS key or none."""
    MINE_OTHER_BYTES = "mine-other-bytes"
    FOREIGN = "foreign"
    """Another recording, or nothing of ours."""
    UNKNOWN = "unknown"
    """This recording by its name, but the bucket gives no length or no full-object CRC64NVME to compare."""


def verify(
    subject: Subject, request: PutRequest, storage: Storage, facts: ObjectFacts, delivered_at: datetime
) -> Receipt | tuple[str, ...]:
    """Make a receipt of an answer; or name what the answer leaves open or contradicts.

    `facts` are the bucket's answer to the write of `request`, or to HEAD. The length was declared with the write, so
    only HEAD has to name it; whatever is named must agree.
    """
    doubts = tuple(name for name, held in _claims(request, storage, facts).items() if not held)
    if doubts:
        return doubts
    with _proving():
        return Receipt(
            recording_id=subject.recording_id,
            artifact_id=subject.artifact_id,
            instance_id=subject.instance_id,
            kind=subject.kind.value,
            generation=subject.generation,
            bucket=storage.bucket,
            key=request.key,
            version_id=facts.version_id,
            size_bytes=request.size_bytes,
            crc64nvme=request.crc64nvme,
            sha256=subject.sha256,
            kms_key_arn=storage.kms_key_arn,
            delivered_at=delivered_at,
            item_digests=subject.item_digests,
            quality=subject.quality,
        )


def _claims(request: PutRequest, storage: Storage, facts: ObjectFacts) -> dict[str, bool]:
    return {
        "key": facts.key == request.key,
        "size": facts.size_bytes in {None, request.size_bytes},
        "checksum": facts.crc64nvme == request.crc64nvme,
        # A composite checksum ends in the number of its parts, so an equal one is of the whole object.
        "checksum type": facts.checksum_type in {None, FULL_OBJECT},
        "encryption": facts.encryption == SSE_KMS,
        "KMS key": facts.kms_key_arn == storage.kms_key_arn,
        "metadata": not facts.metadata or _names(facts, request),
    }


def _names(facts: ObjectFacts, request: PutRequest) -> bool:
    return all(facts.metadata.get(name) == request.metadata[name] for name in ("rid", "gen"))


def compare(request: PutRequest, storage: Storage, facts: ObjectFacts) -> Verdict:
    """Judge an object under one of our keys by what HEAD says of it."""
    if not _names(facts, request):
        return Verdict.FOREIGN
    if facts.size_bytes not in {None, request.size_bytes}:
        return Verdict.MINE_OTHER_BYTES
    # A proxy may drop the length; that is no reason to put a recording aside.
    if facts.size_bytes is None or facts.crc64nvme is None or facts.checksum_type not in {None, FULL_OBJECT}:
        return Verdict.UNKNOWN
    if facts.crc64nvme != request.crc64nvme:
        return Verdict.MINE_OTHER_BYTES
    if facts.encryption != SSE_KMS or facts.kms_key_arn != storage.kms_key_arn:
        return Verdict.MINE_WRONG_KEY
    return Verdict.MINE


def write_receipt(receipt: Receipt) -> bytes:
    """Write a receipt as its file holds it."""
    return msgspec.json.encode(_with_check(receipt, _check(receipt)))


def read_receipt(raw: bytes) -> Receipt:
    """Read a receipt back from its file.

    Raises:
        SegmentForgedError: it is no receipt, or not as it was written.

    """
    try:
        with _proving():
            receipt = msgspec.json.decode(raw, type=Receipt)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SegmentForgedError("not a receipt; nothing may be removed on its word") from None
    bare = _with_check(receipt, "")
    if receipt.check not in {"", _check(bare)}:  # the first were written without
        raise SegmentForgedError("a receipt was damaged after it was written; nothing may be removed on its word")
    return bare


def _check(receipt: Receipt) -> str:
    return hashlib.sha256(msgspec.json.encode(receipt)).hexdigest()[:16]


def _with_check(receipt: Receipt, check: str) -> Receipt:
    with _proving():
        return structs.replace(receipt, check=check)


@contextlib.contextmanager
def _proving() -> Iterator[None]:
    token = _proven.set(True)
    try:
        yield
    finally:
        _proven.reset(token)
