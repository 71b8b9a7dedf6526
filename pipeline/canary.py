"""The canary: a small recording that is made here again and again and travels the whole journey.

It is received, sealed, delivered and proven like any other; only its object lies below a prefix of its own. One is on
its way at a time: while that waits no other is sent.
"""

import math
import struct
from datetime import datetime
from uuid import UUID, uuid4

import anyio
import anyio.to_thread
import msgspec
import structlog

from pipeline.errors import DeferError, PipelineError, RefuseError, StoreIoError
from pipeline.ids import ArtifactId, Kind
from pipeline.intake.reception import Source
from pipeline.intake.recorder import Recorder
from pipeline.intake.sealing import CANARY
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.states import State
from pipeline.interim.store import InterimStore
from pipeline.ports import Clock, FileSystem
from pipeline.settings import CanarySettings
from pipeline.tenants import Tenant, Tenants

log = structlog.get_logger()

_POLL_S = 0.25
_RATE, _LENGTH, _TONE_HZ, _LOUDNESS = 8000, 2000, 440, 8000


class Arrival(msgspec.Struct, frozen=True, rename="camel"):
    """`canary.json`: the last one that arrived."""

    at: datetime
    latency_s: float


class Canary:
    """Sends one on a schedule."""

    def __init__(
        self,
        path: str,
        *,
        store: InterimStore,
        tenants: Tenants,
        recorder: Recorder,
        files: FileSystem,
        commits: GroupCommit,
        clock: Clock,
        settings: CanarySettings,
    ) -> None:
        self._path = path
        self._store = store
        self._tenants = tenants
        self._recorder = recorder
        self._files = files
        self._commits = commits
        self._clock = clock
        self._settings = settings
        self._last: Arrival | None = None
        self._trouble: str | None = None
        self._well_at = clock.monotonic()
        """When one arrived, or when it was last time to tell that none did."""
        self._told_at = self._well_at

    async def run(self) -> None:
        """Send one after the other until cancelled."""
        self._last = await anyio.to_thread.run_sync(read_arrival, self._path, self._files)
        while True:
            began = self._clock.monotonic()
            await self.once()
            left_s = self._settings.every.total_seconds() - (self._clock.monotonic() - began)
            await anyio.sleep(max(0.0, left_s))

    async def once(self) -> None:
        """Send one, and wait until it is settled one way or the other."""
        sent_at = self._clock.monotonic()
        try:
            artifact = await self._send()
        except PipelineError as error:
            self._failed(error.reason)
            return
        while (name := self._store.index.get(artifact)) is not None and name.is_waiting:
            self._alarm()
            await anyio.sleep(_POLL_S)
        if name is None or name.standing is State.DELIVERED:
            await self._arrived(self._clock.monotonic() - sent_at)
        else:
            self._failed(name.poison or "unknown")

    def state(self) -> tuple[bool, str]:
        """Tell whether none has arrived for too long; and when the last did."""
        now = self._clock.monotonic()
        late = now - self._well_at > self._settings.alarm_after.total_seconds()
        trouble = "" if self._trouble is None else f"; failing, {self._trouble}"
        if self._last is None:
            return late, f"none has arrived yet{trouble}"
        age_s = max(0.0, (self._clock.now() - self._last.at).total_seconds())
        return late, f"last arrived {age_s:.0f} s ago, in {self._last.latency_s:.1f} s{trouble}"

    # --- inside

    async def _send(self) -> ArtifactId:
        tenant = self._tenant()
        mark = uuid4()
        source = Source(
            kind=Kind.VOICE,
            contact=f"canary-{mark}",
            source_id=f"{CANARY}{mark}",
            content_type="audio/wav",
            started=self._clock.now(),
        )
        reception = await self._recorder.begin(tenant, source)
        try:
            await reception.append(_tone(), self._clock.monotonic())
            answer = await self._recorder.finish(reception, None)
        finally:
            await self._recorder.let_go(reception)
        return ArtifactId(UUID(answer.artifact_id))

    def _tenant(self) -> Tenant:
        wanted = self._settings.instance
        for tenant in self._tenants:
            if wanted in {tenant.instance.alias, str(tenant.instance.instance_id)}:
                if Kind.VOICE not in tenant.instance.storage:
                    raise RefuseError("the canary's instance has no storage for voice", field="canary.instance")
                return tenant
        raise RefuseError("there is no such instance", field="canary.instance")

    async def _arrived(self, latency_s: float) -> None:
        self._well_at = self._told_at = self._clock.monotonic()
        self._trouble = None
        self._last = Arrival(self._clock.now(), round(latency_s, 3))
        log.info("canary.arrived", latency_s=self._last.latency_s)
        try:
            await self._commits.commit(Commit(files=((self._path, msgspec.json.encode(self._last)),)))
        except DeferError as error:
            log.warning("canary.not_kept", reason=error.reason)

    def _failed(self, reason: str) -> None:
        self._trouble = reason
        log.warning("canary.failed", reason=reason)
        self._alarm()

    def _alarm(self) -> None:
        """Say it when none has arrived for too long, and again each time as long."""
        now, limit_s = self._clock.monotonic(), self._settings.alarm_after.total_seconds()
        if now - self._told_at > limit_s:
            self._told_at = now
            log.error("canary.late", none_for_s=round(now - self._well_at), reason=self._trouble or "not delivered")


def read_arrival(path: str, files: FileSystem) -> Arrival | None:
    """Read when the last one arrived; None if none did, or that can't be read."""
    try:
        handle = files.open(path)
    except (FileNotFoundError, StoreIoError):
        return None
    try:
        return msgspec.json.decode(files.read(handle, 0, 4096), type=Arrival)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, StoreIoError):
        return None
    finally:
        files.close(handle)


def _tone() -> bytes:
    """Make a quarter of a second of sound in both channels (RIFF WAVE, 16-bit PCM)."""
    turn = 2 * math.pi * _TONE_HZ / _RATE
    samples = [round(_LOUDNESS * math.sin(turn * at)) for at in range(_LENGTH)]
    data = b"".join(struct.pack("<hh", sample, sample) for sample in samples)
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(data),
        b"WAVE",
        b"fmt ",
        16,
        1,
        2,
        _RATE,
        4 * _RATE,
        4,
        16,
        b"data",
        len(data),
    )
    return head + data
