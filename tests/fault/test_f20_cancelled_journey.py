"""F20, F17: cancellation at every await of what sources cause, and a stop of the service at every step of everything.

Wherever it strikes: no task, handle or multipart upload is left behind, nothing acknowledged is lost, and sources that
come back get to the end of what they wanted, also if the power is cut then.
"""

import random
from collections.abc import Callable, Coroutine, Generator, Sequence
from functools import partial
from typing import Any

import anyio
import pytest

from tests.fault.crash_explorer import judge, to_the_end
from tests.fault.crash_journey import STEPS, come_back, endured, lived, made_small, promises
from tests.simulation.oracle import check_delivered, check_held, check_tidy, drain
from tests.simulation.virtual import run
from tests.simulation.world import Node, World, node

Report = Callable[[str, object], None]
OF_SOURCES = (
    "announce",
    "two at once",
    "break off",
    "say one",
    "send it whole",
    "say two",
    "break off again",
    "resume",
    "hang up",
    "go away",
)


class CancelledAt:
    """Awaits a coroutine, and cancels `scope` when it is suspended for the time `number`, counted from 1."""

    def __init__(self, work: Coroutine[Any, Any, None], number: int, scope: anyio.CancelScope) -> None:
        self._work = work
        self._number = number
        self._scope = scope
        self.seen = 0

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self._work.__await__()
        go_on: Callable[[], Any] = partial(inner.send, None)
        while True:
            try:
                waits_for = go_on()
            except StopIteration:
                return
            self.seen += 1
            if self.seen == self._number:
                self._scope.cancel()
            try:
                go_on = partial(inner.send, (yield waits_for))
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is for who waits
                go_on = partial(inner.throw, error)


def new_world() -> World:
    return World(chance=random.Random(0), promises=promises())


async def _end(process: Node) -> None:
    """Come back; have everything delivered, and compare."""
    await check_held(process)
    await come_back(process)
    await drain(process)
    check_delivered(process)


async def cancelled(name: str, number: int) -> bool:
    """Live up to a step, cancel that one at its await of that number, and go on. False: it has not so many."""
    world = new_world()
    async with node(world) as process:
        await lived(process, dict(list(STEPS.items())[: list(STEPS).index(name)]))
        with anyio.CancelScope() as scope:
            step = CancelledAt(_awaited(process, name), number, scope)
            await step
        await _end(process)
    check_tidy(world)
    judge(world, returning=True)
    await to_the_end(world.copy(world.disk.crash()), returning=False)
    return step.seen >= number


async def _awaited(process: Node, name: str) -> None:
    await STEPS[name](process)


async def cancelled_everywhere(names: Sequence[str], every: int) -> int:
    total = 0
    for name in names:
        number = 1
        while True:
            try:
                if not await cancelled(name, number):
                    break
            except BaseException as error:
                error.add_note(f"{name}, cancelled at its await {number}")
                raise
            total += 1
            number += every
    return total


def test_a_source_that_is_cancelled_at_some_awaits_leaves_nothing(record_property: Report) -> None:
    with made_small():
        total = run(cancelled_everywhere(OF_SOURCES, 3))
    record_property("counted", f"{total} cancellations")
    assert total > 8


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_source_that_is_cancelled_at_any_await_leaves_nothing(record_property: Report) -> None:
    with made_small():
        total = run(cancelled_everywhere(OF_SOURCES, 1))
    record_property("counted", f"{total} cancellations")
    assert total > 20


# --- the service stops


async def stopped(number: int) -> bool:
    """Stop the service at a step of its disk or bucket, in order, and start it again. False: there are not so many."""
    world = new_world()
    stop, seen = anyio.Event(), 0

    def step(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            stop.set()

    async with node(world) as process, anyio.create_task_group() as sources:
        world.disk.before = step
        for bucket in world.buckets.values():
            bucket.on_step = step
        sources.start_soon(_live, process, stop)
        await stop.wait()
        sources.cancel_scope.cancel()
    check_tidy(world)
    for bucket in world.buckets.values():
        assert bucket.uploads == {}, "a multipart upload was left behind"
    if seen < number:
        return False
    async with node(world) as process:
        await _end(process)
    check_tidy(world)
    judge(world, returning=True)
    await to_the_end(world.copy(world.disk.crash()), returning=False)
    return True


async def _live(process: Node, stop: anyio.Event) -> None:
    await endured(process, STEPS)
    stop.set()


async def stopped_everywhere(first: int, every: int) -> int:
    number = first
    while True:
        try:
            if not await stopped(number):
                return (number - first) // every
        except BaseException as error:
            error.add_note(f"stopped at step {number}")
            raise
        number += every


def test_a_service_that_is_stopped_at_some_steps_goes_on_later(record_property: Report) -> None:
    with made_small():
        total = run(stopped_everywhere(5, 80))
    record_property("counted", f"{total} stops")
    assert total > 4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_service_that_is_stopped_at_any_step_goes_on_later(record_property: Report) -> None:
    with made_small():
        total = run(stopped_everywhere(1, 1))
    record_property("counted", f"{total} stops")
    assert total > 200
