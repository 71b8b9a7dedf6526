"""F35: one instance's bucket is dead, among 500; what the others wait does not change. In virtual time, so exact."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import anyio
import pytest

from pipeline.errors import DestinationBusyError, DestinationHeldError, HoldCode
from pipeline.interim.states import ArtifactName
from pipeline.settings import DeliverySettings
from tests.schedule import Schedule, schedule
from tests.simulation.virtual import run

INSTANCES = 500
SILENCE_S = 60.0
"""How long a request to a bucket that does not answer takes."""
WORKERS = DeliverySettings().workers


@dataclass(frozen=True)
class Seen:
    """What the healthy instances waited, and what the dead one took."""

    count: int
    p99: float
    worst: float
    most_under_way: int
    attempts: int
    """At the dead bucket."""


async def silent() -> None:
    await anyio.sleep(SILENCE_S)
    raise DestinationBusyError("no answer")


async def refused() -> None:
    raise DestinationBusyError("connection refused")


async def forbidden() -> None:
    raise DestinationHeldError(HoldCode.DESTINATION_ACCESS_DENIED, "403")


def seen(made: Schedule) -> Seen:
    waited = sorted(each for instance, found in made.waited.items() if instance for each in found)
    return Seen(
        len(waited),
        waited[len(waited) * 99 // 100],
        waited[-1],
        made.most_under_way.get(0, 0),
        sum(not instance for _, instance, _ in made.started),
    )


LASTING = pytest.mark.parametrize("lasting_s", [20.0, pytest.param(70.0, marks=pytest.mark.slow)])


async def traffic(
    death: Callable[[], object] | None, lasting_s: float, *, backlog: int = 0, dies_at: float = 0.0
) -> Seen:
    """Let recordings of all instances arrive for a while, at half of what the workers can do."""
    chance = random.Random(7)

    async def attempt(instance: int, name: ArtifactName) -> None:
        took = 0.05 + 0.1 * random.Random(name.artifact_id.int).random()
        if instance == 0 and death is not None and anyio.current_time() >= dies_at:
            await death()  # type: ignore[misc]  # one of the three above
        await anyio.sleep(took)

    async with schedule(attempt) as made:
        for _ in range(backlog):
            made.arrive(0)
        while anyio.current_time() < lasting_s:
            made.arrive(chance.randrange(INSTANCES))
            await anyio.sleep(chance.expovariate(80.0))
        await anyio.sleep(5.0)
        return seen(made)


@cache
def undisturbed(lasting_s: float) -> Seen:
    return run(traffic(None, lasting_s))


@LASTING
@pytest.mark.parametrize(
    "death", [pytest.param(silent, marks=pytest.mark.slow), refused, pytest.param(forbidden, marks=pytest.mark.slow)]
)
def test_a_dead_bucket_does_not_change_what_the_others_wait(death: Callable[[], object], lasting_s: float) -> None:
    healthy, troubled = undisturbed(lasting_s), run(traffic(death, lasting_s))
    assert healthy.count > 72 * lasting_s
    assert troubled.p99 <= healthy.p99 * 1.1
    assert troubled.worst <= healthy.worst * 1.5
    assert troubled.most_under_way <= 2
    assert troubled.attempts < 60


@LASTING
def test_a_bucket_that_dies_under_a_backlog_leaves_places_for_the_others(lasting_s: float) -> None:
    """It has all the workers when it dies; those kept for lanes that have nothing under way serve the others."""
    healthy = run(traffic(None, lasting_s, backlog=1000))
    troubled = run(traffic(silent, lasting_s, backlog=1000, dies_at=5.0))
    assert troubled.most_under_way <= WORKERS
    assert troubled.p99 <= healthy.p99 * 1.1


@LASTING
def test_many_dead_buckets_probe_few_at_a_time(lasting_s: float) -> None:
    """A tenth of all buckets do not answer. When they are known, what probes them is bounded."""

    async def drive() -> tuple[Seen, int]:
        chance, probing = random.Random(7), 0

        async def attempt(instance: int, _: ArtifactName) -> None:
            nonlocal probing
            if instance < 50:
                await silent()
            await anyio.sleep(0.05 + 0.1 * chance.random())

        async with schedule(attempt) as made:
            for number in range(50):
                for _ in range(20):
                    made.arrive(number)
            await anyio.sleep(1200.0)
            made.waited.clear()
            until = anyio.current_time() + lasting_s
            while anyio.current_time() < until:
                made.arrive(50 + chance.randrange(450))
                await anyio.sleep(chance.expovariate(50.0))
                probing = max(probing, sum(made.under_way.get(number, 0) for number in range(50)))
            await anyio.sleep(5.0)
            return seen(made), probing

    troubled, probing = run(drive())
    assert probing <= WORKERS // 4
    assert troubled.p99 <= undisturbed(lasting_s).p99 * 1.1


@pytest.mark.parametrize("instances", [150, pytest.param(INSTANCES, marks=pytest.mark.slow)])
def test_a_drain_shares_the_workers_evenly_and_a_dead_bucket_costs_one_place(instances: int) -> None:
    """All of them have a backlog: what each still waits for grows at the same rate."""

    async def drain(death: Callable[[], object] | None) -> Seen:
        async def attempt(instance: int, name: ArtifactName) -> None:
            if instance == 0 and death is not None:
                await death()  # type: ignore[misc]  # one of the three above
            await anyio.sleep(0.1)

        async with schedule(attempt) as made:
            for _ in range(10):
                for number in range(instances):
                    made.arrive(number)
            await made.delivered(10 * (instances - (death is not None)))
            by_instance = [made.waited[number] for number in range(1, instances)]
            ends = [max(found) for found in by_instance]
            assert max(ends) - min(ends) < 0.15 * max(ends)
            return seen(made)

    healthy, troubled = run(drain(None)), run(drain(silent))
    assert troubled.p99 <= healthy.p99 * 1.1
    assert troubled.most_under_way <= 2


def test_the_schedule_does_not_go_through_all_lanes_for_each_artifact() -> None:
    """Ten times as many lanes that have nothing to do cost no more turns of the loop."""

    async def turns(lanes: int) -> int:
        async def attempt(_instance: int, _name: ArtifactName) -> None:
            await anyio.sleep(0.1)

        async with schedule(attempt) as made:
            for number in range(lanes):
                made.arrive(number)
            await made.delivered(lanes)
            for number in range(200):
                made.arrive(number % 7)
            before = made.dispatcher._lanes._turns
            await made.delivered(lanes + 200)
            return made.dispatcher._lanes._turns - before

    assert run(turns(1000)) <= 1.1 * run(turns(100))
