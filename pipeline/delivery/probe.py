"""Try a destination when it is added, with small objects of its own, and say what can be relied on.

A bucket that does not encrypt with SSE-KMS under the configured key, or ignores `If-None-Match`, is refused. Its
answer is kept by the caller. Every object and upload it makes is removed again where the bucket lets it.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator
from datetime import datetime
from hashlib import sha256
from typing import Literal
from uuid import UUID

import anyio
from awscrt.checksums import crc64nvme
from msgspec import Struct

from pipeline.checksums import checksum_text
from pipeline.delivery.proof import Receipt, Subject, Verdict, compare, verify
from pipeline.errors import DestinationBusyError, DestinationHeldError, HoldCode, PipelineError, RefuseError
from pipeline.ids import ArtifactId, InstanceId, Kind, RecordingId
from pipeline.instances import Discriminator, Storage
from pipeline.ports import Destination, ObjectExistsError, ObjectFacts, PutRequest

BODY = b"A probe of the recording pipeline. It may be removed.\n"
CLEANING_S = 10.0
_NOBODY = UUID(int=0)
_KEY_FIELD = "StorageConfig.S3Config.EncryptionConfig.KeyId"

Proof = Literal["answer", "head"]
"""Whether the answer to a write proves the object, or HEAD has to be asked."""


class ProbeAnswer(Struct, frozen=True, kw_only=True, rename="camel"):
    """What was found about a destination."""

    probed_at: datetime
    put: Proof
    multipart: Proof
    checksums: Literal["checked", "unchecked"]
    """`unchecked`: the bucket takes bytes that do not have the checksum they came with."""
    head: bool
    """Whether HEAD is allowed."""
    cleaned: bool
    """Whether the probe's objects could be removed."""


async def probe(destination: Destination, storage: Storage, *, now: datetime) -> ProbeAnswer:
    """Try everything that delivery relies on.

    Raises:
        RefuseError: it can't be used: no SSE-KMS with the configured key, `If-None-Match` ignored, no proof to be had.
        DestinationHeldError: access is denied, there is no such bucket, or the KMS key can't be used.
        DestinationBusyError: it could not be tried now.

    """
    run = _Probe(destination, storage, now)
    async with run.cleaning():
        head = await run.head_allowed_after_put()
        put = await run.proof_of_put()
        await run.expect_create_only()
        if head:
            await run.expect_same_bytes()
        checksums = await run.checksums()
        multipart = await run.proof_of_multipart()
    return ProbeAnswer(probed_at=now, put=put, multipart=multipart, checksums=checksums, head=head, cleaned=run.cleaned)


class _Probe:
    """One run of `probe`."""

    def __init__(self, destination: Destination, storage: Storage, now: datetime) -> None:
        self._destination = destination
        self._storage = storage
        self._now = now
        self._subject = Subject(
            recording_id=RecordingId(_NOBODY),
            artifact_id=ArtifactId(_NOBODY),
            instance_id=InstanceId(_NOBODY),
            kind=Kind.CHAT,
            generation=1,
            sha256=sha256(BODY).hexdigest(),
        )
        self._stem = f"{storage.prefix}/pipeline-probe-{secrets.token_hex(8)}"
        self._at_once = self._request("put")
        self._in_parts = self._request("multipart")
        self._damaged = self._request("damaged", crc64nvme=checksum_text(crc64nvme(b"something else")))
        self._head_allowed = True
        self._answer = ObjectFacts(self._at_once.key)
        self.cleaned = True

    def _request(self, name: str, **changes: str) -> PutRequest:
        crc = changes.get("crc64nvme", checksum_text(crc64nvme(BODY)))
        return PutRequest(f"{self._stem}-{name}", len(BODY), crc, "application/octet-stream", self._subject.metadata)

    @contextlib.asynccontextmanager
    async def cleaning(self) -> AsyncIterator[None]:
        """Remove what the block made, whatever becomes of it."""
        try:
            yield
        finally:
            with anyio.move_on_after(CLEANING_S, shield=True):
                for request in (self._at_once, self._in_parts, self._damaged):
                    await self._remove(request.key)

    async def _remove(self, key: str) -> None:
        try:
            for upload in await self._destination.unfinished(key):
                await self._destination.abort_multipart(upload.key, upload.upload_id)
            await self._destination.delete(key)
        except PipelineError:  # removing may well not be allowed; delivery needs no such permission
            self.cleaned = False

    async def head_allowed_after_put(self) -> bool:
        """Write the first object; ask for it."""
        try:
            self._answer = await self._destination.put(self._at_once, BODY)
        except ObjectExistsError as error:
            raise DestinationBusyError("the bucket says that a new name is taken; it is tried again") from error
        try:
            await self._destination.head(self._at_once.key)
        except DestinationHeldError as error:
            if error.code is not HoldCode.DESTINATION_ACCESS_DENIED:
                raise
            self._head_allowed = False
        if not self._head_allowed and self._storage.discriminator is not Discriminator.ALWAYS:
            message = "the bucket does not allow HEAD: allow s3:GetObject, or set discriminator to always"
            raise RefuseError(message, field="discriminator")
        return self._head_allowed

    async def proof_of_put(self) -> Proof:
        return await self._proof(self._at_once, self._answer)

    async def _proof(self, request: PutRequest, answer: ObjectFacts) -> Proof:
        """Tell what proves a write. Raises `RefuseError` if nothing does."""
        found = verify(self._subject, request, self._storage, answer, self._now)
        if isinstance(found, Receipt):
            return "answer"
        facts = await self._destination.head(request.key) if self._head_allowed else answer
        if facts is None:
            raise RefuseError("the bucket took an object and does not have it", field="StorageConfig.S3Config")
        found = verify(self._subject, request, self._storage, facts, self._now)
        if isinstance(found, Receipt):
            return "head"
        if compare(request, self._storage, facts) is Verdict.MINE_WRONG_KEY:
            message = "the bucket does not encrypt with SSE-KMS under the configured key"
            raise RefuseError(message, field=_KEY_FIELD)
        missing = ", ".join(found)
        raise RefuseError(f"the bucket gives no proof of an object: {missing}", field="StorageConfig.S3Config")

    async def expect_create_only(self) -> None:
        """Write the same again. Raises `RefuseError` if that is allowed."""
        try:
            await self._destination.put(self._at_once, BODY)
        except ObjectExistsError:
            return
        raise RefuseError("the bucket ignores If-None-Match and would overwrite", field="StorageConfig.S3Config")

    async def expect_same_bytes(self) -> None:
        if await self._destination.read(self._at_once.key, 0, len(BODY)) != BODY:
            raise RefuseError("the bucket gives back other bytes than it took", field="StorageConfig.S3Config")

    async def checksums(self) -> Literal["checked", "unchecked"]:
        """Send bytes with another checksum than theirs."""
        try:
            await self._destination.put(self._damaged, BODY)
        except DestinationBusyError:
            return "checked"
        return "unchecked"

    async def proof_of_multipart(self) -> Proof:
        """Write an object by multipart upload, twice. Raises `RefuseError` if the second overwrites."""
        proof = await self._proof(self._in_parts, await self._multipart())
        try:
            await self._multipart()
        except ObjectExistsError:
            return proof
        message = "the bucket ignores If-None-Match at the end of a multipart upload and would overwrite"
        raise RefuseError(message, field="StorageConfig.S3Config")

    async def _multipart(self) -> ObjectFacts:
        request = self._in_parts
        upload_id = await self._destination.create_multipart(request)
        part = await self._destination.upload_part(request.key, upload_id, 1, BODY, request.crc64nvme)
        return await self._destination.complete_multipart(request, upload_id, [part])
