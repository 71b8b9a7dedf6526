"""Bring one recording to the instance's bucket, and come back with the proof.

Every write is create-only, and each candidate key is tried in its order. A taken key is "maybe mine": HEAD decides.
What fails leaves nothing behind: no half object, no multipart upload, no lease. It never overwrites, never renames and
never tries again by itself, except that a multipart upload which the bucket lost is begun anew, and that a part of it,
or its completion, is sent again to a bucket which was busy for a moment.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio
from awscrt.checksums import combine_crc64nvme, crc64nvme

from pipeline.checksums import checksum_text
from pipeline.delivery.buffers import MIB, BufferPool, size_class
from pipeline.delivery.patience import Patience
from pipeline.delivery.proof import Receipt, Subject, Verdict, compare, verify
from pipeline.errors import (
    DestinationBusyError,
    DestinationConflictError,
    DestinationHeldError,
    DestinationRefusedError,
    HoldCode,
    PipelineError,
    SegmentForgedError,
)
from pipeline.ids import InstanceId, Kind
from pipeline.instances import Storage
from pipeline.ports import Clock, Destination, ObjectExistsError, ObjectFacts, PartFacts, PutRequest, UploadLostError
from pipeline.tracebacks import forget_way

PART_BYTES = 8 * MIB
"""Also the most that goes in one PutObject."""
MAX_PARTS = 10_000
"""S3's own limit."""
PARTS_AT_A_TIME = 2
"""Of one object: 16 MiB parts four at a time took twice the memory and were no faster."""
FRESH_UPLOADS = 3
"""How often an upload that the bucket lost is begun before it waits for its turn again."""
ABORT_S = 5.0
"""How long giving up a multipart upload may take."""


class ObjectSource(Protocol):
    """The exact bytes to be delivered.

    Raises `SegmentForgedError` for bytes that do not authenticate, `DeferError` when they can't be opened now.
    """

    @property
    def size_bytes(self) -> int:
        """How many there are."""
        ...

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with authenticated plaintext from `offset`. Calls come one at a time, in order."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadPlan:
    """What was fixed when the artifact was sealed."""

    subject: Subject
    storage: Storage
    keys: tuple[str, ...]
    """Candidates, the wanted one first."""
    size_bytes: int
    crc64nvme: str
    content_type: str

    @property
    def owner(self) -> tuple[InstanceId, Kind]:
        """Whose share of the memory for uploads it takes: the destination's."""
        return self.subject.instance_id, self.subject.kind

    def request(self, key: str) -> PutRequest:
        """Describe the object under one of its keys."""
        return PutRequest(key, self.size_bytes, self.crc64nvme, self.content_type, self.subject.metadata)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the object."""

    number: int
    offset: int
    size_bytes: int


def part_bytes(size_bytes: int) -> int:
    """Choose the size of parts: 8 MiB, or the next whole MiB with which 10,000 suffice."""
    return max(PART_BYTES, -(-size_bytes // (MAX_PARTS * MIB)) * MIB)


def parts_of(size_bytes: int) -> Iterator[Part]:
    """Cut an object into parts."""
    step = part_bytes(size_bytes)
    for number, offset in enumerate(range(0, size_bytes, step), start=1):
        yield Part(number, offset, min(step, size_bytes - offset))


async def deliver(
    destination: Destination,
    source: ObjectSource,
    plan: UploadPlan,
    *,
    pool: BufferPool,
    clock: Clock,
    random: Callable[[], float],
    head_allowed: bool = True,
) -> Receipt:
    """Write the object under the first of its keys that is free or already holds it; give back the proof.

    Args:
        destination: the bucket, seen through the plan's storage configuration.
        source: the bytes.
        plan: what they are to become.
        pool: memory to send them from.
        clock: for the receipt's time.
        random: from 0 to 1, for the waits between tries of a part.
        head_allowed: as the probe of this destination found; if not, a large object is sent without asking first.

    Raises:
        SegmentForgedError: the source's bytes are not those that the manifest names; nothing was completed.
        DestinationConflictError: none of the keys can be ours.
        DestinationRefusedError: the object can never be written there.
        DestinationHeldError: the bucket or its key can't be used, or the object lies there under another KMS key.
        DestinationBusyError: for all else.

    """
    if source.size_bytes != plan.size_bytes:
        raise SegmentForgedError("the artifact does not hold as many bytes as its manifest names")
    if size_class(min(plan.size_bytes, part_bytes(plan.size_bytes))) > pool.limit_bytes:
        raise DestinationRefusedError("the recording needs parts larger than the memory for uploads; raise that limit")
    upload = _Upload(destination, source, plan, pool, Patience(clock, random), head_allowed=head_allowed)
    for key in plan.keys:
        receipt = await upload.to(plan.request(key))
        if receipt is not None:
            return receipt
    raise DestinationConflictError("another object holds each of the keys that this recording may take")


class _Upload:
    """One run of `deliver`."""

    def __init__(
        self,
        destination: Destination,
        source: ObjectSource,
        plan: UploadPlan,
        pool: BufferPool,
        patience: Patience,
        *,
        head_allowed: bool,
    ) -> None:
        self.destination = destination
        self.source = source
        self.plan = plan
        self.pool = pool
        self.patience = patience
        self._head_allowed = head_allowed

    async def to(self, request: PutRequest) -> Receipt | None:
        """Write under one key. None: something foreign holds it."""
        try:
            if request.size_bytes > PART_BYTES:
                written = await self._in_parts(request)
            else:
                written = await self._at_once(request)
        except ObjectExistsError:
            return await self._examine(request)
        return await self._prove(request, written)

    async def _at_once(self, request: PutRequest) -> ObjectFacts:
        async with self.pool.lease(request.size_bytes, self.plan.owner) as buffer:
            await self.source.read_into(0, buffer)
            self._check(crc64nvme(buffer))
            return await self.destination.put(request, buffer)

    async def _in_parts(self, request: PutRequest) -> ObjectFacts:
        """Write by multipart upload. Raises `ObjectExistsError`."""
        # Asked first, because a taken key would only show when all of the bytes have been sent.
        await self._expect_nothing(request)
        await _abort_unfinished(self.destination, request.key)
        for _ in range(FRESH_UPLOADS):
            try:
                return await self._multipart(request)
            except UploadLostError:
                # Its completion may have been done, and only the answer lost.
                await self._expect_nothing(request)
        raise DestinationBusyError("the bucket lost the multipart upload again and again; it is tried again")

    async def _expect_nothing(self, request: PutRequest) -> None:
        """Raise `ObjectExistsError` if the key is known to be taken."""
        if self._head_allowed and await self.destination.head(request.key) is not None:
            raise ObjectExistsError("the object's key is taken")

    async def _multipart(self, request: PutRequest) -> ObjectFacts:
        async with _multipart_upload(self.destination, request) as upload_id:
            parts = await _Parts(self, request.key, upload_id).send()
            crc = 0
            for part, (_, part_crc) in zip(parts_of(request.size_bytes), parts, strict=True):
                crc = combine_crc64nvme(crc, part_crc, part.size_bytes)
            self._check(crc)
            sent = [facts for facts, _ in parts]
            complete = partial(self.destination.complete_multipart, request, upload_id, sent)
            return await self.patience.with_step(complete)

    def _check(self, crc: int) -> None:
        """Raise `SegmentForgedError` unless the bytes are the manifest's."""
        if checksum_text(crc) != self.plan.crc64nvme:
            raise SegmentForgedError("the bytes to be delivered are not those that the manifest names")

    async def _prove(self, request: PutRequest, written: ObjectFacts) -> Receipt:
        """Make the receipt of a write; ask with HEAD for what its answer left open."""
        proof = verify(self.plan.subject, request, self.plan.storage, written, self.patience.clock.now())
        if isinstance(proof, Receipt):
            return proof
        receipt = await self._examine(request)
        if receipt is None:  # not a reason to write a second object
            raise DestinationBusyError("the bucket took the object and does not know it as ours; it is tried again")
        return receipt

    async def _examine(self, request: PutRequest) -> Receipt | None:
        """Judge what lies under the key. None: it is foreign."""
        facts = await self.destination.head(request.key)
        if facts is None:
            raise DestinationBusyError(
                "the bucket says that the object is there, and that it is not; it is tried again"
            )
        match compare(request, self.plan.storage, facts):
            case Verdict.FOREIGN:
                if request.size_bytes > PART_BYTES:
                    # The recording goes elsewhere, and nobody would look here again.
                    await _abort_unfinished(self.destination, request.key)
                return None
            case Verdict.MINE_OTHER_BYTES:
                raise DestinationConflictError("the object of this recording holds other bytes; ours are kept here")
            case Verdict.MINE_WRONG_KEY:
                message = "the object is there, but not under the configured KMS key; re-encrypt it in the bucket"
                raise DestinationHeldError(HoldCode.DESTINATION_WRONG_KEY, message)
            case Verdict.UNKNOWN if facts.size_bytes is None:
                raise DestinationBusyError("the bucket does not prove the object (size); it is tried again")
            case Verdict.UNKNOWN | Verdict.MINE:
                proof = verify(self.plan.subject, request, self.plan.storage, facts, self.patience.clock.now())
        if isinstance(proof, Receipt):
            return proof
        raise DestinationBusyError(f"the bucket does not prove the object ({', '.join(proof)}); it is tried again")


class _Parts:
    """Sends all parts of one multipart upload, some at a time."""

    def __init__(self, upload: "_Upload", key: str, upload_id: str) -> None:
        self._upload = upload
        self._key = key
        self._upload_id = upload_id
        self._waiting = parts_of(upload.source.size_bytes)
        self._reading = anyio.Lock(fast_acquire=True)
        self._sent: dict[int, tuple[PartFacts, int]] = {}
        self._failure: PipelineError | UploadLostError | None = None

    async def send(self) -> list[tuple[PartFacts, int]]:
        """Send them; give back each with its CRC64NVME, in order. Raises what the first failure raised."""
        async with anyio.create_task_group() as tg:
            for number in range(PARTS_AT_A_TIME):
                tg.start_soon(self._work, tg.cancel_scope, name=f"parts {number} of an upload")
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it holds this frame: one that held it would keep both, and what was to be sent
        return [self._sent[number] for number in sorted(self._sent)]

    async def _work(self, scope: anyio.CancelScope) -> None:
        try:
            while await self._send_next():
                pass
        except (PipelineError, UploadLostError) as error:
            # A group would wrap it; the recording's own error is what the caller decides by.
            forget_way(error)
            self._failure = self._failure or error
            scope.cancel()
        except anyio.get_cancelled_exc_class() as error:
            forget_way(error)  # its scope keeps it
            raise

    async def _send_next(self) -> bool:
        pool, owner = self._upload.pool, self._upload.plan.owner
        async with contextlib.AsyncExitStack() as lease:
            async with self._reading:
                part = next(self._waiting, None)
                if part is None:
                    return False
                buffer = await lease.enter_async_context(pool.lease(part.size_bytes, owner))
                await self._upload.source.read_into(part.offset, buffer)
            crc = crc64nvme(buffer)
            facts = await self._upload.patience.with_step(partial(self._send_one, part, buffer, checksum_text(crc)))
        self._sent[part.number] = facts, crc
        return True

    async def _send_one(self, part: Part, buffer: memoryview, checksum: str) -> PartFacts:
        try:
            return await self._upload.destination.upload_part(self._key, self._upload_id, part.number, buffer, checksum)
        except DestinationBusyError:
            self._upload.pool.spoil(buffer)
            raise


@contextlib.asynccontextmanager
async def _multipart_upload(destination: Destination, request: PutRequest) -> AsyncIterator[str]:
    """Begin a multipart upload; give it up unless the block ends well, also under cancellation."""
    upload_id: str | None = None
    done = False
    try:
        upload_id = await destination.create_multipart(request)
        yield upload_id
        done = True
    finally:
        if not done:
            with anyio.move_on_after(ABORT_S, shield=True), contextlib.suppress(PipelineError):
                if upload_id is None:  # it may have been begun, and only the answer lost
                    await _abort_unfinished(destination, request.key)
                else:
                    await destination.abort_multipart(request.key, upload_id)


async def _abort_unfinished(destination: Destination, key: str) -> None:
    """Give up every multipart upload of exactly this key: an earlier attempt left it."""
    for upload in await destination.unfinished(key):
        if upload.key == key:
            await destination.abort_multipart(key, upload.upload_id)
