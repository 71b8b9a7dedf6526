from datetime import timedelta
from itertools import product
from pathlib import Path

import anyio
import msgspec
import pytest

from pipeline.crypt.contents import Manifest
from pipeline.errors import PipelineError, StoreFullError, StoreIoError
from pipeline.events import Item, parse_item
from pipeline.ids import Kind
from pipeline.intake.chats import render_again
from pipeline.intake.reception import Source
from pipeline.interim.states import ArtifactName, State
from tests.store_fixture import MARKER, Node, World, after_power_cut, node, settled

CONTACT = "chat-1"
DAY = timedelta(hours=25).total_seconds()


def item(number: int, content: str = "", **members: object) -> Item:
    raw = {
        "AbsoluteTime": f"2026-11-23T09:{number // 60:02}:{number % 60:02}.000Z",
        "Content": content or f"{MARKER.decode()}{number}",
        "ContentType": "text/plain",
        "Id": f"i-{number}",
        "Type": "MESSAGE",
        "ParticipantId": "p-1",
        **members,
    }
    return parse_item(msgspec.json.encode(raw))


async def opened(process: Node, name: ArtifactName) -> tuple[Manifest, bytes]:
    key = await process.a.ring.opening(name.key_id)
    with process.store.reading(name, key) as reader:
        return reader.manifest(), render_again(reader)


async def transcript(process: Node, name: ArtifactName) -> list[str]:
    manifest, data = await opened(process, name)
    assert len(data) == manifest.object.size_bytes == name.size_bytes
    file = msgspec.json.decode(data)
    assert file["ContactId"] == file["InitialContactId"] == CONTACT
    return [each["Id"] for each in file["Transcript"]]


async def test_items_are_durable_when_they_are_answered(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.chats.append(process.a, CONTACT, [item(1), item(2)])
        appended = process.files.operations("append", "sync")
        assert appended[-1][0] == "sync"
        await process.chats.append(process.a, CONTACT, [item(3)])
    after = after_power_cut(world, process.files.durable(), tmp_path / "after")
    async with node(after) as process:
        await process.chats.end(process.a, CONTACT, even_if_empty=False)
        assert await transcript(process, process.sealed[0]) == ["i-1", "i-2", "i-3"]
    assert world.holds(MARKER) == after.holds(MARKER) == []


async def test_items_stand_by_time_and_then_by_arrival_and_each_once(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.chats.append(process.a, CONTACT, [item(5), item(3)])
        same_time = item(3, Id="i-later-of-the-same-time")
        await process.chats.append(process.a, CONTACT, [same_time, item(5, "another word"), item(1)])
        await process.chats.append(process.a, CONTACT, [item(5)])
        await process.chats.end(process.a, CONTACT, even_if_empty=False)
        assert await transcript(process, process.sealed[0]) == ["i-1", "i-3", "i-later-of-the-same-time", "i-5"]
        _, data = await opened(process, process.sealed[0])
        assert b"another word" not in data


async def test_repeats_after_sealing_change_nothing(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.chats.append(process.a, CONTACT, [item(1), item(2)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        await process.chats.append(process.a, CONTACT, [item(2), item(1)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        assert world.names() == process.sealed
        assert len(process.sealed) == 1
    async with node(world) as process:
        await process.chats.append(process.a, CONTACT, [item(1)])
        assert len(world.names()) == 1


async def test_repeats_after_delivery_are_known_by_the_receipt(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.chats.append(process.a, CONTACT, [item(1)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        name = process.sealed[0]
        manifest, _ = await opened(process, name)
        receipt = msgspec.json.encode({"itemDigests": manifest.item_digests})
        await process.store.settle(name, receipt, (), ())
        await process.chats.append(process.a, CONTACT, [item(1)])
        assert len(world.names()) == 1
        await process.chats.append(process.a, CONTACT, [item(1), item(2)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        assert await transcript(process, process.sealed[1]) == ["i-2"]


@pytest.mark.parametrize("receipt", [b"{", b"\xff"])
async def test_a_damaged_receipt_does_not_stop_a_chat(tmp_path: Path, receipt: bytes) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.chats.append(process.a, CONTACT, [item(1)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        await process.store.settle(process.sealed[0], receipt, (), ())
        await process.chats.append(process.a, CONTACT, [item(2)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        assert process.sealed[1].generation == 2


async def test_a_damaged_generation_does_not_stop_a_chat(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.chats.append(process.a, CONTACT, [item(1)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        await process.store.reject(process.sealed[0], "integrity", ())
        next(tmp_path.rglob("*.poison.integrity")).write_bytes(b"junk")
        await process.chats.append(process.a, CONTACT, [item(2)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        assert process.sealed[1].generation == 2


async def test_items_that_are_new_after_sealing_are_another_generation(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.chats.append(process.a, CONTACT, [item(1)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        await process.chats.append(process.a, CONTACT, [item(1), item(2)])
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        first, second = process.sealed
        assert (first.generation, second.generation) == (1, 2)
        assert await transcript(process, second) == ["i-2"]
        manifests = [(await opened(process, name))[0] for name in process.sealed]
        assert manifests[0].recording_id == manifests[1].recording_id
        assert set(manifests[0].keys).isdisjoint(manifests[1].keys)


async def test_a_chat_without_an_item_is_an_empty_transcript_if_its_end_was_told(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.chats.end(process.a, CONTACT, even_if_empty=False)
        assert process.sealed == []
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        assert await transcript(process, process.sealed[0]) == []
        assert len(process.sealed) == 1


async def test_a_restart_in_the_middle_loses_no_item(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    for number in range(4):
        async with node(world) as process:
            await process.chats.append(process.a, CONTACT, [item(number)])
    async with node(world) as process:
        await process.chats.end(process.a, CONTACT, even_if_empty=False)
        assert await transcript(process, process.sealed[0]) == ["i-0", "i-1", "i-2", "i-3"]
        assert len(world.names()) == 1


async def test_a_service_that_stops_keeps_its_chats_open(tmp_path: Path) -> None:
    """A chat holds no media: it must not be taken for a body without a byte."""
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.chats.append(process.a, CONTACT, [item(1)])
        for reception in process.recorder.receptions():
            await process.recorder.let_go(reception)
        assert len(world.paths(".open")) == 1
        await process.chats.append(process.a, CONTACT, [item(2)])
    async with node(world) as process:
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        assert await transcript(process, process.sealed[0]) == ["i-1", "i-2"]


async def test_a_silent_chat_is_sealed_after_a_day_as_recovered(tmp_path: Path) -> None:
    for restart in (False, True):
        world = World(root=tmp_path / str(restart))
        async with node(world) as process:
            await process.chats.append(process.a, CONTACT, [item(1)])
            world.clock.advance(DAY / 2)
            await process.sweep.once()
            assert process.sealed == []
            if not restart:
                await _silent(process)
        if restart:
            async with node(world) as process:
                await process.sweep.once()
                await _silent(process)


async def _silent(process: Node) -> None:
    process.world.clock.advance(DAY)
    await process.sweep.once()
    await process.sweep.once()
    assert await transcript(process, process.sealed[0]) == ["i-1"]
    manifest, _ = await opened(process, process.sealed[0])
    assert (manifest.ending, manifest.quality) == ("recovered", ("RECOVERED",))
    assert len(process.world.names()) == 1


async def test_no_item_slips_in_while_a_chat_is_sealed(tmp_path: Path) -> None:
    """What the manifest was computed of is what is there; the late item is another generation's."""
    async with node(World(root=tmp_path)) as process:
        await process.chats.append(process.a, CONTACT, [item(number) for number in range(50)])
        [reception] = process.recorder.receptions()
        async with anyio.create_task_group() as group:
            group.start_soon(process.chats.seal, reception, "recovered")
            for _ in range(3):
                await settled()
                group.start_soon(process.chats.append, process.a, CONTACT, [item(99)])
        await process.chats.end(process.a, CONTACT, even_if_empty=False)
        held = [await transcript(process, name) for name in process.sealed]
        assert [len(each) for each in held] == [50, 1]
        for name in process.sealed:
            manifest, data = await opened(process, name)
            assert manifest.object.size_bytes == len(data)


async def test_items_at_the_same_time_are_one_chat(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(process.chats.append, process.a, CONTACT, [item(number)])
        await process.chats.end(process.a, CONTACT, even_if_empty=False)
        assert await transcript(process, process.sealed[0]) == [f"i-{number}" for number in range(10)]


async def test_an_item_that_is_not_durable_is_not_answered_and_comes_again(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.chats.append(process.a, CONTACT, [item(0)])
        errors: list[PipelineError] = [StoreIoError("EIO"), StoreFullError("ENOSPC")]
        for number, (operation, error) in enumerate(product(("append", "sync"), errors), start=1):
            process.files.refuse(operation, ".open", error=error)
            with pytest.raises(type(error)):
                await process.chats.append(process.a, CONTACT, [item(number)])
            await process.chats.append(process.a, CONTACT, [item(number)])
        await process.chats.end(process.a, CONTACT, even_if_empty=False)
        assert await transcript(process, process.sealed[0]) == [f"i-{number}" for number in range(5)]
        assert [name.standing for name in process.store.index] == [State.SEALED]


async def test_a_chat_that_is_handed_over_as_a_file_is_never_taken_for_events(tmp_path: Path) -> None:
    """Not even if its source names it as ours begin."""
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.chats.append(process.a, CONTACT, [item(1)])
        for source_id in (f"transcript/{CONTACT}", CONTACT):
            handed = Source(kind=Kind.CHAT, contact=CONTACT, source_id=source_id, content_type="application/json")
            broken = await process.break_off(handed, b'{"Transcript":')
            assert broken.name.generation == 1
        await process.chats.end(process.a, CONTACT, even_if_empty=True)
        assert await transcript(process, process.sealed[0]) == ["i-1"]
        world.clock.advance(DAY)
        await process.sweep.once()
        assert len(process.sealed) == 3
