"""Child processes: started, watched, started again when they end, and never left behind.

Each runs in its own session under `launch.py`, so that it also ends after a kill -9 of this process; what it prints
goes to a log file of bounded size. A child's failures are never this process's: they are logged and tried again.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT

import aiohttp
import anyio
import anyio.to_thread
import structlog
from anyio.abc import ByteReceiveStream, Process

from pipeline.errors import DeferError, PipelineError

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_BYTES = 2 * 2**20
"""Of the log file; as many lie in the one before it."""
TERM_S = 5.0
"""From SIGTERM to SIGKILL."""
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 30.0
STABLE_S = 60.0
"""A child that lived as long is started again without the waits of its last failures."""
LAST_WORDS_S = 1.0
"""For the output of a child that has ended."""
HEALTHY_S = 60.0
"""From start to the first good answer."""
ASK_S = 0.1

_log = structlog.get_logger(__name__)


class ChildFailedError(DeferError):
    """A child process did not do what it was started for. It is started again."""

    reason = "child-failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What a child is."""

    name: str
    argv: Callable[[], Sequence[str]]
    environ: Mapping[str, str]
    """The whole of its environment."""
    directory: Path
    """Where it runs."""
    log: Path
    healthy: Callable[[], Awaitable[bool]]
    settled: Callable[[], Awaitable[None]] | None = None
    """Done after each start, once healthy and before it counts as ready. Raises `PipelineError`: start again."""


@dataclass(slots=True)
class Child:
    """One child process, through all its lives."""

    program: Program
    ready: anyio.Event = field(default_factory=anyio.Event)
    """Set when the child is ready for the first time; it stays set."""
    up: bool = False
    """Whether the child is ready now."""
    pid: int | None = None
    starts: int = 0

    async def run(self, stop: anyio.Event) -> None:
        """Keep the child running until `stop` or cancellation; then end it and return when it has ended."""
        wait_s = RETRY_FIRST_S
        while not stop.is_set():
            began = time.monotonic()
            code = await self._live(stop)
            if stop.is_set():
                return
            if time.monotonic() - began >= STABLE_S:
                wait_s = RETRY_FIRST_S
            _log.warning("child.ended", child=self.program.name, exit_code=code, log=str(self.program.log))
            with anyio.move_on_after(wait_s):
                await stop.wait()
            wait_s = min(2 * wait_s, RETRY_MOST_S)

    async def _live(self, stop: anyio.Event) -> int | None:
        """Live one life of the child; give back its exit code, None if it could not be started."""
        self.starts += 1
        try:
            process = await start(self.program.argv(), environ=self.program.environ, directory=self.program.directory)
        except OSError as error:
            _log.error("child.not-started", child=self.program.name, error=error.strerror)
            return None
        self.pid = process.pid
        assert process.stdout is not None
        try:
            async with anyio.create_task_group() as output:
                output.start_soon(_copy, process.stdout, self.program.log, name=f"log of {self.program.name}")
                async with anyio.create_task_group() as watch:
                    watch.start_soon(self._become_ready, process, name=f"health of {self.program.name}")
                    watch.start_soon(_end_on, stop, process, name=f"stop of {self.program.name}")
                    await process.wait()
                    watch.cancel_scope.cancel()
                # Its last words are still in the pipe, which a process of its own making could hold open.
                output.cancel_scope.deadline = anyio.current_time() + LAST_WORDS_S
        finally:
            self.up, self.pid = False, None
            with anyio.CancelScope(shield=True):
                await end(process)
                await process.aclose()
        return process.returncode

    async def _become_ready(self, process: Process) -> None:
        """Wait until the child is ready; end it if that takes too long."""
        name = self.program.name
        try:
            with anyio.fail_after(HEALTHY_S):
                while not await self.program.healthy():  # noqa: ASYNC110 - another process is asked
                    await anyio.sleep(ASK_S)
                if self.program.settled is not None:
                    await self.program.settled()
        except TimeoutError:
            _log.warning("child.unhealthy", child=name, after_s=HEALTHY_S)
            await end(process)
        except PipelineError as error:
            _log.warning("child.unsettled", child=name, reason=error.reason, error=str(error))
            await end(process)
        else:
            self.up = True
            self.ready.set()
            _log.info("child.ready", child=name, starts=self.starts)


async def start(argv: Sequence[str], *, environ: Mapping[str, str], directory: Path) -> Process:
    """Start a program that ends with this process. Its standard error goes where its output goes."""
    return await anyio.open_process(
        _launched(argv), stdin=DEVNULL, stderr=STDOUT, env=environ, cwd=directory, start_new_session=True
    )


async def answer(
    argv: Sequence[str], given: bytes, *, environ: Mapping[str, str], directory: Path, most_s: float = 30.0
) -> bytes:
    """Run a program to its end with `given` as its input; give back its output. Raises `ChildFailedError`."""
    try:
        with anyio.fail_after(most_s):
            done = await anyio.run_process(
                _launched(argv), input=given, check=False, env=environ, cwd=directory, start_new_session=True
            )
    except TimeoutError:
        raise ChildFailedError(f"{Path(argv[0]).name} did not end within {most_s:g} s") from None
    except OSError as error:
        raise ChildFailedError(f"{Path(argv[0]).name} can't be started: {error.strerror}") from None
    return done.stdout


def _launched(argv: Sequence[str]) -> list[str]:
    # -I -S: the launcher needs no package, and nothing from the environment is to change what it does.
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *argv]


async def end(process: Process) -> None:
    """End a process and what it started: SIGTERM, after a while SIGKILL. Returns when it has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with anyio.move_on_after(TERM_S):
            await process.wait()
    # Also after a clean end: what it started must not outlive it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def answers(url: str) -> bool:
    """Say whether a GET of `url` on this machine is answered by 200."""
    try:
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _end_on(stop: anyio.Event, process: Process) -> None:
    await stop.wait()
    await end(process)


async def _copy(stream: ByteReceiveStream, log: Path) -> None:
    async for chunk in stream:
        await anyio.to_thread.run_sync(_append, log, chunk)


def _append(log: Path, chunk: bytes) -> None:
    """Append to a log of bounded size. A log that can't be written is lost, and its child goes on."""
    with contextlib.suppress(OSError):
        if log.exists() and log.stat().st_size + len(chunk) > LOG_BYTES:
            log.rename(log.with_name(f"{log.name}.1"))
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            file.write(chunk)
