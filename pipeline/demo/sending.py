"""Send what the fixtures hold, as contact centres and their recorders do.

Media by HTTP PUT, all calls and screens at once and each in two halves, so that there is a moment in which every
recording is in progress; events by HTTP POST, and from a file of JSON lines by `pipeline feed`.
"""

import json
import subprocess
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import anyio
import msgspec

from pipeline.client import Answer, LinkError, Taken, connected, upload_path
from pipeline.demo.fixture import Sample
from pipeline.demo.running import Running, Tenancy, command, environ
from pipeline.errors import PipelineError
from pipeline.ids import InstanceId

HALF_S = 30.0
FEED_S = 60.0


class SendingFailedError(PipelineError):
    """The service did not take what the demo sent."""

    reason = "sending-failed"


@dataclass(slots=True)
class Live:
    """Recordings in progress."""

    held_bytes: int = 0
    """Acknowledged so far, of all of them."""
    recording_ids: dict[Sample, str] = field(default_factory=dict)
    """By recording, once it has ended and is sealed and durable."""


@asynccontextmanager
async def live(tenancies: Mapping[InstanceId, Tenancy], samples: Sequence[Sample]) -> AsyncIterator[Live]:
    """Send the first half of every recording; the block runs when all halves are durable; its end sends the rest.

    Raises:
        SendingFailedError: one was not taken, or not in time.

    """
    state, release = Live(), anyio.Event()
    async with anyio.create_task_group() as group:
        for sample in samples:
            group.start_soon(_put, tenancies[sample.instance_id], sample, release, state, name=sample.file.name)
        try:
            with anyio.fail_after(HALF_S):
                state.held_bytes = sum([await _half_held(tenancies[each.instance_id], each) for each in samples])
        except TimeoutError:
            raise SendingFailedError(f"the first halves were not acknowledged within {HALF_S:.0f} s") from None
        yield state
        release.set()


async def post(tenancy: Tenancy, events: Sequence[bytes]) -> int:
    """Send events in one request. Raises `SendingFailedError`."""
    async with connected(tenancy.server) as client:
        answer = await _answered(client.post_events(b"[" + b",".join(events) + b"]"))
    _check(answer, HTTPStatus.ACCEPTED, "events")
    return len(events)


async def post_each(tenancy: Tenancy, events: Sequence[bytes]) -> int:
    """Send events one by one, as they happen. Raises `SendingFailedError`."""
    async with connected(tenancy.server) as client:
        for event in events:
            _check(await _answered(client.post_events(event)), HTTPStatus.ACCEPTED, "an event")
    return len(events)


async def feed(running: Running, tenancy: Tenancy, path: Path, expected: int) -> int:
    """Play a file of events with `pipeline feed`. Raises `SendingFailedError`."""
    argv = command("feed", str(path), "--url", running.url, "--token-file", str(tenancy.token_file), "--json")
    with anyio.move_on_after(FEED_S):
        done = await anyio.run_process(argv, check=False, env=environ(), stderr=subprocess.STDOUT)
        said = done.stdout.decode(errors="replace").strip()
        last = said.splitlines()[-1:]
        if done.returncode == 0 and last and json.loads(last[0]) == {"taken": expected, "refused": 0}:
            return expected
        raise SendingFailedError(f"pipeline feed ended with exit code {done.returncode}: {said[-500:]}")
    raise SendingFailedError(f"pipeline feed did not end within {FEED_S:.0f} s")


# --- inside


async def _put(tenancy: Tenancy, sample: Sample, release: anyio.Event, state: Live) -> None:
    media = sample.file.read_bytes()
    half = len(media) // 2

    async def halves() -> AsyncIterator[bytes]:
        yield media[:half]
        await release.wait()
        yield media[half:]

    headers = _headers(sample) | {"Content-Type": sample.content_type, "X-Recording-Start": sample.started}
    async with connected(tenancy.server) as client:
        size_bytes = None if sample.is_live else len(media)
        answer = await _answered(client.put(_path(sample), headers, halves, size_bytes))
    _check(answer, HTTPStatus.CREATED, sample.file.name)
    state.recording_ids[sample] = msgspec.json.decode(answer.body, type=Taken).recording_id


async def _half_held(tenancy: Tenancy, sample: Sample) -> int:
    """Wait until the service says that the first half is durable, as a recorder asks before it resumes."""
    half = sample.file.stat().st_size // 2
    async with connected(tenancy.server) as client:
        while True:
            answer = await _answered(client.head(_path(sample), _headers(sample)))
            if answer.offset is not None and answer.offset >= half:
                return answer.offset
            await anyio.sleep(0.05)


async def _answered(request: Coroutine[None, None, Answer]) -> Answer:
    try:
        return await request
    except LinkError as error:
        raise SendingFailedError(str(error)) from error


def _check(answer: Answer, status: HTTPStatus, what: str) -> None:
    if answer.status != status:
        raise SendingFailedError(f"{what}: {answer.refusal()}")


def _path(sample: Sample) -> str:
    return upload_path(str(sample.instance_id), sample.contact, sample.kind, sample.name)


def _headers(sample: Sample) -> dict[str, str]:
    return {"Idempotency-Key": sample.source_id}
