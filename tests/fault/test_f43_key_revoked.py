"""F43: an instance's key is disabled, revoked or gone while sealed recordings wait. They are held, and nothing else.

Nothing turns to poison, no attempt is burnt, a crash changes nothing; all goes out, in order, once the key is back. To
give up what is sealed under it is an operator's decision, made with the key service, and never the node's.
"""

import random
from collections.abc import Awaitable, Callable

import anyio
import pytest

from pipeline.delivery.holds import KEYS
from pipeline.errors import HoldCode, KeyUnavailableError
from pipeline.ids import Kind
from pipeline.interim.states import State
from tests.simulation.crashes import cut
from tests.simulation.oracle import check_delivered, check_held, check_tidy, drain
from tests.simulation.promises import MARKER, Body
from tests.simulation.traffic import Traffic
from tests.simulation.virtual import run
from tests.simulation.world import Node, World, node, scaled
from tests.unit.keyring_fakes import CACHE, A

REFUSALS = [
    HoldCode.KEY_DISABLED,
    HoldCode.KEY_PENDING_DELETION,
    HoldCode.KEY_ACCESS_DENIED,
    HoldCode.KEY_NOT_FOUND,
    HoldCode.KEY_INVALID_STATE,
]
Story = Callable[[World, random.Random], Awaitable[None]]


def tell(story: Story) -> None:
    """Run a story in a world of its own, in virtual time."""
    chance = random.Random(43)

    async def told() -> None:
        await story(World(chance=chance), chance)

    with scaled(chance):
        run(told())


async def sealed(world: World, chance: random.Random, count: int = 3) -> list[Body]:
    """Take recordings while the bucket is down, and stop: they wait."""
    bodies = [
        Body(
            instance_id=A,
            kind=Kind.VOICE,
            contact=f"contact-{number}",
            source_id=f"source-{number}",
            data=MARKER + f"of {number} ".encode().ljust(20, b".") + bytes(300),
        )
        for number in range(count)
    ]
    world.weather.bucket_down = True
    async with node(world, delivers=False) as process:
        for body in bodies:
            world.promises.add(body)
            assert await Traffic(process, chance).send(body)
            await anyio.sleep(1)
        assert process.store.index.count(State.SEALED) == count
    world.weather.bucket_down = False
    return bodies


async def hours(process: Node, count: int) -> None:
    """Let so many pass. What sweeps every second in a service does so every minute here."""
    for _ in range(60 * count):
        await anyio.sleep(60)
        await process.sweep.once()
        process.store.room.tend()


def waiting(process: Node) -> tuple[int, int]:
    """Count what waits, and what was put aside."""
    return process.store.index.count(State.SEALED), process.store.index.count(State.POISON)


@pytest.mark.parametrize("code", REFUSALS)
def test_a_sealed_backlog_is_held_for_as_long_as_its_key_is_refused(code: HoldCode) -> None:
    async def story(world: World, chance: random.Random) -> None:
        await sealed(world, chance)
        world.weather.key_refused = code
        for _ in range(3):  # each is another process
            async with node(world, sweeps=False) as process:
                await hours(process, 1)
                assert waiting(process) == (3, 0)
                assert [(hold.scope, hold.code) for hold in process.holds.all()] == [(KEYS, code)]
            check_tidy(world)
        assert world.buckets[A].objects == {}
        calls = world.kms.calls.count("Decrypt")
        assert calls < 3 * 3600 / 10, "whoever is refused does not ask all the time"
        world.weather.key_refused = None
        async with node(world) as process:
            await drain(process)
            check_delivered(process)
            assert process.holds.all() == []
        order = [key.rpartition("/")[2][:9] for key in world.buckets[A].objects]
        assert order == ["contact-0", "contact-1", "contact-2"]

    tell(story)


def test_a_crash_while_the_key_is_refused_changes_nothing() -> None:
    async def story(world: World, chance: random.Random) -> None:
        await sealed(world, chance)
        for _ in range(5):
            world.weather.key_refused = HoldCode.KEY_PENDING_DELETION
            async with node(world) as process:
                await anyio.sleep(chance.random() * 300)
                assert waiting(process) == (3, 0)
                left = cut(world.copy(world.disk.snapshot()), chance)
            world = left  # where the key service answers again
            async with node(world, delivers=False) as process:
                await check_held(process)
        async with node(world) as process:
            await drain(process)
            check_delivered(process)

    tell(story)


def test_a_key_that_is_refused_only_now_and_then_delays_and_no_more() -> None:
    async def story(world: World, chance: random.Random) -> None:
        await sealed(world, chance)
        async with node(world) as process:
            for code in REFUSALS:
                world.weather.key_refused = code
                await anyio.sleep(100)
                world.weather.key_refused = None
                await anyio.sleep(chance.random() * 5)
            await drain(process)
            check_delivered(process)

    tell(story)


def test_what_comes_while_the_key_is_refused_is_refused_and_nothing_of_it_is_written() -> None:
    async def story(world: World, chance: random.Random) -> None:
        (body,) = await sealed(world, chance, 1)
        world.weather.key_refused = HoldCode.KEY_DISABLED
        async with node(world) as process:
            await anyio.sleep(CACHE.total_seconds() + 1)
            before = {path for path in world.disk.tree() if "artifacts" in path}
            with pytest.raises(KeyUnavailableError):
                await process.recorder.begin(process.tenant(), body.source)
            assert {path for path in world.disk.tree() if "artifacts" in path} == before

    tell(story)


def test_a_key_service_that_does_not_answer_holds_nobody_for_longer_than_it_is_silent() -> None:
    async def story(world: World, chance: random.Random) -> None:
        await sealed(world, chance)
        world.weather.key_down = True
        async with node(world, sweeps=False) as process:
            await hours(process, 3)
            assert waiting(process) == (3, 0)
            world.weather.key_down = False
            await drain(process)
            check_delivered(process)

    tell(story)
