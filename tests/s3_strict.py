"""A strict `Destination`, and `Rewritable`, in memory: it checks all that S3 checks, and misbehaves on demand.

Each call has two steps, one before its effect and one after; a test can count them, cancel at one, or let it fail.
"""

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
    ObjectVersion,
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
COPY_LIMIT = 5 * 2**30
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
        self.older: dict[str, list[Stored]] = defaultdict(list)
        """Versions that were replaced, where the bucket keeps them; the last is the newest."""
        self.markers: list[str] = []
        """Keys of delete markers."""
        self.keeps_versions = False
        self.knows_update = True
        """Whether it has UpdateObjectEncryption; else it takes the call for a plain write, as others do."""
        self.knows_copy = True
        self.keeps_conditions = True
        self.page = 1000
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

    # --- encrypted anew

    async def versions(self, prefix: str) -> AsyncIterator[Sequence[ObjectVersion]]:
        found = [
            ObjectVersion(key, stored.facts.version_id or "null", is_latest)
            for key in sorted({*self.objects, *self.older})
            for stored, is_latest in self._versions(key)
        ]
        found += [ObjectVersion(key, "marker", is_latest=True, is_marker=True) for key in self.markers]
        wanted = [each for each in found if each.key.startswith(prefix)]
        for start in range(0, max(len(wanted), 1), self.page):
            await self._step("versions", "before")
            yield wanted[start : start + self.page]

    def _versions(self, key: str) -> list[tuple[Stored, bool]]:
        latest = [(self.objects[key], True)] if key in self.objects else []
        return latest + [(stored, False) for stored in reversed(self.older[key])]

    async def head_version(self, key: str, version_id: str | None) -> ObjectFacts | None:
        if version_id is None:
            return await self.head(key)
        await self._step("head", "before")
        found = [stored for stored, _ in self._versions(key) if (stored.facts.version_id or "null") == version_id]
        return self._echoed("head", found[0].facts) if found else None

    async def update_encryption(self, key: str) -> None:
        await self._step("update", "before")
        stored = self.objects[key]
        if self.knows_update:
            stored.facts = replace(stored.facts, encryption="aws:kms", kms_key_arn=self.storage.kms_key_arn)
        else:
            text = b"<ObjectEncryption/>"
            self.lay(key, text, kms_key_arn=None, encryption=None, crc64nvme=None)
        await self._step("update", "after")

    async def copy_over(self, request: PutRequest, over: str) -> None:
        await self._step("copy", "before")
        if not self.knows_copy:
            raise DestinationBusyError("InvalidRequest")
        self._expect(request.key, over)
        assert request.size_bytes <= COPY_LIMIT
        stored = self.objects[request.key]
        self._replace(_as_it_was(stored, request), stored.body)
        await self._step("copy", "after")

    async def copy_part(
        self, key: str, upload_id: str, number: int, first: int, size_bytes: int, over: str
    ) -> PartFacts:
        if not self.knows_copy:
            raise DestinationBusyError("NotImplemented")
        self._expect(key, over)
        body = self.objects[key].body[first : first + size_bytes]
        return await self.upload_part(key, upload_id, number, body, _crc(body))

    async def put_over(self, request: PutRequest, body: Buffer, over: str) -> None:
        await self._step("put over", "before")
        data = bytes(body)
        self._check(request, data)
        self._expect(request.key, over)
        self._replace(request, data)
        self.writes += 1
        await self._step("put over", "after")

    async def complete_over(self, request: PutRequest, upload_id: str, parts: Sequence[PartFacts], over: str) -> None:
        await self._step("complete over", "before")
        upload = self._upload(request.key, upload_id)
        assert upload.request == request
        data = self._joined(upload, parts)
        self._check(request, data)
        self._expect(request.key, over)
        self._replace(request, data)
        del self.uploads[upload_id]
        await self._step("complete over", "after")

    def _expect(self, key: str, over: str) -> None:
        stored = self.objects.get(key)
        if self.keeps_conditions and (stored is None or stored.facts.etag != over):
            raise ObjectExistsError("PreconditionFailed")

    def _replace(self, request: PutRequest, data: bytes) -> None:
        if self.keeps_versions:
            self.older[request.key].append(self.objects[request.key])
        facts = self._store(request, data)
        if self.keeps_versions:
            self.objects[request.key].facts = replace(facts, version_id=uuid4().hex)

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
            content_type=request.content_type,
        )
        self.objects[request.key] = Stored(data, facts)
        return facts


def _crc(data: bytes) -> str:
    return checksum_text(crc64nvme(data))


def _as_it_was(stored: Stored, request: PutRequest) -> PutRequest:
    """Describe a copy: what is copied decides what it is, not the request."""
    facts = stored.facts
    return replace(request, metadata=facts.metadata, content_type=facts.content_type or "", crc64nvme=_crc(stored.body))
