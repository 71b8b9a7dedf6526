"""A strict `Destination` in memory: it checks all that S3 checks, and misbehaves on demand.

Each call has two steps, one before its effect and one after; a test can count them, cancel at one, or let it fail.
"""

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import md5
from uuid import uuid4

import anyio.lowlevel
from awscrt.checksums import crc64nvme

from pipeline.checksums import checksum_text
from pipeline.errors import DestinationBusyError, DestinationRefusedError
from pipeline.instances import Storage
from pipeline.ports import (
    Buffer,
    ObjectExistsError,
    ObjectFacts,
    PartFacts,
    PutRequest,
    Unfinished,
    UploadLostError,
)

STORAGE = Storage(
    association_id="voice-1",
    bucket="acme-recordings",
    prefix="connect/acme/CallRecordings",
    kms_key_arn="arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000002",
    bucket_owner="111122223333",
)
SMALLEST_PART = 5 * 2**20
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:=-]*[A-Za-z0-9_:=-])?")


@dataclass
class Stored:
    body: bytes
    facts: ObjectFacts


@dataclass
class Upload:
    request: PutRequest
    parts: dict[int, tuple[PartFacts, bytes]] = field(default_factory=dict)


async def _nothing(step: str) -> None:
    await anyio.lowlevel.checkpoint()


class StrictDestination:
    """`Destination` over dictionaries."""

    def __init__(self, storage: Storage = STORAGE) -> None:
        self.storage = storage
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.calls: list[str] = []
        self.writes = 0
        """Bodies that were taken, parts included."""
        self.on_step: Callable[[str], Awaitable[None]] = _nothing
        self.failures: defaultdict[str, list[Exception]] = defaultdict(list)
        """By step (`put before`, `put after`): raised at its next occurrences, in order."""
        self.echo: dict[str, Callable[[ObjectFacts], ObjectFacts]] = {}
        """By operation: what its answer says instead of the truth."""

    async def _step(self, operation: str, moment: str) -> None:
        step = f"{operation} {moment}"
        if moment == "before":
            self.calls.append(operation)
        await self.on_step(step)
        if self.failures[step]:
            raise self.failures[step].pop(0)

    async def put(self, request: PutRequest, body: Buffer) -> ObjectFacts:
        await self._step("put", "before")
        data = bytes(body)
        self._check(request, data)
        self._expect_free(request.key)
        facts = self._store(request, data)
        self.writes += 1
        await self._step("put", "after")
        return self._echoed("put", replace(facts, size_bytes=None, metadata={}))

    async def create_multipart(self, request: PutRequest) -> str:
        await self._step("create", "before")
        self._check_name(request)
        upload_id = uuid4().hex
        self.uploads[upload_id] = Upload(request)
        await self._step("create", "after")
        return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer, crc64nvme: str) -> PartFacts:
        await self._step("part", "before")
        upload = self._upload(key, upload_id)
        data = bytes(body)
        assert 1 <= number <= 10_000
        if _crc(data) != crc64nvme:
            raise DestinationBusyError("BadDigest")
        facts = PartFacts(number, f'"{md5(data, usedforsecurity=False).hexdigest()}"', crc64nvme)
        upload.parts[number] = facts, data
        self.writes += 1
        await self._step("part", "after")
        return facts

    async def complete_multipart(self, request: PutRequest, upload_id: str, parts: Sequence[PartFacts]) -> ObjectFacts:
        await self._step("complete", "before")
        upload = self._upload(request.key, upload_id)
        assert upload.request == request
        data = self._joined(upload, parts)
        if len(data) != request.size_bytes:
            raise DestinationBusyError("InvalidRequest")
        self._check(request, data)
        self._expect_free(request.key)
        facts = self._store(request, data)
        del self.uploads[upload_id]
        await self._step("complete", "after")
        return self._echoed("complete", replace(facts, size_bytes=None, metadata={}))

    def _joined(self, upload: Upload, parts: Sequence[PartFacts]) -> bytes:
        numbers = [part.number for part in parts]
        if numbers != sorted(set(numbers)):
            raise UploadLostError("InvalidPartOrder")
        if any(upload.parts.get(part.number, (None,))[0] != part for part in parts):
            raise UploadLostError("InvalidPart")
        bodies = [upload.parts[number][1] for number in numbers]
        if any(len(body) < SMALLEST_PART for body in bodies[:-1]):
            raise DestinationBusyError("EntityTooSmall")
        return b"".join(bodies)

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        await self._step("abort", "before")
        upload = self.uploads.pop(upload_id, None)
        assert upload is None or upload.request.key == key
        await self._step("abort", "after")

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        await self._step("unfinished", "before")
        found = [Unfinished(one.request.key, upload_id) for upload_id, one in self.uploads.items()]
        await self._step("unfinished", "after")
        return [one for one in found if one.key.startswith(prefix)]

    async def head(self, key: str) -> ObjectFacts | None:
        await self._step("head", "before")
        stored = self.objects.get(key)
        await self._step("head", "after")
        return None if stored is None else self._echoed("head", stored.facts)

    async def read(self, key: str, offset: int, size_bytes: int) -> bytes:
        await self._step("read", "before")
        if key not in self.objects:
            raise DestinationBusyError("NoSuchKey")
        await self._step("read", "after")
        return self.objects[key].body[offset : offset + size_bytes]

    async def delete(self, key: str) -> None:
        await self._step("delete", "before")
        self.objects.pop(key, None)
        await self._step("delete", "after")

    def lay(self, key: str, body: bytes, **changes: object) -> None:
        """Put an object there behind everyone's back; `changes` are fields of its facts."""
        facts = ObjectFacts(
            key, len(body), '"x"', None, _crc(body), "FULL_OBJECT", "aws:kms", self.storage.kms_key_arn, True
        )  # fmt: skip
        self.objects[key] = Stored(body, replace(facts, **changes))  # type: ignore[arg-type]

    def _echoed(self, operation: str, facts: ObjectFacts) -> ObjectFacts:
        return self.echo[operation](facts) if operation in self.echo else facts

    def _upload(self, key: str, upload_id: str) -> Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.request.key != key:
            raise UploadLostError("NoSuchUpload")
        return upload

    def _expect_free(self, key: str) -> None:
        if key in self.objects:
            raise ObjectExistsError("PreconditionFailed")

    def _check(self, request: PutRequest, data: bytes) -> None:
        self._check_name(request)
        assert len(data) == request.size_bytes, "the declared length is the body's"
        if _crc(data) != request.crc64nvme:
            raise DestinationBusyError("BadDigest")

    def _check_name(self, request: PutRequest) -> None:
        if len(request.key) > 1024 or not all(_SEGMENT.fullmatch(one) for one in request.key.split("/")):
            raise DestinationRefusedError("KeyTooLongError")
        if request.key.startswith("audit/"):
            assert set(request.metadata) <= {"sha256", "signature", "signature-algorithm"}, "nothing else goes there"
        else:
            assert set(request.metadata) == {"rid", "gen", "sha256"}, "nothing else goes on an object"

    def _store(self, request: PutRequest, data: bytes) -> ObjectFacts:
        facts = ObjectFacts(
            key=request.key,
            size_bytes=len(data),
            etag=f'"{md5(data, usedforsecurity=False).hexdigest()}"',
            crc64nvme=request.crc64nvme,
            checksum_type="FULL_OBJECT",
            encryption="aws:kms",
            kms_key_arn=self.storage.kms_key_arn,
            bucket_key=True,
            metadata=dict(request.metadata),
        )
        self.objects[request.key] = Stored(data, facts)
        return facts


def _crc(data: bytes) -> str:
    return checksum_text(crc64nvme(data))
