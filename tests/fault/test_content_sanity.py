"""Recorders that lost the sound, the end or the index: flagged in manifest and events, and delivered all the same.

The same bytes get the same flags however often the source, or this process, broke off while they came.
"""

import json
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.ids import Kind
from pipeline.intake.reception import Source
from pipeline.interim.states import ArtifactName, State
from tests.media_files import FTYP, MDAT, fragment, live_moov, moov, run_of, stereo, wav_of
from tests.store_fixture import Node, World, node, source

CHANCE = random.Random(1)
SPEECH = [CHANCE.randint(-9000, 9000) for _ in range(20_000)]
NOTHING = [0] * 150_000
LIVE = FTYP + live_moov(1000, 200) + fragment(run_of(5), media=b"x" * 2_000) * 300
START = datetime(2026, 11, 23, 14, 5, tzinfo=UTC)

BODIES = {
    "whole": (wav_of(stereo(SPEECH, SPEECH)), []),
    "one channel dead": (wav_of(stereo(SPEECH + NOTHING, [0] * 170_000)), ["SUSPECT_SILENT"]),
    "sound only at the end": (wav_of(stereo(NOTHING + SPEECH, NOTHING + SPEECH)), []),
    "sound only at the beginning": (wav_of(stereo(SPEECH + NOTHING, SPEECH + NOTHING)), []),
    "cut": (wav_of(stereo(SPEECH, SPEECH), claim=900_000), ["SUSPECT_SHORT"]),
    "header only": (wav_of(b""), ["SUSPECT_EMPTY"]),
    "no index": (FTYP + MDAT * 6_000, ["SUSPECT_NO_MOOV"]),
    "index at the end": (FTYP + MDAT * 6_000 + moov(), []),
    "fragments": (LIVE, []),
    "torn fragment": (LIVE[:-3], ["RECOVERED"]),
}


async def flags(process: Node, name: ArtifactName) -> list[str]:
    """Give the flags that the manifest holds."""
    key = await process.a.ring.opening(name.key_id)
    with process.store.reading(name, key) as reader:
        return list(reader.manifest().quality)


def told(world: World, status: str) -> list[list[str]]:
    """Give the flags of each status event."""
    events: list[dict[str, Any]] = [json.loads(line) for line in world.events().splitlines()]
    details = [event["detail"] for event in events]
    return [detail.get("quality", []) for detail in details if detail["recordingStatus"] == status]


@pytest.mark.parametrize("which", BODIES)
async def test_flags_stand_in_the_manifest_and_in_the_event_and_the_artifact_waits_for_delivery(
    tmp_path: Path, which: str
) -> None:
    body, expected = BODIES[which]
    world = World(root=tmp_path)
    async with node(world) as process:
        await process.upload(source(), *(body[at : at + 65_536] for at in range(0, len(body), 65_536)))
        (name,) = process.sealed
        assert name.is_waiting
        assert await flags(process, name) == expected
        assert told(world, "COMPLETED") == [expected]
        assert await process.media(name) == body


@pytest.mark.parametrize("which", [which for which, (body, _) in BODIES.items() if len(body) > 1_000])
async def test_a_body_that_went_on_after_two_crashes_gets_the_flags_of_one_that_came_at_once(
    tmp_path: Path, which: str
) -> None:
    body, expected = BODIES[which]
    world = World(root=tmp_path)
    cuts = [0, len(body) // 3, len(body) * 2 // 3, len(body)]
    store_id = None
    for start, end in pairwise(cuts):
        async with node(world, store_id=store_id) as process:
            store_id = process.store_id
            reception = await process.recorder.resume(process.a, source(), start)
            await process.send(reception, body[start:end])
            await reception.writer.sync()
            if end == len(body):
                await process.recorder.finish(reception, None)
                (name,) = process.sealed
                assert await flags(process, name) == expected
                assert await process.media(name) == body


async def test_one_whose_source_never_came_back_is_judged_as_far_as_it_came(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        body = BODIES["sound only at the end"][0]
        await process.break_off(source(), body[: len(body) // 2])
        store_id = process.store_id
    async with node(world, store_id=store_id) as process:
        await process.sweep.once()
        world.clock.advance(3_600)
        await process.sweep.once()
        (name,) = process.sealed
        assert name.state is State.SEALED
        assert await flags(process, name) == ["SUSPECT_SHORT", "SUSPECT_SILENT", "RECOVERED"]


@pytest.mark.parametrize(("minutes", "expected"), [(0, []), (23, ["SUSPECT_SHORT"])])
async def test_a_recording_that_is_shorter_than_its_source_or_the_events_say_is_flagged(
    tmp_path: Path, minutes: int, expected: list[str]
) -> None:
    body = BODIES["whole"][0]
    end = START + timedelta(minutes=minutes, seconds=3)
    stated = Source(kind=Kind.VOICE, contact="c-1", source_id="one", started=START, ended=end)
    announced = Source(kind=Kind.VOICE, contact="c-2", source_id="two")
    world = World(root=tmp_path)
    async with node(world) as process:
        detail = {
            "instanceArn": process.a.instance.arn,
            "contactId": "c-2",
            "recordingKind": "voice",
            "sourceId": "two",
        }
        events = [
            {"detail-type": "Recording Started", "source": "x", "detail": {**detail, "startTime": START.isoformat()}},
            {"detail-type": "Recording Stopped", "source": "x", "detail": {**detail, "endTime": end.isoformat()}},
        ]
        await process.events.take(process.a, json.dumps(events).encode())
        for each in (stated, announced):
            await process.upload(each, body)
            assert await flags(process, process.sealed[-1]) == expected


async def test_a_chat_that_ended_without_an_item_is_empty(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await process.chats.end(process.a, "c-1", even_if_empty=True)
        assert await flags(process, process.sealed[0]) == ["SUSPECT_EMPTY"]
