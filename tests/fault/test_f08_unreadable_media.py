"""F8: the disk does not give back what is sealed.

After some tries the artifact is a person's, with its bytes, and everything else is delivered. What may pass by itself,
such as a lack of descriptors or a volume in trouble, makes no poison.
"""

import random
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from pipeline.errors import PipelineError, StoreBusyError, StoreIoError
from pipeline.ids import Kind
from pipeline.interim.states import ArtifactName, State
from tests.simulation.oracle import drain
from tests.simulation.promises import Body
from tests.simulation.virtual import run
from tests.simulation.world import Node, World, node, scaled
from tests.unit.keyring_fakes import A

BODIES = [
    Body(instance_id=A, kind=Kind.VOICE, contact=f"c-{n}", source_id=f"s-{n}", data=bytes([n]) * 500) for n in range(6)
]
FOR_EVER = None


def driven(drive: Callable[[random.Random], Coroutine[Any, Any, None]]) -> None:
    """Let a test run in virtual time."""
    chance = random.Random(1)
    with scaled(chance):
        run(drive(chance))


async def held(process: Node) -> list[ArtifactName]:
    """Seal all bodies while the bucket is away; give their names."""
    process.world.weather.bucket_down = True
    for body in BODIES:
        reception = await process.recorder.begin(process.tenant(), body.source)
        await reception.append(body.data, process.world.clock.monotonic())
        await process.recorder.finish(reception, None)
    return sorted(process.store.index, key=lambda name: name.artifact_id)


def standing(process: Node, name: ArtifactName) -> ArtifactName:
    now = process.store.index.get(name.artifact_id)
    assert now is not None
    return now


def test_an_artifact_that_can_not_be_read_becomes_poison_and_all_others_are_delivered() -> None:
    async def drive(chance: random.Random) -> None:
        world = World(chance=chance)
        async with node(world) as process:
            names = await held(process)
            lost = names[2]
            before = world.disk.tree()[process.store.path(lost)]
            world.disk.refuse("read", lost.artifact_id.hex, error=StoreIoError("EIO"), times=FOR_EVER)
            process.world.weather.bucket_down = False
            await drain(process)
            now = standing(process, lost)
            assert (now.standing, now.poison) == (State.POISON, "store-io")
            assert world.disk.tree()[process.store.path(now)] == before
            assert process.store.index.count(State.DELIVERED) == len(BODIES) - 1
            tries = [path for operation, path in world.disk.done if operation == "open" and path.endswith(str(lost))]
            assert 2 < len(tries) < 20
            assert b"STORE_IO" in world.disk.tree()[f"/state/events/{A}.jsonl"]

    driven(drive)


@pytest.mark.parametrize("error", [StoreIoError("EIO"), StoreBusyError("EMFILE")])
def test_what_can_be_read_again_before_long_is_delivered_as_if_nothing_had_been(error: PipelineError) -> None:
    async def drive(chance: random.Random) -> None:
        world = World(chance=chance)
        async with node(world) as process:
            names = await held(process)
            times = 3 if isinstance(error, StoreIoError) else 60
            for name in names:
                world.disk.refuse("open", name.artifact_id.hex, error=error, times=times)
            process.world.weather.bucket_down = False
            await drain(process)
            assert process.store.index.count(State.DELIVERED) == len(BODIES)

    driven(drive)


GIVES_NOTHING = ("open", "read")
TAKES_NOTHING = ("create", "append", "sync", "rename", "sync_directory")


@pytest.mark.parametrize("refused", [GIVES_NOTHING, GIVES_NOTHING + TAKES_NOTHING])
def test_a_volume_that_gives_nothing_back_makes_no_poison(refused: tuple[str, ...]) -> None:
    async def drive(chance: random.Random) -> None:
        world = World(chance=chance)
        async with node(world) as process:
            await held(process)
            for operation in refused:
                world.disk.refuse(operation, error=StoreIoError("EIO"), times=FOR_EVER)
            process.world.weather.bucket_down = False
            await anyio.sleep(600)
            assert process.store.index.count(State.SEALED) == len(BODIES)
            assert process.store.room.trouble is not None
            world.disk.failures.clear()
            await drain(process)
            assert process.store.index.count(State.DELIVERED) == len(BODIES)

    driven(drive)
