"""The service is a real process here, and is killed: what it acknowledged arrives once, byte for byte."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from pipeline.adapters.aws import open_client
from pipeline.ids import Kind
from tests.e2e import journey
from tests.e2e.journey import MIB, STAMP, contact_event, message, mp4, wav
from tests.node import Answer, ProcessNode, process_node, until
from tests.proxy import Proxy, proxied
from tests.sites import Party, Site, Stored, moto_site

pytestmark = [pytest.mark.aws, pytest.mark.slow]

IDLE_S = 3


@asynccontextmanager
async def killable(directory: Path) -> AsyncIterator[tuple[Site, ProcessNode, Proxy]]:
    """Run the service on moto, a proxy between it and the bucket."""
    async with moto_site(directory) as site, proxied(site.settings.s3) as proxy:
        store = replace(site.settings.store, media_idle=timedelta(seconds=IDLE_S))
        site.settings = replace(site.settings, s3=proxy.endpoint, store=store)
        async with process_node(site) as running:
            yield site, running, proxy


async def break_off(running: ProcessNode, party: Party, contact: str, beginning: bytes, size_bytes: int) -> None:
    """Send the beginning of a body, and hold the line until the service is killed."""
    with pytest.raises(aiohttp.ClientError):
        await _begin(running, party, contact, beginning, size_bytes)


async def be_sent_away(running: ProcessNode, party: Party, contact: str, beginning: bytes, size_bytes: int) -> None:
    """Send the beginning of a body, and hold the line until the service says that it stops."""
    answer = await _begin(running, party, contact, beginning, size_bytes)
    assert (answer.status, answer.json["reason"], answer.headers["Retry-After"]) == (503, "stopping", "5")


async def _begin(running: ProcessNode, party: Party, contact: str, beginning: bytes, size_bytes: int) -> Answer:
    async def body() -> AsyncIterator[bytes]:
        yield beginning
        await anyio.sleep_forever()

    return await running.caller.put(party, contact, "voice.wav", body(), Content_Length=str(size_bytes))


async def durable(running: ProcessNode, party: Party, contact: str, at_least: int) -> int:
    """Wait until so much of an unfinished body is acknowledged; give how much it is."""
    with anyio.fail_after(10):
        while ((offset := await running.caller.offset(party, contact, "voice.wav")) or 0) < at_least:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    assert offset is not None
    return offset


async def the_only_object(site: Site, party: Party, contact: str) -> Stored:
    """Give the one object of a contact; it was written once."""
    keys = [key for key in await site.versions(party) if f"/{contact}_" in key]
    assert len(keys) == 1, keys
    return (await site.objects(party))[keys[0]]


def quality(site: Site, party: Party, contact: str) -> list[list[str]]:
    """Give the quality flags of each PUBLISHED of a contact."""
    return [
        event["detail"].get("quality", [])
        for event in site.events(party)
        if event["detail"]["recordingStatus"] == "PUBLISHED" and event["resources"][0].endswith(f"/{contact}")
    ]


async def test_a_kill_in_the_middle_of_bodies_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Resumed: byte-equal. Sent again: once, and nothing else. Never ended: what came of it, once, as recovered."""
    body = wav(6 * MIB + 5)
    beginnings = {"c-resumed": 3 * MIB, "c-again": 3 * MIB, "c-never": 3 * MIB, "c-torn": MIB}
    async with killable(tmp_path) as (site, running, _), anyio.create_task_group() as group:
        acme, caller = site.acme, running.caller
        for contact, size_bytes in beginnings.items():
            group.start_soon(break_off, running, acme, contact, body[:size_bytes], len(body))
        acknowledged = {contact: await durable(running, acme, contact, size) for contact, size in beginnings.items()}
        running.kill()
        torn = min(site.artifacts("open"), key=lambda path: path.stat().st_size)
        _tear(torn)
        await running.start()
        await resume(running, acme, "c-resumed", body, acknowledged["c-resumed"])
        await resume(running, acme, "c-torn", body, acknowledged["c-torn"])
        answer = await caller.put(acme, "c-again", "voice.wav", body)
        assert (answer.status, answer.json["generation"]) == (201, 1)
        await until(lambda: not site.artifacts("open") and not site.artifacts("sealed"))
        for contact in ("c-resumed", "c-torn", "c-again"):
            assert (await the_only_object(site, acme, contact)).body == body
            assert quality(site, acme, contact) == [[]]
        recovered = (await the_only_object(site, acme, "c-never")).body
        assert len(recovered) >= acknowledged["c-never"]
        assert body.startswith(recovered)
        assert quality(site, acme, "c-never") == [["SUSPECT_SHORT", "RECOVERED"]]
        [tail] = (site.state / "lost+found").iterdir()
        assert tail.read_bytes().endswith(b"junk")
        journey.check_no_plaintext(site.state, site.directory / "temporary")


async def resume(running: ProcessNode, party: Party, contact: str, body: bytes, acknowledged: int) -> None:
    """Go on with a body where the service says that it is; it has not gone back behind what it said before."""
    at = await running.caller.offset(party, contact, "voice.wav")
    assert at is not None
    assert acknowledged <= at < len(body)
    wrong = await running.caller.put(party, contact, "voice.wav", b"x", Content_Range="bytes 7-7/*")
    assert (wrong.status, wrong.headers["Upload-Offset"]) == (409, str(at))
    given = f"bytes {at}-{len(body) - 1}/{len(body)}"
    answer = await running.caller.put(party, contact, "voice.wav", body[at:], Content_Range=given)
    assert (answer.status, answer.json["generation"]) == (201, 1), answer


def _tear(path: Path) -> None:
    """Add what a torn write may leave: old blocks, zeros, junk."""
    with path.open("ab") as file:
        file.write(path.read_bytes()[-5000:-17] + b"\0" * 4096 + b"junk")


async def test_what_was_sealed_before_a_kill_arrives_once_when_the_bucket_is_back(tmp_path: Path) -> None:
    """Recordings, chat messages and contact events that were acknowledged count, whatever was not sent on yet."""
    body = wav(100_000)
    async with killable(tmp_path) as (site, running, proxy):
        acme, caller = site.acme, running.caller
        proxy.closed = True
        events = [contact_event(acme, f"c-{number}") for number in range(10)] + [contact_event(acme, "c-chat")]
        assert (await caller.post(acme, events)).status == 202
        for number in range(5):
            assert (await caller.put(acme, f"c-{number}", "voice.wav", body + bytes([number]))).status == 201
        texts = ["My parcel", "has not", "come."]
        for number, text in enumerate(texts):
            assert (await caller.post(acme, message(acme, "c-chat", f"i-{number}", text))).status == 202
        running.kill()
        assert len(site.artifacts("sealed")) == 5
        await running.start()
        for number in range(5, 10):  # their events came in the life before
            assert (await caller.put(acme, f"c-{number}", "voice.wav", body + bytes([number]))).status == 201
        assert (await caller.post(acme, message(acme, "c-chat", "i-1", texts[1], final=True))).status == 202
        proxy.closed = False
        await until(lambda: len(site.published(acme)) == 11)
        for number in range(10):
            stored = await the_only_object(site, acme, f"c-{number}")
            assert stored.body == body + bytes([number])
        assert all(f"_{STAMP}_UTC." in key for key in await site.versions(acme))
        transcript = json.loads((await the_only_object(site, acme, "c-chat")).body)
        assert [item["Content"] for item in transcript["Transcript"]] == texts
        assert site.artifacts("sealed") == []
        _check_each_status_once(site, acme, 11)


async def test_uploads_that_a_kill_cut_short_leave_one_object_each_and_no_parts(tmp_path: Path) -> None:
    """One whose answer was lost is known as ours, one that had sent some of its parts begins anew."""
    small, large = wav(50_000), mp4(24 * MIB + 11)
    async with killable(tmp_path) as (site, running, proxy):
        acme = site.acme
        proxy.keeps_answers = True
        assert (await running.caller.put(acme, "c-small", "voice.wav", small)).status == 201
        await _eventually(lambda: site.versions(acme))
        running.kill()
        assert site.published(acme) == []
        proxy.keeps_answers, proxy.bytes_per_s = False, 6 * MIB
        await running.start()
        assert (await running.caller.put(acme, "c-large", "screen.mp4", large)).status == 201
        await _eventually(lambda: _has_parts(site, acme))
        running.kill()
        assert len(await site.unfinished(acme)) == 1
        proxy.bytes_per_s = None
        await running.start()
        await until(lambda: len(site.published(acme)) == 2)
        assert (await the_only_object(site, acme, "c-small")).body == small
        assert (await the_only_object(site, acme, "c-large")).body == large
        assert await site.unfinished(acme) == []
        _check_each_status_once(site, acme, 2)


async def test_asked_to_end_it_ends_and_nothing_is_lost(tmp_path: Path) -> None:
    """SIGTERM: what is in hand is made durable, what is open can be resumed by the next life."""
    body = wav(2 * MIB)
    async with killable(tmp_path) as (site, running, proxy), anyio.create_task_group() as group:
        proxy.closed = True
        assert (await running.caller.put(site.acme, "c-whole", "voice.wav", body)).status == 201
        group.start_soon(be_sent_away, running, site.acme, "c-half", body[:MIB], len(body))
        await durable(running, site.acme, "c-half", MIB)
        with anyio.fail_after(15):
            assert await running.stop() == 0
        proxy.closed = False
        await running.start()
        await resume(running, site.acme, "c-half", body, MIB)
        await until(lambda: len(site.published(site.acme)) == 2)
        for contact in ("c-whole", "c-half"):
            assert (await the_only_object(site, site.acme, contact)).body == body


async def _eventually(true: Callable[[], Awaitable[object]]) -> None:
    with anyio.fail_after(20):
        while not await true():  # noqa: ASYNC110 - another process is watched
            await anyio.sleep(0.05)


async def _has_parts(site: Site, party: Party) -> bool:
    """Tell whether a part of some multipart upload has arrived."""
    async with open_client("s3", site.reader) as s3:
        answer = await s3.list_multipart_uploads(Bucket=party.bucket)
        for each in answer.get("Uploads", []):
            parts = await s3.list_parts(Bucket=party.bucket, Key=each["Key"], UploadId=each["UploadId"])
            if parts.get("Parts"):
                return True
    return False


def _check_each_status_once(site: Site, party: Party, recordings: int) -> None:
    """Let a crash repeat a line of the log, known by its de-duplication id; not leave out or move one."""
    told: dict[str, dict[str, Any]] = {}
    for event in site.events(party):
        told.setdefault(event["detail"]["eventDeduplicationId"], event["detail"])
    recorded: dict[str, list[str]] = {}
    for detail in told.values():
        recorded.setdefault(detail["recordingId"], []).append(detail["recordingStatus"])
    assert len(recorded) == recordings
    assert {tuple(statuses) for statuses in recorded.values()} == {("INITIATED", "COMPLETED", "PUBLISHED")}
    assert {detail["recordingKind"] for detail in told.values()} <= set(Kind)
