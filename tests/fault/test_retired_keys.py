"""Retired data keys go a week after nothing here needs them, and not a day before; restarts change nothing of that."""

import json
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta

import anyio
import pytest

from pipeline.audit.records import Actor
from pipeline.crypt.duty import KEY_LIFE
from pipeline.errors import KeyUnavailableError, SegmentForgedError, StoreIoError
from pipeline.ids import InstanceId, KeyId, Kind
from pipeline.interim.states import State
from pipeline.retiredkeys import REASON, WAIT, RetiredKeys
from pipeline.trail import Trail
from tests.simulation.promises import MARKER, Body
from tests.simulation.traffic import Traffic
from tests.simulation.virtual import run
from tests.simulation.world import ROOT, Node, World, node, scaled
from tests.unit.keyring_fakes import A

DAY = timedelta(days=1)
Story = Callable[[World, random.Random], Awaitable[None]]


def tell(story: Story) -> None:
    chance = random.Random(7)

    async def told() -> None:
        await story(World(chance=chance), chance)

    with scaled(chance):
        run(told())


def watch(process: Node, *, is_kept: bool = False) -> RetiredKeys:
    world = process.world
    return RetiredKeys(
        ROOT,
        tenants=process.tenants,
        files=world.disk,
        commits=process.commits,
        trail=Trail(ROOT, actor=Actor("Service", "test"), clock=world.clock),
        clock=world.clock,
        keeps_all=lambda _instance: is_kept,
    )


async def send(process: Node, chance: random.Random, number: int) -> None:
    body = Body(
        instance_id=A,
        kind=Kind.VOICE,
        contact=f"contact-{number}",
        source_id=f"source-{number}",
        data=MARKER + f"of {number} ".encode().ljust(20, b".") + bytes(100),
    )
    process.world.promises.add(body)
    assert await Traffic(process, chance).send(body)


async def later(by: timedelta) -> None:
    await anyio.sleep(by.total_seconds())


async def delivered(process: Node) -> None:
    while process.store.index.count(State.SEALED):  # noqa: ASYNC110 - in virtual time
        await anyio.sleep(1)


async def two_keys(process: Node, chance: random.Random) -> tuple[KeyId, KeyId]:
    """Have a recording under each of two data keys, a day apart."""
    ring = process.tenant().ring
    await send(process, chance, 0)
    (old,) = ring.key_ids()
    await later(KEY_LIFE)
    await send(process, chance, 1)
    (new,) = set(ring.key_ids()) - {old}
    return old, new


def destroyed(world: World) -> list[tuple[str, str]]:
    tree = world.disk.tree()
    lines = [
        line
        for path in sorted(tree)
        if "/audit/" in path and path.endswith(".jsonl")
        for line in tree[path].splitlines()
    ]
    records = [json.loads(line) for line in lines]
    return [
        (each["requestParameters"]["dataKeyId"], each["requestParameters"]["reason"])
        for each in records
        if each["eventName"] == "DataKeyDestroyed"
    ]


def test_a_retired_key_goes_a_week_after_its_last_receipt_is_folded() -> None:
    async def story(world: World, chance: random.Random) -> None:
        async with node(world, sweeps=False) as process:
            old, new = await two_keys(process, chance)
            await delivered(process)
            retired = watch(process)
            await later(2 * DAY)
            assert await retired.once() == 0  # its receipt still tells of it
            await later(DAY)
            await process.folder.once()
            assert await retired.once() == 0
        for _ in range(7):  # a restart each day
            async with node(world, sweeps=False) as process:
                await later(DAY - timedelta(minutes=1))
                assert await watch(process).once() == 0
                assert process.tenant().ring.knows(old)
        async with node(world, sweeps=False) as process:
            await later(timedelta(minutes=8))
            assert await watch(process).once() == 1
            assert process.tenant().ring.key_ids() == [new]
            assert destroyed(world) == [(str(old), REASON)]
            with pytest.raises(SegmentForgedError):
                await process.tenant().ring.opening(old)
            await later(10 * WAIT)
            assert await watch(process).once() == 0  # the newest stays: it carries the name key
        assert not [path for path in world.disk.tree() if old.hex in path]

    tell(story)


def test_a_key_that_something_waits_under_is_kept_however_old() -> None:
    async def story(world: World, chance: random.Random) -> None:
        async with node(world, delivers=False, sweeps=False) as process:
            old, _ = await two_keys(process, chance)
            for _ in range(4):
                await later(WAIT)
                assert await watch(process).once() == 0
        async with node(world, sweeps=False) as process:
            await delivered(process)
            retired = watch(process)
            await later(4 * DAY)
            await process.folder.once()
            assert await retired.once() == 0  # the week begins now
            await later(WAIT)
            assert await watch(process, is_kept=True).once() == 0  # under a legal hold
            assert await retired.once() == 1
            assert destroyed(world) == [(str(old), REASON)]

    tell(story)


def test_a_key_that_is_needed_again_begins_a_new_week() -> None:
    async def story(world: World, chance: random.Random) -> None:
        async with node(world, sweeps=False) as process:
            old, _ = await two_keys(process, chance)
            await delivered(process)
            await later(4 * DAY)
            await process.folder.once()
            retired = watch(process)
            assert await retired.once() == 0
            await later(WAIT - DAY)
            piece = f"{ROOT}/lost+found/00000001.{'0' * 31}1.{A.hex}.voice.{old.hex}.{'0' * 16}.g1.1.open.tail"
            world.disk.make_directory(f"{ROOT}/lost+found")
            handle = world.disk.create(piece)
            world.disk.close(handle)
            await later(2 * DAY)
            assert await retired.once() == 0
            world.disk.unlink(piece)
            assert await retired.once() == 0
            await later(WAIT - DAY)
            assert await retired.once() == 0
            await later(DAY)
            assert await retired.once() == 1

    tell(story)


def test_a_key_that_can_not_be_asked_for_now_is_not_taken_for_unneeded() -> None:
    async def story(world: World, chance: random.Random) -> None:
        async with node(world, delivers=False, sweeps=False) as process:
            old, _ = await two_keys(process, chance)
            ring = process.tenant(InstanceId(A)).ring
            ring.files.set_aside(old, "damaged")
            await later(2 * WAIT)
            assert await watch(process).once() == 0
            assert ring.knows(old)
            with pytest.raises(KeyUnavailableError):
                await ring.opening(old)

    tell(story)


def test_nothing_goes_while_a_folder_can_not_be_read() -> None:
    async def story(world: World, chance: random.Random) -> None:
        async with node(world, sweeps=False) as process:
            old, _ = await two_keys(process, chance)
            await delivered(process)
            await later(4 * DAY)
            await process.folder.once()
            retired = watch(process)
            assert await retired.once() == 0
            await later(WAIT)
            world.disk.refuse("names", "lost+found", error=StoreIoError("EIO"))
            with pytest.raises(StoreIoError):
                await retired.once()
            assert process.tenant().ring.knows(old)
            assert await retired.once() == 1

    tell(story)
