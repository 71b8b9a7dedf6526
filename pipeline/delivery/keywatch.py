"""Watch over the instances' KMS keys: hold what depends on one that can't be used, ask it again, go on by itself.

Whoever uses a key finds out first, sealing or opening; its ring remembers how it answered. From there a hold begins,
also where nothing waits to be delivered, and also when a key has not answered for long. While it lasts the key is asked
again, 30 s to 15 min apart, unless delivery asks anyway; when it answers, what waits goes on at once, oldest first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import anyio
import structlog

from pipeline.crypt.gate import Call, is_refusal
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.holds import KEYS, SEALING, Holds
from pipeline.delivery.lanes import Backoff
from pipeline.errors import DeferError, HoldCode, KeyUnavailableError, PipelineError
from pipeline.ids import InstanceId
from pipeline.ports import Clock
from pipeline.settings import DeliverySettings
from pipeline.tenants import Tenant, Tenants

log = structlog.get_logger()

LOOK = timedelta(seconds=5)
SILENCE = timedelta(minutes=15)
"""How long a KMS key may not answer before that is a hold: until then it is a matter of retries."""


@dataclass(slots=True)
class _Watched:
    """What is remembered of one instance."""

    silent_since: float | None = None
    is_throttled: bool = False
    probes: int = 0
    probe_at: float = float("-inf")


@dataclass(kw_only=True, slots=True)
class KeyWatch:
    """Looks at every instance's key ring."""

    tenants: Tenants
    holds: Holds
    dispatcher: Dispatcher
    clock: Clock
    random: Callable[[], float]
    settings: DeliverySettings
    _watched: dict[InstanceId, _Watched] = field(default_factory=dict)
    _busy: set[InstanceId] = field(default_factory=set)

    async def run(self) -> None:
        """Look every few seconds, until cancelled. A slow key keeps nobody waiting but its own instance."""
        async with anyio.create_task_group() as group:
            while True:
                for tenant in self.tenants:
                    instance = tenant.instance.instance_id
                    if instance not in self._busy and not self._is_quiet(tenant):
                        self._busy.add(instance)
                        group.start_soon(self._watch, tenant, name=f"key of {instance}")
                await anyio.sleep(LOOK.total_seconds())

    async def _watch(self, tenant: Tenant) -> None:
        try:
            await self.look(tenant)
        except PipelineError as error:  # the disk: a hold could not be kept or lifted; it is seen again
            log.warning("keys.watch_deferred", instance=str(tenant.instance.instance_id), reason=error.reason)
        finally:
            self._busy.discard(tenant.instance.instance_id)

    def _is_quiet(self, tenant: Tenant) -> bool:
        """Tell whether there is nothing to look at: no key of it failed, and nothing is held."""
        instance = tenant.instance.instance_id
        if tenant.ring.state.code is not None or any(self.holds.at(instance, scope) for scope in (KEYS, SEALING)):
            return False
        self._watched.pop(instance, None)
        return True

    async def look(self, tenant: Tenant) -> None:
        """Look at one instance. Raises `StoreFullError`, `StoreIoError`."""
        instance = tenant.instance.instance_id
        watched = self._watched.setdefault(instance, _Watched())
        if self._is_due(tenant, watched):
            await self._probe(tenant, watched)
        await self._look_at_opening(tenant, watched)
        await self._look_at_sealing(tenant)

    # --- inside

    async def _look_at_opening(self, tenant: Tenant, watched: _Watched) -> None:
        instance, state, now = tenant.instance.instance_id, tenant.ring.state, self.clock.monotonic()
        silent = state.code is HoldCode.KEY_UNREACHABLE and not state.is_throttled
        watched.silent_since = (watched.silent_since or now) if silent else None
        if silent:
            if now - (watched.silent_since or now) >= SILENCE.total_seconds() and self._hold(instance, KEYS) is None:
                await self._probe(tenant, watched)  # nobody may have asked since
                state = tenant.ring.state
                if state.code is HoldCode.KEY_UNREACHABLE and not state.is_throttled:
                    message = f"KMS has not answered for {SILENCE.total_seconds() / 60:.0f} minutes"
                    await self._begin(tenant, KEYS, HoldCode.KEY_UNREACHABLE, message)
        elif state.code is not None and any(self._refuses(tenant, call) for call in Call):
            await self._begin(tenant, KEYS, state.code, state.message)
        elif self._opens(tenant) and self._is_of_current_key(tenant):
            await self._end(tenant, KEYS)
            watched.probes = 0
            self.dispatcher.look_again(instance)
        if state.is_throttled and not watched.is_throttled:
            log.error("keys.throttled", instance=str(instance), key=tenant.instance.kms_key_arn, detail=state.message)
        watched.is_throttled = state.is_throttled

    async def _look_at_sealing(self, tenant: Tenant) -> None:
        """Hold new recordings alone, where KMS makes no data keys and still opens those that there are."""
        answer = tenant.ring.answer(Call.GENERATE)
        only = answer.code is not None and answer.code is not HoldCode.KEY_UNREACHABLE
        only = only and not any(self._refuses(tenant, call) for call in Call)
        if answer.code is not None and only:
            await self._begin(tenant, SEALING, answer.code, answer.message)
        elif answer.code is None and answer.is_proven:
            await self._end(tenant, SEALING)

    @staticmethod
    def _opens(tenant: Tenant) -> bool:
        """Tell whether the current KMS key did what it was last asked, or opens at least what there is."""
        answers = tenant.ring.state, tenant.ring.answer(Call.DECRYPT)
        return any(answer.code is None and answer.is_proven for answer in answers)

    @staticmethod
    def _refuses(tenant: Tenant, call: Call) -> bool:
        code = tenant.ring.answer(call).code
        return code is not None and is_refusal(call, code)

    def _is_due(self, tenant: Tenant, watched: _Watched) -> bool:
        """Tell whether a held key is to be asked now. Delivery asks by itself while something waits for it."""
        instance = tenant.instance.instance_id
        held = self._hold(instance, SEALING) or (
            self._hold(instance, KEYS) if not self.dispatcher.is_waiting(instance) else None
        )
        if held is None:
            watched.probes = 0
            watched.probe_at = float("-inf")
            return False
        return self.clock.monotonic() >= watched.probe_at

    async def _probe(self, tenant: Tenant, watched: _Watched) -> None:
        backoff = Backoff(self.settings.probe_first, self.settings.probe_most, self.random)
        watched.probes += 1
        limit_s = min(backoff.most.total_seconds(), backoff.first.total_seconds() * 2.0 ** min(watched.probes - 1, 30))
        watched.probe_at = self.clock.monotonic() + limit_s * (0.5 + 0.5 * self.random())
        try:
            await tenant.ring.prove()
        except DeferError as error:
            log.info("keys.probed", instance=str(tenant.instance.instance_id), reason=error.reason, detail=str(error))

    def _is_of_current_key(self, tenant: Tenant) -> bool:
        """Tell whether there is a hold, and not one for a KMS key that was left: that one delivery lifts."""
        hold = self.holds.at(tenant.instance.instance_id, KEYS)
        return hold is not None and hold.kms_key_arn in {None, tenant.instance.kms_key_arn}

    def _hold(self, instance: InstanceId, scope: str) -> HoldCode | None:
        hold = self.holds.at(instance, scope)
        return None if hold is None else hold.code

    async def _begin(self, tenant: Tenant, scope: str, code: HoldCode, message: str) -> None:
        instance = tenant.instance
        error = KeyUnavailableError(code, message, key_arn=instance.kms_key_arn)
        if await self.holds.begin(instance.instance_id, scope, error, self.clock.now()):
            log.error("keys.held", instance=str(instance.instance_id), scope=scope, code=code, detail=message)

    async def _end(self, tenant: Tenant, scope: str) -> None:
        instance = tenant.instance.instance_id
        if await self.holds.end(instance, scope):
            log.info("keys.resumed", instance=str(instance), scope=scope)
