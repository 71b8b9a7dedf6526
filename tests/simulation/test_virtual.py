import random
from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest

from tests.simulation.virtual import StuckError, WorldClock, run


def test_time_jumps_to_the_next_timer() -> None:
    async def main() -> float:
        await anyio.sleep(72 * 3600)
        return anyio.current_time()

    assert run(main()) == 72 * 3600


def test_who_waits_for_what_can_not_come_is_told() -> None:
    async def main() -> None:
        await anyio.Event().wait()

    with pytest.raises(StuckError):
        run(main())


def test_who_does_too_much_in_no_time_is_told() -> None:
    async def main() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    with pytest.raises(StuckError):
        run(main())


def test_the_order_of_those_that_are_ready_is_the_seed_s() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def note(number: int) -> None:
            await anyio.sleep(1)
            order.append(number)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(note, number)
        return order

    orders = [run(main(), random.Random(seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(8))


def test_the_wall_clock_can_be_set_and_stopped() -> None:
    async def main() -> None:
        clock = WorldClock()
        began = clock.now()
        await anyio.sleep(10)
        assert clock.now() - began == timedelta(seconds=10)
        clock.set_by(timedelta(days=-1))
        assert clock.copy().now() == clock.now() == began + timedelta(seconds=10, days=-1)
        clock.stop()
        await anyio.sleep(10)
        assert clock.now() == began + timedelta(seconds=10, days=-1)
        assert clock.monotonic() == 20

    run(main())
