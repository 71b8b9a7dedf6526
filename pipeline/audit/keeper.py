"""Keeps the audit logs checkable while the service runs: checkpoints, hourly digests, and their way to the buckets.

A log that is broken, or a bucket that can't be used, stops no other. At a stop everything is signed once more.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import structlog

from pipeline.audit.hourly import Place, make_digest, prefix_of
from pipeline.audit.reading import logs_in
from pipeline.audit.shipping import ship
from pipeline.audit.signing import Signed, SignedLog, SigningKeys
from pipeline.errors import AuditBrokenError, DeferError, PipelineError
from pipeline.ids import RECORDINGS
from pipeline.instances import Instance, Storage
from pipeline.ports import Clock, Destination, FileSystem
from pipeline.settings import AuditSettings

log = structlog.get_logger()

_LOOKED_EVERY_S = 10.0
_SHIPPED_AT_ONCE = 8
_AGAIN_S = 60.0
"""After a bucket did not take something."""

Told = Callable[[str, Signed], Awaitable[None]]
"""Record that a checkpoint of a log was made."""


@dataclass(slots=True)
class _State:
    """What is known of one log."""

    signed: SignedLog
    signed_at: float


class AuditKeeper:
    """Tends all logs of a node."""

    def __init__(
        self,
        audit: str,
        *,
        files: FileSystem,
        keys: SigningKeys,
        told: Told,
        instances: Callable[[], Iterable[Instance]],
        destinations: Callable[[Instance, Storage], Destination],
        clock: Clock,
        settings: AuditSettings,
        node: str,
    ) -> None:
        """`audit` is the folder of all logs; `node` names the one that is no instance's."""
        self.troubles: dict[str, str] = {}
        """What is wrong with a log, by its name, as it was seen last."""
        self._audit = audit
        self._files = files
        self._keys = keys
        self._told = told
        self._instances = instances
        self._destinations = destinations
        self._clock = clock
        self._settings = settings
        self._node = node
        self._begun_at = clock.monotonic()
        self._states: dict[str, _State] = {}
        self._ship_at: dict[str, float] = {}
        """When a log's bucket is asked again, by the log's name."""

    async def run(self) -> None:
        """Tend them until cancelled."""
        every_s = min(_LOOKED_EVERY_S, self._settings.checkpoint_every.total_seconds())
        async with anyio.create_task_group() as group:
            for work, name in ((self.sign, "audit checkpoints"), (self.ship, "audit delivery")):
                group.start_soon(self._again_and_again, work, every_s, name=name)

    async def sign(self, *, all_of_it: bool = False) -> None:
        """Sign what is due of each log, or all; make the digests that are due."""
        for name in await self._names():
            try:
                signed = await anyio.to_thread.run_sync(self._sign, name, all_of_it)
                if signed is not None and name != self._node:
                    await self._told(name, signed)
                if (placed := await self._placed(name)) is not None:
                    make = partial(make_digest, f"{self._audit}/{name}", self._files, self._keys, placed[1])
                    await anyio.to_thread.run_sync(make, self._clock.now())
            except (PipelineError, FileNotFoundError) as error:
                self._trouble(name, error)
            else:
                self.troubles.pop(name, None)

    async def ship(self) -> None:
        """Bring to each bucket what it has not got yet."""
        limiter = anyio.CapacityLimiter(_SHIPPED_AT_ONCE)
        async with anyio.create_task_group() as group:
            for name in await self._names():
                if name != self._node and self._clock.monotonic() >= self._ship_at.get(name, 0.0):
                    group.start_soon(self._ship, name, limiter, name=f"audit delivery {name}")

    # --- inside

    async def _names(self) -> list[str]:
        """Name the logs, the node's last: it tells of the others."""
        try:
            found = await anyio.to_thread.run_sync(logs_in, self._files, self._audit)
        except PipelineError as error:
            self._trouble("all", error)
            return []
        self.troubles.pop("all", None)
        return sorted(found, key=lambda name: (name == self._node, name))

    async def _again_and_again(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await work()
            await anyio.sleep(every_s)

    def _sign(self, name: str, all_of_it: bool) -> Signed | None:
        now = self._clock.monotonic()
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = _State(
                SignedLog(f"{self._audit}/{name}", self._files, self._keys), self._begun_at
            )
        state.signed.look()
        is_due = now - state.signed_at >= self._settings.checkpoint_every.total_seconds()
        if not state.signed.new or not (all_of_it or is_due or state.signed.new >= self._settings.checkpoint_records):
            return None
        signed = state.signed.sign()
        state.signed_at = now
        return signed

    async def _placed(self, name: str) -> tuple[Instance, Place, Storage] | None:
        """Tell where a log's objects go; None if nowhere."""
        instance = next((each for each in self._instances() if str(each.instance_id) == name), None)
        storage = None if instance is None else audit_storage(instance)
        if instance is None or storage is None:
            return None
        verifier = await anyio.to_thread.run_sync(self._keys.verifier, name)
        return instance, Place(instance.account_id, storage.bucket, prefix_of(name, verifier.key_id)), storage

    async def _ship(self, name: str, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            self._ship_at[name] = self._clock.monotonic() + _AGAIN_S
            try:
                if (placed := await self._placed(name)) is not None:
                    instance, place, storage = placed
                    destination = self._destinations(instance, storage)
                    await ship(f"{self._audit}/{name}", self._files, destination, place)
            except DeferError as error:  # a bucket that can't be used delays this, and nothing else
                log.warning("audit.not_delivered", log=name, reason=error.reason)
                if isinstance(error, AuditBrokenError):
                    self._trouble(f"{name} delivery", error)
            except (PipelineError, FileNotFoundError) as error:
                self._trouble(f"{name} delivery", error)
            else:
                self.troubles.pop(f"{name} delivery", None)
                del self._ship_at[name]

    def _trouble(self, name: str, error: Exception) -> None:
        if self.troubles.get(name) != str(error):
            reason = error.reason if isinstance(error, PipelineError) else "store-io"
            log.error("audit.not_kept", log=name, reason=reason, detail=str(error))
        self.troubles[name] = str(error)


def audit_storage(instance: Instance) -> Storage | None:
    """Choose the bucket that an instance's audit objects go to: its first kind's, voice before screen and chat."""
    return next((instance.storage[kind] for kind in RECORDINGS if kind in instance.storage), None)
