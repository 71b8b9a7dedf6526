"""F34: a bucket is down for up to 72 hours while recordings pile up, and comes back. In virtual time.

All is delivered, oldest first and fair to every instance; meanwhile, and in the first moments after, nobody storms the
bucket; the age of the oldest undelivered recording only falls from then on.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast
from uuid import UUID

import anyio
import pytest

from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.holds import Holds
from pipeline.errors import DestinationBusyError, RejectError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind
from pipeline.interim.index import Index
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.settings import DeliverySettings
from tests.simulation.virtual import WorldClock, run
from tests.simulation.world import silent

HOUR_S = 3600.0
ONE_S = 0.9
"""What one delivery takes, once the bucket is back."""
WORKERS = 16


@dataclass
class Bucket:
    """One bucket for all, and what is seen of those who call it."""

    index: Index
    is_down: bool = True
    attempts: Counter[str] = field(default_factory=Counter)
    """While it is down, and for each second after."""
    tried: set[ArtifactId] = field(default_factory=set)
    """While it is down."""
    most_at_once: int = 0
    begun: list[ArtifactName] = field(default_factory=list)
    """Since it is back."""
    delivered: list[ArtifactName] = field(default_factory=list)
    back_at: float = 0.0
    _at_once: int = 0

    async def deliver(self, name: ArtifactName) -> None:
        self.attempts["down" if self.is_down else f"{anyio.current_time() - self.back_at:.0f}"] += 1
        if self.is_down:
            self.tried.add(name.artifact_id)
            await anyio.sleep(0.01)
            raise DestinationBusyError("connection refused")
        self.begun.append(name)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await anyio.sleep(ONE_S)
        self._at_once -= 1
        self.delivered.append(name)
        self.index.put(name.delivered())

    async def reject(self, name: ArtifactName, error: RejectError) -> None:
        raise AssertionError(f"{name} was put aside: {error}")


@dataclass
class Store:
    """As much of one as the schedule asks for."""

    index: Index = field(default_factory=Index)


def sealed(instance: InstanceId, number: int) -> ArtifactName:
    return ArtifactName(
        artifact_id=ArtifactId(UUID(int=number << 32 | instance.int)),
        instance_id=instance,
        kind=Kind.VOICE,
        key_id=KeyId(UUID(int=1)),
        tag=f"{number:016x}",
        generation=1,
        sequence=2,
        state=State.SEALED,
        size_bytes=1,
    )


class NoHolds:
    """A bucket that does not answer holds nobody."""

    def get(self, _instance: InstanceId, _kind: Kind) -> None:
        return None

    def of(self, _name: ArtifactName) -> list[object]:
        return []


async def outage(backlog: dict[InstanceId, int], hours: int) -> Bucket:
    """Let the backlog come evenly over the hours of an outage, let the bucket come back, and wait until all is gone."""
    store = Store()
    bucket = Bucket(store.index)
    dispatcher = Dispatcher(
        store=cast("InterimStore", store),
        holds=cast("Holds", NoHolds()),
        deliver=bucket.deliver,
        reject=bucket.reject,
        clock=WorldClock(),
        random=random.Random(34).random,
        settings=DeliverySettings(workers=WORKERS),
    )
    async with anyio.create_task_group() as group:
        group.start_soon(dispatcher.run)
        for hour in range(hours):
            for instance, count in backlog.items():
                for number in range(count * hour // hours, count * (hour + 1) // hours):
                    name = sealed(instance, number)
                    store.index.put(name)
                    dispatcher.add(name)
            await anyio.sleep(HOUR_S)
        bucket.is_down, bucket.back_at = False, anyio.current_time()
        with anyio.fail_after(
            sum(backlog.values()) * ONE_S / WORKERS * 2 + 2 * 300
        ):  # and at most two of the longest pauses
            while store.index.count(State.SEALED):  # noqa: ASYNC110
                await anyio.sleep(1)
        group.cancel_scope.cancel()
    return bucket


INSTANCES = [InstanceId(UUID(int=number)) for number in range(1, 5)]


@pytest.mark.parametrize(
    ("hours", "recordings"),
    [
        pytest.param(12, 4_000, id="12 hours"),
        pytest.param(72, 6_000, id="72 hours", marks=pytest.mark.slow),
        pytest.param(72, 1_000_000, id="a million", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_a_bucket_that_was_down_for_long_gets_all_of_it(hours: int, recordings: int) -> None:
    backlog = dict(zip(INSTANCES, (recordings // 2, recordings // 4, recordings // 4 - 10, 10), strict=True))
    with silent():
        bucket = run(outage(backlog, hours))
    check_all_in_order(bucket, backlog)
    check_no_storm(bucket, len(backlog), hours)
    check_fair(bucket, backlog)


def check_all_in_order(bucket: Bucket, backlog: dict[InstanceId, int]) -> None:
    """All, each once; an instance's oldest first, so that the age of its oldest only falls.

    But for the few that were tried while the bucket was down, and wait for a time of their own.
    """
    assert len({name.artifact_id for name in bucket.delivered}) == len(bucket.delivered) == sum(backlog.values())
    assert len(bucket.tried) <= 10 * len(backlog)
    for instance in backlog:
        order = [name.artifact_id for name in bucket.begun if name.instance_id == instance]
        untried = [artifact for artifact in order if artifact not in bucket.tried]
        assert untried == sorted(untried)


def check_no_storm(bucket: Bucket, lanes: int, hours: int) -> None:
    """While it is down each lane probes once in a while; once it is back, the first second sees few more."""
    pauses = hours * HOUR_S / timedelta(minutes=5).total_seconds()
    assert bucket.attempts["down"] <= lanes * (3 * pauses)
    assert bucket.attempts["0"] <= 4 * WORKERS
    assert bucket.most_at_once <= WORKERS + WORKERS // 2


def check_fair(bucket: Bucket, backlog: dict[InstanceId, int]) -> None:
    """While several have something, and their probes found the bucket back, nobody gets much more than another."""
    places = {each: [at for at, name in enumerate(bucket.delivered) if name.instance_id == each] for each in backlog}
    *large, small = backlog
    assert places[small][-1] - places[small][0] <= 4 * len(backlog) * backlog[small]
    begin, end = max(places[each][0] for each in large), min(places[each][-1] for each in large)
    assert end - begin > len(bucket.delivered) / 10
    shares = Counter(name.instance_id for name in bucket.delivered[begin:end])
    assert max(shares[each] for each in large) <= 1.2 * min(shares[each] for each in large)
