"""One delivery: open, put, prove, settle. And its opposite: put aside what no retry can help."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from random import random as chance

import structlog

from pipeline.crypt.contents import Manifest
from pipeline.delivery.buffers import BufferPool
from pipeline.delivery.proof import Receipt, Subject, write_receipt
from pipeline.delivery.source import opened
from pipeline.delivery.upload import UploadPlan, deliver
from pipeline.errors import (
    KEY_CODES,
    ArtifactUnreadableError,
    DestinationBusyError,
    DestinationHeldError,
    HoldCode,
    KeyBusyError,
    KeyUnavailableError,
    RefuseError,
    RejectError,
    StoreIoError,
)
from pipeline.ids import ArtifactId, InstanceId, Kind, RecordingId
from pipeline.instances import Instance, Storage
from pipeline.interim.states import ArtifactName
from pipeline.interim.store import InterimStore
from pipeline.keyports import KeyService
from pipeline.ports import Clock, Destination
from pipeline.status import Facts, Failure, FailureCode, Quality, Status
from pipeline.tenants import Tenant, Tenants
from pipeline.trail import Trail, subject_of

log = structlog.get_logger()

Destinations = Callable[[Instance, Storage], Destination]
"""Give the bucket that a storage configuration names."""
Keys = Callable[[Instance, str], KeyService]
"""Give the key service for a KMS key, as one instance sees it."""
HeadAllowed = Callable[[InstanceId, Kind], bool]
"""Tell what the probe of a destination found."""


_TROUBLES = 2
_READS = 8
"""Attempts, minutes in all, after which an artifact that can't be read is a person's."""
_UNUSABLE: Mapping[str, HoldCode] = {
    "Disabled": HoldCode.KEY_DISABLED,
    "PendingDeletion": HoldCode.KEY_PENDING_DELETION,
    "PendingReplicaDeletion": HoldCode.KEY_PENDING_DELETION,
    "PendingImport": HoldCode.KEY_INVALID_STATE,
    "Unavailable": HoldCode.KEY_INVALID_STATE,
}


class Deliverer:
    """Brings single artifacts to their destination."""

    def __init__(
        self,
        *,
        store: InterimStore,
        tenants: Tenants,
        trail: Trail,
        destinations: Destinations,
        keys: Keys,
        head_allowed: HeadAllowed,
        pool: BufferPool,
        clock: Clock,
        settle_volume: PurePath | None,
        random: Callable[[], float] = chance,
    ) -> None:
        self._store = store
        self._tenants = tenants
        self._trail = trail
        self._destinations = destinations
        self._keys = keys
        self._head_allowed = head_allowed
        self._troubles: Counter[tuple[InstanceId, Kind]] = Counter()
        """How often in a row a destination did not answer as it should."""
        self._unread: Counter[ArtifactId] = Counter()
        """How often in a row an artifact could not be read."""
        self._openings: Counter[ArtifactId] = Counter()
        """How often an artifact was opened for delivery since the start."""
        self._pool = pool
        self._clock = clock
        self._random = random
        self._volumes = () if settle_volume is None else (str(settle_volume),)

    async def deliver(self, name: ArtifactName) -> None:
        """Deliver one sealed artifact; when this returns, its receipt is durable and its media gone.

        Or it is none any more: it was erased while it waited for its turn.

        Raises:
            DeferError: not now (`HoldError`: because of a key or a destination).
            RejectError: never.

        """
        async with self._store.claim(name.artifact_id):
            now = self._store.index.get(name.artifact_id)
            if now is not None and now.is_waiting:
                await self._deliver(now)

    async def reject(self, name: ArtifactName, error: RejectError) -> None:
        """Put an artifact aside with its bytes. Raises `DeferError` if even that can't be made durable now."""
        self._openings.pop(name.artifact_id, None)
        target = name.rejected(error.reason)
        recording_id = RecordingId(name.artifact_id)
        lines = [self._trail.moved(target, recording_id, "ArtifactRejected", reason=error.reason)]
        tenant = self._tenants.get(name.instance_id)
        if tenant is not None:
            failure = Failure(FailureCode.of_reason(error.reason), str(error))
            subject = subject_of(tenant.instance, "unknown", recording_id, target)
            lines.insert(0, self._trail.status(subject, Status.FAILED, Facts(), failure=failure))
        await self._store.reject(name, error.reason, lines)

    # --- inside

    async def _deliver(self, name: ArtifactName) -> None:
        tenant = self._tenants.get(name.instance_id)
        storage = tenant.instance.storage.get(name.kind) if tenant is not None else None
        if tenant is None or storage is None:
            raise DestinationHeldError(
                HoldCode.DESTINATION_MISSING,
                "the instance is not configured for this kind any more; its recordings are kept until it is",
            )
        if not self._store.audit_stands(name.instance_id):
            # The seal's record has told of this opening; while none can be written, nothing is opened.
            line = self._trail.moved(name, RecordingId(name.artifact_id), "PlaintextOpened", purpose="delivery")
            await self._store.record([line])
        key = await tenant.ring.opening(name.key_id)
        self._openings[name.artifact_id] += 1
        lane = name.instance_id, name.kind
        try:
            with self._readable(name), opened(self._store, name, key) as (manifest, source):
                receipt = await deliver(
                    self._destinations(tenant.instance, storage),
                    source,
                    _plan(name, manifest, storage),
                    pool=self._pool,
                    clock=self._clock,
                    random=self._random,
                    head_allowed=self._head_allowed(*lane),
                )
        except DestinationHeldError as error:
            if error.code in KEY_CODES and error.key_arn is None:
                error.key_arn = storage.kms_key_arn  # S3 speaks of the bucket's
            raise
        except DestinationBusyError:
            self._troubles[lane] += 1
            if self._troubles[lane] >= _TROUBLES:
                await self._blame_key(tenant.instance, storage)
            raise
        self._troubles[lane] = 0
        await self._settle(tenant, name, manifest, receipt)

    @contextmanager
    def _readable(self, name: ArtifactName) -> Iterator[None]:
        """Give an artifact up that the disk does not give back: not at once, and not for its volume's trouble."""
        try:
            yield
        except StoreIoError as error:
            self._unread[name.artifact_id] += 1
            if self._unread[name.artifact_id] < _READS or self._store.room.trouble is not None:
                raise
            del self._unread[name.artifact_id]
            raise ArtifactUnreadableError("the disk does not give the recording's bytes back; they are kept") from error
        else:
            self._unread.pop(name.artifact_id, None)

    async def _blame_key(self, instance: Instance, storage: Storage) -> None:
        """Raise `DestinationHeldError` if the bucket's KMS key can't be used: not every store says so by itself."""
        try:
            described = await self._keys(instance, storage.kms_key_arn).describe(storage.kms_key_arn)
        except KeyUnavailableError as error:
            message = f"the bucket's KMS key can't be used: {error}"
            raise DestinationHeldError(error.code, message, key_arn=storage.kms_key_arn) from error
        except (KeyBusyError, RefuseError):
            return
        code = _UNUSABLE.get(described.state)
        if code is not None:
            message = f"the bucket's KMS key is {described.state}; recordings are kept until it is enabled again"
            raise DestinationHeldError(code, message, key_arn=storage.kms_key_arn)

    async def _settle(self, tenant: Tenant, name: ArtifactName, manifest: Manifest, receipt: Receipt) -> None:
        target = name.delivered()
        recording_id = RecordingId(manifest.recording_id)
        raw = write_receipt(receipt)
        facts = Facts(
            start=manifest.started,
            end=manifest.ended,
            published=receipt.delivered_at,
            location=f"s3://{receipt.bucket}/{receipt.key}",
            size_bytes=receipt.size_bytes,
        )
        quality = [Quality(flag) for flag in manifest.quality]
        subject = subject_of(tenant.instance, manifest.contact, recording_id, target)
        lines = (
            self._trail.status(subject, Status.PUBLISHED, facts, quality=quality),
            self._trail.moved(
                target,
                recording_id,
                "ArtifactDelivered",
                # The object's key may tell of a person, by the contact's id: the receipt has it.
                bucket=receipt.bucket,
                versionId=receipt.version_id,
                openings=self._openings[name.artifact_id],
                kmsKeyArn=receipt.kms_key_arn,
                receiptSha256=hashlib.sha256(raw).hexdigest(),
            ),
        )
        await self._store.settle(name, raw, lines, self._volumes)
        del self._openings[name.artifact_id]
        log.info("delivery.settled", artifact=str(name.artifact_id), kind=name.kind, size_bytes=receipt.size_bytes)


def _plan(name: ArtifactName, manifest: Manifest, storage: Storage) -> UploadPlan:
    subject = Subject(
        recording_id=RecordingId(manifest.recording_id),
        artifact_id=name.artifact_id,
        instance_id=name.instance_id,
        kind=name.kind,
        generation=manifest.generation,
        sha256=manifest.object.sha256,
        item_digests=manifest.item_digests,
        quality=manifest.quality,
    )
    return UploadPlan(
        subject=subject,
        storage=storage,
        keys=manifest.keys,
        size_bytes=manifest.object.size_bytes,
        crc64nvme=manifest.object.crc64nvme,
        content_type=manifest.object.content_type,
    )
