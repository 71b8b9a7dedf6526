"""The service needs little memory, however large a recording is and however many are open.

TEST_BODY_MIB and TEST_OPEN choose other sizes.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from pipeline.adapters.aws import open_client
from tests.e2e.journey import MIB
from tests.node import ProcessNode, process_node, until
from tests.sites import Party, moto_site, seaweedfs_site

pytestmark = [pytest.mark.aws, pytest.mark.slow]

BODY_MIB = int(os.environ.get("TEST_BODY_MIB", "128"))
OPEN = int(os.environ.get("TEST_OPEN", "200"))
LARGE_BODY_BYTES = 200 * MIB
"""For any body: it is not held."""
MANY_OPEN_BYTES = 250 * MIB
"""For a thousand that are open."""
PIECE = 16 * 1024
Record = Callable[[str, object], None]
"""Puts a figure into the report (`--junit-xml`)."""


def most_bytes(running: ProcessNode) -> int:
    """Tell the most memory that the service ever had (VmHWM)."""
    status = Path(f"/proc/{running.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def now_bytes(running: ProcessNode) -> int:
    status = Path(f"/proc/{running.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


async def test_a_large_body_goes_through_in_pieces(tmp_path: Path, record_property: Record) -> None:
    """What comes in by one PUT and goes out by a multipart upload is never in memory as a whole, and is the same."""
    block = os.urandom(MIB)
    sent, got = hashlib.sha256(), hashlib.sha256()

    async def body() -> AsyncIterator[bytes]:
        for number in range(BODY_MIB):
            piece = number.to_bytes(4, "big") + block[4:]
            sent.update(piece)
            yield piece

    async with seaweedfs_site(tmp_path) as (site, _), process_node(site) as running:
        before = most_bytes(running)
        answer = await running.caller.put(site.acme, "c-1", "screen.mp4", body(), Content_Length=str(BODY_MIB * MIB))
        assert answer.status == 201
        taken = most_bytes(running)
        await until(lambda: site.published(site.acme), 120)
        most = most_bytes(running)
        async with open_client("s3", site.reader) as s3:
            [key] = [each["Key"] for each in (await s3.list_objects_v2(Bucket=site.acme.bucket))["Contents"]]
            stored = await s3.get_object(Bucket=site.acme.bucket, Key=key)
            async for piece in stored["Body"].iter_chunks(MIB):
                got.update(piece)
    record_property("MiB at start, when taken, at most", (before // MIB, taken // MIB, most // MIB))
    assert got.hexdigest() == sent.hexdigest() == answer.json["sha256"]
    assert most < LARGE_BODY_BYTES


async def durable(running: ProcessNode, party: Party, number: int) -> int:
    return await running.caller.offset(party, f"c-{number}", "voice.wav") or 0


async def test_many_open_recordings_take_little_each(tmp_path: Path, record_property: Record) -> None:
    """Every one has sent something, waits for more, and is acknowledged as far as it came."""
    async with moto_site(tmp_path) as site, process_node(site) as running:
        before = now_bytes(running)
        ended = anyio.Event()

        async def body() -> AsyncIterator[bytes]:
            for _ in range(4):
                yield os.urandom(PIECE)
                await anyio.sleep(0.3)
            await ended.wait()

        async def send(number: int) -> None:
            party = site.parties[number % 2]
            answer = await running.caller.put(party, f"c-{number}", "voice.wav", body())
            assert answer.status == 201

        async with anyio.create_task_group() as group:
            for number in range(OPEN):
                group.start_soon(send, number)
            with anyio.fail_after(60):
                for number in range(OPEN):
                    while await durable(running, site.parties[number % 2], number) < 4 * PIECE:  # noqa: ASYNC110
                        await anyio.sleep(0.2)
            assert len(site.artifacts("open")) == OPEN
            most = most_bytes(running)
            ended.set()
        await until(lambda: sum(len(site.published(party)) for party in site.parties) == OPEN, 120)
    record_property("MiB at start, at most", (before // MIB, most // MIB))
    # In proportion to a thousand; what the service has at its start is in both.
    assert most - before < (MANY_OPEN_BYTES - before) * OPEN // 1000
