"""The recording that the service sends itself."""

from datetime import timedelta
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from pipeline.canary import Canary, read_arrival
from pipeline.delivery.media import MediaCheck
from pipeline.errors import HoldCode
from pipeline.interim.states import ArtifactName
from pipeline.settings import CanarySettings
from tests.fault.test_f16_clock import world_at
from tests.store_fixture import Node, node, settled
from tests.unit.keyring_fakes import ARN, A, refusal


def canary(process: Node, instance: str = "acme") -> Canary:
    return Canary(
        f"{process.world.root}/canary.json",
        store=process.store,
        tenants=process.tenants,
        recorder=process.recorder,
        files=process.files,
        commits=process.commits,
        clock=process.world.clock,
        settings=CanarySettings(instance=instance, every=timedelta(seconds=300), alarm_after=timedelta(seconds=900)),
    )


async def sealed(process: Node) -> ArtifactName:
    with anyio.fail_after(10):
        while not process.sealed:
            await anyio.lowlevel.checkpoint()
    return process.sealed[0]


async def test_it_travels_like_any_other_below_a_prefix_of_its_own(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process, anyio.create_task_group() as group:
        bird = canary(process, str(A))
        assert bird.state() == (False, "none has arrived yet")
        group.start_soon(bird.once)
        name = await sealed(process)
        key = await process.a.ring.opening(name.key_id)
        with process.store.reading(name, key) as reader:
            manifest = reader.manifest()
        assert [path.split("/")[0] for path in manifest.keys] == ["canary", "canary"]
        assert manifest.contact.startswith("canary-")
        assert manifest.quality == ()
        media = await process.media(name)
        check = MediaCheck()
        check.feed(media)
        assert check.verdict(len(media), "audio/wav", None).flags == ()
        clock.advance(2)
        await process.store.settle(name, b"{}", (), ())
    assert bird.state() == (False, "last arrived 0 s ago, in 2.0 s")
    arrival = read_arrival(f"{tmp_path}/canary.json", process.files)
    assert arrival is not None
    assert arrival.latency_s == 2.0


async def test_one_that_was_left_open_by_a_crash_goes_below_that_prefix_too(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        process.files.refuse("rename", ".sealed")
        await canary(process).once()
    async with node(world) as process:
        for _ in range(20):
            clock.advance(60)
            await process.sweep.once()
        [name] = process.sealed
        key = await process.a.ring.opening(name.key_id)
        with process.store.reading(name, key) as reader:
            assert reader.manifest().keys[0].startswith("canary/")


async def test_one_that_does_not_arrive_is_waited_for_and_becomes_an_alarm(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process, anyio.create_task_group() as group:
        bird = canary(process)
        group.start_soon(bird.once)
        name = await sealed(process)
        with capture_logs() as logged:
            for _ in range(8):
                clock.advance(300)
                await anyio.sleep(0.3)
        assert [each["event"] for each in logged] == ["canary.late", "canary.late"]
        assert {each["log_level"] for each in logged} == {"error"}
        assert len(process.sealed) == 1
        assert bird.state()[0]
        await process.store.reject(name, "destination-conflict", ())
        await settled()
        with anyio.fail_after(5):
            while "failing" not in bird.state()[1]:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert bird.state() == (True, "none has arrived yet; failing, destination-conflict")


@pytest.mark.parametrize(("instance", "reason"), [("nobody", "refused"), ("acme", "key-unavailable")])
async def test_one_that_can_not_be_sent_says_why(tmp_path: Path, instance: str, reason: str) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        bird = canary(process, instance)
        world.kms.refuses[ARN] = refusal(HoldCode.KEY_DISABLED)
        with capture_logs() as logged:
            await bird.once()
            clock.advance(901)
            await bird.once()
        assert [each["event"] for each in logged] == ["canary.failed", "canary.failed", "canary.late"]
        assert bird.state() == (True, f"none has arrived yet; failing, {reason}")
        assert process.recorder.receptions() == []
