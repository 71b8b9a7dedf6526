"""Sources as they are: they send in pieces, break off, come back, repeat themselves, and write down what they are told.

What a source is told goes to the promises of the world that it is in; what it was not told, it sends again.
"""

import contextlib
import itertools
import json
import random
from dataclasses import replace
from enum import Enum, auto
from typing import Any

import anyio

from pipeline.errors import DeferError, WriterClosedError
from pipeline.ids import InstanceId, Kind
from pipeline.intake.reception import Answer
from pipeline.intake.recorder import WrongOffsetError
from tests.simulation.promises import BEGINNING, MARKER, Body, Talk
from tests.simulation.world import Node
from tests.store_fixture import instance

_PAUSE_S = 3.0


class Manner(Enum):
    """How a source sends."""

    WHOLE = auto()
    """From the beginning each time."""
    RESUMED = auto()
    """From where the service says it is."""
    TWICE = auto()
    """Over two connections at once: the first was given up by its client alone."""
    ABANDONED = auto()
    """A part, and never again."""


class Traffic:
    """What sources do to one node."""

    def __init__(self, process: Node, chance: random.Random) -> None:
        self._process = process
        self._chance = chance
        self._promises = process.world.promises

    # --- recordings

    async def upload(self, body: Body, manner: Manner) -> None:
        """Send a body until it is acknowledged; one that is abandoned, some of it."""
        if manner is Manner.ABANDONED:
            await self.send(body, stop=self._chance.randint(BEGINNING, len(body.data)))
            await self.ask(body)
            return
        while self._promises.bodies[body.label].answer is None:
            if manner is Manner.TWICE:
                async with anyio.create_task_group() as connections:
                    connections.start_soon(self._try, body)
                    connections.start_soon(self._try, body)
            else:
                await self._try(body, resumes=manner is Manner.RESUMED)

    async def _try(self, body: Body, *, resumes: bool = False) -> None:
        chance = self._chance
        stop = chance.randint(BEGINNING, len(body.data)) if chance.random() < 0.3 else None
        is_taken = False
        with anyio.move_on_after(chance.random() * _PAUSE_S if chance.random() < 0.15 else None):  # its line is cut
            is_taken = await self.send(body, resumes=resumes, stop=stop)
        if not is_taken:
            if resumes:
                await self.ask(body)
            await anyio.sleep(chance.random() * _PAUSE_S)

    async def send(self, body: Body, *, resumes: bool = False, stop: int | None = None) -> bool:
        """Send a body once, as far as `stop`; tell whether all of it was acknowledged."""
        try:
            at = await self._offset(body) if resumes else None
            answer = await self._put(body, at, stop)
        except (DeferError, WrongOffsetError):
            return False
        if answer is not None:
            self._promises.answered(body, answer)
        return answer is not None

    async def ask(self, body: Body) -> None:
        """Ask how much of a body is acknowledged, if that can be told now."""
        with contextlib.suppress(DeferError):
            await self._offset(body)

    async def repeat(self, body: Body) -> None:
        """Send a whole body once more, as a source does that missed the answer. Raises if it is not taken."""
        answer = await self._put(body, None, None)
        assert answer is not None
        self._promises.answered(body, answer)

    async def _offset(self, body: Body) -> int | None:
        tenant = self._process.tenant(body.instance_id)
        at = await self._process.recorder.offset(tenant, body.kind, body.source_id)
        if at is not None:
            self._promises.acknowledged(body, at)
        return at

    async def _put(self, body: Body, at: int | None, stop: int | None) -> Answer | None:
        """Do what a PUT does. None: it was broken off at `stop`, by its source."""
        recorder, clock = self._process.recorder, self._process.world.clock
        tenant = self._process.tenant(body.instance_id)
        if at is None:
            reception = await recorder.begin(tenant, body.source)
        else:
            reception = await recorder.resume(tenant, body.source, at)
        whole = stop is None or stop < (at or 0)
        try:
            with reception.scope:
                for piece in self._pieces(body.data[at or 0 : None if whole else stop]):
                    if self._chance.random() < 0.5:
                        await anyio.sleep(self._chance.random() * _PAUSE_S)
                    await reception.append(piece, clock.monotonic())
                    if self._chance.random() < 0.3:
                        await reception.writer.sync()  # as the sweep does, each second
            if reception.scope.cancelled_caught:
                raise WriterClosedError("broken off")
            return await recorder.finish(reception, None) if whole else None
        finally:
            await recorder.let_go(reception)

    def _pieces(self, data: bytes) -> list[bytes]:
        least = min(BEGINNING, len(data))  # so that the first piece tells whose it is
        cuts = sorted(self._chance.randint(least, len(data)) for _ in range(self._chance.randint(0, 2)))
        ends = [0, *cuts, len(data)]
        return [data[start:end] for start, end in itertools.pairwise(ends) if start < end]

    # --- events

    async def talk(self, talk: Talk) -> None:
        """Say everything, some items at a time, some of them twice, until all is acknowledged; then end it."""
        while not self._promises.talks[talk.contact].ended:
            if not await self.say(talk) or self._chance.random() < 0.3:
                await anyio.sleep(self._chance.random() * _PAUSE_S)

    async def say(self, talk: Talk) -> bool:
        """Say the next items, and with the last of them that it is over; tell whether that was acknowledged."""
        known = self._promises.talks[talk.contact]
        start = max(0, known.acknowledged - self._chance.randint(0, 1))
        stop = min(len(talk.items), start + self._chance.randint(1, 3))
        is_end = stop == len(talk.items)
        events = [message(talk, each) for each in talk.items[start:stop]]
        self._promises.said(talk, stop, sent=True)
        try:
            await self._take(talk.instance_id, *events, *([final(talk)] if is_end else []))
        except DeferError:
            return False
        self._promises.said(talk, stop)
        if is_end:
            self._promises.ended(talk)
        return True

    async def announce(self, body: Body) -> None:
        """Tell of a contact and its recording, before or after the recording itself, until it is acknowledged."""
        await anyio.sleep(self._chance.random() * _PAUSE_S)
        while not await self.tell(body):  # noqa: ASYNC110 - it is told again
            await anyio.sleep(self._chance.random() * _PAUSE_S)

    async def tell(self, body: Body) -> bool:
        """Tell of them once; tell whether that was acknowledged."""
        try:
            await self._take(body.instance_id, initiated(body), started(body))
        except DeferError:
            return False
        self._promises.announced.add((body.instance_id, body.contact))
        return True

    async def _take(self, instance_id: InstanceId, *events: dict[str, Any]) -> None:
        await self._process.events.take(self._process.tenant(instance_id), json.dumps(events).encode())


def message(talk: Talk, item_id: str) -> dict[str, Any]:
    """Say one thing in a chat."""
    item = {
        "Id": item_id,
        "AbsoluteTime": f"2026-11-23T12:00:{int(item_id.rpartition('-')[2]):02}Z",
        "Type": "MESSAGE",
        "ContentType": "text/plain",
        "ParticipantRole": "CUSTOMER",
        "Content": f"{MARKER.decode()} {item_id}",
    }
    return _event(talk.instance_id, talk.contact, "Chat Message", item=item)


def final(talk: Talk) -> dict[str, Any]:
    """Say that no more will come."""
    return _event(talk.instance_id, talk.contact, "Chat Message", final=True)


def initiated(body: Body) -> dict[str, Any]:
    """Tell that a contact began."""
    channel = {Kind.CHAT: "CHAT"}.get(body.kind, "VOICE")
    return _event(
        body.instance_id, body.contact, "Amazon Connect Contact Event", eventType="INITIATED", channel=channel
    )


def started(body: Body) -> dict[str, Any]:
    """Tell that a recorder began."""
    return _event(
        body.instance_id, body.contact, "Recording Started", recordingKind=str(body.kind), sourceId=body.source_id
    )


def _event(instance_id: InstanceId, contact: str, detail_type: str, **detail: Any) -> dict[str, Any]:
    return {
        "id": f"e-{contact}-{detail_type}",
        "source": "aws.connect" if "Connect" in detail_type else "pipeline",
        "detail-type": detail_type,
        "time": "2026-11-23T12:00:00Z",
        "detail": {"contactId": contact, "instanceArn": instance(instance_id).arn, **detail},
    }


def plan(chance: random.Random, instances: list[InstanceId]) -> tuple[list[tuple[Body, Manner]], list[Talk]]:
    """Choose what one world is sent: one to three sources, some of one contact, some with a second body."""
    bodies: list[tuple[Body, Manner]] = []
    talks: list[Talk] = []
    for number in range(chance.randint(1, 3)):
        instance_id = chance.choice(instances)
        if chance.random() < 0.3:
            items = tuple(f"i-{number}-{each}" for each in range(chance.randint(1, 4)))
            talks.append(Talk(instance_id=instance_id, contact=f"chat-{number}", items=items))
            continue
        first = Body(
            instance_id=instance_id,
            kind=chance.choice((Kind.VOICE, Kind.VOICE, Kind.SCREEN)),
            contact=f"contact-{number if chance.random() < 0.6 else 0}",
            source_id=f"source-{number}",
            data=_data(chance, f"{number}.1"),
        )
        bodies.append((first, chance.choice(list(Manner))))
        if chance.random() < 0.2:
            second = replace(first, data=_data(chance, f"{number}.2"))
            bodies[-1] = (first, chance.choice((Manner.WHOLE, Manner.TWICE)))
            bodies.append((second, Manner.WHOLE))
    return bodies, talks


def _data(chance: random.Random, label: str) -> bytes:
    beginning = MARKER + f"of {label} ".encode().ljust(20, b".")
    return beginning + chance.randbytes(chance.choice((10, 100, 300, 700)))
