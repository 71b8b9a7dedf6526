"""A state directory with one recording in each state, made by the store's own parts. For tests only."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import anyio

from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk
from pipeline.audit.records import Actor
from pipeline.config import save_instance
from pipeline.crypt.keyring import KeyRing
from pipeline.delivery.proof import Receipt, Subject, verify, write_receipt
from pipeline.ids import InstanceId, Kind, RecordingId
from pipeline.instances import Instance, Storage
from pipeline.intake.contacts import ContactTable
from pipeline.intake.journal import Journal
from pipeline.intake.moves import Moves
from pipeline.intake.reception import Reception, Source
from pipeline.intake.recorder import Recorder
from pipeline.intake.replay import RecordingNames, Replay
from pipeline.interim.commit import GroupCommit
from pipeline.interim.states import ArtifactName
from pipeline.interim.store import InterimStore
from pipeline.keyports import KeyService
from pipeline.ports import ObjectFacts, PutRequest
from pipeline.tenants import Tenants
from pipeline.trail import Trail

ACME = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001"))
GLOBEX = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000002"))
ACCOUNT = "111122223333"
BUCKET_KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/bbbb2222-0000-4000-8000-000000000002"
CRC = "AAAAAAAAAAA="


def instance(instance_id: InstanceId, alias: str, key_arn: str) -> Instance:
    storage = {
        kind: Storage(
            association_id=str(kind),
            bucket="acme-recordings",
            prefix=f"connect/{alias}/{kind}",
            kms_key_arn=BUCKET_KEY,
            bucket_owner=ACCOUNT,
        )
        for kind in (Kind.VOICE, Kind.SCREEN, Kind.CHAT)
    }
    return Instance(
        instance_id=instance_id,
        alias=alias,
        account_id=ACCOUNT,
        region="eu-central-1",
        kms_key_arn=key_arn,
        storage=storage,
    )


@dataclass
class HeldStore:
    """The store as a service would have it open."""

    store: InterimStore
    recorder: Recorder
    tenants: Tenants
    trail: Trail
    sealed: list[ArtifactName] = field(default_factory=list)

    async def hold(self, instance_id: InstanceId, kind: Kind, body: bytes, *, contact: str = "c-1") -> ArtifactName:
        """Receive and seal one recording."""
        reception = await self._begun(instance_id, kind, body, contact)
        await self.recorder.finish(reception, None)
        return self.sealed[-1]

    async def leave_open(self, instance_id: InstanceId, kind: Kind, body: bytes) -> ArtifactName:
        """Receive the beginning of one."""
        reception = await self._begun(instance_id, kind, body, "c-open")
        await self.recorder.let_go(reception)
        return reception.name

    async def _begun(self, instance_id: InstanceId, kind: Kind, body: bytes, contact: str) -> Reception:
        source = Source(kind=kind, contact=contact, source_id=f"{contact}/{kind}", content_type="audio/wav")
        reception = await self.recorder.begin(self.tenants[instance_id], source)
        await reception.append(body, 0.0)
        return reception

    async def deliver(
        self, name: ArtifactName, key: str = "connect/acme/voice/x.wav", *, sha256: str = "ab" * 32
    ) -> Receipt:
        """Settle a sealed artifact with a receipt, as if its bucket had proven it."""
        storage = self.tenants[name.instance_id].instance.storage[name.kind]
        subject = Subject(
            recording_id=RecordingId(name.artifact_id),
            artifact_id=name.artifact_id,
            instance_id=name.instance_id,
            kind=name.kind,
            generation=name.generation,
            sha256=sha256,
        )
        request = PutRequest(key, name.size_bytes or 0, CRC, "audio/wav", subject.metadata)
        facts = ObjectFacts(key, crc64nvme=CRC, encryption="aws:kms", kms_key_arn=BUCKET_KEY)
        receipt = verify(subject, request, storage, facts, SystemClock().now())
        assert isinstance(receipt, Receipt)
        raw = write_receipt(receipt)
        digest = hashlib.sha256(raw).hexdigest()
        line = self.trail.moved(name.delivered(), subject.recording_id, "ArtifactDelivered", receiptSha256=digest)
        await self.store.settle(name, raw, (line,), ())
        return receipt


@asynccontextmanager
async def held_store(state: Path, kms: KeyService, *instances: Instance) -> AsyncIterator[HeldStore]:
    """Open a store at `state` and write the instances' files to `config` in it."""
    files, clock, root = Disk(), SystemClock(), str(state)
    commits = GroupCommit(files)
    store = InterimStore(root, files, commits, free_bytes=0)
    store.open(None)
    for each in instances:
        save_instance(state / "config", each)

    def ring(each: Instance) -> KeyRing:
        return KeyRing(
            instance_id=each.instance_id,
            context=each.recordings_context,
            current_arn=each.kms_key_arn,
            previous_arn=None,
            directory=f"{root}/keys/{each.instance_id}",
            files=files,
            service=kms,
            clock=clock,
            cache=timedelta(seconds=300),
            seal_grace=timedelta(seconds=900),
            random=lambda: 0.5,
        )

    tenants = Tenants(ring)
    tenants.replace({each.instance_id: each for each in instances})
    trail = Trail(root, actor=Actor("Service", "test"), clock=clock)
    names = RecordingNames(clock)
    contacts = ContactTable(names)
    replay = Replay(Journal(f"{root}/journal", files, commits, clock), contacts, names)
    sealed: list[ArtifactName] = []
    moves = Moves(store, trail, sealed.append)
    recorder = Recorder(store=store, moves=moves, contacts=contacts, replay=replay, clock=clock)
    async with anyio.create_task_group() as group:
        group.start_soon(commits.run)
        try:
            yield HeldStore(store, recorder, tenants, trail, sealed)
        finally:
            commits.stop()
