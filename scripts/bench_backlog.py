"""Measure a restart upon a large backlog, and how it drains: the real service, its key server and its bucket server.

The bucket is out of reach while recordings come, over HTTP; the service is killed and started again, and the bucket
comes back. Counted are the seconds from the start of the process to the next recording taken, resident memory, the
seconds until everything is proven, and by how many places recordings left the order in which they came.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import structlog
from progress import say

from pipeline.instances import Limits
from tests.node import ProcessNode, process_node
from tests.proxy import Proxy, proxied
from tests.sites import Party, Site, embedded_site

SENDERS = 32
BODY_BYTES = 1024
RESTARTS = 3
DRAIN_S = 3600.0
_LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What was seen."""

    recordings: int
    taken_s: float
    restart_s: float
    """The median of some."""
    restart_memory_mb: float
    """Resident when it had taken the next recording, the last time."""
    drained_s: float
    peak_memory_mb: float
    missing: int
    doubled: int
    out_of_order: int
    """The most places by which one recording of an instance went out before or after its turn."""


def measure(recordings: int) -> Backlog:
    """Let so many recordings wait, and go."""
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as folder:
        return anyio.run(_measured, recordings, Path(folder))


async def _measured(recordings: int, folder: Path) -> Backlog:
    async with _unreachable(folder) as (site, proxy), process_node(site) as node:
        began = time.monotonic()
        await _send(node, recordings)
        taken_s = time.monotonic() - began
        say(f"{recordings} recordings taken in {taken_s:.0f} s")
        restarts = [await _restarted(node, number) for number in range(RESTARTS)]
        restart_s, memory_mb = statistics.median(restarts), _memory_mb(node, "VmRSS")
        say(f"back in {', '.join(f'{each:.2f}' for each in restarts)} s, with {memory_mb:.0f} MB")
        began = time.monotonic()
        proxy.closed = False
        await _drained(site, recordings + RESTARTS)
        drained_s = time.monotonic() - began
        peak_mb = _memory_mb(node, "VmHWM")
        objects = [key for party in site.parties for key in await site.versions(party)]
        found = len(set(objects))
        return Backlog(
            recordings=recordings,
            taken_s=round(taken_s, 1),
            restart_s=round(restart_s, 2),
            restart_memory_mb=round(memory_mb, 1),
            drained_s=round(drained_s, 1),
            peak_memory_mb=round(peak_mb, 1),
            missing=recordings + RESTARTS - found,
            doubled=len(objects) - found,
            out_of_order=max(_out_of_order(site, party) for party in site.parties),
        )


@asynccontextmanager
async def _unreachable(folder: Path) -> AsyncIterator[tuple[Site, Proxy]]:
    """Run the servers; the service finds the bucket behind a proxy that refuses it for now."""
    async with embedded_site(folder) as site, proxied(site.settings.s3) as proxy:
        proxy.closed = True
        site.settings = replace(site.settings, s3=proxy.endpoint, sqs=proxy.endpoint, events=proxy.endpoint)
        for party in site.parties:
            site.reconfigure(replace(party.instance, limits=Limits(requests_per_s=1e6, burst=10**6)))
        yield site, proxy


async def _restarted(node: ProcessNode, number: int) -> float:
    """Kill the service and start it; give the seconds until it took the next recording."""
    node.kill()
    began = time.monotonic()
    await node.start()
    await _put(node, node.site.acme, f"after-{number}")
    return time.monotonic() - began


async def _send(node: ProcessNode, recordings: int) -> None:
    waiting = iter(range(recordings))

    async def work() -> None:
        for number in waiting:
            await _put(node, node.site.parties[number % 2], f"contact-{number}")
            if number % 10_000 == 0:
                say(f"{number} recordings taken")

    async with anyio.create_task_group() as group:
        for _ in range(SENDERS):
            group.start_soon(work)


async def _put(node: ProcessNode, party: Party, contact: str) -> None:
    answer = await node.caller.put(party, contact, "voice.wav", os.urandom(BODY_BYTES))
    if answer.status != 201:
        raise SystemExit(f"a recording was not taken: {answer.status} {answer.body!r}")


async def _drained(site: Site, recordings: int) -> None:
    """Wait until so many have a receipt."""
    told = 0
    with anyio.fail_after(DRAIN_S):
        while (delivered := _receipts(site)) < recordings:
            if delivered - told >= 10_000:
                told = delivered
                say(f"{delivered} recordings delivered")
            await anyio.sleep(_LOOK_S)


def _receipts(site: Site) -> int:
    """Count them by their names."""
    return sum(name.endswith(".done") for _, _, names in os.walk(site.state / "artifacts") for name in names)


def _out_of_order(site: Site, party: Party) -> int:
    """Compare the order in which recordings were published with that of their ids, which sort by time."""
    details = (event["detail"] for event in site.events(party))
    published = [each["recordingId"] for each in details if each["recordingStatus"] == "PUBLISHED"]
    turns = {recording: turn for turn, recording in enumerate(sorted(published))}
    return max(abs(turns[recording] - place) for place, recording in enumerate(published))


def _memory_mb(node: ProcessNode, field: str) -> float:
    status = Path(f"/proc/{node.pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def main() -> int:
    """Print the figures as JSON; fail if a recording is missing or there twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=int, nargs="?", default=100_000)
    recordings = parser.parse_args().recordings
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    figures = measure(recordings)
    answer = {
        "recordings": figures.recordings,
        "takenS": figures.taken_s,
        "restartS": figures.restart_s,
        "restartMemoryMb": figures.restart_memory_mb,
        "drainedS": figures.drained_s,
        "peakMemoryMb": figures.peak_memory_mb,
        "missing": figures.missing,
        "doubled": figures.doubled,
        "outOfOrder": figures.out_of_order,
    }
    print(json.dumps(answer))
    return 1 if figures.missing or figures.doubled else 0


if __name__ == "__main__":
    sys.exit(main())
