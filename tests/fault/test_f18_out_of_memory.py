"""F18: memory runs out where something is asked of the disk. That ends the call, what was under way, or all.

It is never taken for success: whether the process ends with it or goes on, nothing acknowledged is lost.
"""

import random
from collections.abc import Callable, Sequence

import pytest

from tests.fault.crash_explorer import judge, to_the_end
from tests.fault.crash_journey import STEPS, come_back, endured, lived, made_small, promises
from tests.simulation.oracle import check_delivered, check_held, drain
from tests.simulation.virtual import run
from tests.simulation.world import Node, World, node

Report = Callable[[str, object], None]


async def _operations() -> int:
    world = World(chance=random.Random(0), promises=promises())
    async with node(world) as process:
        before = len(world.disk.done)
        await lived(process, STEPS)
        return len(world.disk.done) - before


async def starve(number: int) -> bool:
    """Let memory run out at one operation; tell whether the process ended with that."""
    world = World(chance=random.Random(0), promises=promises())
    ended = False
    try:
        async with node(world) as process:
            world.disk.fail(number, MemoryError())
            await endured(process, STEPS)
            await _end(process)
        judge(world, returning=True, at_once=False)
    except* MemoryError:
        ended = True
    assert not [failure for failure in world.disk.failures if failure.times], "it did run out"
    for disk in (world.disk.snapshot(), world.disk.crash()):
        await to_the_end(world.copy(disk), returning=ended, at_once=False)
    return ended


async def _end(process: Node) -> None:
    await check_held(process)
    await come_back(process)
    await drain(process)
    check_delivered(process)


async def starve_at(numbers: Sequence[int]) -> int:
    """Give the number of processes that ended with it."""
    ended = 0
    for number in numbers:
        try:
            ended += await starve(number)
        except BaseException as error:
            error.add_note(f"memory ran out at operation {number}")
            raise
    return ended


def starved(every: int, first: int, report: Report) -> None:
    with made_small():
        numbers = range(first, run(_operations()), every)
        ended = run(starve_at(numbers))
    report("counted", f"memory ran out at {len(numbers)} operations, {ended} processes ended with it")
    assert 0 < ended < len(numbers)


def test_memory_that_runs_out_at_some_operations_loses_nothing(record_property: Report) -> None:
    starved(60, 8, record_property)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_that_runs_out_at_any_operation_loses_nothing(record_property: Report) -> None:
    starved(1, 0, record_property)
