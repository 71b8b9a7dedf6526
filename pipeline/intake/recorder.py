"""From the first byte of a recording to its sealed artifact: begin, resume, finish, break off, seal when idle.

Refuses to acknowledge anything that is not durable. A body for a source that is known already is received as another
generation; if it turns out to be the same bytes it is dropped and the earlier answer given again, and an unfinished
body that it begins with is dropped in its favour.
"""

from collections import Counter
from datetime import datetime
from typing import Literal
from weakref import WeakValueDictionary

import anyio
import structlog

from pipeline.crypt.contents import Head, Manifest, encode_head
from pipeline.delivery.media import MediaCheck
from pipeline.errors import (
    KeyBusyError,
    KeyUnavailableError,
    PipelineError,
    RefuseError,
    SegmentForgedError,
    StoppingError,
    WriterClosedError,
)
from pipeline.ids import ArtifactId, InstanceId, Kind, RecordingId, new_artifact_id
from pipeline.intake.awaited import MISSING_SEQUENCE
from pipeline.intake.contacts import Contact, ContactTable, object_contact
from pipeline.intake.generations import Generations
from pipeline.intake.history import History
from pipeline.intake.moves import Moves
from pipeline.intake.reception import Answer, Reception, Source
from pipeline.intake.replay import Replay
from pipeline.intake.sealing import copy_rendition, facts_of, manifest_of
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.interim.writer import ArtifactWriter
from pipeline.ports import Clock
from pipeline.status import Failure, FailureCode
from pipeline.tenants import Tenant

log = structlog.get_logger()

TRANSCRIPT = "\x00transcript/"
"""Begins the source id of a chat that comes as events; the contact's id follows. None from outside begins so."""


class WrongOffsetError(RefuseError):
    """A resumed upload does not go on where the artifact ends."""

    reason = "wrong-offset"

    def __init__(self, offset: int) -> None:
        super().__init__("the upload goes on at another offset", field="Content-Range")
        self.offset = offset


class Recorder:
    """Every artifact that is open."""

    def __init__(
        self, *, store: InterimStore, moves: Moves, contacts: ContactTable, replay: Replay, clock: Clock
    ) -> None:
        self._store = store
        self._moves = moves
        self._contacts = contacts
        self._replay = replay
        self._open: Counter[InstanceId] = Counter()
        self._clock = clock
        self._history = History(store)
        self._generations = Generations(store.index, self._history, self.reopen, self.drop)
        self._receptions: dict[ArtifactId, Reception] = {}
        self._artifact_locks: WeakValueDictionary[ArtifactId, anyio.Lock] = WeakValueDictionary()

    def receptions(self) -> list[Reception]:
        """Everything open that is in memory."""
        return list(self._receptions.values())

    def reception(self, artifact: ArtifactId) -> Reception | None:
        """One of them."""
        return self._receptions.get(artifact)

    # --- begin, resume

    async def begin(self, tenant: Tenant, source: Source) -> Reception:
        """Open an artifact for a new body. Nothing is durable yet.

        Raises:
            StoreFullError, KeyUnavailableError, KeyBusyError, StoppingError: come back later.

        """
        self._check_open_limit(tenant)
        await self._replay.done(tenant)
        ring = tenant.ring
        key = await ring.active()
        tags = tuple(await ring.tags(source.kind, source.source_id))
        instance_id = tenant.instance.instance_id
        known = await self._history.recording_of(tenant, tags, self._receptions.get)
        while ring.is_retired(key.key_id):
            key = await ring.active()
        # From here to the new name in the index nothing waits: two bodies never become the same generation.
        earlier = self._store.index.generations(instance_id, tags)
        given_up = self._contacts.awaited.given_up(instance_id, tags)
        expected = given_up or self._expected(tenant, source)
        created = self._clock.now()
        artifact_id = new_artifact_id(created)
        recording_id = known or expected or RecordingId(artifact_id)
        safe, original = object_contact(source.contact, instance_id)
        head = Head(
            contact=safe,
            original_contact=original,
            source_id=source.source_id,
            recording_id=recording_id,
            content_type=source.content_type,
            started=source.started,
            metadata=dict(source.metadata),
        )
        name = ArtifactName(
            artifact_id=artifact_id,
            instance_id=instance_id,
            kind=source.kind,
            key_id=key.key_id,
            tag=tags[0],
            generation=max((name.generation for name in earlier), default=0) + 1,
            sequence=1 if given_up is None else MISSING_SEQUENCE,
            state=State.OPEN,
        )
        writer = self._store.create(name, key, created, encode_head(head))
        ring.used(key.key_id, 1, 0)
        reception = self._remember(tenant, writer, head, tags, created)
        reception.ended = source.ended
        if name.generation == 1:
            # Bytes may come before their announcement is durable, if it ever will be.
            reception.told = given_up is not None or (expected is not None and self._is_told(tenant, source))
            self._moves.tell_begun(reception)
        return reception

    async def offset(self, tenant: Tenant, kind: Kind, source_id: str) -> int | None:
        """Tell how much of an unfinished body is durable; None if there is none."""
        reception = await self.unfinished(tenant, kind, source_id)
        return None if reception is None else reception.writer.durable_bytes

    async def resume(self, tenant: Tenant, source: Source, offset: int) -> Reception:
        """Go on with an unfinished body at `offset`; whoever was still connected to it is cut off.

        Raises:
            WrongOffsetError: it goes on elsewhere.
            StoreFullError, KeyUnavailableError, KeyBusyError, StoppingError: come back later.

        """
        reception = await self.unfinished(tenant, source.kind, source.source_id)
        if reception is None and offset == 0:
            return await self.begin(tenant, source)
        if reception is not None and reception.attached:
            reception.scope.cancel()
            await self.detach(reception)
            reception = await self.reopen(tenant, reception.name)
        if reception is not None and reception.writer.is_dirty:
            await reception.writer.sync()
        if reception is None or self._receptions.get(reception.name.artifact_id) is not reception:
            raise WrongOffsetError(0)
        if reception.attached or reception.writer.durable_bytes != offset:
            raise WrongOffsetError(reception.writer.durable_bytes)
        reception.scope = anyio.CancelScope()
        reception.attached = True
        reception.touched = self._clock.monotonic()
        reception.ended = source.ended or reception.ended
        return reception

    async def reopen(self, tenant: Tenant, name: ArtifactName) -> Reception | None:
        """Bring an open artifact into memory, also after a crash or a failed write; None if it held nothing.

        One that was finished but for its last move is finished now, and None is given for it, too.
        """
        await self._replay.done(tenant)
        async with self.artifact_lock(name):
            if (reception := self._in_memory(name)) is not None:
                return reception
            now = self._store.index.get(name.artifact_id)
            return None if now is None or now.standing is not State.OPEN else await self._recovered(tenant, now)

    async def _recovered(self, tenant: Tenant, name: ArtifactName) -> Reception | None:
        try:
            key = await tenant.ring.sealing(name.key_id)
            check = MediaCheck()
            found = await self._store.recover(name, key, check.feed)
        except SegmentForgedError as error:
            await self._moves.reject(tenant, name, error)
            return None
        if found is None:
            log.warning("intake.nothing_recovered", artifact=str(name.artifact_id))
            return None
        writer, recovered = found
        tags = tuple(await tenant.ring.tags(name.kind, recovered.head.source_id))
        reception = self._remember(tenant, writer, recovered.head, tags, recovered.created)
        reception.attached, reception.check = False, check
        # Log lines become durable after the bytes they go with: only a later sync proves that they were.
        # Later generations are told of only when they are sealed.
        reception.told = reception.recorded = name.generation == 1 and recovered.vouched > 0
        if recovered.manifest is not None:
            self.forget(reception)
            await self._moves.finish_seal(reception, recovered.manifest)
            self._came(reception)
            return None
        if name.generation == 1 and not reception.told:
            self._moves.tell_begun(reception)
        return reception

    async def is_known(self, tenant: Tenant, kind: Kind, source_id: str) -> bool:
        """Tell whether anything is held of a source."""
        tags = await tenant.ring.tags(kind, source_id)
        return bool(self._store.index.generations(tenant.instance.instance_id, tags))

    def is_sent_again(self, name: ArtifactName) -> bool:
        """Tell whether a newer body of the same source is coming in, which may yet begin with this one."""
        source = self._store.index.generations(name.instance_id, [name.tag])
        newer = (self._receptions.get(each.artifact_id) for each in source if each.generation > name.generation)
        return any(reception is not None and reception.attached for reception in newer)

    # --- end

    async def finish(self, reception: Reception, sha256: str | None) -> Answer:
        """Seal a body that ended, unless it is one that is held already.

        Args:
            reception: the open artifact.
            sha256: what the source says the bytes are, if it does.

        Raises:
            RefuseError: the bytes are not what the source says. They are dropped; send them again.

        """
        await reception.writer.conclude()
        if sha256 not in {None, reception.writer.digests.sha256}:
            await self.drop(reception, "checksum")
            raise RefuseError("the bytes that came have another SHA-256; send them again", field="X-Recording-Sha256")
        async with self._generations.lock(reception):
            # First: one that was finished but for its last move is then one that this may repeat.
            unfinished = await self._generations.unfinished_before(reception)
            repeated = await self._generations.repeated(reception)
            if repeated is not None:
                await self.drop(reception, "repeat")
                return repeated
            generation = await self._generations.absorb(reception, unfinished)
            return await self.seal_copy(reception, "complete", generation)

    async def let_go(self, reception: Reception) -> None:
        """Detach a source that went away. What came is made durable and stays open; without a byte it is dropped."""
        if self._receptions.get(reception.name.artifact_id) is not reception:
            return
        reception.attached = False
        with anyio.CancelScope(shield=True):
            try:
                if reception.is_empty:
                    await self.drop(reception, "empty")
                else:
                    await reception.writer.sync()
                    if reception.writer.is_concluded:  # but it could not be sealed now
                        await self.detach(reception)
            except PipelineError as error:
                log.warning("intake.detach_failed", artifact=str(reception.name.artifact_id), reason=error.reason)
                await self.detach(reception)

    async def refuse(self, reception: Reception) -> None:
        """Drop a body that is over its limit, and say so."""
        await self.drop(reception, "too-large", Failure(FailureCode.SOURCE_REJECTED, "over the instance's size limit"))
        self._came(reception)  # and was judged: it is not missing

    async def seal_silent(self, reception: Reception) -> None:
        """Seal media whose source fell silent, unless the same bytes are held already.

        Where another unfinished body goes on from them, they wait until that one is sealed, which takes their place.
        """
        await reception.writer.conclude()
        async with self._generations.lock(reception):
            generation = reception.name.generation
            try:
                unfinished = await self._generations.unfinished_before(reception)  # first, as in `finish`
                if await self._generations.repeated(reception) is not None:
                    await self.drop(reception, "repeat")
                    return
                if await self._generations.goes_on(reception, unfinished):
                    return
                generation = await self._generations.absorb(reception, unfinished)
            except (KeyUnavailableError, KeyBusyError) as error:  # rather twice than not at all
                log.warning("intake.not_compared", artifact=str(reception.name.artifact_id), reason=error.reason)
            await self.seal_copy(reception, "recovered", generation)

    async def seal_copy(
        self, reception: Reception, ending: Literal["complete", "recovered"], generation: int
    ) -> Answer:
        """Seal media as they came."""
        await reception.writer.conclude()
        digests = reception.writer.digests
        contact = self.contact_of(reception)
        verdict = reception.check.verdict(
            digests.size_bytes, reception.head.content_type, facts_of(reception, contact).duration
        )
        manifest = manifest_of(
            reception,
            copy_rendition(digests, verdict.content_type, verdict.extension),
            contact=contact,
            generation=generation,
            ending=ending,
            quality=verdict.flags,
        )
        return await self.seal(reception, manifest)

    async def seal(self, reception: Reception, manifest: Manifest) -> Answer:
        """Write the manifest and carry out the move. If that fails the artifact is open still, and recovered later."""
        async with self.artifact_lock(reception.name):
            self._take(reception)
            answer = await self._moves.seal(reception, manifest)
            self._came(reception)
            return answer

    async def drop(self, reception: Reception, why: str, failure: Failure | None = None) -> None:
        """Remove an open artifact whose bytes are held elsewhere, or were never acknowledged."""
        async with self.artifact_lock(reception.name):
            self._take(reception)
            await self._moves.drop(reception, why, failure)

    async def detach(self, reception: Reception) -> None:
        """Let go of what is in memory and of the file; the artifact waits on disk as far as it came."""
        self.forget(reception)
        await reception.writer.close()

    def forget(self, reception: Reception) -> None:
        """Let go of what is in memory; unless it was sealed or dropped, the artifact waits on disk."""
        if self._receptions.get(reception.name.artifact_id) is reception:
            del self._receptions[reception.name.artifact_id]
            self._open[reception.name.instance_id] -= 1

    def artifact_lock(self, name: ArtifactName) -> anyio.Lock:
        """Get the lock of one artifact: it is opened again, sealed, dropped by one task at a time."""
        return self._artifact_locks.setdefault(name.artifact_id, anyio.Lock(fast_acquire=True))

    def contact_of(self, reception: Reception) -> Contact | None:
        """Tell what events said about its contact."""
        return self._contacts.get(reception.name.instance_id, reception.contact)

    def initial_contact(self, tenant: Tenant, contact: str) -> str | None:
        """Tell the first contact of a chain, as object keys carry it, where events said it."""
        known = self._contacts.get(tenant.instance.instance_id, contact)
        if known is None or known.initial_contact is None:
            return None
        return object_contact(known.initial_contact, tenant.instance.instance_id)[0]

    # --- inside

    def _take(self, reception: Reception) -> None:
        """Take it out of everybody else's hands, under its lock."""
        if self._receptions.get(reception.name.artifact_id) is not reception:
            raise WriterClosedError("this recording was taken over meanwhile; ask for its offset and go on from there")
        self.forget(reception)

    def _came(self, reception: Reception) -> None:
        source = _announced(reception.head.source_id)
        self._contacts.awaited.came(reception.name.instance_id, reception.contact, reception.name.kind, source)

    def _in_memory(self, name: ArtifactName) -> Reception | None:
        reception = self._receptions.get(name.artifact_id)
        if reception is not None and reception.writer.is_broken:
            self.forget(reception)
            return None
        return reception

    def _remember(
        self, tenant: Tenant, writer: ArtifactWriter, head: Head, tags: tuple[str, ...], created: datetime
    ) -> Reception:
        reception = Reception(
            tenant=tenant,
            writer=writer,
            head=head,
            tags=tags,
            created=created,
            touched=self._clock.monotonic(),
        )
        self._receptions[reception.name.artifact_id] = reception
        self._open[reception.name.instance_id] += 1
        return reception

    def _check_open_limit(self, tenant: Tenant) -> None:
        if self._open[tenant.instance.instance_id] >= tenant.instance.limits.open_recordings:
            raise StoppingError("this instance has as many recordings open as its limit allows; try again soon")

    def _expected(self, tenant: Tenant, source: Source) -> RecordingId | None:
        """Find the id that was given out when an event announced this recording."""
        return self._contacts.expected(
            tenant.instance.instance_id, source.contact, source.kind, _announced(source.source_id)
        )

    def _is_told(self, tenant: Tenant, source: Source) -> bool:
        """Tell whether its announcement said that it is initiated."""
        return self._contacts.is_told(
            tenant.instance.instance_id, source.contact, source.kind, _announced(source.source_id)
        )

    async def unfinished(self, tenant: Tenant, kind: Kind, source_id: str) -> Reception | None:
        """Bring the newest unfinished body of a source into memory."""
        tags = await tenant.ring.tags(kind, source_id)
        for name in reversed(self._store.index.generations(tenant.instance.instance_id, tags)):
            if name.standing is State.OPEN:
                return await self.reopen(tenant, name)
        return None


def _announced(source_id: str) -> str | None:
    """Give a source as its announcement names it. A chat's events name none."""
    return None if source_id.startswith(TRANSCRIPT) else source_id
