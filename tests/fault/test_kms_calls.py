"""A thousand recordings of one instance within five minutes ask KMS three times at most; the audit trail tells of each.

In virtual time, against the project's own key server, counted there for the service's own identity: what the bucket
asks comes under another.
"""

import random
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from pipeline.ids import Kind
from pipeline.interim.states import State
from tests.simulation.keyserver import key_server
from tests.simulation.oracle import check_delivered
from tests.simulation.promises import MARKER, Body
from tests.simulation.virtual import run
from tests.simulation.world import World, node, scaled
from tests.store_fixture import instance
from tests.unit.keyring_fakes import A

RECORDINGS = 1_000
WITHIN_S = 300.0
MOST_CALLS = 3


@pytest.mark.slow
def test_a_thousand_recordings_of_one_instance_take_three_calls_at_most(tmp_path: Path) -> None:
    chance = random.Random(1000)

    async def told() -> None:
        world = World(chance=chance)
        with key_server(tmp_path / "kms", world.clock) as keys:
            world.keys = keys.service()
            world.instances = {A: replace(instance(A), kms_key_arn=keys.new_key())}
            keys.grant(world.instances[A], world.instances[A].kms_key_arn)
            async with node(world, sweeps=False) as process:
                recorder, clock, began = process.recorder, world.clock, world.clock.monotonic()
                for number in range(RECORDINGS):
                    body = Body(
                        instance_id=A,
                        kind=Kind.VOICE,
                        contact=f"contact-{number}",
                        source_id=f"source-{number}",
                        data=MARKER + f"of {number} ".encode().ljust(20, b"."),
                    )
                    world.promises.add(body)
                    reception = await recorder.begin(process.tenant(), body.source)
                    await reception.append(body.data, clock.monotonic())
                    world.promises.answered(body, await recorder.finish(reception, None))
                    await recorder.let_go(reception)
                    await anyio.sleep(max(0.0, began + (number + 1) * WITHIN_S / RECORDINGS - clock.monotonic()))
                assert clock.monotonic() - began <= WITHIN_S
                with anyio.fail_after(60):
                    while process.store.index.count(State.SEALED):  # noqa: ASYNC110 - in virtual time
                        await anyio.sleep(1)
                while await process.publisher.once():
                    pass
                check_delivered(process)
            assert len(world.buckets[A].objects) == RECORDINGS
            assert 1 <= len(keys.asked) <= MOST_CALLS
            assert [call.name for call in keys.calls] == keys.asked

    with scaled(chance):
        run(told())
