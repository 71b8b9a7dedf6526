"""The moves of an open artifact, each with its status event and audit record: begun, sealed, dropped, rejected."""

from collections.abc import Callable

import structlog
from msgspec.structs import replace

from pipeline.crypt.contents import Manifest, encode_manifest
from pipeline.crypt.segments import SegmentType
from pipeline.errors import RejectError
from pipeline.ids import RecordingId
from pipeline.intake.reception import Answer, Reception
from pipeline.interim.states import ArtifactName, Event
from pipeline.interim.store import InterimStore
from pipeline.status import Facts, Failure, FailureCode, Quality, Status
from pipeline.tenants import Tenant
from pipeline.trail import Subject, Trail, subject_of

log = structlog.get_logger()


class Moves:
    """Carries them out against the store."""

    def __init__(self, store: InterimStore, trail: Trail, on_sealed: Callable[[ArtifactName], None]) -> None:
        self._store = store
        self._trail = trail
        self._on_sealed = on_sealed

    def tell_begun(self, reception: Reception) -> None:
        """Let INITIATED and the audit record go to disk with the artifact's next sync."""
        self._tell_begun(reception, reception.name)

    def _tell_begun(self, reception: Reception, name: ArtifactName) -> None:
        subject = _subject(reception, name)
        if not reception.told:
            reception.writer.lines.append(
                self._trail.status(subject, Status.INITIATED, Facts(start=reception.head.started))
            )
            reception.told = True
        if not reception.recorded:
            reception.writer.lines.append(self._trail.moved(name, reception.recording_id, "ArtifactOpened"))
            reception.recorded = True

    async def seal(self, reception: Reception, manifest: Manifest) -> Answer:
        """Write the manifest and give the artifact its sealed name.

        Raises:
            StoreFullError, StoreIoError: it is still open; recovery goes on from what is there.

        """
        writer = reception.writer
        try:
            *more, last = encode_manifest(manifest)
            if more:
                await writer.append_records(SegmentType.EVENT, more)
            await writer.append_records(SegmentType.MANIFEST, [last])
        except BaseException:
            await writer.close()
            raise
        return await self.finish_seal(reception, manifest)

    async def finish_seal(self, reception: Reception, manifest: Manifest) -> Answer:
        """Carry out the last move of an artifact whose manifest is written."""
        if not (reception.told and reception.recorded):
            self._tell_begun(reception, replace(reception.name, generation=manifest.generation))
        event = Event.FINISHED if manifest.ending == "complete" else Event.IDLE
        target = reception.name.sealed(event, generation=manifest.generation, size_bytes=manifest.object.size_bytes)
        subject = _subject(reception, target)
        quality = [Quality(flag) for flag in manifest.quality]
        facts = Facts(start=manifest.started, end=manifest.ended)
        storage = reception.tenant.instance.storage.get(target.kind)
        lines = (
            self._trail.status(subject, Status.COMPLETED, facts, quality=quality),
            self._trail.moved(
                target,
                reception.recording_id,
                "ArtifactSealed",
                ending=manifest.ending,
                sizeBytes=manifest.object.size_bytes,
                sha256=manifest.object.sha256,
                quality=list(manifest.quality),
                opensFor="delivery",
                bucket=storage.bucket if storage is not None else None,
            ),
        )
        await self._store.seal(reception.writer, target, lines)
        reception.tenant.ring.used(target.key_id, 0, manifest.object.size_bytes)
        log.info("intake.sealed", artifact=str(target.artifact_id), kind=target.kind, size_bytes=target.size_bytes)
        self._on_sealed(target)
        return Answer(
            str(reception.recording_id),
            str(target.artifact_id),
            target.generation,
            manifest.object.size_bytes,
            manifest.object.sha256,
        )

    async def drop(self, reception: Reception, why: str, failure: Failure | None = None) -> None:
        """Remove an open artifact whose bytes are held elsewhere, or were never acknowledged."""
        subject = _subject(reception, reception.name)
        lines = [self._trail.moved(reception.name, reception.recording_id, "ArtifactDropped", reason=why)]
        if failure is not None:
            lines.append(self._trail.status(subject, Status.FAILED, Facts(), failure=failure))
        await reception.writer.close()
        await self._store.drop(reception.name, lines)
        log.info("intake.dropped", artifact=str(reception.name.artifact_id), reason=why)

    async def reject(self, tenant: Tenant, name: ArtifactName, error: RejectError) -> None:
        """Keep a damaged open artifact aside for a person."""
        target = name.rejected(error.reason)
        recording_id = RecordingId(name.artifact_id)
        subject = subject_of(tenant.instance, "unknown", recording_id, target)
        failure = Failure(FailureCode.INTEGRITY, "the artifact's file is damaged; its bytes are kept")
        lines = (
            self._trail.status(subject, Status.FAILED, Facts(), failure=failure),
            self._trail.moved(target, recording_id, "ArtifactRejected", reason=error.reason),
        )
        log.error("intake.rejected", artifact=str(name.artifact_id), reason=error.reason)
        await self._store.reject(name, error.reason, lines)


def _subject(reception: Reception, name: ArtifactName) -> Subject:
    return subject_of(reception.tenant.instance, reception.head.contact, reception.recording_id, name)
