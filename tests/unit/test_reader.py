from pathlib import Path

import msgspec
import pytest

from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.interim.states import ArtifactName
from tests.store_fixture import Node, World, node, source
from tests.unit.keyring_fakes import A

BODY = bytes(number % 251 for number in range(100_000))


async def sealed(process: Node, *pieces: bytes) -> ArtifactName:
    await process.upload(source(), *(pieces or (BODY,)))
    return process.sealed[-1]


async def test_a_range_beyond_the_media_is_refused_and_nothing_else_comes(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        key = await process.a.ring.opening(name.key_id)
        with process.store.reading(name, key) as reader:
            for offset, size in (
                (len(BODY), 1),
                (len(BODY) - 5, 6),
                (len(BODY) + 50, 100),
                (0, len(BODY) + 1),
                (-1, 1),
            ):
                room = bytearray(size)
                with pytest.raises(SegmentForgedError):
                    reader.read_into(offset, memoryview(room))
                assert room == bytes(size)
            reader.read_into(len(BODY), memoryview(b""))


async def test_head_and_manifest_say_what_is_there(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        key = await process.a.ring.opening(name.key_id)
        with process.store.reading(name, key) as reader:
            head, manifest = reader.head(), reader.manifest()
            assert (head.contact, head.source_id, head.content_type) == ("contact-1", "call-1", "audio/wav")
            assert manifest.counts.media_bytes == manifest.object.size_bytes == len(BODY) == name.size_bytes
            assert list(reader.records()) == []


async def test_an_open_artifact_gives_nothing_beyond_what_was_synced(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        reception = await process.recorder.begin(process.a, source())
        await process.send(reception, b"synced")
        await reception.writer.sync()
        limit = reception.writer.end
        await process.send(reception, b"not synced")
        await reception.writer.conclude()
        key = await process.a.ring.opening(reception.name.key_id)
        with process.store.reading(reception.name, key, limit=limit) as reader:
            assert reader.media_bytes == 6
            with pytest.raises(SegmentForgedError):
                reader.read_into(0, memoryview(bytearray(7)))
            with pytest.raises(SegmentForgedError):
                reader.manifest()


async def test_bits_flipped_anywhere_in_a_sealed_file_are_found_before_a_byte_is_given_out(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process, b"s3cret")
        path = Path(process.store.path(name))
        whole = path.read_bytes()
        key = await process.a.ring.opening(name.key_id)

        def opens(raw: bytes) -> None:
            with path.open("r+b") as file:
                file.truncate(0)
                file.write(raw)
            with process.store.reading(name, key) as reader:
                reader.head()
                reader.manifest()
                reader.read_into(0, memoryview(bytearray(6)))

        opens(whole)
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            for raw in (bytes(damaged), whole[:at]):
                with pytest.raises(SegmentForgedError):
                    opens(raw)
        with pytest.raises(SegmentForgedError):
            opens(whole + b"x")


async def test_an_artifact_under_another_name_is_refused(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        await process.upload(source("call-2"), b"another")
        other = process.sealed[-1]
        path, target = Path(process.store.path(other)), Path(process.store.path(name))
        target.write_bytes(path.read_bytes())
        key = await process.a.ring.opening(name.key_id)
        with pytest.raises(SegmentForgedError), process.store.reading(name, key):
            pass


async def test_a_file_that_is_gone_is_trouble_with_the_disk_not_with_the_recording(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        Path(process.store.path(name)).unlink()
        key = await process.a.ring.opening(name.key_id)
        with pytest.raises(StoreIoError), process.store.reading(name, key):
            pass
        with pytest.raises(StoreIoError):
            process.store.receipt(name.delivered())


async def test_a_reader_that_failed_to_open_holds_no_file(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        Path(process.store.path(name)).write_bytes(b"junk")
        key = await process.a.ring.opening(name.key_id)
        before = len(process.files.handles)
        with pytest.raises(SegmentForgedError), process.store.reading(name, key):
            pass
        assert len(process.files.handles) == before


async def test_the_events_beside_it_speak_of_the_same_recording(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        name = await sealed(process)
        lines = world.events().splitlines()
    events = [msgspec.json.decode(line) for line in lines]
    assert [event["detail"]["recordingStatus"] for event in events] == ["INITIATED", "COMPLETED"]
    assert {event["detail"]["recordingId"] for event in events} == {str(name.artifact_id)}
    assert [event["detail"]["sequence"] for event in events] == [1, 2]
    assert events[0]["detail"]["instanceArn"].endswith(str(A))
