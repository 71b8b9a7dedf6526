"""Run the service for minutes with every fault on, and see that it neither loses anything nor grows.

In the first part its own process is ended again and again. In the second it lives on through everything else, so that
its memory, descriptors, threads and tasks can be compared: while all is quiet, at every check.
"""

import random
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from progress import say
from torture_faults import AWS_SHAPED, Fault, Faults, broken_between, dealt
from torture_gauge import MIB, Sample, growth, look, told
from torture_ground import Ground, TortureError, prepared
from torture_hostile import HOSTILE
from torture_kill import examine, scratch
from torture_load import Load, asked
from torture_oracle import Oracle
from torture_outcome import Outcome

from tests.node import process_node

WORKERS = 6
DEADLY_SHARE = 0.4
"""Of the time: the part in which the service's process is ended."""
CHECKS = 6
LEAST_S, MOST_S = 15.0, 60.0
"""As many, unless the time between them would be shorter or longer."""
SETTLE_S = 3.0
"""For connections that nobody uses any more to be closed, before a quiet look."""
MEMORY_GROWS_BYTES = 32 * MIB
"""At most, in its last life, once it is warm, to its end: what was delivered stays in its index."""
DESCRIPTORS_GROW = 24
"""Connections to the servers and from clients are kept open for a while: how many differs."""
THREADS_GROW = 12
"""They are made when first needed, up to a limit."""
TASKS_GROW = 24


@dataclass
class Soak:
    """A run."""

    here: Ground
    load: Load
    oracle: Oracle
    faults: Faults
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    quiet: list[Sample] = field(default_factory=list)
    busy: list[Sample] = field(default_factory=list)
    checks: int = 0
    annoyed: int = 0

    async def part(self, seconds: float, check_s: float, *, deadly: bool) -> None:
        """Let things go wrong for so long, with checks in between, whose time does not count, and at the end."""
        chance = random.Random(self.seed + deadly)
        deck = dealt(chance, self.faults.deck(deadly=deadly))
        stretches = max(1, round(seconds / check_s))
        for _ in range(stretches):
            with anyio.move_on_after(seconds / stretches) as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._break, deck, chance, scope, name="faults")
                    group.start_soon(self._annoy, chance, name="hostile clients")
                    if not deadly:
                        group.start_soon(self._watch, name="watch")
            await self._check(deadly=deadly, everything=False)

    async def end(self) -> None:
        """Read everything again, and see that nothing grew. Raises `TortureError`."""
        await self._check(deadly=False, everything=True)
        say(", ".join(f"{count} {name}" for name, count in sorted(self.done.items())))
        for name, samples in (("busy", self.busy), ("quiet", self.quiet)):
            for each in samples[:: -(-len(samples) // 12) or 1]:
                say(f"{name} after {each.at_s:.0f} s: {told(each)}")
        bounds = {"memory_bytes": MEMORY_GROWS_BYTES, "descriptors": DESCRIPTORS_GROW, "threads": THREADS_GROW}
        if all(each.tasks is not None for each in self.quiet[1:]):
            bounds["tasks"] = TASKS_GROW
        warm = self.quiet[1:]
        grown = {name: growth(warm, attrgetter(name)) for name in bounds}
        say(f"once warm, to the end: {', '.join(f'{name} {by:+.0f}' for name, by in grown.items())}")
        if too_much := [name for name, by in grown.items() if by > bounds[name]]:
            raise TortureError(f"grew by more than its bound: {too_much}")

    # --- inside

    async def _break(self, deck: Iterator[Fault], chance: random.Random, scope: anyio.CancelScope) -> None:
        """Break one thing after another. What is broken when the time is up is mended first."""
        while not scope.cancel_called:
            fault = next(deck)
            self.done[fault.__name__.strip("_").replace("_", " ")] += 1
            with anyio.CancelScope(shield=True):
                await fault(chance)
            await anyio.sleep(chance.random())

    async def _annoy(self, chance: random.Random) -> None:
        """Be one bad client after another, beside everything else."""
        for do in dealt(chance, HOSTILE):
            self.annoyed += 1
            self.done[f"client {do.__name__.strip('_').replace('_', ' ')}"] += 1
            await do(self.load, chance, f"h{self.seed:x}-{self.annoyed}")
            await anyio.sleep(chance.random())

    async def _watch(self) -> None:
        while True:
            self.busy.append(look(self.here.node.pid, anyio.current_time(), await self._tasks()))
            await anyio.sleep(2)

    async def _check(self, *, deadly: bool, everything: bool) -> None:
        self.checks += 1
        await examine(self.here, self.load, self.oracle, f"f{self.seed:x}-{self.checks}", everything=everything)
        await anyio.sleep(SETTLE_S)
        if not deadly:
            self.quiet.append(look(self.here.node.pid, anyio.current_time(), await self._tasks()))
        say(
            f"check {self.checks}: {sum(self.done.values())} faults, {self.load.acknowledged} acknowledged, "
            f"{len(self.oracle.problems())} wrong; {told(look(self.here.node.pid, anyio.current_time()))}"
        )
        self.load.go_on()

    async def _tasks(self) -> int | None:
        """Ask how many tasks its event loop runs; None if it does not say."""
        answer = await asked(partial(self.load.caller.ask, "GET", "/readyz?verbose", None))
        found = None if answer is None else re.search(rb"tasks\D+(\d+)", answer.body)
        return int(found[1]) if found else None


def soak(minutes: float, seed: int, workers: int = WORKERS) -> Outcome:
    """Run all of it in a folder of its own. Raises `TortureError`, `TimeoutError`."""
    with TemporaryDirectory(prefix="pipeline-torture-") as folder:
        return anyio.run(soaked, minutes, seed, workers, Path(folder), backend_options={"use_uvloop": True})


async def soaked(minutes: float, seed: int, workers: int, folder: Path) -> Outcome:
    """Run all of it in an empty folder."""
    seconds = minutes * 60
    check_s = min(MOST_S, max(LEAST_S, seconds / CHECKS))
    with scratch() as files:
        async with _broken_ground(folder, seed) as (here, faults), anyio.create_task_group() as clients:
            load = Load(here.node.caller, here.site.parties, seed, files, shutil.which("curl"))
            oracle = Oracle(here.site, load.ledger)
            for number in range(workers):
                clients.start_soon(load.work, number, name=f"client {number}")
            run = Soak(here, load, oracle, faults, seed)
            await run.part(seconds * DEADLY_SHARE, check_s, deadly=True)
            await run.part(seconds * (1 - DEADLY_SHARE), check_s, deadly=False)
            await run.end()
            clients.cancel_scope.cancel()
    for problem in oracle.problems():
        say(problem)
    return oracle.outcome(sum(run.done.values()), seed)


@asynccontextmanager
async def _broken_ground(folder: Path, seed: int) -> AsyncIterator[tuple[Ground, Faults]]:
    """Run the service and its servers, with what breaks the way between."""
    site_folder = folder / "site"
    site_folder.mkdir()
    async with prepared(site_folder) as site, broken_between(site.settings.s3, site.settings.kms) as (aws, s3, kms):
        site.settings = replace(site.settings, s3=s3.endpoint, kms=kms.endpoint)
        async with process_node(site) as node:
            here = Ground(site, node)
            yield here, Faults(here, aws, s3, kms, dealt(random.Random(seed), AWS_SHAPED))
