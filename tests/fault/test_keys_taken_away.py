"""A tenant takes its KMS key away, in each way there is, during intake, delivery and a change of keys; gives it back.

In virtual time, against the project's own key server. Whoever reads stops within the stated time; nothing that was
acknowledged is lost, nothing turns to poison; after the repair everything goes out by itself, oldest first; and each
use of a key, and the hold, is in the audit trail.
"""

import json
import random
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.rewrap import SideError, let_go_of_others, rewrap, standing
from pipeline.delivery.holds import KEYS, Hold
from pipeline.errors import HoldCode, KeyUnavailableError
from pipeline.ids import Kind
from pipeline.interim.states import State
from pipeline.kms.records import KeyState
from tests.simulation.keyserver import SERVICE, KeyServer, key_server
from tests.simulation.oracle import check_delivered, drain
from tests.simulation.promises import MARKER, Body
from tests.simulation.traffic import Traffic
from tests.simulation.virtual import run
from tests.simulation.world import Node, World, node, scaled
from tests.store_fixture import instance
from tests.unit.keyring_fakes import CACHE, GRACE, A

CACHE_S, GRACE_S = CACHE.total_seconds(), GRACE.total_seconds()
LONG_S = 1200.0
"""Longer than a key may be silent, and than the longest pause between two probes."""


@dataclass(frozen=True)
class Way:
    """One way to take a key away, and to give it back."""

    code: HoldCode
    take: Callable[[KeyServer, "World", str], None]
    mend: Callable[[KeyServer, "World", str], None]


def revoke(keys: KeyServer, _: World, arn: str) -> None:
    keys.revoke_grants(arn)


def grant(keys: KeyServer, world: World, arn: str) -> None:
    keys.grant(world.instances[A], arn)


def deny(keys: KeyServer, _: World, arn: str) -> None:
    denied = {"Sid": "Stop", "Effect": "Deny", "Principal": {"AWS": SERVICE}, "Action": "kms:*", "Resource": "*"}
    keys.put_policy(arn, denied)


WAYS = {
    "revoked": Way(HoldCode.KEY_ACCESS_DENIED, revoke, grant),
    "disabled": Way(
        HoldCode.KEY_DISABLED,
        lambda keys, _, arn: keys.state(arn, KeyState.DISABLED),
        lambda keys, _, arn: keys.state(arn, KeyState.ENABLED),
    ),
    "to be deleted": Way(
        HoldCode.KEY_PENDING_DELETION,
        lambda keys, _, arn: keys.state(arn, KeyState.PENDING_DELETION),
        lambda keys, _, arn: keys.state(arn, KeyState.ENABLED),
    ),
    "denied": Way(HoldCode.KEY_ACCESS_DENIED, deny, lambda keys, _, arn: keys.put_policy(arn)),
}
Story = Callable[[World, KeyServer, Way, random.Random], Awaitable[None]]


def tell(story: Story, way: Way, directory: Path) -> None:
    """Run a story in a world of its own, whose one instance uses a granted key of a key server of its own."""
    chance = random.Random(4)

    async def told() -> None:
        world = World(chance=chance)
        with key_server(directory / "kms", world.clock) as keys:
            world.keys = keys.service()
            arn, of_bucket = keys.new_key(), keys.new_key()
            looks = {"Sid": "Asking", "Effect": "Allow", "Action": "kms:DescribeKey", "Resource": "*"}
            keys.put_policy(of_bucket, looks | {"Principal": {"AWS": SERVICE}})
            plain = instance(A)
            storage = {kind: replace(each, kms_key_arn=of_bucket) for kind, each in plain.storage.items()}
            world.instances = {A: replace(plain, kms_key_arn=arn, storage=storage)}
            keys.grant(world.instances[A], arn)
            await story(world, keys, way, chance)

    with ExitStack() as stack:
        stack.enter_context(scaled(chance))
        run(told())


def body(number: int) -> Body:
    return Body(
        instance_id=A,
        kind=Kind.VOICE,
        contact=f"contact-{number}",
        source_id=f"source-{number}",
        data=MARKER + f"of {number} ".encode().ljust(20, b".") + bytes(300),
    )


def key_of(world: World) -> str:
    return world.instances[A].kms_key_arn


def the_hold(process: Node) -> Hold:
    (hold,) = process.holds.all()
    assert hold.scope == KEYS
    return hold


async def until(is_so: Callable[[], bool], within_s: float) -> None:
    """Wait for something in virtual time."""
    with anyio.fail_after(within_s):
        while not is_so():  # noqa: ASYNC110 - in virtual time
            await anyio.sleep(1)


async def send(process: Node, chance: random.Random, *numbers: int) -> None:
    for number in numbers:
        sent = body(number)
        process.world.promises.add(sent)
        assert await Traffic(process, chance).send(sent)
        await anyio.sleep(1)


async def is_readable(ring: KeyRing) -> bool:
    """Tell whether something can be opened now."""
    try:
        await ring.opening(ring.key_ids()[0])
    except KeyUnavailableError:
        return False
    return True


async def mended(process: Node, keys: KeyServer, way: Way, since: float) -> None:
    """Give the key back: what waits goes out by itself, in order, once; the hold ends; the audit trail tells it."""
    world = process.world
    assert the_hold(process).code is way.code
    assert the_hold(process).kms_key_arn == key_of(world)
    assert anyio.current_time() - since >= 0
    way.mend(keys, world, key_of(world))
    await until(lambda: not process.holds.all(), world.delivery.probe_most.total_seconds() * 2)
    await drain(process)
    check_delivered(process)
    assert process.store.index.count(State.POISON) == 0
    numbers = [int(key.rpartition("/contact-")[2].split("_")[0]) for key in world.buckets[A].objects]
    assert numbers == sorted(numbers)
    began, ended = (record for record in audited(world) if record["eventName"] in {"HoldBegun", "HoldEnded"})
    assert (began["eventName"], ended["eventName"]) == ("HoldBegun", "HoldEnded")
    assert began["requestParameters"]["code"] == ended["requestParameters"]["code"] == way.code
    assert began["requestParameters"]["kmsKeyArn"] == key_of(world)


def audited(world: World) -> list[dict[str, Any]]:
    paths = sorted(path for path in world.disk.tree() if "/audit/" in path and path.endswith(".jsonl"))
    return [json.loads(line) for path in paths for line in world.disk.tree()[path].splitlines()]


@pytest.mark.parametrize("name", WAYS)
def test_during_intake_readers_stop_and_what_was_begun_is_sealed_within_the_grace(name: str, tmp_path: Path) -> None:
    async def story(world: World, keys: KeyServer, way: Way, chance: random.Random) -> None:
        async with node(world, delivers=False, watches=True, sweeps=False) as process:
            recorder, clock, ring = process.recorder, world.clock, process.tenant().ring
            await send(process, chance, 0)
            begun = body(1)
            world.promises.add(begun)
            reception = await recorder.begin(process.tenant(), begun.source)
            await reception.append(begun.data[:100], clock.monotonic())
            taken_at = clock.monotonic()
            way.take(keys, world, key_of(world))

            with anyio.fail_after(CACHE_S + 5):
                while await is_readable(ring):  # noqa: ASYNC110 - in virtual time
                    await anyio.sleep(5)
            with pytest.raises(KeyUnavailableError) as caught:
                await recorder.begin(process.tenant(), body(2).source)
            assert caught.value.code is way.code
            await reception.append(begun.data[100:], clock.monotonic())  # within the grace
            answer = await recorder.finish(reception, None)
            world.promises.answered(begun, answer)
            await recorder.let_go(reception)

            await anyio.sleep(CACHE_S + GRACE_S)
            with pytest.raises(KeyUnavailableError):
                await ring.sealing(ring.key_ids()[0])
            assert the_hold(process).code is way.code  # although nothing is being delivered
        async with node(world, watches=True, sweeps=False) as process:  # and it survives a restart
            await anyio.sleep(LONG_S)
            await mended(process, keys, way, taken_at)

    tell(story, WAYS[name], tmp_path)


@pytest.mark.parametrize("name", WAYS)
def test_during_delivery_what_is_left_waits_and_goes_out_in_order(name: str, tmp_path: Path) -> None:
    async def story(world: World, keys: KeyServer, way: Way, chance: random.Random) -> None:
        async with node(world, watches=True, sweeps=False) as process:
            await send(process, chance, *range(3))
            await until(lambda: process.store.index.count(State.SEALED) == 0, 60)
            world.weather.bucket_down = True
            await send(process, chance, *range(3, 6))
            taken_at = world.clock.monotonic()
            way.take(keys, world, key_of(world))
            await anyio.sleep(CACHE_S + 30)
            world.weather.bucket_down = False
            ring = process.tenant().ring
            assert not await is_readable(ring)
            await anyio.sleep(LONG_S)
            assert len(world.buckets[A].objects) == 3
            assert process.store.index.count(State.SEALED) == 3
            decrypts = sum(call.name == "Decrypt" for call in keys.calls)
            assert decrypts < LONG_S / 30, "a key that refuses is asked only now and then"
            await mended(process, keys, way, taken_at)

    tell(story, WAYS[name], tmp_path)


@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize("name", WAYS)
def test_during_a_change_of_keys_it_says_which_and_goes_on_where_it_stopped(
    name: str, side: str, tmp_path: Path
) -> None:
    async def story(world: World, keys: KeyServer, way: Way, chance: random.Random) -> None:
        old = key_of(world)
        new = keys.new_key()
        async with node(world, delivers=False, sweeps=False) as process:
            await send(process, chance, 0, 1)
        configured = replace(world.instances[A], kms_key_arn=new)
        world.instances = {A: configured}
        keys.grant(configured, new)
        way.take(keys, world, old if side == "old" else new)
        async with node(world, watches=True, sweeps=False) as process:
            ring = process.tenant().ring
            await ring.follow(new, old)

            async def told(_done: int, _total: int) -> None:
                await anyio.lowlevel.checkpoint()

            with pytest.raises(SideError) as caught:
                await rewrap(ring, world.clock, told)
            assert caught.value.side == side
            assert standing(ring).done == (0 if side == "new" else 1)  # the new data key, where it could be made
            await anyio.sleep(LONG_S)
            assert process.store.index.count(State.SEALED) == (2 if side == "old" else 0)
            way.mend(keys, world, old if side == "old" else new)
            ring.ask_now()
            await rewrap(ring, world.clock, told)
            await let_go_of_others(ring)
            assert standing(ring).done == standing(ring).total
            keys.state(old, KeyState.DISABLED)  # needed no more
            process.dispatcher.retry_now()
            await send(process, chance, 2)
            await drain(process)
            check_delivered(process)
            assert process.holds.all() == []

    tell(story, WAYS[name], tmp_path)
