"""F26 to F29 in the schedule: a bucket that is overrun is asked less, one that can't be used is held. Virtual time."""

from uuid import UUID

import anyio
import pytest

from pipeline.delivery.lanes import SILENT_S, Places
from pipeline.errors import DeferError, DestinationBusyError, DestinationHeldError, HoldCode, KeyBusyError
from pipeline.ids import ArtifactId, Kind
from pipeline.interim.states import ArtifactName
from pipeline.settings import DeliverySettings
from tests.schedule import schedule
from tests.simulation.virtual import run

WORKERS = DeliverySettings().workers


class Limited:
    """A bucket that takes so many writes at a time and answers SlowDown to more, as S3 does."""

    def __init__(self, limit: int, error: DeferError | None = None) -> None:
        self.limit = limit
        self.error = error or DestinationBusyError("SlowDown")
        self.at_once = 0
        self.refused = 0
        self.taken = 0

    async def __call__(self, _instance: int, _name: ArtifactName) -> None:
        self.at_once += 1
        try:
            await anyio.sleep(0.05)
            if self.at_once > self.limit:
                self.refused += 1
                raise self.error
            await anyio.sleep(0.05)
            self.taken += 1
        finally:
            self.at_once -= 1


def test_concurrency_falls_in_a_storm_and_comes_back_after_it() -> None:
    """F26: additive increase, multiplicative decrease, for each destination."""

    async def drive() -> None:
        bucket = Limited(WORKERS)
        async with schedule(bucket) as made:
            for _ in range(5_000):
                made.arrive(0)
            await anyio.sleep(5.0)
            lane = made.lane(0)
            assert lane.window.size == WORKERS
            assert bucket.refused == 0
            bucket.limit = 0  # the storm
            await anyio.sleep(60.0)
            assert lane.window.size == 1.0
            assert bucket.refused < 40  # of 9600 that 16 workers would have asked
            bucket.limit = 3
            # A bucket that takes a few at a time gets about as many, and is seldom asked for more.
            await anyio.sleep(60.0)
            bucket.taken = bucket.refused = 0
            await anyio.sleep(30.0)
            assert bucket.taken > 300  # of 900
            assert bucket.refused < bucket.taken / 5
            bucket.limit = WORKERS
            await anyio.sleep(15.0)
            assert lane.window.size > 10

    run(drive())


def test_a_storm_over_one_bucket_is_not_felt_by_another() -> None:
    """F26."""

    async def drive() -> None:
        storm, calm = Limited(0), Limited(WORKERS)

        async def attempt(instance: int, name: ArtifactName) -> None:
            await (calm if instance else storm)(instance, name)

        async with schedule(attempt) as made:
            for number in range(200):
                made.arrive(0)
                if number < 50:
                    made.arrive(1)
            await made.delivered(50)
            assert anyio.current_time() < 2.0
            assert made.lane(1).window.size >= 10

    run(drive())


@pytest.mark.parametrize(
    "error", [DestinationBusyError("SlowDown", retry_after_s=40.0), DestinationBusyError("x", retry_after_s=9e9)]
)
def test_a_bucket_that_asks_to_be_left_alone_is(error: DestinationBusyError) -> None:
    """F26: Retry-After is kept by the whole destination, and bounded by the longest wait there is."""
    asked_s = min(error.retry_after_s or 0.0, DeliverySettings().retry_most.total_seconds())

    async def drive() -> None:
        bucket = Limited(0, error)
        async with schedule(bucket) as made:
            for _ in range(50):
                made.arrive(0)
            await anyio.sleep(1.0)
            first = bucket.refused
            assert first <= 2
            bucket.limit = WORKERS
            await anyio.sleep(asked_s - 2.0)
            assert bucket.refused + bucket.taken == first
            await anyio.sleep(600.0)
            assert bucket.taken == 50

    run(drive())


@pytest.mark.parametrize("hours", [8, pytest.param(72, marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", [DestinationBusyError("no answer"), KeyBusyError("throttled")])
def test_a_bucket_that_is_down_for_days_is_probed_and_then_gets_all_of_it(error: DeferError, hours: int) -> None:
    """F23, F29: a breaker with jittered, growing waits; no thundering herd when it is back."""

    async def drive() -> None:
        bucket = Limited(0, error)
        async with schedule(bucket) as made:
            for _ in range(1000):
                made.arrive(0)
            await anyio.sleep(hours * 3600.0)
            assert hours * 60 / 5 < bucket.refused < hours * 60
            bucket.limit = WORKERS
            made.most_under_way.clear()
            await made.delivered(1)
            assert made.most_under_way[0] <= 2
            await made.delivered(1000)
            gone = anyio.current_time() - hours * 3600.0
            assert gone < 700.0

    run(drive())


HELD = [
    HoldCode.DESTINATION_MISSING,
    HoldCode.DESTINATION_ACCESS_DENIED,
    HoldCode.DESTINATION_WRONG_KEY,
    HoldCode.DESTINATION_UNREACHABLE,
    HoldCode.KEY_DISABLED,
    HoldCode.KEY_INVALID_STATE,
    HoldCode.KEY_ACCESS_DENIED,
    HoldCode.KEY_NOT_FOUND,
]


@pytest.mark.parametrize("code", HELD)
def test_a_destination_that_can_not_be_used_is_held_alone_burns_no_attempts_and_goes_on_in_order(
    code: HoldCode,
) -> None:
    """F27 to F29: redirects, a bucket that is gone or another's, a policy, credentials, the bucket's KMS key."""

    async def drive() -> None:
        is_mended, tries = False, 0

        async def attempt(instance: int, name: ArtifactName) -> None:
            nonlocal tries
            await anyio.sleep(0.1)
            if instance == 0 and name.kind is Kind.VOICE and not is_mended:
                tries += 1
                raise DestinationHeldError(code, "it can't be used")

        async with schedule(attempt) as made:
            names = [made.arrive(0) for _ in range(30)]
            for _ in range(30):
                made.arrive(0, Kind.CHAT)
                made.arrive(1)
            await made.delivered(60)
            assert anyio.current_time() < 4.0
            await anyio.sleep(2 * 3600.0)
            held = made.holds.get(names[0].instance_id, Kind.VOICE)
            assert held is not None
            assert held.code is code
            assert made.holds.get(names[0].instance_id, Kind.CHAT) is None
            assert made.lane(0).attempts == {}
            assert 10 < tries < 40
            is_mended = True
            made.started.clear()
            made.dispatcher.retry_now()
            await made.delivered(90)
            assert made.holds.all() == []
            assert [artifact for _, _, artifact in made.started] == [name.artifact_id for name in names]
            assert made.lane(0).attempts == {}

    run(drive())


def test_a_place_is_given_up_after_a_silence_and_only_by_so_many() -> None:
    places, one = Places(2), [ArtifactId(UUID(int=number)) for number in range(10)]
    for number in range(2):
        places.begin(one[number], float(number) / 2)
    assert (places.taken(0.9), places.next_due()) == (2, SILENT_S)
    assert (places.taken(1.2), places.next_due()) == (1, SILENT_S + 0.5)
    places.end(one[0])
    places.end(one[1])
    assert (places.taken(2.0), places.next_due()) == (0, None)
    for number in range(8):
        places.begin(one[number], 2.0)
    assert (places.taken(9.0), places.next_due()) == (2, None)  # three times as many are silent
    places.end(one[0])
    assert places.taken(9.0) == 1
