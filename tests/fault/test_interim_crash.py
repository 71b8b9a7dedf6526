"""A power cut at any step of a journey: whatever was acknowledged is found, and all of it once (F1 to F4)."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.events import parse_item
from pipeline.ids import Kind
from pipeline.intake.chats import render_again
from pipeline.interim.states import State
from tests.store_fixture import MARKER, Node, World, after_power_cut, instance, node, source
from tests.unit.keyring_fakes import A

BODY = MARKER + bytes(range(256)) * 4
CHAT = "chat-1"


@dataclass
class Acknowledged:
    """What sources were told."""

    offsets: dict[str, int] = field(default_factory=dict)
    sealed: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    chat_sealed: bool = False
    announced: bool = False

    def copy(self) -> "Acknowledged":
        return Acknowledged(dict(self.offsets), list(self.sealed), list(self.items), self.chat_sealed, self.announced)


@dataclass
class Moment:
    """What would be left, and what had been promised."""

    durable: dict[str, bytes]
    promised: Acknowledged


def item(number: int) -> bytes:
    return json.dumps({"Id": f"i-{number}", "AbsoluteTime": f"2026-11-23T12:00:0{number}Z"}).encode()


async def announce(process: Node) -> None:
    detail = {"instanceArn": instance(A).arn, "contactId": "contact-1", "recordingKind": "voice", "sourceId": "whole"}
    event = {"detail-type": "Recording Started", "source": "pipeline", "detail": detail}
    await process.events.take(process.a, json.dumps(event).encode())


async def journey(process: Node, told: Acknowledged) -> None:
    await announce(process)
    told.announced = True
    await process.upload(source("whole"), BODY)
    told.sealed.append("whole")
    await process.break_off(source("again"), BODY[:500])
    told.offsets["again"] = 500
    for number in range(3):
        await process.chats.append(process.a, CHAT, [parse_item(item(number))])
        told.items.append(f"i-{number}")
    await process.upload(source("again"), BODY)
    told.sealed.append("again")
    await process.chats.end(process.a, CHAT, even_if_empty=True)
    told.chat_sealed = True
    await process.break_off(source("resumed"), BODY[:300])
    told.offsets["resumed"] = 300
    reception = await process.recorder.resume(process.a, source("resumed"), 300)
    await process.send(reception, BODY[300:])
    await process.recorder.finish(reception, None)
    told.sealed.append("resumed")


async def moments(world: World) -> list[Moment]:
    found: list[Moment] = []
    told = Acknowledged()
    async with node(world) as process:

        def remember(_number: int, operation: str, _path: str) -> None:
            if operation not in {"read", "open"}:
                found.append(Moment(process.files.durable(), told.copy()))

        process.files.before = remember
        await journey(process, told)
        found.append(Moment(process.files.durable(), told.copy()))
    return found


async def check(process: Node, promised: Acknowledged) -> None:
    """Find all that was promised; then send everything again, as sources do that got no answer."""
    for source_id, offset in promised.offsets.items():
        held = await process.recorder.offset(process.a, Kind.VOICE, source_id)
        assert source_id in promised.sealed or held is None or held >= offset
        assert await process.recorder.is_known(process.a, Kind.VOICE, source_id)
    sealed = [name for name in process.store.index if name.state is State.SEALED]
    assert len(sealed) >= len(promised.sealed) + promised.chat_sealed
    if promised.announced:
        await process.replay.done(process.a)
        assert process.contacts.get(A, "contact-1") is not None
    await process.chats.end(process.a, CHAT, even_if_empty=False)
    items = await chat_items(process)
    assert items[: len(promised.items)] == promised.items
    answers = [await process.upload(source(source_id), BODY) for source_id in ("whole", "again", "resumed")]
    assert len({answer.recording_id for answer in answers}) == 3
    await process.chats.append(process.a, CHAT, [parse_item(item(number)) for number in range(3)])
    await process.chats.end(process.a, CHAT, even_if_empty=True)
    assert sorted(await chat_items(process)) == ["i-0", "i-1", "i-2"]
    process.world.clock.advance(100_000)
    await process.sweep.once()
    await process.sweep.once()
    voices = [name for name in process.store.index if name.kind is Kind.VOICE]
    assert [name.state for name in voices] == [State.SEALED] * 3
    for name in voices:
        assert await process.media(name) == BODY


async def chat_items(process: Node) -> list[str]:
    found: list[str] = []
    for name in sorted(process.store.index, key=lambda each: each.generation):
        if name.kind is Kind.CHAT:
            key = await process.a.ring.opening(name.key_id)
            with process.store.reading(name, key) as reader:
                found += [each["Id"] for each in json.loads(render_again(reader))["Transcript"]]
    return found


@pytest.mark.parametrize("part", range(4))
async def test_whatever_was_acknowledged_survives_a_power_cut_and_comes_out_once(tmp_path: Path, part: int) -> None:
    world = World(root=tmp_path / "before")
    found = await moments(world)
    assert len(found) > 60
    for number in range(2 * part, len(found), 8):
        moment = found[number]
        async with node(after_power_cut(world, moment.durable, tmp_path / f"{number}")) as process:
            await check(process, moment.promised)
    assert world.holds(MARKER) == []
