"""F7, F8: a sync that the disk refuses, once or for good.

Nothing that a refused sync covered is acknowledged, and none is repeated on the same file. One refusal is an alarm, a
second soon after it stops intake alone: what is held goes on, and intake resumes by itself once the disk keeps again
what is written to it.
"""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pipeline.errors import DeferError, StoreIoError, VolumeFailedError
from pipeline.interim.states import State
from tests.intake_server import BODY, Server, is_problem, serving, url, world_at
from tests.receipts import receipt_of
from tests.store_fixture import HOUR_S, Node, World, node, source

PROBE = "/probe"
FOR_EVER = 10**9


async def fail_a_sync(process: Node, source_id: str) -> None:
    """Let one recording's sync be refused."""
    reception = await process.recorder.begin(process.a, source(source_id))
    await process.send(reception, b"body")
    process.files.refuse("sync", reception.writer.path)
    with pytest.raises(StoreIoError):
        await reception.writer.sync()
    await process.recorder.detach(reception)


def wait(process: Node, seconds: float) -> None:
    """Let time pass, and the look after the volume that is due."""
    process.world.clock.advance(seconds)
    process.store.room.tend()


async def test_one_refused_sync_is_an_alarm_and_its_bytes_go_to_a_new_file(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, b"one")
        await reception.writer.sync()
        await process.send(reception, b"two")
        before = Path(reception.writer.path).stat().st_ino
        process.files.refuse("sync", reception.writer.path)
        with capture_logs() as logs, pytest.raises(StoreIoError):
            await reception.writer.sync()
        assert [line["log_level"] for line in logs if line["event"] == "store.write_refused"] == ["error"]
        assert reception.writer.durable_bytes == 3
        assert process.store.room.trouble is None
        again = await process.recorder.reopen(process.a, reception.name)
        assert again is not None
        assert Path(again.writer.path).stat().st_ino != before
        assert again.writer.durable_bytes in {3, 6}
        await process.upload(source("call-2"), b"goes on")


async def test_a_second_refusal_soon_after_stops_intake_and_nothing_else(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.upload(source("held"), b"held")
        with capture_logs() as logs:
            await fail_a_sync(process, "call-1")
            await fail_a_sync(process, "call-2")
        assert "store.volume_failed" in [line["event"] for line in logs if line["log_level"] == "error"]
        with pytest.raises(VolumeFailedError):
            await process.recorder.begin(process.a, source("call-3"))
        with pytest.raises(VolumeFailedError):
            await process.events.take(process.a, b"[]")
        name = process.sealed[0]
        target = await process.store.settle(name, receipt_of(name), (), ())
        assert target.standing is State.DELIVERED


async def test_refusals_that_are_far_apart_stop_nothing(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        for number in range(5):
            await fail_a_sync(process, f"call-{number}")
            process.world.clock.advance(HOUR_S)
        await process.upload(source("another"), b"body")


async def test_a_body_under_way_is_broken_off_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        reception = await process.recorder.begin(process.a, source("long"))
        await process.send(reception, b"acknowledged")
        await reception.writer.sync()
        await fail_a_sync(process, "call-1")
        await fail_a_sync(process, "call-2")
        with pytest.raises(VolumeFailedError):
            await process.send(reception, b" and more")
        assert not reception.writer.is_broken
        assert reception.writer.durable_bytes == reception.size_bytes == len(b"acknowledged")


async def test_a_rewrite_that_fails_too_stops_intake(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await fail_a_sync(process, "call-1")
        name = process.store.index.open()[0]
        await process.upload(source("between"), b"other files may well be kept")
        process.files.refuse("sync", f"{name}.tmp")
        with pytest.raises(StoreIoError):
            await process.recorder.reopen(process.a, name)
        with pytest.raises(VolumeFailedError):
            await process.recorder.begin(process.a, source("call-2"))


async def test_intake_resumes_by_itself_when_fresh_files_are_kept_three_times(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        process.files.refuse("sync", PROBE, times=FOR_EVER)
        await fail_a_sync(process, "call-1")
        await fail_a_sync(process, "call-2")
        with capture_logs() as logs:
            for _ in range(600):
                wait(process, 1)
                assert process.store.room.trouble is not None
        failed = [line for line in logs if line["event"] == "store.probe_failed"]
        assert 8 <= len(failed) <= 20  # ten minutes: the wait between them grows, up to a minute
        process.files.refusals.clear()
        seconds = probes = 0
        while process.store.room.trouble is not None:
            wait(process, 1)
            seconds += 1
            probes = process.files.operations("create").count(("create", str(tmp_path) + PROBE)) - len(failed)
        assert (probes, seconds <= 70) == (3, True)
        assert not (tmp_path / "probe").exists()
        for number in (1, 2):
            await process.upload(source(f"call-{number}"), b"body sent again")
        assert len(process.sealed) == 2


async def test_a_probe_that_fails_between_begins_the_count_again(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await fail_a_sync(process, "call-1")
        await fail_a_sync(process, "call-2")
        for _ in range(2):
            wait(process, 5)
        process.files.refuse("append", PROBE)
        wait(process, 5)
        for _ in range(2):
            wait(process, 5)
            assert process.store.room.trouble is not None
        wait(process, 5)
        assert process.store.room.trouble is None


async def test_a_disk_that_refuses_every_write_is_left_alone_and_what_was_acknowledged_is_there_later(
    tmp_path: Path,
) -> None:
    async with node(World(root=tmp_path)) as process:
        reception = await process.recorder.begin(process.a, source("long"))
        await process.send(reception, b"acknowledged")
        await reception.writer.sync()
        await process.upload(source("sealed"), b"sealed")
        for operation in ("create", "append", "sync", "sync_directory", "rename", "unlink", "truncate"):
            process.files.refuse(operation, "", times=FOR_EVER)
        for number in range(4):
            with pytest.raises(DeferError):
                await process.upload(source(f"call-{number}"), b"body")
        with pytest.raises(DeferError):
            await process.store.settle(process.sealed[0], receipt_of(process.sealed[0]), (), ())
        await process.recorder.let_go(reception)
        await process.sweep.once()
        wait(process, 5)
        assert process.store.room.trouble is not None
        assert await process.media(process.sealed[0]) == b"sealed"
        process.files.refusals.clear()
        for _ in range(60):
            wait(process, 5)
        assert await process.recorder.offset(process.a, reception.name.kind, "long") == len(b"acknowledged")
        await process.upload(source("after"), b"body")


# --- what is told


async def stopped(server: Server) -> None:
    await fail_a_sync(server.process, "call-1")
    await fail_a_sync(server.process, "call-2")


async def test_whoever_sends_is_told_why_and_when_to_come_back(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await stopped(server)
        reply = await server.ask("PUT", url(name="/a"), BODY)
        assert is_problem(reply, 503, "volume-failed")
        assert int(reply.headers["retry-after"]) > 0
        assert (await server.ask("GET", "/livez")).status == 200
        for _ in range(4):
            wait(server.process, 5)
        assert (await server.ask("PUT", url(name="/a"), BODY)).status == 201
