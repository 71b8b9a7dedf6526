"""The delivery schedule: which sealed artifact is tried when, and what its outcome does to it and to its lane.

There is no success without a receipt. Whatever is wrong with a key or a destination holds what depends on it and costs
no attempt; whatever is wrong for a while is tried again for ever, with jitter, and fewer at a time; the short list of
what no retry can help puts the artifact aside with its bytes. An exception that is none of ours is a bug: it is logged
and tried again, and parks that artifact alone for an hour after the tenth time.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta

import anyio
import anyio.abc
import structlog

from pipeline.delivery.holds import KEYS, Holds, data_key_scope
from pipeline.delivery.lanes import Backoff, Lane, LaneKey, Lanes, Places
from pipeline.errors import (
    DeferError,
    DestinationBusyError,
    HoldCode,
    HoldError,
    KeyBusyError,
    KeyUnavailableError,
    RejectError,
)
from pipeline.ids import ArtifactId, InstanceId
from pipeline.interim.states import ArtifactName
from pipeline.interim.store import InterimStore
from pipeline.ports import Clock
from pipeline.settings import DeliverySettings

log = structlog.get_logger()

_BUGS_IN_A_ROW = 10
_PARKED = timedelta(hours=1)
_STRAIN = (DestinationBusyError, KeyBusyError)
"""What tells of a bucket or a key service that can't keep up, or is not there."""

Deliver = Callable[[ArtifactName], Awaitable[None]]
"""Bring one artifact to its destination and settle it; or raise."""
Reject = Callable[[ArtifactName, RejectError], Awaitable[None]]
"""Put one artifact aside, for good."""


class Dispatcher:
    """Works on every lane, a bounded number of artifacts at a time."""

    def __init__(
        self,
        *,
        store: InterimStore,
        holds: Holds,
        deliver: Deliver,
        reject: Reject,
        clock: Clock,
        random: Callable[[], float],
        settings: DeliverySettings,
    ) -> None:
        self._store = store
        self._holds = holds
        self._deliver = deliver
        self._reject = reject
        self._clock = clock
        self._retry = Backoff(settings.retry_first, settings.retry_most, random)
        self._probe = Backoff(settings.probe_first, settings.probe_most, random)
        self._longest_s = settings.retry_most.total_seconds()
        self._lanes = Lanes(settings.workers)
        self._places = Places(settings.workers)
        self._bugs: dict[ArtifactId, int] = {}
        self._wake = anyio.Event()

    def add(self, name: ArtifactName) -> None:
        """Let a sealed artifact wait for its turn."""
        self.add_all([name])

    def add_all(self, names: Iterable[ArtifactName]) -> None:
        """Let sealed artifacts wait for their turn; they may be very many."""
        lanes: defaultdict[LaneKey, list[ArtifactId]] = defaultdict(list)
        for name in names:
            lanes[name.instance_id, name.kind].append(name.artifact_id)
        now = self._clock.monotonic()
        for key, artifacts in lanes.items():
            lane = self._lanes[key]
            if lane.held_until is None and self._holds.get(*key) is not None:
                lane.held_until = now  # from before a restart: look at once
            for artifact in artifacts:
                lane.add(artifact)
            self._lanes.look(lane, now)
        self._wake.set()

    def retry_now(self) -> None:
        """Look again at everything that waits: the configuration was read again."""
        self._look_again(self._lanes.all())

    def look_again(self, instance: InstanceId) -> None:
        """Look again at what waits of one instance: its key can be used again."""
        self._look_again(self._lanes.of(instance))

    def is_waiting(self, instance: InstanceId) -> bool:
        """Tell whether something of an instance waits to be delivered, so that its key is asked for."""
        return any(lane.size for lane in self._lanes.of(instance))

    def _look_again(self, lanes: Iterable[Lane]) -> None:
        now = self._clock.monotonic()
        for lane in lanes:
            lane.look_again(now)
            self._lanes.look(lane, now)
        self._wake.set()

    def is_delivering(self, instance: InstanceId, artifact: ArtifactId | None = None) -> bool:
        """Tell whether anything of an instance, or one artifact of it, is on its way now."""
        return any(lane.in_hand if artifact is None else artifact in lane.in_hand for lane in self._lanes.of(instance))

    async def run(self) -> None:
        """Deliver until cancelled; what is in hand then is given up and stays sealed."""
        async with anyio.create_task_group() as group:
            while True:
                self._wake = anyio.Event()
                self._start_ready(group)
                due = self._next_due()
                with anyio.move_on_after(None if due is None else max(0.0, due - self._clock.monotonic())):
                    await self._wake.wait()

    # --- inside

    def _next_due(self) -> float | None:
        """When to look again if nothing else happens."""
        times = self._lanes.next_due(), self._places.next_due() if self._lanes.in_line else None
        return min((time for time in times if time is not None), default=None)

    def _start_ready(self, group: anyio.abc.TaskGroup) -> None:
        now = self._clock.monotonic()
        while (taken := self._lanes.take(now, self._places.taken(now))) is not None:
            lane, artifact = taken
            name = self._store.index.get(artifact)
            if name is None or not name.is_waiting:
                lane.forget(artifact)
                self._lanes.look(lane, now)
                continue
            self._places.begin(artifact, now)
            group.start_soon(self._attempt, lane, name, name=f"deliver {artifact}")

    async def _attempt(self, lane: Lane, name: ArtifactName) -> None:
        try:
            await self._outcome(lane, name, lane.in_hand[name.artifact_id])
        finally:
            self._places.end(name.artifact_id)
            self._lanes.look(lane, self._clock.monotonic())
            self._wake.set()

    async def _outcome(self, lane: Lane, name: ArtifactName, began: float) -> None:
        """Try one artifact. The one place where any exception is caught: a bug must not stop the others."""
        try:
            await self._deliver(name)
        except HoldError as error:
            await self._hold(lane, name, error, began)
        except DeferError as error:
            self._defer(lane, name, error, began)
        except RejectError as error:
            await self._put_aside(lane, name, error, began)
        except Exception as error:  # noqa: BLE001
            self._bug(lane, name, error)
        else:
            lane.settled(name.artifact_id)
            self._bugs.pop(name.artifact_id, None)
            await self._lift(lane, name, began)

    def _defer(self, lane: Lane, name: ArtifactName, error: DeferError, began: float) -> None:
        now = self._clock.monotonic()
        asked_s = min(error.retry_after_s or 0.0, self._longest_s) if isinstance(error, DestinationBusyError) else 0.0
        if isinstance(error, _STRAIN) and lane.strained(began, now, self._retry, asked_s):
            log.warning(
                "delivery.paused",
                instance=str(name.instance_id),
                kind=name.kind,
                reason=error.reason,
                probe_in_s=round((lane.held_until or now) - now, 1),
            )
        delay_s = lane.defer(name.artifact_id, now, self._retry, asked_s)
        log.warning(
            "delivery.deferred",
            artifact=str(name.artifact_id),
            attempt=lane.attempts[name.artifact_id],
            reason=error.reason,
            detail=str(error),
            retry_in_s=round(delay_s, 1),
        )

    async def _hold(self, lane: Lane, name: ArtifactName, error: HoldError, began: float) -> None:
        """Hold what depends on it: one data key's artifacts, a destination, or all of the instance."""
        now = self._clock.monotonic()
        if error.code is HoldCode.KEY_MISMATCH:
            # Its ring file is not used before it is mended; what is sealed under other data keys goes on.
            scope = data_key_scope(name.key_id)
            lane.park(name.artifact_id, now + self._probe.most.total_seconds())
        else:
            is_keys = isinstance(error, KeyUnavailableError)
            scope = KEYS if is_keys else str(name.kind)
            lane.put_back(name.artifact_id)
            for each in self._lanes.of(name.instance_id) if is_keys else [lane]:
                each.hold(began, now, self._probe)
                self._lanes.look(each, now)
        try:
            is_new = await self._holds.begin(name.instance_id, scope, error, self._clock.now())
        except DeferError as trouble:
            log.warning("delivery.hold_not_kept", instance=str(name.instance_id), reason=trouble.reason)
            return
        if is_new:
            log.error("delivery.held", instance=str(name.instance_id), scope=scope, code=error.code, detail=str(error))

    async def _lift(self, lane: Lane, name: ArtifactName, began: float) -> None:
        """End what held this artifact: its delivery, begun since then, went through."""
        instance, kind = lane.key
        held = self._holds.of(name)
        if (not held and lane.held_until is None) or began <= lane.held_since:
            return
        try:
            for hold in held:
                await self._holds.end(instance, hold.scope)
            is_keys = any(hold.scope == KEYS for hold in held)
        except DeferError as trouble:
            log.warning("delivery.hold_not_lifted", instance=str(instance), reason=trouble.reason)
            is_keys = True
        for each in self._lanes.of(instance) if is_keys else [lane]:
            each.release()
            self._lanes.look(each, self._clock.monotonic())
        log.info("delivery.resumed", instance=str(instance), kind=kind, waiting=lane.size)

    async def _put_aside(self, lane: Lane, name: ArtifactName, error: RejectError, began: float) -> None:
        try:
            await self._reject(name, error)
        except DeferError as trouble:
            self._defer(lane, name, trouble, began)
            return
        lane.settled(name.artifact_id)
        log.error("delivery.rejected", artifact=str(name.artifact_id), reason=error.reason, detail=str(error))

    def _bug(self, lane: Lane, name: ArtifactName, error: Exception) -> None:
        count = self._bugs[name.artifact_id] = self._bugs.get(name.artifact_id, 0) + 1
        log.error("delivery.deferred", artifact=str(name.artifact_id), attempt=count, reason="unknown", exc_info=error)
        now = self._clock.monotonic()
        if count % _BUGS_IN_A_ROW == 0:
            lane.park(name.artifact_id, now + _PARKED.total_seconds())
        else:
            lane.defer(name.artifact_id, now, self._retry)
