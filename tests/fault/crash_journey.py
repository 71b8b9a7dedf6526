"""What sources do to one node in the tests that stop it at every step: the same each time, through every move there is.

Sources write what they are told into the world's promises. One that meets trouble tries again, a bounded number of
times, as a real one does that went away in the end. For tests only.
"""

import json
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import anyio
import pytest

import pipeline.delivery.upload
import pipeline.intake.history
import pipeline.interim.reader
import tests.s3_strict
from pipeline.errors import PipelineError
from pipeline.ids import Kind
from pipeline.intake.recorder import WrongOffsetError
from tests.simulation.promises import MARKER, Body, Promises, Talk
from tests.simulation.traffic import final, initiated, message, started
from tests.simulation.world import IDLE, Node, scaled
from tests.unit.keyring_fakes import A

PART_BYTES = 6_000
MOST_BYTES = 16_384
"""Of any body."""
PIECE = 5_000
"""What comes between two syncs: over one page, so that its write can be torn there."""
_TRIES = 4


def _body(name: str, size: int, kind: Kind = Kind.VOICE) -> Body:
    data = (MARKER + f"of {name} ".encode()).ljust(64, b".") + bytes(number * 7 % 251 for number in range(size - 64))
    return Body(instance_id=A, kind=kind, contact=f"c-{name}", source_id=f"s-{name}", data=data)


WHOLE, SCREEN, AGAIN = _body("whole", 14_000), _body("screen", 2_000, Kind.SCREEN), _body("again", 9_000)
RESUMED, GONE = _body("resumed", 11_000), _body("gone", 7_000)
TALK = Talk(instance_id=A, contact="c-talk", items=("i-1", "i-2", "i-3"))
BODIES = (WHOLE, SCREEN, AGAIN, RESUMED, GONE)
RETURNING = (WHOLE, SCREEN, AGAIN, RESUMED)
"""Sources that come back after a crash; the other one never does."""


@contextmanager
def made_small() -> Iterator[None]:
    """Let everything be small and quick, no threads run, and nothing be logged: see `scaled`."""
    with scaled(random.Random(0)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.delivery.upload, "PART_BYTES", PART_BYTES)
        patch.setattr(tests.s3_strict, "SMALLEST_PART", PART_BYTES)
        patch.setattr(pipeline.interim.reader, "SEGMENT_LIMIT", MOST_BYTES)
        patch.setattr(pipeline.intake.history, "_PIECE", MOST_BYTES)
        yield


# --- one source


async def put(process: Node, body: Body, *, at: int | None = None, upto: int | None = None) -> None:
    """Send a body, or its bytes from `at` on, as one connection does; `upto` is where it breaks off."""
    recorder, tenant, promises = process.recorder, process.tenant(A), process.world.promises
    if at is None:
        reception = await recorder.begin(tenant, body.source)
    else:
        reception = await recorder.resume(tenant, body.source, at)
    try:
        for start in range(at or 0, upto or len(body.data), PIECE):
            piece = body.data[start : min(start + PIECE, upto or len(body.data))]
            await reception.append(piece, process.world.clock.monotonic())
            await reception.writer.sync()  # as the sweep does each second
            promises.acknowledged(body, reception.writer.durable_bytes)
        if upto is None:
            promises.answered(body, await recorder.finish(reception, None))
    finally:
        await recorder.let_go(reception)


async def ask(process: Node, body: Body) -> int | None:
    """Ask how much of a body is held."""
    at = await process.recorder.offset(process.tenant(A), body.kind, body.source_id)
    if at is not None:
        process.world.promises.acknowledged(body, at)
    return at


async def resume(process: Node, body: Body) -> None:
    """Send what is missing of a body; all of it, if nothing is held."""
    try:
        await put(process, body, at=await ask(process, body))
    except WrongOffsetError as error:
        await put(process, body, at=error.offset)


async def say(process: Node, first: int, last: int) -> None:
    """Say some of the chat's items in one go."""
    promises = process.world.promises
    promises.said(TALK, last, sent=True)
    await _take(process, *(message(TALK, each) for each in TALK.items[first:last]))
    promises.said(TALK, last)


async def hang_up(process: Node) -> None:
    """End the chat."""
    await _take(process, final(TALK))
    process.world.promises.ended(TALK)


async def announce(process: Node, body: Body) -> None:
    """Tell of a recording before it begins."""
    await _take(process, initiated(body), started(body))
    process.world.promises.announced.add((A, body.contact))


async def _take(process: Node, *events: Mapping[str, object]) -> None:
    await process.events.take(process.tenant(A), json.dumps(events).encode())


# --- all of them

Step = Callable[[Node], Awaitable[None]]


async def _two_at_once(process: Node) -> None:
    async with anyio.create_task_group() as sources:
        sources.start_soon(_tried, process, lambda process: _once(process, WHOLE))
        sources.start_soon(_tried, process, lambda process: _once(process, SCREEN))


async def _once(process: Node, body: Body) -> None:
    """Send a whole body, unless it was acknowledged."""
    if process.world.promises.bodies[body.label].answer is None:
        await put(process, body)


async def _go_on(process: Node, body: Body) -> None:
    if process.world.promises.bodies[body.label].answer is None:
        await resume(process, body)


async def _delivered(_process: Node) -> None:
    await anyio.sleep(5)


async def _idle(_process: Node) -> None:
    await anyio.sleep(IDLE.total_seconds() + 5)


async def _follow(process: Node) -> None:
    await process.publisher.once()


async def _fold(process: Node) -> None:
    """Let the receipts grow old, and the journal."""
    process.world.clock.set_by(timedelta(days=9))
    await process.folder.once()


STEPS: Mapping[str, Step] = {
    "announce": lambda process: announce(process, WHOLE),
    "two at once": _two_at_once,
    "break off": lambda process: put(process, AGAIN, upto=6_000),
    "say one": lambda process: say(process, 0, 1),
    "deliver": _delivered,
    "send it whole": lambda process: _once(process, AGAIN),
    "say two": lambda process: say(process, 0, 3),
    "follow": _follow,
    "break off again": lambda process: put(process, RESUMED, upto=6_000),
    "resume": lambda process: _go_on(process, RESUMED),
    "hang up": hang_up,
    "go away": lambda process: put(process, GONE, upto=6_000),
    "deliver the rest": _delivered,
    "idle": _idle,
    "follow again": _follow,
}
"""Receive, seal, deliver and settle, by one put and by multipart, several artifacts at once; resume; recover."""

FOLDING: Mapping[str, Step] = {"two at once": _two_at_once, "deliver": _delivered, "fold": _fold}
"""The end of a delivered recording."""


def promises() -> Promises:
    """Plan what is sent."""
    planned = Promises(talks={TALK.contact: TALK})
    for body in BODIES:
        planned.add(body)
    return planned


async def lived(process: Node, steps: Mapping[str, Step]) -> None:
    """Carry out a journey whose steps meet no trouble."""
    for step in steps.values():
        await step(process)


async def endured(process: Node, steps: Mapping[str, Step]) -> None:
    """Carry out a journey in which any step may meet trouble, or a bug: that is a broken connection to a source."""
    for step in steps.values():
        await _tried(process, step)


async def _tried(process: Node, step: Step) -> None:
    for _ in range(_TRIES):
        try:
            await step(process)
        except (PipelineError, MemoryError):
            await anyio.sleep(1)
        else:
            return


async def come_back(process: Node) -> None:
    """Do what sources do after a crash: whoever got no answer sends what is missing."""
    known = process.world.promises
    for body in RETURNING:
        await _go_on(process, body)
        if known.bodies[body.label].answer is not None:
            await put(process, body)  # once more: the answer may not have arrived
    await say(process, 0, 3)
    await hang_up(process)
