"""What was announced must come: after a deadline it is told, once, as FAILED, `SOURCE_MISSING`; good if it comes later.

A deadline counts from when the end of the recording or of its contact was heard; without that, a longer one from the
announcement. Time that passes here is monotonic; only what a restart slept through is told by the wall clock, and a
source then has some minutes to come back.
"""

import heapq
import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import anyio
import anyio.to_thread
import msgspec
import structlog

from pipeline.errors import DeferError, PipelineError
from pipeline.ids import InstanceId, Kind, RecordingId
from pipeline.intake.awaited import MISSING_SEQUENCE, Awaited, Outstanding
from pipeline.intake.contacts import ContactTable, object_contact
from pipeline.intake.missinglog import Missing, missing_line, read_missing, sweep_missing
from pipeline.intake.recorder import TRANSCRIPT
from pipeline.intake.replay import Replay
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import LogLine
from pipeline.interim.states import State
from pipeline.interim.store import InterimStore
from pipeline.ports import Clock, FileSystem
from pipeline.settings import MissingSettings
from pipeline.status import Facts, Failure, FailureCode, Status
from pipeline.steady import Steady
from pipeline.tenants import Tenant, Tenants
from pipeline.trail import Subject, Trail

log = structlog.get_logger()

_LOOK_EVERY_S = 1.0
_AGAIN_S = 60.0
"""Until something is looked at again that can't be judged now."""
_SWEEP_EVERY_S = 3_600.0
_COMES_BACK = timedelta(minutes=15)
"""What a source has to come back after this process was away."""


@dataclass(order=True, slots=True)
class _Look:
    """When a recording is to be looked at."""

    at: float
    number: int
    outstanding: Outstanding = field(compare=False)


class MissingWatch:
    """Looks after everything that is awaited."""

    def __init__(
        self,
        root: str,
        *,
        store: InterimStore,
        tenants: Tenants,
        contacts: ContactTable,
        replay: Replay,
        files: FileSystem,
        commits: GroupCommit,
        trail: Trail,
        clock: Clock,
        settings: MissingSettings,
        receipt_window: timedelta,
    ) -> None:
        self._root = root
        self._store = store
        self._tenants = tenants
        self._awaited: Awaited = contacts.awaited
        self._replay = replay
        self._files = files
        self._commits = commits
        self._trail = trail
        self._clock = clock
        self._steady = Steady(clock)
        self._settings = settings
        self._receipt_window = receipt_window
        self._began = clock.monotonic()
        self._looks: list[_Look] = []
        self._numbers = itertools.count()
        self._missing: dict[UUID, Missing] = {}
        self._checked = self._swept = -float("inf")
        self._unreplayed: dict[InstanceId, float] = {}

    def load(self) -> None:
        """Read what earlier runs gave up."""
        for missing in read_missing(self._root, self._files):
            self._keep(missing)

    def forget(self, instance_id: InstanceId) -> None:
        """Show and watch nothing of an instance any more; its files are removed by whoever asks for this."""
        for missing in [each for each in self._missing.values() if each.instance_id == instance_id]:
            self._drop(missing)
        self._unreplayed.pop(instance_id, None)

    def __len__(self) -> int:
        """How many recordings are missing now."""
        return len(self._missing)

    @property
    def awaited(self) -> int:
        """How many recordings were announced and may still come in time."""
        return len(self._awaited)

    def is_replayed(self, tenant: Tenant) -> bool:
        """Tell whether what earlier runs were told of an instance is known."""
        return self._replay.is_done(tenant)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self.once()
            await anyio.sleep(_LOOK_EVERY_S)

    async def once(self) -> None:
        """Judge everything whose time has come."""
        now = self._clock.monotonic()
        await self._replay_all(now)
        for each in self._awaited.news():
            each.seen = each.seen or each.heard or self._clock.now()
            each.deadline = self._deadline(each, now)
            self._plan(each, now)  # at once: it may have come before it was announced
        while self._looks and self._looks[0].at <= now:
            look = heapq.heappop(self._looks)
            if self._awaited.awaits(look.outstanding):
                await self._judge(look.outstanding, now)
        if now - self._checked >= _AGAIN_S:
            self._checked = now
            await self._take_back()
        if now - self._swept >= _SWEEP_EVERY_S:
            self._swept = now
            await self._forget_old()

    # --- inside

    async def _replay_all(self, now: float) -> None:
        """See to it that what earlier runs were told is known of every instance, also if nothing comes for it."""
        for tenant in self._tenants:
            instance_id = tenant.instance.instance_id
            if self._unreplayed.get(instance_id, 0.0) > now:
                continue
            try:
                await self._replay.done(tenant)
            except PipelineError as error:
                self._unreplayed[instance_id] = now + _AGAIN_S
                log.warning("journal.not_replayed", instance=str(instance_id), reason=error.reason)

    def _plan(self, outstanding: Outstanding, at: float) -> None:
        heapq.heappush(self._looks, _Look(at, next(self._numbers), outstanding))

    def _deadline(self, outstanding: Outstanding, now: float) -> float:
        """Tell when it will be missing (monotonic)."""
        if outstanding.ended:
            limit, heard = self._settings.after, outstanding.end_heard
        else:
            limit, heard = self._settings.unended, outstanding.heard
        slept = timedelta(0) if heard is None else max(timedelta(0), self._clock.now() - heard)
        return max(
            now + (limit - slept).total_seconds(),
            self._began + min(limit, _COMES_BACK).total_seconds(),
        )

    async def _judge(self, outstanding: Outstanding, now: float) -> None:
        """Let go of what came, tell what did not, and plan another look at everything else."""
        instance_id = outstanding.instance_id
        tenant = self._tenants.get(instance_id)
        tags = () if tenant is None else await self._tags(tenant, outstanding)
        if tenant is None or not tags:
            self._plan(outstanding, now + _AGAIN_S)
            return
        held = self._store.index.generations(instance_id, tags)
        is_given_up = self._awaited.given_up(instance_id, tags) is not None
        if is_given_up or any(name.standing is not State.OPEN for name in held):
            self._awaited.forget(outstanding)
        elif self._is_forgotten(outstanding):
            log.warning("missing.unknown", recording=str(outstanding.announced.recording_id))
            self._awaited.forget(outstanding)
        elif now < outstanding.deadline:
            self._plan(outstanding, outstanding.deadline)
        elif held:
            self._plan(outstanding, now + _AGAIN_S)  # it is coming in
        else:
            await self._give_up(tenant, outstanding, tags, now)

    async def _tags(self, tenant: Tenant, outstanding: Outstanding) -> tuple[str, ...]:
        """Give the tags of a source; none if the key that they hang on can't be had now."""
        kind, source_id = outstanding.announced.kind, outstanding.announced.source_id
        sources = [source_id, TRANSCRIPT + outstanding.contact] if kind is Kind.CHAT else [source_id]
        try:
            return tuple([tag for source in sources for tag in await tenant.ring.tags(kind, source)])
        except PipelineError:
            return ()

    def _is_forgotten(self, outstanding: Outstanding) -> bool:
        """Tell whether it was announced so long ago that a receipt of it would be gone by now."""
        return outstanding.heard is not None and self._clock.now() - outstanding.heard > self._receipt_window

    async def _give_up(self, tenant: Tenant, outstanding: Outstanding, tags: tuple[str, ...], now: float) -> None:
        announced, instance_id = outstanding.announced, outstanding.instance_id
        wall = self._clock.now()
        missing = Missing(
            recording_id=announced.recording_id,
            instance_id=instance_id,
            kind=announced.kind,
            contact=object_contact(outstanding.contact, instance_id)[0],
            tags=tags,
            announced=outstanding.seen or wall,
            given_up=wall,
        )
        try:
            await self._commits.commit(Commit(lines=self._told(tenant, missing, outstanding)))
            # Only now: a crash between the two tells it again, under the same de-duplication id.
            await self._commits.commit(Commit(lines=(missing_line(self._root, missing, wall.date()),)))
        except DeferError as error:
            log.warning("missing.deferred", reason=error.reason)
            self._plan(outstanding, now + _AGAIN_S)
            return
        self._keep(missing)
        self._awaited.forget(outstanding)
        log.error("recording.missing", recording=str(missing.recording_id), kind=missing.kind)

    def _told(self, tenant: Tenant, missing: Missing, outstanding: Outstanding) -> tuple[LogLine, ...]:
        announced = outstanding.announced
        begun = Subject(
            instance=tenant.instance,
            contact=missing.contact,
            kind=announced.kind,
            recording_id=announced.recording_id,
        )
        failed = msgspec.structs.replace(begun, sequence=MISSING_SEQUENCE)
        failure = Failure(FailureCode.SOURCE_MISSING, "it was announced, and nothing of it came before its deadline")
        facts = Facts(start=announced.start)
        # Left to a body that was dropped, or told by an earlier run: then it is the same event once more.
        first = () if outstanding.told else (self._trail.status(begun, Status.INITIATED, facts),)
        return (
            *first,
            self._trail.status(failed, Status.FAILED, facts, failure=failure),
            self._trail.changed(
                tenant.instance.instance_id,
                "RecordingMissing",
                recordingId=str(announced.recording_id),
                kind=announced.kind,
            ),
        )

    def _keep(self, missing: Missing) -> None:
        self._missing[missing.recording_id] = missing
        self._awaited.give_up(InstanceId(missing.instance_id), missing.tags, RecordingId(missing.recording_id))

    def _drop(self, missing: Missing) -> None:
        del self._missing[missing.recording_id]
        self._awaited.take_back(InstanceId(missing.instance_id), missing.tags)

    async def _take_back(self) -> None:
        """Note which of the missing are here after all. Their own status was told with their move."""
        for missing in list(self._missing.values()):
            held = self._store.index.generations(InstanceId(missing.instance_id), missing.tags)
            if not any(name.standing is not State.OPEN for name in held):
                continue
            came = msgspec.structs.replace(missing, came=True)
            try:
                await self._commits.commit(Commit(lines=(missing_line(self._root, came, self._clock.now().date()),)))
            except DeferError as error:
                log.warning("missing.deferred", reason=error.reason)
                return
            self._drop(missing)
            log.info("recording.came_late", recording=str(missing.recording_id), kind=missing.kind)

    async def _forget_old(self) -> None:
        """Let go of what nobody will send any more."""
        oldest = self._steady.now() - timedelta(days=self._settings.kept_days)
        try:
            await anyio.to_thread.run_sync(sweep_missing, self._root, self._files, oldest.date())
        except DeferError as error:
            log.warning("missing.not_swept", reason=error.reason)
            return
        for missing in list(self._missing.values()):
            if missing.given_up.date() < oldest.date():
                self._drop(missing)
