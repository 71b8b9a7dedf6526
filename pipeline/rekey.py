"""Another data key for all that is sealed under one that may be known; that one is destroyed at the end.

What is held here is opened and sealed again: recordings, journal files, and pieces in `lost+found/` that open. Each
copy is proven before it takes a place, and whatever is done stays done: after a crash the rest is found by names. What
is being received or delivered right now is waited for; what does not open needs a person, and the data key stays.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import structlog

from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.segments import DataKey
from pipeline.errors import DeferError, HoldCode, KeyUnavailableError, SegmentForgedError
from pipeline.ids import KeyId, RecordingId
from pipeline.intake.journal import Journal
from pipeline.intake.recorder import Recorder
from pipeline.intake.replay import Replay
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.keyuse import key_uses, lost_pieces
from pipeline.interim.logs import LogLine
from pipeline.interim.poison import digest_of_file, returned
from pipeline.interim.reseal import reseal
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.interim.survey import survey
from pipeline.jobs import Ask, JobFailedError, Progress
from pipeline.ports import FileSystem
from pipeline.smallfiles import remove
from pipeline.tenants import Tenant, Tenants
from pipeline.trail import Trail

log = structlog.get_logger()

VERB = "keys-rekey"
_TAIL = ".tail"
_MOST_TOLD = 100
"""Files that don't open, of those that are named."""

Told = Callable[[int, int], Awaitable[None]]
"""Told how many files are done, of how many."""


class StillInUseError(DeferError):
    """Something under the data key is being received or delivered. All else is done; come back soon."""

    reason = "still-in-use"


@dataclass(slots=True)
class Rekeyed:
    """What became of the files under one data key."""

    artifacts: int = 0
    journal: int = 0
    lost_and_found: int = 0
    dropped: int = 0
    """Pieces in `lost+found/` that do not open, and were removed."""
    busy: int = 0
    """Being received or delivered."""
    damaged: list[str] = field(default_factory=list)
    """What does not open, by name: it needs a person."""


class Rekey:
    """Does it, in the one process that holds the store."""

    def __init__(
        self,
        *,
        store: InterimStore,
        recorder: Recorder,
        journal: Journal,
        replay: Replay,
        tenants: Tenants,
        files: FileSystem,
        commits: GroupCommit,
        trail: Trail,
        wait_again: Callable[[Iterable[ArtifactName]], None],
    ) -> None:
        """`wait_again` is told of poison that a person gave back to delivery."""
        self._store = store
        self._recorder = recorder
        self._journal = journal
        self._replay = replay
        self._tenants = tenants
        self._files = files
        self._commits = commits
        self._trail = trail
        self._wait_again = wait_again

    async def job(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        """Do what `pipeline keys rekey` asks for: see `jobs.Handler`."""
        tenant = self._tenants.get(ask.instance)
        if tenant is None:
            raise JobFailedError("the instance is not configured, or its file can't be used; mend it, then ask again")
        destroyed: list[str] = []
        damaged: list[str] = []
        failures: list[JobFailedError] = []
        waiting: list[StillInUseError] = []
        drop_lost = ask.details.get("dropLost") is True
        keys = [KeyId(UUID(text)) for text in ask.details["dataKeys"]]
        for key_id in keys:  # before the first is worked on: nothing shall go under one that is next
            tenant.ring.retire(key_id)
        for key_id in keys:
            try:
                await self.one(tenant, key_id, progress, reason=ask.reason, drop_lost=drop_lost)
            except JobFailedError as error:
                failures.append(error)
                damaged += error.outcome.get("damaged", [])
            except StillInUseError as error:
                waiting.append(error)
            else:
                destroyed.append(str(key_id))
        if waiting:
            raise waiting[0]
        if failures:
            said = {"destroyed": destroyed, "damaged": damaged[:_MOST_TOLD]}
            raise JobFailedError("; ".join(map(str, failures)), said)
        return {"destroyed": destroyed}

    async def one(self, tenant: Tenant, key_id: KeyId, told: Told, *, reason: str, drop_lost: bool = False) -> Rekeyed:
        """Seal again what is under one data key, and destroy it; nothing happens if it is destroyed already.

        Args:
            tenant: whose it is.
            key_id: the data key.
            told: told of each file that is done.
            reason: why; is recorded.
            drop_lost: remove pieces in `lost+found/` that do not open: they never will again.

        Raises:
            StillInUseError: some of it is being received or delivered; the rest is done.
            KeyUnavailableError, KeyBusyError, StoreFullError, StoreIoError: go on later.
            JobFailedError: some of it does not open; the rest is done, and the data key stays.

        """
        ring = tenant.ring
        if not ring.knows(key_id):
            return Rekeyed()
        ring.retire(key_id)
        await _openable(ring, key_id)
        await self._replay.done(tenant)
        store = self._store
        self._wait_again(returned(store.index, await anyio.to_thread.run_sync(store.moved_poison)))
        run = _Run(self._store, self._recorder, self._journal, self._files, self._commits, self._trail, tenant, key_id)
        await run.all(told, drop_lost=drop_lost)
        found = run.found
        if found.damaged:
            raise JobFailedError(_told(found.damaged), {"damaged": found.damaged, "dataKey": str(key_id)})
        if found.busy:
            raise StillInUseError(
                f"{found.busy} recordings under data key {key_id} are being received or delivered; all else is done,"
                " and it goes on when they are"
            )
        await self._destroy(tenant, key_id, reason)
        return found

    async def _destroy(self, tenant: Tenant, key_id: KeyId, reason: str) -> None:
        """Destroy a data key that nothing needs, going by the names on the disk."""
        root = self._store.root
        found = await anyio.to_thread.run_sync(survey, root, self._files)
        uses = await anyio.to_thread.run_sync(key_uses, root, self._files, found)
        use = uses.get((tenant.instance.instance_id, key_id))
        if use is not None and use.is_needed:
            raise StillInUseError(f"something came under data key {key_id} meanwhile; it is looked at again")
        await destroy_data_key(tenant, key_id, self._commits, self._trail, reason=reason)


async def destroy_data_key(tenant: Tenant, key_id: KeyId, commits: GroupCommit, trail: Trail, *, reason: str) -> None:
    """Destroy a data key for good: its ring file, and what is in memory. The record of it is durable before.

    Whoever calls has made sure that nothing needs it.

    Raises:
        StoreFullError, StoreIoError: it may be there still; come back.

    """
    ring = tenant.ring
    file = ring.files.get(key_id)
    about = (
        {} if file is None else {"createdAt": file.created_at, "wrappedUnder": [w.kms_key_arn for w in file.wrapped]}
    )
    line = trail.changed(tenant.instance.instance_id, "DataKeyDestroyed", dataKeyId=str(key_id), reason=reason, **about)
    async with ring.changing:
        await commits.commit(Commit(lines=(line,)))
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(ring.files.remove, key_id)
        ring.files.forget(key_id)
        ring.drop(key_id)
    log.info("keys.destroyed", instance=str(tenant.instance.instance_id), data_key=str(key_id), reason=reason)


@dataclass(slots=True)
class _Run:
    """One pass over what is under one data key."""

    store: InterimStore
    recorder: Recorder
    journal: Journal
    files: FileSystem
    commits: GroupCommit
    trail: Trail
    tenant: Tenant
    key_id: KeyId
    found: Rekeyed = field(default_factory=Rekeyed)
    done: int = 0

    async def all(self, told: Told, *, drop_lost: bool) -> None:
        instance_id = self.tenant.instance.instance_id
        names = [
            name
            for name in self.store.index
            if (name.instance_id, name.key_id) == (instance_id, self.key_id) and name.standing is not State.DELIVERED
        ]
        is_quiet = self.journal.let_go(instance_id, self.key_id)
        journal = await anyio.to_thread.run_sync(self.journal.under, instance_id, self.key_id)
        pieces = [
            (text, name)
            for text, name in await anyio.to_thread.run_sync(self._pieces)
            if (name.instance_id, name.key_id) == (instance_id, self.key_id)
        ]
        total = len(names) + len(journal) + len(pieces)
        await told(0, total)
        for name in names:
            await self._artifact(name)
            await self._told(told, total)
        self.found.busy += not is_quiet
        for path in journal if is_quiet else ():
            await self._journal_file(path)
            await self._told(told, total)
        for text, name in pieces:
            await self._piece(text, name, drop=drop_lost)
            await self._told(told, total)
        await self._doubles()

    async def _told(self, told: Told, total: int) -> None:
        self.done += 1
        await told(self.done, total)

    async def _keys(self) -> tuple[DataKey, DataKey]:
        """Give the old data key and the one that is active now: asked for each time, so that a refusal counts."""
        return await self.tenant.ring.opening(self.key_id), await self.tenant.ring.active()

    # --- recordings

    async def _artifact(self, name: ArtifactName) -> None:
        try:
            is_done = await (self._open(name) if name.standing is State.OPEN else self._at_rest(name))
        except SegmentForgedError:
            self.found.damaged.append(str(name))
            return
        if is_done:
            self.found.artifacts += 1
        else:
            self.found.busy += 1

    async def _open(self, name: ArtifactName) -> bool:
        """Do it for a recording that broke off; False if it is being received, or is sealed by now."""
        reception = await self.recorder.reopen(self.tenant, name)
        if reception is None:
            return self.store.index.get(name.artifact_id) is None
        async with self.recorder.artifact_lock(name):
            known = self.recorder.reception(name.artifact_id)
            if known is not reception or reception.attached or reception.writer.is_concluded:
                return False
            if reception.writer.is_dirty or reception.writer.lines:
                await reception.writer.sync()
            await self.recorder.detach(reception)
            await self._give_key(reception.name)
        return True

    async def _at_rest(self, name: ArtifactName) -> bool:
        claim = self.store.claim(name.artifact_id)
        if claim.locked():  # it is being delivered
            return False
        async with claim:
            now = self.store.index.get(name.artifact_id)
            if now is None or now.standing is State.DELIVERED:
                return True
            if now.standing is State.OPEN:
                return False
            await self._give_key(now)
        return True

    async def _give_key(self, name: ArtifactName) -> None:
        old, new = await self._keys()
        await self.store.give_key(name, old, new, self._lines)
        self.tenant.ring.used(new.key_id, 1, name.size_bytes or 0)

    def _lines(self, target: ArtifactName) -> tuple[LogLine, ...]:
        recording_id = RecordingId(target.artifact_id)
        return (self.trail.moved(target, recording_id, "ArtifactRekeyed", fromDataKeyId=str(self.key_id)),)

    async def _doubles(self) -> None:
        """Remove what an earlier run, or a refusing disk, left of recordings that have another data key by now."""
        for name in (await anyio.to_thread.run_sync(survey, self.store.root, self.files)).all_under(
            self.tenant.instance.instance_id, self.key_id
        ):
            known = self.store.index.get(name.artifact_id)
            if known is None or known.key_id == self.key_id:
                continue
            async with self.store.claim(name.artifact_id):
                await self.store.leave(name)

    # --- the journal, and what was cut

    async def _journal_file(self, path: str) -> None:
        old, new = await self._keys()
        try:
            await self.journal.give_key(path, old, new, self._line("JournalRekeyed", file=path.rpartition("/")[2]))
        except FileNotFoundError:  # its days are over
            return
        except SegmentForgedError:
            self.found.damaged.append(path.rpartition("/")[2])
            return
        self.found.journal += 1

    def _pieces(self) -> list[tuple[str, ArtifactName]]:
        return list(lost_pieces(self.store.root, self.files))

    async def _piece(self, text: str, name: ArtifactName, *, drop: bool) -> None:
        """Do it for a whole file; the tail of one has no beginning to open it by."""
        path = f"{self.store.lost}/{text}"
        if not text.endswith(_TAIL) and await self._whole_piece(path, name):
            self.found.lost_and_found += 1
        elif drop:
            size, digest = await anyio.to_thread.run_sync(digest_of_file, self.files, path)
            line = self._line("LostPieceDropped", file=text, fileBytes=size, fileSha256=digest)
            await self.commits.commit(Commit(lines=(line,)))
            await anyio.to_thread.run_sync(remove, self.files, path)
            self.found.dropped += 1
        else:
            self.found.damaged.append(f"lost+found/{text}")

    async def _whole_piece(self, path: str, name: ArtifactName) -> bool:
        old, new = await self._keys()
        place = path.replace(f".{name.key_id.hex}.", f".{new.key_id.hex}.")
        aside = f"{place}.unfinished"
        try:
            found = await anyio.to_thread.run_sync(reseal, self.files, path, aside, old, new)
        except SegmentForgedError:
            return False
        if not found.is_whole or found.end == 0:
            self.files.unlink(aside)
            return False
        line = self._line("LostPieceRekeyed", file=place.rpartition("/")[2])
        await self.commits.commit(Commit(lines=(line,), renames=((aside, place),)))
        await anyio.to_thread.run_sync(remove, self.files, path)
        return True

    def _line(self, verb: str, **details: Any) -> LogLine:
        return self.trail.changed(self.tenant.instance.instance_id, verb, fromDataKeyId=str(self.key_id), **details)


async def _openable(ring: KeyRing, key_id: KeyId) -> None:
    """Make sure that there is anything to do with a data key. Raises as `Rekey.one`."""
    try:
        await ring.opening(key_id)
    except KeyUnavailableError as error:
        if error.code is not HoldCode.KEY_MISMATCH:
            raise
        raise JobFailedError(f"the data key can't be had, so nothing under it can be opened: {error}") from error


def _told(damaged: list[str]) -> str:
    shown = ", ".join(damaged[:3]) + (", …" if len(damaged) > 3 else "")
    return (
        f"{len(damaged)} files under the data key do not open and can't be sealed again ({shown}): restore or discard"
        " what is poison, and look at lost+found/ or give --drop-lost. All else is done; the data key stays until then"
    )
