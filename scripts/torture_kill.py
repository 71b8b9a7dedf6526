"""Kill the service again and again with `kill -9`, under load, at moments that a seed chooses.

Now and then it is killed while it starts, or a server that it depends on is killed first. Every few rounds, and at the
end, the load pauses, everything must be delivered in bounded time, and the oracle compares.
"""

import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from progress import say
from torture_ground import Ground, Server, TortureError, ground
from torture_load import Load
from torture_oracle import Oracle
from torture_outcome import Outcome

from tests.node import until

WORKERS = 8
CHECK_EVERY = 10
DRAIN_S = 90.0
"""For clients to end what they have in hand, and again for all of it to be delivered."""
FRESH_S = 20.0


class Kind(Enum):
    """What happens in a round besides the service's end."""

    SERVICE = auto()
    """Nothing else."""
    STARTING = auto()
    """It is killed again while it starts."""
    BUCKET = auto()
    """SeaweedFS is killed before it."""
    KEYS = auto()
    """The key server is killed before it."""


_WEIGHTS = {Kind.SERVICE: 14, Kind.STARTING: 3, Kind.BUCKET: 1, Kind.KEYS: 2}


@dataclass(frozen=True, slots=True)
class Round:
    """One life of the service."""

    kind: Kind
    lives_s: float
    """From ready to killed."""
    before_s: float
    """From ready to a server's end, or from a start to its own."""


def plan(count: int, seed: int) -> list[Round]:
    """Choose what is to happen: the same for the same seed."""
    chance = random.Random(seed)
    kinds = chance.choices([*_WEIGHTS], [*_WEIGHTS.values()], k=count)
    return [Round(kind, chance.uniform(0.05, 1.5), chance.uniform(0.1, 1.8)) for kind in kinds]


def kill_rounds(count: int, seed: int, workers: int = WORKERS) -> Outcome:
    """Run all of it in a folder of its own. Raises `TortureError`, `TimeoutError`."""
    with TemporaryDirectory(prefix="pipeline-torture-") as folder:
        return anyio.run(rounds, count, seed, workers, Path(folder), backend_options={"use_uvloop": True})


async def rounds(count: int, seed: int, workers: int, folder: Path) -> Outcome:
    """Run all of it in an empty folder."""
    with scratch() as files:
        async with ground(_made(folder / "site")) as here, anyio.create_task_group() as clients:
            load = Load(here.node.caller, here.site.parties, seed, files, shutil.which("curl"))
            oracle = Oracle(here.site, load.ledger)
            for number in range(workers):
                clients.start_soon(load.work, number, name=f"client {number}")
            for number, each in enumerate(plan(count, seed), start=1):
                await one(here, each)
                last = number == count
                if last or number % CHECK_EVERY == 0:
                    await examine(here, load, oracle, f"check-{seed:x}-{number}", everything=last)
                    say(f"round {number}: {load.acknowledged} acknowledged, {len(oracle.problems())} wrong")
                    load.go_on()
            clients.cancel_scope.cancel()
    for problem in oracle.problems():
        say(problem)
    return oracle.outcome(count, seed)


async def one(here: Ground, each: Round) -> None:
    """Let the service live as long as the round says; kill it, and start it again."""
    servers: dict[Kind, Server] = {Kind.BUCKET: "bucket", Kind.KEYS: "keys"}
    if each.kind in servers:
        await anyio.sleep(each.before_s)
        here.signal(servers[each.kind], signal.SIGKILL)
    await anyio.sleep(each.lives_s)
    alive(here)
    here.node.kill()
    if each.kind is Kind.STARTING:
        with anyio.move_on_after(each.before_s):
            await here.node.start()
        here.node.kill()
    await here.node.start()


async def examine(here: Ground, load: Load, oracle: Oracle, fresh: str, *, everything: bool) -> None:
    """Let everything be delivered, compare it, and see that a fresh recording flows.

    Raises:
        TortureError: something is left behind.
        TimeoutError: it took too long.

    """
    await here.servers_up()
    await load.pause(DRAIN_S)
    await drained(here)
    alive(here)
    await load.fresh(fresh)
    await until(lambda: any(fresh in location for location in here.site.published(here.site.acme)), FRESH_S)
    await oracle.check(everything=everything)
    for party in here.site.parties:
        if left := await here.site.unfinished(party):
            raise TortureError(f"multipart uploads that nobody ended: {left}")


async def drained(here: Ground) -> None:
    """Wait until nothing is open, and nothing waits. Raises `TortureError`."""
    try:
        await until(lambda: not here.site.artifacts("open") and not here.site.artifacts("sealed"), DRAIN_S)
    except TimeoutError:
        left = [path.name for ending in ("open", "sealed") for path in here.site.artifacts(ending)]
        raise TortureError(f"not delivered within {DRAIN_S:g} s: {left}") from None
    if put_aside := [path.name for path in here.site.state.glob("artifacts/*/*.poison.*")]:
        raise TortureError(f"put aside: {put_aside}")


def alive(here: Ground) -> None:
    """See that the service has not ended by itself. Raises `TortureError`."""
    code = here.node.lives[-1].poll()
    if code is not None:
        raise TortureError(f"the service ended by itself with exit code {code}; see {here.node.log}")


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder for files in clear, apart from all that is searched."""
    with TemporaryDirectory(prefix="pipeline-torture-clear-") as folder:
        yield Path(folder)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
