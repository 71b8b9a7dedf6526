"""F9, F10: no room for bytes or for files, whoever took it, for however long.

Intake refuses while there is still room for everything that delivery has to write of what is held; delivery goes on;
intake resumes by itself. Nothing is removed for room but the ballast.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.disk import Disk
from pipeline.errors import QuotaError, StoreFullError
from pipeline.instances import Limits
from pipeline.interim.ballast import Ballast
from pipeline.interim.room import PER_ARTIFACT_INODES, needed_bytes
from pipeline.interim.states import State
from tests.intake_server import BODY, is_problem, serving, url, world_at
from tests.receipts import receipt_of
from tests.store_fixture import WatchedDisk, World, instance, node, source
from tests.unit.keyring_fakes import A, B
from tests.unit.test_store import sealed

MIB = 2**20
DISK = Disk()
FULL = StoreFullError("ENOSPC")
FOR_EVER = 10**9


# --- the ballast


def test_the_ballast_has_its_blocks_is_given_up_in_pieces_and_taken_again(tmp_path: Path) -> None:
    ballast, path = Ballast(DISK, str(tmp_path), 10 * MIB), tmp_path / "ballast"
    assert not ballast.give_up()
    ballast.fill()
    assert (path.stat().st_size, path.stat().st_blocks * 512 >= 10 * MIB) == (10 * MIB, True)
    left = []
    while ballast.give_up():
        left.append(path.stat().st_size)
        assert path.stat().st_blocks * 512 <= left[-1] + 4096
    assert left == [6 * MIB, 2 * MIB, 0]
    assert ballast.missing_bytes == 10 * MIB
    ballast.fill()
    assert (ballast.missing_bytes, path.stat().st_blocks * 512 >= 10 * MIB) == (0, True)


@pytest.mark.parametrize("refused", ["create", "allocate", "sync"])
def test_a_ballast_that_can_not_be_had_leaves_no_hole_that_counts_as_one(tmp_path: Path, refused: str) -> None:
    files = WatchedDisk()
    files.refuse(refused, "ballast", error=FULL)
    ballast = Ballast(files, str(tmp_path), MIB)
    ballast.fill()
    assert ballast.held_bytes == 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
    assert files.handles == {}
    ballast.fill()
    assert ballast.held_bytes == MIB


def test_an_earlier_process_ballast_is_found_with_its_blocks_whatever_its_size(tmp_path: Path) -> None:
    path = tmp_path / "ballast"
    for size, found in ((0, 0), (MIB, MIB), (2 * MIB, 2 * MIB), (9 * MIB, 2 * MIB)):
        path.write_bytes(b"")
        os.truncate(path, size)  # a hole, as a copy or a backup may make it
        ballast = Ballast(DISK, str(tmp_path), 2 * MIB)
        ballast.find()
        assert ballast.held_bytes == path.stat().st_size == found
        assert path.stat().st_blocks * 512 >= found


async def test_what_delivery_writes_gets_the_ballasts_room_at_once_and_what_intake_writes_does_not(
    tmp_path: Path,
) -> None:
    async with node(World(root=tmp_path, free_bytes=20 * MIB)) as process:
        name = await sealed(process)
        process.store.room.tend()
        held = process.volume.ballast.held_bytes
        assert held == 20 * MIB
        process.files.refuse("create", ".open", error=FULL)
        with pytest.raises(StoreFullError):
            await process.recorder.begin(process.a, source("call-2"))
        assert process.volume.ballast.held_bytes == held
        for operation in ("create", "append", "rename"):
            process.files.refuse(operation, str(name.delivered()), error=FULL)
        process.files.refuse("append", "/audit/", error=FULL)
        line = process.trail.changed(name.instance_id, "Tested")
        target = await process.store.settle(name, receipt_of(name), (line,), ())
        assert target.standing is State.DELIVERED
        assert process.volume.ballast.held_bytes == 4 * MIB
        assert process.store.receipt(target) == receipt_of(name)


async def test_a_sync_that_found_no_room_is_not_repeated_but_makes_some_for_the_next(tmp_path: Path) -> None:
    async with node(World(root=tmp_path, free_bytes=10 * MIB)) as process:
        name = await sealed(process)
        process.store.room.tend()
        process.files.refuse("sync", ".done", error=FULL)
        with pytest.raises(StoreFullError):
            await process.store.settle(name, receipt_of(name), (), ())
        assert len([path for _, path in process.files.operations("sync") if ".done" in path]) == 1
        assert process.volume.ballast.missing_bytes > 0
        await process.store.settle(name, receipt_of(name), (), ())


# --- admission


async def test_room_for_every_undelivered_artifact_is_kept_and_intake_resumes_by_itself(tmp_path: Path) -> None:
    files, world = WatchedDisk(), World(root=tmp_path, free_bytes=10 * MIB)
    async with node(world, files=files) as process:
        held = [await sealed(process, f"call-{number}") for number in range(20)]
        process.store.room.tend()
        files.free = needed_bytes(10 * MIB, undelivered=21, ballast=10 * MIB) - 1
        with contextlib.suppress(StoreFullError):
            for number in range(100):
                await sealed(process, f"more-{number}")
        begun = len(process.store.index)
        assert begun < 100
        with pytest.raises(StoreFullError):
            await process.recorder.begin(process.a, source("not this one"))
        assert len(process.store.index) == begun
        assert process.store.room.refusal == "store-full"
        for name in [name for name in process.store.index if name.is_waiting]:
            await process.store.settle(name, receipt_of(name), (), ())
        assert process.store.index.count(State.DELIVERED) >= len(held)
        await sealed(process, "welcome again")
        assert process.store.room.refusal is None


async def test_a_ballast_that_is_gone_must_be_had_again_before_intake_goes_on(tmp_path: Path) -> None:
    files, world = WatchedDisk(), World(root=tmp_path, free_bytes=10 * MIB)
    async with node(world, files=files) as process:
        process.store.room.tend()
        process.volume.ballast.give_up()
        files.free = needed_bytes(10 * MIB, undelivered=1, ballast=10 * MIB)
        with pytest.raises(StoreFullError):
            await sealed(process)
        process.store.room.tend()
        assert process.volume.ballast.missing_bytes > 0
        files.free = None
        process.store.room.tend()
        assert process.volume.ballast.missing_bytes == 0
        await sealed(process)


async def test_inodes_are_kept_too_unless_the_volume_counts_none(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with node(World(root=tmp_path), files=files) as process:
        await sealed(process)
        process.store.room._credit = 0
        files.inodes = 2 * PER_ARTIFACT_INODES - 1
        with pytest.raises(StoreFullError):
            await sealed(process, "call-2")
        files.inodes = 2 * PER_ARTIFACT_INODES
        await sealed(process, "call-2")


async def test_many_slow_sources_are_refused_before_any_of_them_fills_a_segment(tmp_path: Path) -> None:
    """A body of little by little is flushed every second: it must not take the room bytewise."""
    files, world = WatchedDisk(), World(root=tmp_path, free_bytes=10 * MIB)
    async with node(world, files=files) as process:
        receptions = [await process.recorder.begin(process.a, source(f"slow-{number}")) for number in range(50)]
        files.free = 0
        refused = sent = 0
        for _ in range(40):
            for reception in receptions:
                try:
                    await process.send(reception, bytes(1024))
                    sent += 1024
                except StoreFullError:
                    refused += 1
        assert sent <= MIB
        assert refused > 1000
        for reception in receptions:
            await reception.writer.sync()
            assert reception.writer.durable_bytes == reception.size_bytes


async def test_events_are_refused_too_and_come_again(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with node(World(root=tmp_path, free_bytes=10 * MIB), files=files) as process:
        files.free = 0
        with pytest.raises(StoreFullError):
            await process.events.take(process.a, b"[]")
        files.free = None
        assert await process.events.take(process.a, b"[]") == 0


async def test_a_disk_that_is_full_for_hours_costs_no_memory_and_nothing_that_is_held(tmp_path: Path) -> None:
    files, world = WatchedDisk(), World(root=tmp_path, free_bytes=10 * MIB)
    async with node(world, files=files) as process:
        names = [await sealed(process, f"call-{number}") for number in range(3)]
        reception = await process.break_off(source("open"), b"acknowledged")
        files.free = 0
        for operation in ("create", "append", "make_directory", "allocate"):
            files.refuse(operation, "", error=FULL, times=FOR_EVER)
        paths = world.paths()
        for hour in range(100):
            with pytest.raises(StoreFullError):
                await process.recorder.begin(process.a, source(f"more-{hour}"))
            for name in names:
                with pytest.raises(StoreFullError):
                    await process.store.settle(name, receipt_of(name), (), ())
            await process.sweep.once()
            process.store.room.tend()
            world.clock.advance(60)
            with contextlib.suppress(StoreFullError):
                await process.recorder.offset(process.a, reception.name.kind, "open")
        assert world.paths() == paths
        assert process.store.room.trouble is None
        assert len(process.recorder.receptions()) <= 1
        files.free, files.refusals = None, []
        for name in names:
            await process.store.settle(name, receipt_of(name), (), ())
        await process.upload(source("after"), b"body")


# --- one instance's share


async def test_an_instance_that_holds_its_share_is_refused_alone_and_until_some_is_delivered(tmp_path: Path) -> None:
    world = World(root=tmp_path, instances={A: instance(A, limits=Limits(held_bytes=1000)), B: instance(B)})
    async with node(world) as process:
        name = await sealed(process, "call-1", bytes(600))
        reception = await process.recorder.begin(process.a, source("call-2"))
        await process.send(reception, bytes(400))
        with pytest.raises(QuotaError, match="held_bytes"):
            await process.send(reception, b"1")
        with pytest.raises(QuotaError):
            await process.recorder.begin(process.a, source("call-3"))
        await process.upload(source("call-3"), bytes(5000), tenant=process.b)
        await process.store.settle(name, receipt_of(name), (), ())
        await process.send(reception, b"1")
        await process.recorder.finish(reception, None)
        assert process.store.index.held_bytes(A) == 401
    async with node(world) as process:  # names tell it again
        assert process.store.index.held_bytes(A) == 401
        assert process.store.index.held_bytes(B) == 5000


async def test_what_is_dropped_or_rejected_counts_as_what_is_still_held(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        poison = await process.store.reject(await sealed(process, "call-1", bytes(100)), "integrity", ())
        await process.upload(source("call-2"), bytes(50))
        await process.upload(source("call-2"), bytes(50))  # a repeat, dropped
        opened = await process.break_off(source("call-3"), bytes(30))
        assert process.store.index.held_bytes(A) == 180
        await process.recorder.detach(opened)
        await process.recorder.reopen(process.a, opened.name)
        assert process.store.index.held_bytes(A) == 180
        process.store.index.remove(poison.artifact_id)
        assert process.store.index.held_bytes(A) == 80


async def test_whoever_is_over_the_share_is_told_which_and_when_to_come_back(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path, held_bytes=len(BODY))) as server:
        assert (await server.ask("PUT", url(name="/a"), BODY)).status == 201
        reply = await server.ask("PUT", url(name="/b"), BODY)
        assert is_problem(reply, 507, "instance-quota")
        assert "held_bytes" in reply.json["detail"]
        assert int(reply.headers["retry-after"]) > 0


# --- a volume that really fills up


def on_small_volume(scenario: str, options: str, place: Path) -> dict[str, Any]:
    """Run a scenario of `on_small_volume` on a volume of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here: no volume can be mounted")
    script = f"mount -t tmpfs -o {options} none {place} && exec {sys.executable} -m tests.fault.on_small_volume"
    command = [unshare, "-rm", "sh", "-c", f"{script} {scenario} {place}/store"]
    ended = subprocess.run(command, capture_output=True, check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr.decode()
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told


def test_on_a_volume_without_a_byte_left_all_that_is_held_is_delivered(tmp_path: Path) -> None:
    told = on_small_volume("bytes", "size=6m", tmp_path)
    assert told["free"] == 0
    assert told["taken"] > 60
    assert (told["refused"], told["taken again"]) == (True, True)
    assert told["delivered"] == told["receipts"] == told["taken"]
    assert told["ballast"] == told["ballast again"] == 2 * MIB
    assert told["given up"] > 0


def test_on_a_volume_short_of_inodes_all_that_is_held_is_delivered(tmp_path: Path) -> None:
    told = on_small_volume("inodes", "size=16m,nr_inodes=250", tmp_path)
    assert told["free inodes"] >= PER_ARTIFACT_INODES * told["taken"] - 64
    assert told["delivered"] == told["taken"] > 30
    assert (told["refused"], told["taken again"]) == (True, True)
