"""What is delivered already, encrypted anew in its bucket under the configured KMS key: looked at, counted, rewritten.

Three ways, the first that the store has: UpdateObjectEncryption, which changes nothing but the encryption; a copy of
the object onto itself; reading it, and putting the same bytes in its place. The last two on condition that the object
is still the one that was seen. A store is tried with objects of our own first: two that do not know
UpdateObjectEncryption were seen to take it for a plain write, and to replace the object by the request's own text.

Only the latest version of an object that carries our metadata is ever rewritten: a recording, what an audit log
brought there, what a bucket was tried with and would not let go. Older versions, which the old key may have to open for
as long as they are there, and delete markers are counted.
"""

import contextlib
import hashlib
import secrets
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import anyio
from awscrt.checksums import combine_crc64nvme, crc64nvme

from pipeline.checksums import checksum_text
from pipeline.delivery.probe import BODY, CLEANING_S
from pipeline.delivery.proof import FULL_OBJECT, SSE_KMS
from pipeline.delivery.upload import ABORT_S, PART_BYTES, parts_of
from pipeline.errors import DestinationBusyError, DestinationHeldError, PipelineError, RefuseError
from pipeline.instances import Storage
from pipeline.ports import (
    ObjectExistsError,
    ObjectFacts,
    ObjectVersion,
    PartFacts,
    PutRequest,
    Rewritable,
    UploadLostError,
)

COPY_LIMIT = 5 * 2**30
"""Most bytes of one CopyObject (S3 API)."""
COPIED_PART = 512 * 2**20
_PROBE = "/pipeline-probe-"
RECORDED = frozenset({"rid", "gen"})
"""Metadata that every recording has, and what a bucket is tried with."""
AUDITED = frozenset({"sha256"})
"""Metadata that every object of an audit log has."""
OTHERS = '"00000000000000000000000000000000"'
"""An ETag that no object has."""
_TRIES = 2
_GZIP = 16 + zlib.MAX_WBITS
"""zlib, `inflateInit2`: a gzip header is expected."""
_INFLATED_BYTES = 2**20
"""At a time: what little may hold much."""


class Way(StrEnum):
    """How a store encrypts an object anew."""

    UPDATE = "UpdateObjectEncryption"
    COPY = "CopyObject"
    PUT = "PutObject"


@dataclass(frozen=True, slots=True)
class Ways:
    """What was found out about a store."""

    way: Way
    in_parts: bool
    """Whether large objects can be replaced, too: the store keeps the condition of a multipart upload."""


class Standing(StrEnum):
    """What an object, or a version of one, is to a change of KMS key."""

    CONFIGURED = "configured"
    """Ours, under the configured key."""
    OTHER = "other"
    """Ours, the latest version, under another key or none."""
    OLDER = "older"
    """Ours, a noncurrent version under another key: never rewritten."""
    FOREIGN = "foreign"
    """Not ours."""
    MARKER = "marker"
    """A delete marker."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One version of an object, as it was found."""

    version: ObjectVersion
    standing: Standing
    facts: ObjectFacts | None = None


def is_under(facts: ObjectFacts, storage: Storage) -> bool:
    """Tell whether an object is encrypted under the configured KMS key."""
    return facts.encryption == SSE_KMS and facts.kms_key_arn == storage.kms_key_arn


async def look(
    destination: Rewritable, storage: Storage, version: ObjectVersion, marks: frozenset[str] = RECORDED
) -> Seen | None:
    """Ask about one version of an object; None if it has gone meanwhile. Ours have the metadata `marks`."""
    if version.is_marker:
        return Seen(version, Standing.MARKER)
    facts = await destination.head_version(version.key, None if version.is_latest else version.version_id)
    if facts is None:
        return None
    if not marks <= set(facts.metadata):
        return Seen(version, Standing.FOREIGN, facts)
    if is_under(facts, storage):
        return Seen(version, Standing.CONFIGURED, facts)
    return Seen(version, Standing.OTHER if version.is_latest else Standing.OLDER, facts)


async def rewrite(destination: Rewritable, storage: Storage, facts: ObjectFacts, ways: Ways) -> ObjectFacts:
    """Encrypt one object anew; give what the bucket says of it afterwards, compared with what it said before.

    Raises:
        ObjectExistsError: it is another one by now; look again.
        DestinationBusyError: not done, or not proven; look again.
        DestinationHeldError: the bucket, or one of the KMS keys, can't be used now.
        RefuseError: it can't be done safely in this store.

    """
    request, over = _request(facts), facts.etag or ""
    if not over:
        raise RefuseError("the bucket names no ETag of it, so it could not be replaced safely")
    match ways.way:
        case Way.UPDATE:
            await destination.update_encryption(facts.key)
        case Way.COPY if request.size_bytes <= COPY_LIMIT:
            await destination.copy_over(request, over)
        case Way.PUT if request.size_bytes <= PART_BYTES:
            body = await _read(destination, facts.key, 0, request.size_bytes)
            digest = _Digest(request)
            digest.update(body)
            _compare(request, crc64nvme(body), digest.hexdigest())
            await destination.put_over(request, body, over)
        case _ if not ways.in_parts:
            raise RefuseError("it is large, and this store ignores the condition of a multipart upload")
        case _:
            await _in_parts(destination, request, over, copies=ways.way is Way.COPY)
    return await _proven(destination, storage, facts)


def _request(facts: ObjectFacts) -> PutRequest:
    """Describe an object as it is, so that the same can be written again."""
    if facts.size_bytes is None or facts.crc64nvme is None or facts.checksum_type not in {None, FULL_OBJECT}:
        raise RefuseError("the bucket gives no length or no full-object CRC64NVME of it, so nothing could be compared")
    return PutRequest(
        key=facts.key,
        size_bytes=facts.size_bytes,
        crc64nvme=facts.crc64nvme,
        content_type=facts.content_type or "application/octet-stream",
        metadata=facts.metadata,
    )


async def _proven(destination: Rewritable, storage: Storage, before: ObjectFacts) -> ObjectFacts:
    after = await destination.head(before.key)
    if after is None:
        raise DestinationBusyError("the object is not there after it was written; look at the bucket")
    same = (after.size_bytes, after.crc64nvme, dict(after.metadata), after.content_type) == (
        before.size_bytes,
        before.crc64nvme,
        dict(before.metadata),
        before.content_type,
    )
    if not same or not is_under(after, storage):
        raise DestinationBusyError("the object is not as it should be after it was written; it is looked at again")
    return after


# --- large objects


async def _in_parts(destination: Rewritable, request: PutRequest, over: str, *, copies: bool) -> None:
    async with _upload(destination, request) as upload_id:
        send = _copied_parts if copies else _sent_parts
        parts = await send(destination, request, upload_id, over)
        await destination.complete_over(request, upload_id, parts, over)


@asynccontextmanager
async def _upload(destination: Rewritable, request: PutRequest) -> AsyncIterator[str]:
    """Begin a multipart upload; give it up unless the block ends well."""
    upload_id = await destination.create_multipart(request)
    done = False
    try:
        yield upload_id
        done = True
    except UploadLostError as error:
        raise DestinationBusyError("the bucket lost a multipart upload; it is begun again") from error
    finally:
        if not done:
            with anyio.move_on_after(ABORT_S, shield=True), contextlib.suppress(PipelineError):
                await destination.abort_multipart(request.key, upload_id)


async def _copied_parts(destination: Rewritable, request: PutRequest, upload_id: str, over: str) -> list[PartFacts]:
    size = max(COPIED_PART, -(-request.size_bytes // 9_000))
    return [
        await destination.copy_part(request.key, upload_id, number, at, min(size, request.size_bytes - at), over)
        for number, at in enumerate(range(0, request.size_bytes, size), start=1)
    ]


async def _sent_parts(destination: Rewritable, request: PutRequest, upload_id: str, _over: str) -> list[PartFacts]:
    sent: list[PartFacts] = []
    crc, digest = 0, _Digest(request)
    for part in parts_of(request.size_bytes):
        body = await _read(destination, request.key, part.offset, part.size_bytes)
        part_crc = crc64nvme(body)
        digest.update(body)
        crc = combine_crc64nvme(crc, part_crc, len(body))
        text = checksum_text(part_crc)
        sent.append(await destination.upload_part(request.key, upload_id, part.number, body, text))
    _compare(request, crc, digest.hexdigest())
    return sent


async def _read(destination: Rewritable, key: str, offset: int, size_bytes: int) -> bytes:
    body = await destination.read(key, offset, size_bytes)
    if len(body) != size_bytes:
        raise DestinationBusyError("the bucket gave less of an object than it was asked for")
    return body


def _compare(request: PutRequest, crc: int, sha256: str | None) -> None:
    """Refuse to write back bytes that are not those of the delivery: its checksum, and the SHA-256 it was given."""
    if checksum_text(crc) != request.crc64nvme or request.metadata.get("sha256", sha256) != sha256:
        raise RefuseError("the bytes that the bucket gives are not those that were delivered; nothing was written")


class _Digest:
    """Computes what an object's `sha256` is of: its bytes, or what is in them where an audit log compressed them."""

    def __init__(self, request: PutRequest) -> None:
        self._sha256 = hashlib.sha256()
        is_compressed = request.key.endswith(".gz") and not set(request.metadata) >= RECORDED
        self._inflater = zlib.decompressobj(wbits=_GZIP) if is_compressed else None
        self._is_damaged = False

    def update(self, body: bytes) -> None:
        """Take the bytes that come next."""
        if self._inflater is None:
            self._sha256.update(body)
            return
        try:
            while body:
                self._sha256.update(self._inflater.decompress(body, _INFLATED_BYTES))
                body = self._inflater.unconsumed_tail
        except zlib.error:
            self._is_damaged = True

    def hexdigest(self) -> str | None:
        """Give it; None if what should be compressed is not."""
        if self._inflater is not None:
            self._sha256.update(self._inflater.flush())
            if self._is_damaged or not self._inflater.eof:
                return None
        return self._sha256.hexdigest()


# --- which way


async def find_way(destination: Rewritable, storage: Storage) -> Ways:
    """Try the ways on objects of our own, which are removed again where that is allowed.

    Raises:
        RefuseError: the store ignores the condition of a write: nothing can be replaced safely.
        DestinationHeldError, DestinationBusyError: it could not be tried now.

    """
    trial = _Trial(destination, storage)
    try:
        for way in Way:
            if await trial.works(way):
                return Ways(way, in_parts=await trial.keeps_condition_in_parts())
    finally:
        await trial.clean()
    raise RefuseError("the bucket ignores If-Match, so what it holds can't be replaced safely", field="storage")


@dataclass(slots=True)
class _Trial:
    destination: Rewritable
    storage: Storage
    stem: str = field(default_factory=lambda: secrets.token_hex(8))
    keys: list[str] = field(default_factory=list)

    async def works(self, way: Way) -> bool:
        """Try a way on an object of its own; what it leaves must be that object, and nothing else."""
        for attempt in range(_TRIES):
            facts = await self._laid(f"{way.lower()}-{attempt}")
            try:
                await self._expect_condition(way, facts)
                await rewrite(self.destination, self.storage, facts, Ways(way, in_parts=False))
            except DestinationHeldError:
                raise
            except (DestinationBusyError, ObjectExistsError):
                continue  # no such operation, or busy just now
            except RefuseError:
                return False
            return True
        return False

    async def _expect_condition(self, way: Way, facts: ObjectFacts) -> None:
        """Raise `RefuseError` if the store replaces an object that is not the one that was meant."""
        request = _request(facts)
        try:
            if way is Way.COPY:
                await self.destination.copy_over(request, OTHERS)
            elif way is Way.PUT:
                await self.destination.put_over(request, BODY, OTHERS)
            else:
                return
        except ObjectExistsError:
            return
        raise RefuseError("the store ignores If-Match")

    async def keeps_condition_in_parts(self) -> bool:
        facts = await self._laid("parts")
        request = _request(facts)
        try:
            async with _upload(self.destination, request) as upload_id:
                part = await self.destination.upload_part(request.key, upload_id, 1, BODY, request.crc64nvme)
                await self.destination.complete_over(request, upload_id, [part], OTHERS)
        except ObjectExistsError:
            return True
        except DestinationHeldError:
            raise
        except PipelineError:
            return False
        return False

    async def _laid(self, name: str) -> ObjectFacts:
        key = f"{self.storage.prefix}{_PROBE}{self.stem}-{name}"
        digest = hashlib.sha256(BODY).hexdigest()
        metadata = {"rid": "probe", "gen": "1", "sha256": digest}
        request = PutRequest(key, len(BODY), checksum_text(crc64nvme(BODY)), "application/octet-stream", metadata)
        self.keys.append(key)
        await self.destination.put(request, BODY)
        facts = await self.destination.head(key)
        if facts is None:
            raise DestinationBusyError("the bucket took an object and does not have it")
        return facts

    async def clean(self) -> None:
        with anyio.move_on_after(CLEANING_S, shield=True):
            for key in self.keys:
                try:
                    await self.destination.delete(key)
                except PipelineError:  # removing may well not be allowed; nothing needs it
                    return
