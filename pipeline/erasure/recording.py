"""`erase recording`: removal of what is held here of one recording; with `shred` its data keys are destroyed as well.

What was delivered stays in its bucket, and is named. Each step is durable before the next, and repeated after a crash:

1. what there is, is written down in the configuration directory, with the reason; legal holds are looked at;
2. the service lets go of it; each artifact is told as ERASED and removed;
3. pieces in `lost+found/` go; the journal holds nothing of what was recorded, a chat's messages neither;
4. with `shred` everything else under its data keys is sealed anew, and they are destroyed;
5. that nothing is left is looked at; the receipt is written and signed; audited.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any
from uuid import UUID

import anyio.to_thread
import msgspec

from pipeline.backup.made import all_made
from pipeline.crypt.contents import Head
from pipeline.erasure.bench import LeftError, Workbench, erased_lines
from pipeline.erasure.forbidden import refuse_for_artifact, refuse_for_receipt
from pipeline.erasure.found import FoundRecording, find_recording
from pipeline.erasure.progress import ErasedArtifact, Erasure
from pipeline.erasure.receipt import common, copies_in_backups, stamp, write_receipt
from pipeline.errors import HoldError, RefuseError, RejectError
from pipeline.ids import ArtifactId, InstanceId, KeyId, RecordingId
from pipeline.interim.commit import Commit
from pipeline.interim.reader import read_head
from pipeline.interim.states import ArtifactName
from pipeline.interim.survey import survey
from pipeline.jobs import Ask, JobFailedError, Progress
from pipeline.legalholds import load_legal_holds
from pipeline.tenants import Tenant

VERB = "erase-recording"
REMOVAL, SHRED = "removal", "removal, and cryptographic erase of its data keys"

Rekey = Callable[[Tenant, KeyId, Progress, str], Awaitable[None]]
"""Seal everything under a data key anew, for a reason, and destroy that key."""


class RecordingErasure:
    """The job."""

    def __init__(self, bench: Workbench, rekey: Rekey, journal_days: int) -> None:
        self._bench = bench
        self._journal_days = journal_days
        self._rekey = rekey

    async def __call__(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        """See `jobs.Handler`."""
        with ExitStack() as stack:
            await self._bench.only_one(stack)
            erasure = await anyio.to_thread.run_sync(self._bench.erasures.get, ask.job_id)
            if erasure is None:
                erasure = await self._begun(ask)
            if erasure.ended_at is None:
                erasure = await self._erased(ask, erasure, progress)
            return erasure.receipt

    # --- steps

    async def _begun(self, ask: Ask) -> Erasure:
        bench = self._bench
        wanted, generation = UUID(str(ask.details["id"])), ask.details.get("generation")
        found = await anyio.to_thread.run_sync(
            find_recording, bench.root, bench.files, ask.instance, wanted, generation
        )
        if not found.held and not found.delivered:
            raise JobFailedError("nothing of that recording is here")
        await self._refuse_held(found)
        artifacts = [await self._described(name) for name in found.held]
        tenant = bench.tenants.get(ask.instance)
        erasure = Erasure(
            job_id=ask.job_id,
            what="recording",
            instance_id=ask.instance_id,
            alias=None if tenant is None else tenant.instance.alias,
            account_id=None if tenant is None else tenant.instance.account_id,
            reason=ask.reason,
            asked_by=ask.asked_by,
            asked_at=ask.asked_at,
            begun_at=bench.clock.now(),
            artifacts=(*artifacts, *found.delivered),
        )
        details = {
            "jobId": str(ask.job_id),
            "recordingId": str(wanted),
            "askedBy": ask.asked_by,
            "reason": ask.reason,
            "artifacts": len(erasure.artifacts),
            "shred": bool(ask.details.get("shred")),
        }
        await bench.record(bench.trail.changed(ask.instance, "RecordingErasureBegun", **details))
        return await self._put(erasure)

    async def _erased(self, ask: Ask, erasure: Erasure, progress: Progress) -> Erasure:
        ids = [ArtifactId(each.artifact_id) for each in erasure.artifacts if each.bucket is None]
        await self._remove(erasure, ids)
        await anyio.to_thread.run_sync(self._clear_lost, ids)
        shredded = await self._shredded(erasure, progress) if ask.details.get("shred") else []
        if left := await anyio.to_thread.run_sync(self._left, ids):
            raise LeftError(f"{len(left)} files of it are there again; they are removed, too")
        return await self._receipted(erasure, shredded)

    async def _refuse_held(self, found: FoundRecording) -> None:
        holds = load_legal_holds(self._bench.config_dir)
        for name in found.held:
            await refuse_for_artifact(holds, name, self._head)
        for receipt in found.receipts:
            refuse_for_receipt(holds, receipt)

    async def _remove(self, erasure: Erasure, ids: Sequence[ArtifactId]) -> None:
        """Remove what is there still. A legal hold that was placed meanwhile counts for what is left."""
        bench = self._bench
        names = [
            name
            for name in (await anyio.to_thread.run_sync(survey, bench.root, bench.files)).names
            if name.artifact_id in ids
        ]
        holds = load_legal_holds(bench.config_dir)
        for name in names:
            await refuse_for_artifact(holds, name, self._head)
        instance_id = InstanceId(erasure.instance_id)
        await bench.hands.let_artifacts_go(instance_id, ids)
        known = {each.artifact_id: each for each in erasure.artifacts}
        tenant = bench.tenants.get(instance_id)
        for name in names:
            each = known[name.artifact_id]
            recording_id = RecordingId(each.recording_id or each.artifact_id)
            instance = None if tenant is None else tenant.instance
            lines = erased_lines(bench.trail, instance, name, each.contact or "unknown", recording_id)
            path = bench.hands.store.path(name)
            gone = f"{path}.tmp"
            await bench.commits.commit(Commit(lines=tuple(lines), renames=((path, gone),), unlinks=(gone,)))

    def _clear_lost(self, ids: Sequence[ArtifactId]) -> None:
        folder, files = f"{self._bench.root}/lost+found", self._bench.files
        pieces = [name for name in files.names(folder) if any(each.hex in name for each in ids)]
        for name in pieces:
            files.unlink(f"{folder}/{name}")
        if pieces:
            files.sync_directory(folder)

    def _left(self, ids: Sequence[ArtifactId]) -> list[str]:
        bench, digits = self._bench, [each.hex for each in ids]
        shards = {digit for each in digits for digit in each[-1:]}
        folders = [f"{bench.root}/lost+found", *(f"{bench.root}/artifacts/{shard}" for shard in sorted(shards))]
        return [
            f"{folder}/{name}"
            for folder in folders
            for name in bench.files.names(folder)
            if any(each in name for each in digits)
        ]

    async def _shredded(self, erasure: Erasure, progress: Progress) -> list[str]:
        """Destroy the data keys that it was sealed under; everything else under them is sealed anew before."""
        tenant = self._bench.tenants.get(InstanceId(erasure.instance_id))
        if tenant is None:
            raise JobFailedError("the instance is not configured, so nothing else under its data key can be kept")
        for key_id in _keys(erasure):
            await self._rekey(tenant, key_id, progress, erasure.reason)
        return [str(key_id) for key_id in _keys(erasure)]

    async def _receipted(self, erasure: Erasure, shredded: Sequence[str]) -> Erasure:
        bench, now = self._bench, self._bench.clock.now()
        made = await anyio.to_thread.run_sync(all_made, bench.config_dir)
        digits = [each.artifact_id.hex for each in erasure.artifacts]
        backups = await anyio.to_thread.run_sync(
            copies_in_backups,
            bench.files,
            made,
            lambda path: ".done" not in path and any(each in path for each in digits),
        )
        receipt = common(erasure, method=SHRED if shredded else REMOVAL, ended_at=now) | {
            "what": "what was held here of one recording",
            "artifacts": [msgspec.to_builtins(each) for each in erasure.artifacts],
            "cleared": ["artifacts", "lost+found"],
            "dataKeysDestroyed": list(shredded),
            "kept": _kept(self._journal_days),
            "copies": [*_objects(erasure), *backups, *_openable(erasure, shredded)],
            "verification": {
                "by": f"the recording pipeline itself, asked by {erasure.asked_by}",
                "how": "no file of its artifacts is left in the places cleared",
                "at": stamp(now),
            },
        }
        written = await anyio.to_thread.run_sync(write_receipt, bench.files, bench.root, erasure, receipt, bench.sign)
        outcome = receipt | {"receipt": written.path, "receiptSha256": written.sha256}
        instance_id = InstanceId(erasure.instance_id)
        await bench.record(
            bench.trail.changed(instance_id, "RecordingErased", jobId=str(erasure.job_id), receiptSha256=written.sha256)
        )
        return await self._put(msgspec.structs.replace(erasure, ended_at=now, receipt=outcome))

    # --- inside

    async def _head(self, name: ArtifactName) -> Head:
        tenant = self._bench.tenants.get(name.instance_id)
        if tenant is None:
            raise RefuseError("its instance is not configured")
        key = await tenant.ring.opening(name.key_id)
        return await anyio.to_thread.run_sync(
            read_head, self._bench.files, self._bench.hands.store.path(name), name, key
        )

    async def _described(self, name: ArtifactName) -> ErasedArtifact:
        """Describe an artifact; whose it is only if its head opens. A key that is busy is waited for."""
        head: Head | None = None
        with suppress(HoldError, RejectError, RefuseError, FileNotFoundError):
            head = await self._head(name)
        return ErasedArtifact(
            artifact_id=name.artifact_id,
            kind=name.kind,
            generation=name.generation,
            state=name.standing,
            data_key_id=name.key_id,
            size_bytes=name.size_bytes,
            recording_id=None if head is None else head.recording_id,
            contact=None if head is None else head.contact,
        )

    async def _put(self, erasure: Erasure) -> Erasure:
        await anyio.to_thread.run_sync(self._bench.erasures.put, erasure)
        return erasure


def _keys(erasure: Erasure) -> list[KeyId]:
    return sorted({KeyId(each.data_key_id) for each in erasure.artifacts if each.data_key_id is not None})


def _kept(journal_days: int) -> list[dict[str, Any]]:
    return [
        *({"place": place, "holds": "ids and digests"} for place in ("audit", "receipts", "events")),
        {
            "place": "journal",
            "holds": "events about its contact, sealed, which may name numbers; nothing of what was recorded",
            "until": f"{journal_days} days after they came",
        },
        {
            "place": "records",
            "holds": "what is known of its contact, sealed, if the service has a KMS key of its own",
            "until": "24 months after the contact began, or `pipeline subject erase`",
        },
    ]


def _objects(erasure: Erasure) -> list[dict[str, Any]]:
    return [
        {
            "place": f"s3://{each.bucket}/{each.key}",
            "versionId": each.version_id,
            "holds": "the delivered object, encrypted under the bucket's own KMS key",
            "until": "the bucket's owner removes it, every version of it",
        }
        for each in erasure.artifacts
        if each.bucket is not None
    ]


def _openable(erasure: Erasure, shredded: Sequence[str]) -> list[dict[str, Any]]:
    """Tell what removal alone does not undo."""
    return [
        {
            "place": "copies of its file that somebody made",
            "holds": f"what can be opened with data key {key_id} by whoever may use the instance's KMS key",
            "until": "that data key is destroyed: at once with --shred, else a week after nothing here needs it",
        }
        for key_id in _keys(erasure)
        if str(key_id) not in shredded
    ]
