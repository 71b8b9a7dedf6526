"""F7 to F9, F18: the disk refuses one operation of the journey, or all from one on, and heals later.

Whatever it refuses, nothing acknowledged is lost, also if the power is cut at the end: what a failed sync covered is in
doubt from then on, however many later syncs succeed. Nothing is delivered wrong or twice, nothing is left open.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import anyio
import pytest

from pipeline.errors import PipelineError, StoreBusyError, StoreFullError, StoreIoError
from tests.fault.crash_explorer import Moment, Recorder, any_left_by, judge, to_the_end
from tests.fault.crash_journey import STEPS, come_back, endured, lived, made_small, promises
from tests.model_disk import ModelDisk
from tests.simulation.oracle import check_delivered, check_held, check_tidy, drain
from tests.simulation.virtual import run
from tests.simulation.world import Node, World, node

Report = Callable[[str, object], None]
Error = type[PipelineError]
REFUSALS: tuple[tuple[Error, int | None], ...] = (
    (StoreIoError, 1),
    (StoreFullError, None),
    (StoreFullError, 1),
    (StoreIoError, None),
    (StoreBusyError, 1),
    (StoreBusyError, None),
)
"""What is raised, and how often: `None` is until the disk heals."""
CUTS, SOON = 3, 60
"""For each refusal, power cuts during the journey, within so many operations after it."""
_TRIES = 10


@dataclass(frozen=True)
class Refusal:
    """Operation `number` of the journey is refused, and all after it or none."""

    number: int
    operation: str
    error: Error
    times: int | None

    def __str__(self) -> str:
        how = "once" if self.times else "and all after it"
        return f"operation {self.number}, {self.operation}, fails {how}: {self.error.__name__}"


def new_world() -> World:
    return World(chance=random.Random(0), promises=promises())


async def operations() -> list[tuple[str, str]]:
    """Live the journey without trouble; give what it asks of the disk."""
    world = new_world()
    async with node(world) as process:
        before = len(world.disk.done)
        await lived(process, STEPS)
        return world.disk.done[before:]


async def refusals(every: int, part: int) -> list[Refusal]:
    """Refuse each operation that may fail, with the next of all the ways; or one in `every`."""
    may_fail = [(number, what) for number, (what, _) in enumerate(await operations()) if what != "close"]
    chosen = may_fail[part::every]
    return [
        Refusal(number, what, *REFUSALS[(turn + way) % len(REFUSALS)])
        for turn, (number, what) in enumerate(chosen)
        for way in (0, 1)
    ]


async def suffer(refusal: Refusal) -> None:
    """Live the journey with it; let the disk heal and sources come back; cut the power at times, and at the end."""
    world, chance = new_world(), random.Random(refusal.number)
    try:
        async with node(world) as process:
            first = len(world.disk.done) + refusal.number
            world.disk.fail(refusal.number, refusal.error("refused"), times=refusal.times)
            with Recorder(world, str(refusal)) as recorder:
                await endured(process, STEPS)
            world.disk.failures.clear()
            await _come_back(process)
            await drain(process)
            await check_held(process)
            check_delivered(process)
        check_tidy(world)
        judge(world, returning=True, at_once=False)
        for disk in _cut(world.disk):
            await to_the_end(world.copy(disk), returning=False, at_once=False)
        after = [moment for moment in recorder.moments if first < moment.done < first + SOON]
        for moment in chance.sample(after, min(CUTS, len(after))):
            await _cut_at(moment, chance)
    except BaseException as error:
        error.add_note(str(refusal))
        raise


async def _cut_at(moment: Moment, chance: random.Random) -> None:
    left = any_left_by(moment, chance)
    try:
        await to_the_end(left.world, returning=False, at_once=False)
    except BaseException as error:
        error.add_note(left.how)
        raise


def _cut(disk: ModelDisk) -> Iterator[ModelDisk]:
    yield disk.crash()
    yield disk.crash(disk.any_choice(random.Random(0)))


async def _come_back(process: Node) -> None:
    """Come back as often as it takes: what the trouble left may have to be recovered first."""
    for _ in range(_TRIES):
        try:
            await come_back(process)
        except PipelineError:
            await anyio.sleep(5)
        else:
            return
    raise AssertionError("the disk has healed, and intake has not")


async def _suffer_all(chosen: list[Refusal]) -> None:
    for refusal in chosen:
        await suffer(refusal)


def suffered(every: int, part: int, report: Report) -> int:
    with made_small():
        chosen = run(refusals(every, part))
        run(_suffer_all(chosen))
    report("counted", f"{len(chosen)} refusals suffered, of {len({each.number for each in chosen})} operations")
    return len(chosen)


def test_some_refusals_of_the_disk_lose_nothing_and_are_recovered_from(record_property: Report) -> None:
    assert suffered(80, 11, record_property) >= 10


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(4))
def test_no_refusal_of_the_disk_loses_anything_or_is_not_recovered_from(part: int, record_property: Report) -> None:
    assert suffered(4, part, record_property) > 150
