"""Throttled by KMS: fewer calls a second, shared by all who ask there, and as many as before after a while."""

import random
from collections.abc import Mapping, Sequence

import anyio
import pytest

from pipeline.crypt.pace import LEAST, MOST, PATIENCE_S, Pace, PacedKeys
from pipeline.errors import KeyThrottledError
from tests.simulation.virtual import WorldClock, run
from tests.unit.keyring_fakes import ARN, A, FakeClock, StrictKms, context


def test_without_throttling_nobody_waits() -> None:
    pace = Pace(FakeClock())
    assert [pace.turn_s() for _ in range(1000)] == [0.0] * 1000
    assert pace.rate is None


def test_each_throttling_halves_it_down_to_a_least_and_it_grows_back_to_no_limit() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    rates = []
    for _ in range(9):
        pace.throttled()
        rates.append(pace.rate)
    assert rates[:3] == [MOST / 2, MOST / 4, MOST / 8]
    assert rates[-1] == LEAST
    clock.advance(10)
    assert pace.rate == LEAST + 10
    clock.advance(MOST)
    assert pace.rate is None


def test_turns_come_one_after_the_other_and_who_would_wait_too_long_is_put_off() -> None:
    pace = Pace(FakeClock())
    for _ in range(9):
        pace.throttled()
    turns = [pace.turn_s() for _ in range(int(PATIENCE_S) + 1)]
    assert turns == [float(second) for second in range(int(PATIENCE_S) + 1)]
    with pytest.raises(KeyThrottledError):
        pace.turn_s()


class Quota(StrictKms):
    """Takes so many calls within any second."""

    def __init__(self, clock: WorldClock, most: int) -> None:
        super().__init__()
        self._clock = clock
        self._most = most
        self.taken: list[float] = []
        self.refused = 0

    async def decrypt(
        self, key_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        now = self._clock.monotonic()
        if sum(now - at < 1 for at in self.taken) >= self._most:
            self.refused += 1
            raise KeyThrottledError("too many")
        self.taken.append(now)
        return await super().decrypt(key_arn, wrapped, context)


def test_many_instances_that_ask_at_once_soon_keep_within_the_quota() -> None:
    async def story() -> None:
        clock = WorldClock()
        kms, pace = Quota(clock, most=20), Pace(clock)
        made = await kms.generate_data_key(ARN, context(A))
        chance = random.Random(3)
        done: list[int] = []

        async def instance(number: int) -> None:
            keys = PacedKeys(kms, lambda _arn: pace)
            while True:
                try:
                    assert await keys.decrypt(ARN, made.wrapped, context(A)) == made.plaintext
                except KeyThrottledError:
                    await anyio.sleep(1 + chance.random())
                    continue
                done.append(number)
                return

        with anyio.fail_after(300):
            async with anyio.create_task_group() as group:
                for number in range(300):
                    group.start_soon(instance, number)
        assert sorted(done) == list(range(300))
        assert kms.refused < 300 + 60, "most of what is refused is refused at once, and hardly any of it later"

    run(story())
