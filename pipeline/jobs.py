"""Jobs: work that a person asks for and that must not race with the service, so one process does it, one by one.

    jobs/<job>.ask.json      what is wanted, by whom and why; written once, by a command
    jobs/<job>.report.json   how far it has come and how it ended; written by whoever holds the store's lock

A job is done by the running service, or, where none runs, by the command itself under the store's lock. Its handler is
called again after a crash and after trouble that passes, until it gives an outcome: it must find out by itself what is
done already. Nothing in these files is believed: whoever can write to the store can ask for what an operator can, but
names no KMS key, bucket or path by them.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import anyio
import anyio.to_thread
import msgspec
import structlog
from msgspec import Meta, Struct

from pipeline.errors import DeferError, PipelineError, RefuseError, RejectError
from pipeline.ids import InstanceId, new_artifact_id
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import LogLine
from pipeline.ports import Clock, FileSystem
from pipeline.smallfiles import read_whole, write_whole
from pipeline.trail import Trail

log = structlog.get_logger()

VERSION = 1
SIZE_LIMIT = 1024 * 1024
KEPT = timedelta(days=7)
"""How long what came of a job can be read."""
_ASK = re.compile(r"([0-9a-f]{32})\.ask\.json")
_TOLD_EVERY_S = 1.0
"""How often progress is written."""
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0
_TIDIED_EVERY_S = 3600.0


class JobStatus(StrEnum):
    """Where a job is in its life."""

    WAITING = "WAITING"
    """Not begun, or something has to pass first: it is tried again."""
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    """A person has to do something first, and then ask again. What was done stays done."""

    @property
    def is_over(self) -> bool:
        """Nothing more will happen."""
        return self in {JobStatus.COMPLETED, JobStatus.FAILED}


class Ask(Struct, frozen=True, kw_only=True, rename="camel"):
    """What is wanted."""

    version: int = VERSION
    job_id: UUID
    """A UUIDv7: the older one is done first."""
    verb: str
    instance_id: UUID
    details: dict[str, Any] = {}
    asked_by: str
    reason: str
    asked_at: Annotated[datetime, Meta(tz=True)]

    @property
    def instance(self) -> InstanceId:
        """The instance it is about."""
        return InstanceId(self.instance_id)

    def is_same(self, other: "Ask") -> bool:
        """Tell whether another asks for the same work."""
        return (self.verb, self.instance_id, self.details) == (other.verb, other.instance_id, other.details)


class Report(Struct, frozen=True, kw_only=True, rename="camel"):
    """How far a job has come."""

    job_id: UUID
    status: JobStatus = JobStatus.WAITING
    done: int = 0
    total: int | None = None
    message: str | None = None
    """What it waits for, or why it failed."""
    outcome: dict[str, Any] = {}
    """What its handler says at the end."""
    refused: bool = False
    """It failed because it was wrong, or forbidden, to ask for it."""
    changed_at: Annotated[datetime, Meta(tz=True)]


class JobFailedError(RejectError):
    """A job can't go on before a person has done something; what was done stays done."""

    reason = "job-failed"

    def __init__(self, message: str, outcome: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.outcome = dict(outcome or {})


class Progress:
    """Tells how far a job is. Kept on disk now and then: whoever looks on sees it."""

    def __init__(self, write: Callable[[int, int | None], Awaitable[None]], clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._told_at: float | None = None
        self.done = 0
        self.total: int | None = None

    async def __call__(self, done: int, total: int | None) -> None:
        """Tell. Cheap; call it after each step. Raises `DeferError` if the disk refuses it."""
        self.done, self.total = done, total
        now = self._clock.monotonic()
        if self._told_at is None or now - self._told_at >= _TOLD_EVERY_S:
            self._told_at = now
            await self._write(done, total)


Handler = Callable[[Ask, Progress], Awaitable[Mapping[str, Any]]]
"""Do a job, or what is left of it; give the outcome. Other errors of ours mean:

`DeferError`: something has to pass first, it is called again. `RefuseError`, `RejectError` (`JobFailedError` has an
outcome): a person has to do something first.
"""


class JobFolder:
    """The files of all jobs. Synchronous."""

    def __init__(self, root: str, files: FileSystem) -> None:
        self._root = root
        self._files = files

    def ask(self, ask: Ask) -> Ask:
        """Ask for a job, durably; give the one that is there already if the same is under way.

        Raises:
            StoreFullError, StoreIoError: it is not asked for.

        """
        for known in self.asked():
            if known.is_same(ask) and not self.report(known).status.is_over:
                return known
        write_whole(self._files, self._path(ask.job_id, "ask"), msgspec.json.encode(ask))
        return ask

    def asked(self) -> list[Ask]:
        """Give every job, the oldest first. One that can't be read is passed over, and kept.

        Raises:
            StoreIoError: the folder can't be read.

        """
        found = []
        for name in sorted(self._files.names(self._root)):
            match = _ASK.fullmatch(name)
            if match is None:
                continue
            ask = _decoded(read_whole(self._files, f"{self._root}/{name}", SIZE_LIMIT), Ask)
            if ask is None or ask.version != VERSION or ask.job_id.hex != match[1]:
                log.warning("jobs.unreadable", file=name)
            else:
                found.append(ask)
        return found

    def report(self, ask: Ask) -> Report:
        """Tell how far a job is. A report that can't be read is none: the job is looked at again.

        Raises:
            StoreIoError: the disk refuses.

        """
        raw = read_whole(self._files, self.report_path(ask), SIZE_LIMIT)
        report = _decoded(raw, Report)
        return report if report is not None else Report(job_id=ask.job_id, changed_at=ask.asked_at)

    def report_path(self, ask: Ask) -> str:
        """Where a job's report lies."""
        return self._path(ask.job_id, "report")

    def remove(self, ask: Ask) -> None:
        """Forget a job. Not synced: what comes back is removed again."""
        self._files.unlink(self._path(ask.job_id, "ask"))
        self._files.unlink(self.report_path(ask))

    def _path(self, job: UUID, what: str) -> str:
        return f"{self._root}/{job.hex}.{what}.json"


class Jobs:
    """Does jobs, one after another."""

    def __init__(
        self,
        root: str,
        *,
        files: FileSystem,
        commits: GroupCommit,
        trail: Trail,
        clock: Clock,
        handlers: Mapping[str, Handler],
    ) -> None:
        """`handlers` are by verb; each is called for one job at a time."""
        self.folder = JobFolder(root, files)
        self._files = files
        self._root = root
        self._commits = commits
        self._trail = trail
        self._clock = clock
        self._handlers = handlers
        self._pauses: dict[UUID, tuple[float, float]] = {}
        """Of jobs that have to wait: until when, and for how long."""
        self._wake = anyio.Event()

    def look(self) -> None:
        """Look at once for what was asked: somebody says that there is something."""
        self._pauses.clear()
        self._wake.set()

    async def run(self) -> None:
        """Do what is asked until cancelled."""
        while True:
            self._wake = anyio.Event()
            wait_s = 5.0
            try:
                wait_s = await self.once()
            except PipelineError as error:
                log.warning("jobs.deferred", reason=error.reason, detail=str(error))
            with anyio.move_on_after(wait_s):
                await self._wake.wait()

    async def once(self) -> float:
        """Do every job whose turn it is, and forget old ones; tell in how many seconds to look again.

        Raises:
            StoreFullError, StoreIoError: come back later.

        """
        for ask in await anyio.to_thread.run_sync(self.folder.asked):
            report = await anyio.to_thread.run_sync(self.folder.report, ask)
            if not report.status.is_over:
                if self._clock.monotonic() >= self._pauses.get(ask.job_id, (0.0, 0.0))[0]:
                    await self.perform(ask)
            elif self._clock.now() - report.changed_at > KEPT:
                await anyio.to_thread.run_sync(self.folder.remove, ask)
        waits = [until for until, _ in self._pauses.values()]
        return max(0.1, min(waits, default=self._clock.monotonic() + _TIDIED_EVERY_S) - self._clock.monotonic())

    async def perform(self, ask: Ask) -> Report:
        """Do one job, as far as it goes now; give what was written about it.

        Raises:
            StoreFullError, StoreIoError: not even that can be written.

        """
        progress = Progress(lambda done, total: self._running(ask, done, total), self._clock)
        await progress(0, None)
        handler = self._handlers.get(ask.verb)
        try:
            if handler is None:
                raise JobFailedError("this version of the program knows no such job")  # noqa: TRY301
            outcome = await handler(ask, progress)
        except DeferError as error:
            return await self._deferred(ask, progress, str(error))
        except PipelineError as error:
            said = error.outcome if isinstance(error, JobFailedError) else {}
            refused = isinstance(error, RefuseError)
            return await self._ended(ask, progress, JobStatus.FAILED, said, str(error), refused=refused)
        except Exception:
            # A bug must not stop the service; its job waits, and is seen to.
            log.exception("jobs.bug", job=str(ask.job_id), verb=ask.verb)
            return await self._deferred(ask, progress, "the program has a fault here; see the service's log")
        return await self._ended(ask, progress, JobStatus.COMPLETED, outcome, None)

    # --- inside

    async def _running(self, ask: Ask, done: int, total: int | None) -> None:
        await self._write(ask, JobStatus.RUNNING, done, total)

    async def _deferred(self, ask: Ask, progress: Progress, why: str) -> Report:
        _, last_s = self._pauses.get(ask.job_id, (0.0, 0.0))
        pause_s = min(max(_FIRST_PAUSE_S, 2 * last_s), _LONGEST_PAUSE_S)
        self._pauses[ask.job_id] = self._clock.monotonic() + pause_s, pause_s
        log.info("jobs.waiting", job=str(ask.job_id), verb=ask.verb, detail=why)
        return await self._write(ask, JobStatus.WAITING, progress.done, progress.total, why)

    async def _ended(
        self,
        ask: Ask,
        progress: Progress,
        status: JobStatus,
        outcome: Mapping[str, Any],
        why: str | None,
        *,
        refused: bool = False,
    ) -> Report:
        line = self._trail.changed(
            ask.instance,
            "JobEnded",
            jobId=str(ask.job_id),
            job=ask.verb,
            status=status,
            askedBy=ask.asked_by,
            outcome=dict(outcome),
            message=why,
        )
        self._pauses.pop(ask.job_id, None)
        log.info("jobs.ended", job=str(ask.job_id), verb=ask.verb, status=status, detail=why)
        return await self._write(ask, status, progress.done, progress.total, why, outcome, (line,), refused=refused)

    async def _write(
        self,
        ask: Ask,
        status: JobStatus,
        done: int,
        total: int | None,
        message: str | None = None,
        outcome: Mapping[str, Any] | None = None,
        lines: tuple[LogLine, ...] = (),
        *,
        refused: bool = False,
    ) -> Report:
        report = Report(
            job_id=ask.job_id,
            status=status,
            done=done,
            total=total,
            message=message,
            outcome=dict(outcome or {}),
            refused=refused,
            changed_at=self._clock.now(),
        )
        file = self.folder.report_path(ask), msgspec.json.encode(report)
        await self._commits.commit(Commit(files=(file,), lines=lines))
        return report


def new_ask(
    verb: str, instance: InstanceId, details: Mapping[str, Any], *, asked_by: str, reason: str, now: datetime
) -> Ask:
    """Make what is to be asked for."""
    return Ask(
        job_id=new_artifact_id(now),
        verb=verb,
        instance_id=instance,
        details=dict(details),
        asked_by=asked_by,
        reason=reason,
        asked_at=now,
    )


def _decoded(raw: bytes | None, kind: type[Any]) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
