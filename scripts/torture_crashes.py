"""Simulated crashes from a seed, as many processes at a time as there are processors.

Every seed from the given one on is a world of its own: the sources, what they send, the weather, and some hundred
moments at which its power is cut, each time with another legal loss of what was not synced. One round is one power cut,
the recovery from it, and the comparison of what is held with what was acknowledged; one in eight goes on until all of
it is delivered, and compares the buckets. Worlds are not cut short: a little more is done than was asked for.
"""

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager

from progress import say
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torture_ground import TortureError
from torture_outcome import Outcome

from tests.simulation.crashes import Found, first, simulate

AHEAD = 4
"""Worlds that wait for each process."""
TOLD_EVERY_S = 30.0


def crashes(count: int, seed: int, workers: int = os.cpu_count() or 1) -> Outcome:
    """Simulate at least `count` crashes.

    Raises:
        TortureError: something else went wrong than what the outcome counts.

    """
    began, done, drained = time.monotonic(), 0, 0
    broken: Counter[str] = Counter()
    with _progress(count) as told:
        for found in _worlds(count, seed, workers):
            done, drained = done + found.crashes, drained + found.drained
            if found.broken is not None:
                broken[found.broken] += 1
                say(f"{found.broken}: {found.message}\nreplay: scripts/torture --crashes 1 --seed {found.seed}")
            told(done)
    took_s = time.monotonic() - began
    say(f"{done} crashes, {drained} of them drained, {done / took_s:.0f} in a second with {workers} processes")
    outcome = Outcome(
        rounds=done,
        lost=broken.pop("LostError", 0),
        duplicated=broken.pop("DuplicatedError", 0),
        wrong_bytes=broken.pop("WrongBytesError", 0),
        plaintext_hits=broken.pop("PlaintextError", 0),
        seed=seed,
    )
    if broken:
        raise TortureError(f"besides: {dict(broken)}")
    return outcome


def _worlds(count: int, seed: int, workers: int) -> Iterator[Found]:
    """Give what each world came to, as it is known, until there were enough crashes."""
    os.environ["PYTHONHASHSEED"] = "0"  # of the processes: the order of a set is part of what a seed replays
    done, waiting = 0, set[Future[Found]]()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            while done < count:
                while len(waiting) < workers * AHEAD:
                    future = pool.submit(_world, seed)
                    waiting.add(future)
                    seed += 1
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    found = future.result()
                    done += found.crashes
                    yield found
        finally:
            pool.shutdown(cancel_futures=True)


def _world(seed: int) -> Found:
    """Simulate one world; an error that is no broken promise is told like one, with its seed."""
    found: Found | None = None
    try:
        found = simulate(seed)
    except* Exception as errors:  # noqa: BLE001 - whatever it is, its seed must be told
        found = Found(seed, 0, 0, broken=type(first(errors)).__name__, message=str(first(errors)))
    assert found is not None
    return found


@contextmanager
def _progress(count: int) -> Iterator[Callable[[int], object]]:
    """Tell how far it is: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        columns = TextColumn("crashes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("crashes", total=count)
            yield lambda done: progress.update(task, completed=done)
        return
    told_at = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TOLD_EVERY_S:
            told_at = time.monotonic()
            say(f"{done} of {count} crashes")

    yield tell
