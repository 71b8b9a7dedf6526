"""F17: asked to end with a thousand uploads in hand, the service ends by its deadline; all of them can go on.

What was acknowledged before is there after, and each is delivered once, byte for byte.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from tests.node import ProcessNode, process_node, until
from tests.sites import Party, Site, moto_site

pytestmark = [pytest.mark.aws, pytest.mark.slow, pytest.mark.timeout(240)]

UPLOADS = 1_000
DRAIN_S = 3
MARGIN_S = 12
"""Past the deadline: a thousand bodies become durable, their clients are answered, the interpreter ends."""
PIECE = 8 * 1024
AT_A_TIME = 50


def body_of(number: int) -> bytes:
    return hashlib.shake_256(number.to_bytes(4, "big")).digest(2 * PIECE)


async def test_a_stop_with_a_thousand_uploads_in_hand_meets_its_deadline_and_all_go_on(tmp_path: Path) -> None:
    async with moto_site(tmp_path) as site:
        site.settings = replace(site.settings, drain=timedelta(seconds=DRAIN_S))
        async with process_node(site) as running:
            acknowledged = await stopped_in_the_middle(site, running)
            assert len(acknowledged) == UPLOADS
            assert len(site.artifacts("open")) == UPLOADS
            await running.start()
            await each_at_a_time(lambda number: go_on(site, running, number, acknowledged[number]))
            await until(lambda: sum(len(site.published(party)) for party in site.parties) == UPLOADS, 120)
        objects = {key: stored for party in site.parties for key, stored in (await site.objects(party)).items()}
        assert len(objects) == UPLOADS
        assert {stored.body for stored in objects.values()} == {body_of(number) for number in range(UPLOADS)}


async def stopped_in_the_middle(site: Site, running: ProcessNode) -> dict[int, int]:
    """Begin them all, ask for the end, and wait for it; give what was acknowledged of each before."""
    acknowledged: dict[int, int] = {}

    async def begin(number: int) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield body_of(number)[:PIECE]
            await anyio.sleep_forever()

        party, contact = address(site, number)
        answer = await running.caller.put(party, contact, "voice.wav", body(), Content_Length=str(2 * PIECE))
        assert (answer.status, answer.json["reason"]) == (503, "stopping")

    async def know(number: int) -> None:
        party, contact = address(site, number)
        while (offset := await running.caller.offset(party, contact, "voice.wav") or 0) < PIECE:  # noqa: ASYNC110
            await anyio.sleep(0.2)
        acknowledged[number] = offset

    async with anyio.create_task_group() as group:
        for number in range(UPLOADS):
            group.start_soon(begin, number)
        await each_at_a_time(know)
        asked = time.monotonic()
        assert await running.stop() == 0
        took_s = time.monotonic() - asked
        assert DRAIN_S <= took_s < DRAIN_S + MARGIN_S
    return acknowledged


async def go_on(site: Site, running: ProcessNode, number: int, acknowledged: int) -> None:
    party, contact = address(site, number)
    at = await running.caller.offset(party, contact, "voice.wav")
    assert at is not None
    assert at >= acknowledged
    body = body_of(number)
    given = f"bytes {at}-{len(body) - 1}/{len(body)}"
    answer = await running.caller.put(party, contact, "voice.wav", body[at:], Content_Range=given)
    assert (answer.status, answer.json["sha256"]) == (201, hashlib.sha256(body).hexdigest())


def address(site: Site, number: int) -> tuple[Party, str]:
    return site.parties[number % 2], f"c-{number}"


async def each_at_a_time(do: Callable[[int], Awaitable[None]]) -> None:
    """Do it for every upload, some of them at once."""
    limiter = anyio.CapacityLimiter(AT_A_TIME)

    async def limited(number: int) -> None:
        async with limiter:
            await do(number)

    async with anyio.create_task_group() as group:
        for number in range(UPLOADS):
            group.start_soon(limited, number)
