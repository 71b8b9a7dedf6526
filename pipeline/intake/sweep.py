"""What open artifacts need when nothing happens: live ones are synced, silent ones let go, idle ones sealed.

Also the end of a data key's grace: what was begun under a key that KMS now refuses is sealed while that is possible.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

import anyio
import structlog

from pipeline.errors import DeferError, KeyUnavailableError, PipelineError
from pipeline.ids import ArtifactId, Kind
from pipeline.intake.chats import Chats, is_transcript
from pipeline.intake.reception import Reception
from pipeline.intake.recorder import Recorder
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.ports import Clock
from pipeline.settings import StoreSettings
from pipeline.tenants import Tenants

log = structlog.get_logger()

SYNC_EVERY_S = 1.0
"""How long what a live source sent may wait to be durable."""


class Sweep:
    """Looks after everything open, once a second."""

    def __init__(
        self,
        *,
        store: InterimStore,
        tenants: Tenants,
        recorder: Recorder,
        chats: Chats,
        clock: Clock,
        settings: StoreSettings,
        body_idle: timedelta,
        seal_grace: timedelta,
    ) -> None:
        self._store = store
        self._tenants = tenants
        self._recorder = recorder
        self._chats = chats
        self._clock = clock
        self._settings = settings
        self._body_idle_s = body_idle.total_seconds()
        self._seals_on = seal_grace > timedelta(0)
        self._seen: dict[ArtifactId, float] = {}
        """Since when an open artifact has been on disk only."""

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await anyio.sleep(SYNC_EVERY_S)
            await self.once()

    async def once(self) -> None:
        """Sweep once."""
        async with anyio.create_task_group() as group:
            for reception in self._recorder.receptions():
                if reception.attached and reception.writer.is_dirty:
                    group.start_soon(self._guarded, reception.name, partial(self._sync, reception))
        now = self._clock.monotonic()
        for reception in self._recorder.receptions():
            if reception.attached and now - reception.touched > self._body_idle_s:
                reception.scope.cancel()
            await self._guarded(reception.name, partial(self._look_after, reception, now))
        for name in self._on_disk_only():
            since = self._seen.setdefault(name.artifact_id, now)
            if now - since > self._idle_s(name) and not self._recorder.is_sent_again(name):
                del self._seen[name.artifact_id]
                await self._guarded(name, partial(self._reopen, name))

    # --- inside

    async def _guarded(self, name: ArtifactName, work: Callable[[], Awaitable[object]]) -> None:
        """Keep one artifact's trouble from the others; whatever it is, its bytes are on disk."""
        try:
            await work()
        except PipelineError as error:
            log.warning("sweep.deferred", artifact=str(name.artifact_id), reason=error.reason, detail=str(error))

    async def _sync(self, reception: Reception) -> None:
        try:
            await reception.writer.sync()
        except DeferError:
            self._recorder.forget(reception)
            reception.scope.cancel()
            raise

    async def _look_after(self, reception: Reception, now: float) -> None:
        if not reception.attached and now - reception.touched > self._idle_s(reception.name):
            if not self._recorder.is_sent_again(reception.name):
                await self._seal(reception)
            return
        try:
            await reception.tenant.ring.sealing(reception.name.key_id)
        except KeyUnavailableError:
            # The grace is over: nothing more is sealed under this key, now or after a restart.
            reception.scope.cancel()
            if self._seals_on:
                await self._seal(reception)
            else:
                await self._recorder.detach(reception)

    async def _seal(self, reception: Reception) -> None:
        if self._recorder.reception(reception.name.artifact_id) is not reception:
            return
        if is_transcript(reception):
            await self._chats.seal(reception, "recovered")
        elif reception.is_empty:
            await self._recorder.drop(reception, "empty")
        else:
            await self._recorder.seal_silent(reception)

    async def _reopen(self, name: ArtifactName) -> None:
        tenant = self._tenants.get(name.instance_id)
        if tenant is None:
            return
        reception = await self._recorder.reopen(tenant, name)
        if reception is not None:
            await self._seal(reception)

    def _on_disk_only(self) -> list[ArtifactName]:
        return [
            name
            for name in self._store.index.open()
            if name.standing is State.OPEN and self._recorder.reception(name.artifact_id) is None
        ]

    def _idle_s(self, name: ArtifactName) -> float:
        limit = self._settings.chat_idle if name.kind is Kind.CHAT else self._settings.media_idle
        return limit.total_seconds()
