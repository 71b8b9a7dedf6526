"""F19: no descriptor, no thread to be had: whoever asks is told to come back, nothing leaks, it is over by itself."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import anyio
import anyio.to_thread
import pytest

from pipeline.adapters.disk import Disk
from pipeline.errors import DeferError, StoreBusyError
from pipeline.interim.states import State
from tests.intake_server import BODY, is_problem, serving, url, world_at
from tests.node import process_node
from tests.receipts import receipt_of
from tests.sites import moto_site
from tests.store_fixture import World, node, source
from tests.unit.test_store import sealed


def descriptors(process: object = "self") -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Take every descriptor that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, descriptors() + 64), hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_disk_tells_a_lack_of_descriptors_from_trouble_with_a_file(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "file"
    path.write_bytes(b"there")
    before = descriptors()
    with no_descriptors():
        for operation in (
            lambda: disk.open(str(path)),
            lambda: disk.create(str(tmp_path / "new")),
            lambda: disk.names(str(tmp_path)),
            lambda: disk.sorted_out(str(tmp_path)),
            lambda: disk.sync_directory(str(tmp_path)),
            lambda: disk.sync_volume(str(tmp_path)),
        ):
            with pytest.raises(StoreBusyError):
                operation()
    assert descriptors() == before
    assert disk.names(str(tmp_path)) == ["file"]


async def test_without_descriptors_intake_and_delivery_wait_and_nothing_leaks_or_is_lost(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        reception = await process.recorder.begin(process.a, source("under way"))
        await process.send(reception, b"acknowledged")
        await reception.writer.sync()
        before = descriptors()
        with no_descriptors():
            for number in range(50):
                with pytest.raises(StoreBusyError):
                    await process.recorder.begin(process.a, source(f"call-{number}"))
            with pytest.raises(DeferError):
                await process.store.settle(name, receipt_of(name), (), ())
            await process.send(reception, b" and more")  # its file is open
            await reception.writer.sync()
            process.store.room.tend()
            assert len(process.recorder.receptions()) == 1
        assert descriptors() == before
        assert process.store.room.trouble is None
        await process.recorder.finish(reception, None)
        assert await process.media(process.sealed[-1]) == b"acknowledged and more"
        target = await process.store.settle(name, receipt_of(name), (), ())
        assert target.standing is State.DELIVERED


async def test_whoever_sends_is_told_to_come_back_soon(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await server.process.a.ring.active()
        await server.ask("PUT", url(name="/a"), BODY)
        with no_descriptors():
            reply = await server.ask("PUT", url(name="/b"), BODY)
        assert is_problem(reply, 503, "store-busy")
        assert int(reply.headers["retry-after"]) > 0
        assert (await server.ask("PUT", url(name="/b"), BODY)).status == 201


async def _run_sync(let_go: Event) -> None:
    await anyio.to_thread.run_sync(let_go.wait)


async def test_commits_go_on_while_every_worker_thread_is_taken(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        let_go, threads = Event(), int(anyio.to_thread.current_default_thread_limiter().total_tokens)
        async with anyio.create_task_group() as group:
            for _ in range(threads + 5):
                group.start_soon(_run_sync, let_go)
            try:
                with anyio.fail_after(10):
                    await sealed(process, "call-2")
                    await process.store.settle(name, receipt_of(name), (), ())
            finally:
                let_go.set()


@pytest.mark.aws
@pytest.mark.slow
async def test_a_service_whose_descriptors_are_taken_by_idle_connections_serves_again(tmp_path: Path) -> None:
    async with moto_site(tmp_path) as site, process_node(site) as running:
        party = site.parties[0]
        assert (await running.caller.put(party, "c-0", "voice.wav", BODY)).status == 201
        port = int(running.caller.url.rpartition(":")[2])
        now = descriptors(running.pid)
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (now + 20, now + 20))
        streams = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(60)]
        with anyio.move_on_after(5):
            answer = await running.caller.put(party, "c-1", "voice.wav", BODY)
            assert answer.status in {201, 503}
        for stream in streams:
            await stream.aclose()
        await anyio.sleep(1)
        assert (await running.caller.put(party, "c-2", "voice.wav", BODY)).status == 201
        assert descriptors(running.pid) < now + 20
        assert await running.stop() == 0
