import gc
import hashlib
import os
import threading
import time
import tracemalloc
from itertools import product
from pathlib import Path

import anyio
import pytest
from awscrt import checksums

from pipeline.crypt.segments import SEGMENT_LIMIT, SegmentType
from pipeline.errors import StoreFullError, StoreIoError, WriterClosedError
from pipeline.interim.reader import ArtifactReader
from pipeline.interim.writer import INLINE_LIMIT, ArtifactWriter, Digests
from pipeline.ports import Buffer
from tests.store_fixture import HOUR_S, MARKER, Node, WatchedDisk, World, node, settled, source

MIB = 1024 * 1024


async def writer_of(process: Node) -> ArtifactWriter:
    return (await process.recorder.begin(process.a, source())).writer


async def read_back(process: Node, writer: ArtifactWriter) -> tuple[bytes, list[int]]:
    """Give all media that are in whole segments, and the sizes of the segments."""
    key = await process.a.ring.opening(writer.name.key_id)
    with process.store.reading(writer.name, key, limit=writer.end) as reader:
        body = bytearray(reader.media_bytes)
        reader.read_into(0, memoryview(body))
        return bytes(body), sizes(reader)


def sizes(reader: ArtifactReader) -> list[int]:
    return [entry.frame.plaintext_size for entry in reader.entries if entry.frame.type is SegmentType.MEDIA]


async def test_nothing_is_durable_before_a_sync_and_everything_is_after_it(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        await writer.append(b"abc")
        assert (writer.size_bytes, writer.durable_bytes, writer.is_dirty) == (3, 0, True)
        process.files.done.clear()
        await writer.sync()
        assert (writer.size_bytes, writer.durable_bytes, writer.is_dirty) == (3, 3, False)
        first = process.files.operations("append", "sync", "sync_directory")[:3]
        assert first == [
            ("append", writer.path),
            ("sync", writer.path),
            ("sync_directory", str(Path(writer.path).parent)),
        ]
        process.files.done.clear()
        await writer.append(b"def")
        await writer.sync()
        assert ("sync_directory", str(Path(writer.path).parent)) not in process.files.done


async def test_what_is_being_sealed_counts_as_taken_and_not_as_written(tmp_path: Path) -> None:
    """A sync seals in a thread of its own: who asks meanwhile how long the body is must not miss those bytes."""
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        seen = []

        class Watched(Digests):
            def update(self, data: Buffer) -> None:
                seen.append((writer.size_bytes, writer.is_dirty))
                super().update(data)
                seen.append((writer.size_bytes, writer.is_dirty))

        writer.digests = Watched()
        await writer.append(bytes(INLINE_LIMIT + 1))
        await writer.sync()
        assert seen == [(INLINE_LIMIT + 1, True)] * 2
        assert (writer.size_bytes, writer.is_dirty) == (INLINE_LIMIT + 1, False)


SIZES = [1, 16 * 1024, INLINE_LIMIT - 1, INLINE_LIMIT, INLINE_LIMIT + 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1]


@pytest.mark.parametrize("piece", [3 * MIB, 65536, 100_003])
async def test_any_size_in_any_pieces_is_held_byte_for_byte(tmp_path: Path, piece: int) -> None:
    async with node(World(root=tmp_path)) as process:
        for size in SIZES:
            body = os.urandom(size)
            writer = (await process.recorder.begin(process.a, source(f"{size}"))).writer
            for at in range(0, size, piece):
                await writer.append(body[at : at + piece])
            await writer.sync()
            held, segments = await read_back(process, writer)
            assert held == body
            assert max(segments) <= SEGMENT_LIMIT
            assert writer.digests.sha256 == hashlib.sha256(body).hexdigest()
            assert writer.digests.crc64nvme == checksums.crc64nvme(body)


async def test_records_stand_behind_the_media_that_came_before_them(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        await writer.append(b"before")
        await writer.append_records(SegmentType.EVENT, [b'{"type":"x","data":1}', b'{"type":"y","data":2}'])
        await writer.append(b"after")
        await writer.sync()
        key = await process.a.ring.opening(writer.name.key_id)
        with process.store.reading(writer.name, key, limit=writer.end) as reader:
            assert [entry.frame.type.name for entry in reader.entries] == ["EVENT", "MEDIA", "EVENT", "EVENT", "MEDIA"]
            assert [record.type for record in reader.records()] == ["x", "y"]
        assert (writer.tally.media_segments, writer.tally.event_segments) == (2, 3)


async def test_a_long_body_is_synced_on_its_way_so_that_recovery_can_count_on_it(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        unsynced: list[int] = []
        for _ in range(20):
            await writer.append(bytes(MIB))
            unsynced.append(writer.size_bytes - writer.durable_bytes)
        assert max(unsynced) <= 9 * MIB
        assert process.files.done.count(("sync", writer.path)) >= 3


async def test_a_sync_that_fails_behind_a_body_breaks_it_off_at_the_next(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        process.files.refuse("sync", writer.path)
        await writer.append(bytes(4 * MIB))
        assert not writer.is_broken
        with pytest.raises(StoreIoError):
            await writer.append(bytes(4 * MIB))
        assert (writer.is_broken, writer.durable_bytes) == (True, 0)


async def test_a_descriptor_is_not_closed_while_a_sync_uses_it(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        refused = threading.Event()

        def outlast_the_refusal(_number: int, operation: str, path: str) -> None:
            if (operation, path) == ("sync", writer.path):
                refused.wait(10)
                time.sleep(0.05)  # for whoever would close now
            elif operation == "append" and process.files.refusals:
                refused.set()

        process.files.before = outlast_the_refusal
        await writer.append(bytes(4 * MIB))
        process.files.refuse("append", writer.path)
        with pytest.raises(StoreIoError):
            await writer.append(bytes(MIB))
        of_file = [operation for operation, path in process.files.done if path == writer.path]
        assert of_file[-2:] == ["sync", "close"]


async def test_many_tiny_pieces_take_little_more_memory_than_their_bytes(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        gc.collect()
        tracemalloc.start()
        for _ in range(20_000):
            await writer.append(b"x")
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert used < 100_000
        await writer.sync()
        assert (await read_back(process, writer))[0] == b"x" * 20_000


async def test_a_writer_whose_disk_refused_is_closed_for_good(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        errors = (StoreIoError("EIO"), StoreFullError("ENOSPC"))
        for operation, error in product(("sync", "append", "sync_directory"), errors):
            process.world.clock.advance(HOUR_S)
            writer = (await process.recorder.begin(process.a, source(f"{operation} {error}"))).writer
            await writer.append(b"abc")
            process.files.refuse(operation, f"/artifacts/{writer.name.shard}", error=error)
            with pytest.raises(type(error)):
                await writer.sync()
            assert (writer.is_broken, writer.durable_bytes) == (True, 0)
            assert process.files.done.count(("close", writer.path)) == 1
            process.files.done.clear()
            calls = (
                writer.append(b"x"),
                writer.sync(),
                writer.conclude(),
                writer.append_records(SegmentType.EVENT, []),
            )
            for refused in calls:
                with pytest.raises(WriterClosedError):
                    await refused
            await writer.close()
            assert process.files.done == []


async def test_whoever_waited_for_a_writer_that_broke_does_not_write_through_its_descriptor(tmp_path: Path) -> None:
    """The descriptor is closed by then, and may be another file's."""
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        await writer.append(bytes(MIB - 1))
        process.files.refuse("sync", writer.path)
        raised: list[str] = []

        async def sync() -> None:
            with pytest.raises(StoreIoError):
                await writer.sync()
            raised.append("sync")

        async def append() -> None:
            with pytest.raises(WriterClosedError):
                await writer.append(bytes(MIB))
            raised.append("append")

        async with anyio.create_task_group() as group:
            group.start_soon(sync)
            await settled()
            group.start_soon(append)
        assert raised == ["sync", "append"]
        assert process.files.done[-1][0] != "append"


async def test_a_concluded_writer_takes_no_more_media(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        await writer.append(b"abc")
        await writer.conclude()
        with pytest.raises(WriterClosedError):
            await writer.append(b"d")
        await writer.sync()
        assert writer.durable_bytes == 3


async def test_a_cancelled_append_leaves_whole_segments(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        writer = await writer_of(process)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await writer.append(b"a" * (3 * MIB))
        await writer.sync()
        held, _ = await read_back(process, writer)
        assert held == b"a" * len(held)
        assert len(held) == writer.durable_bytes == writer.digests.size_bytes
        assert writer.digests.sha256 == hashlib.sha256(held).hexdigest()


async def test_the_room_that_is_kept_for_what_is_held_is_not_written_on(tmp_path: Path) -> None:
    files = WatchedDisk()
    async with node(World(root=tmp_path, free_bytes=50 * MIB), files=files) as process:
        writer = await writer_of(process)
        await writer.append(bytes(2 * MIB))
        files.free = 49 * MIB
        with pytest.raises(StoreFullError):
            await writer.append(bytes(2 * MIB))
        assert not writer.is_broken
        await writer.sync()
        assert writer.durable_bytes == writer.size_bytes
        files.free = None
        await writer.append(b"it goes on")


async def test_media_are_not_on_the_disk_in_clear(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        writer = await writer_of(process)
        await writer.append(MARKER * 100_000)
        await writer.sync()
    assert world.holds(MARKER) == []
