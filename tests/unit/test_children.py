"""Child processes: real, small ones. Each ends with its owner and is started again when it ends by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pipeline.adapters import children
from pipeline.adapters.children import LAUNCHER, Child, ChildFailedError, Program, answer

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
ENVIRON = {"PATH": os.environ["PATH"]}


def program(directory: Path, code: str, **other: Callable[[], Awaitable[None]]) -> Program:
    log = directory / "child.log"

    async def printed() -> bool:
        return log.exists() and "up" in log.read_text()

    return Program(
        name="small",
        argv=lambda: [sys.executable, "-I", "-c", code],
        environ=ENVIRON,
        directory=directory,
        log=log,
        healthy=printed,
        **other,
    )


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[anyio.Event]:
    stop = anyio.Event()
    async with anyio.create_task_group() as tg:
        tg.start_soon(child.run, stop, name="child")
        yield stop
        stop.set()


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(15):
        while not true():  # noqa: ASYNC110 - other processes are watched
            await anyio.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RETRY_FIRST_S", 0.05)
    monkeypatch.setattr(children, "TERM_S", 0.3)


async def test_a_child_is_ready_and_ends_when_it_is_to_stop(tmp_path: Path) -> None:
    child = Child(program(tmp_path, SLEEPER))
    async with running(child):
        await child.ready.wait()
        assert child.up
        assert child.pid is not None
        pid = child.pid
        assert os.getsid(pid) == pid
    assert not alive(pid)
    assert repr((child.up, child.pid, child.starts)) == "(False, None, 1)"


async def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    child = Child(program(tmp_path, SLEEPER))
    async with running(child):
        await child.ready.wait()
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.up and child.pid not in {None, first})
        assert child.starts == 2


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = Child(program(tmp_path, STUBBORN))
    async with running(child):
        await child.ready.wait()
        assert child.pid is not None
        pid = child.pid
    assert not alive(pid)


async def test_a_cancelled_owner_leaves_no_child(tmp_path: Path) -> None:
    child = Child(program(tmp_path, SLEEPER))
    async with anyio.create_task_group() as tg:
        tg.start_soon(child.run, anyio.Event())
        await child.ready.wait()
        assert child.pid is not None
        pid = child.pid
        tg.cancel_scope.cancel()
    assert not alive(pid)


async def test_the_last_words_of_a_child_are_logged(tmp_path: Path) -> None:
    child = Child(program(tmp_path, "import sys; print('x' * 50_000); sys.exit('gone, because')"))
    async with running(child):
        await until(lambda: child.starts == 2)
        assert "gone, because" in child.program.log.read_text()
    assert not child.ready.is_set()


async def test_the_log_is_bounded_and_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOG_BYTES", 100_000)
    code = "import time; print(('x' * 999 + '\\n') * 1_000 + 'up', flush=True); time.sleep(60)"
    child = Child(program(tmp_path, code))
    async with running(child):
        await child.ready.wait()
    logs = sorted(tmp_path.iterdir())
    assert [log.name for log in logs] == ["child.log", "child.log.1"]
    for log in logs:
        assert log.stat().st_size <= 200_000
        assert log.stat().st_mode & 0o777 == 0o600


async def test_a_child_that_does_not_become_healthy_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "HEALTHY_S", 0.2)
    child = Child(program(tmp_path, SLEEPER.replace("up", "no")))
    async with running(child):
        await until(lambda: child.starts == 2)
    assert not child.ready.is_set()


async def test_a_child_is_not_ready_before_it_is_settled(tmp_path: Path) -> None:
    tries = []

    async def settled() -> None:
        tries.append(child.ready.is_set())
        if len(tries) == 1:
            raise ChildFailedError("not this time")

    child = Child(program(tmp_path, SLEEPER, settled=settled))
    async with running(child):
        await child.ready.wait()
    assert tries == [False, False]
    assert child.starts == 2


async def test_a_program_that_can_not_be_started_is_tried_again(tmp_path: Path) -> None:
    child = Child(program(tmp_path / "missing", SLEEPER))
    async with running(child):
        await until(lambda: child.starts == 2)


OWNER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(children.__file__).parents[2])!r})
import anyio
from pipeline.adapters.children import Child, Program

async def healthy():
    return True

async def main():
    here = Path(sys.argv[1])
    argv = lambda: [sys.executable, "-I", "-c", {STUBBORN!r}]
    child = Child(Program(name="c", argv=argv, environ={{}}, directory=here, log=here / "log", healthy=healthy))
    async with anyio.create_task_group() as tg:
        tg.start_soon(child.run, anyio.Event())
        await child.ready.wait()
        Path(here / "aside").write_text(str(child.pid))
        Path(here / "aside").rename(here / "pid")

anyio.run(main, backend_options={{"use_uvloop": True}})
"""


async def test_a_child_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    log, told = tmp_path / "log", tmp_path / "pid"
    async with await anyio.open_process(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.DEVNULL
    ) as owner:
        # The child ignores SIGTERM by then; SIGKILL it can't.
        await until(lambda: told.exists() and log.exists() and "up" in log.read_text())
        pid = int(told.read_text())
        assert alive(pid)
        owner.kill()
        await until(lambda: not alive(pid))


def test_a_launcher_whose_parent_has_ended_starts_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    done = subprocess.run([sys.executable, "-I", "-S", LAUNCHER, "1", "touch", mark], check=False)
    assert done.returncode == 70
    assert not mark.exists()


async def test_a_program_answers_what_it_is_given(tmp_path: Path) -> None:
    assert await answer(["cat"], b"given", environ=ENVIRON, directory=tmp_path) == b"given"


async def test_a_program_that_does_not_end_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ChildFailedError, match="sleep did not end"):
        await answer(["sleep", "60"], b"", environ=ENVIRON, directory=tmp_path, most_s=0.1)
