"""Lines of JSON as batches of events: in order, bounded, and the refused ones told by their line."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from pipeline.client import Answer, Client, LinkError, Patience, Stream
from pipeline.errors import RefuseError

BATCH_EVENTS = 100
BATCH_BYTES = 256 * 1024
LONGEST_LINE = 64 * 1024 * 1024
"""The largest body that a service can be set to take."""
_READ = 64 * 1024
_PLACE = re.compile(r"\[(?P<index>[0-9]{1,6})\]\.?(?P<rest>.*)")
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Line:
    """One line with something on it."""

    number: int
    """From 1."""
    raw: bytes


Refused = Callable[[int, str | None, str], None]
"""Told the line, the field and the reason of an event that was not taken."""


def read_lines(stream: Stream) -> Iterator[list[Line]]:
    """Give the lines that are there, a piece at a time; waits only if there is none.

    Raises:
        RefuseError: a line is longer than any event may be.

    """
    number, rest = 0, b""
    while piece := stream.read1(_READ):
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise RefuseError(f"line {number + len(whole) + 1} is longer than any event may be")
        found = [Line(number + at, raw.strip()) for at, raw in enumerate(whole, start=1)]
        number += len(whole)
        yield [line for line in found if line.raw]
    if rest.strip():
        yield [Line(number + 1, rest.strip())]


def batched(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Divide lines into batches that a service takes at once."""
    batch: list[Line] = []
    size_bytes = 0
    for line in lines:
        if batch and (len(batch) == BATCH_EVENTS or size_bytes + len(line.raw) > BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(line)
        size_bytes += len(line.raw) + 1
    if batch:
        yield batch


class Feed:
    """Sends batches; counts what was taken and tells what was not."""

    def __init__(self, client: Client, patience: Patience, refused: Refused) -> None:
        self._client = client
        self._patience = patience
        self._refused = refused
        self.taken = 0
        self.refused = 0
        self.last_line = 0
        """Every line up to here was taken or told."""

    async def send(self, lines: Sequence[Line]) -> None:
        """Send events in order until each was taken or told.

        Raises:
            RefuseError: the service takes nothing of this caller.
            NotTakenError: it did not take them in time.

        """
        readable = [line for line in lines if self._is_object(line)]
        for batch in batched(readable):
            await self._send(batch)
        if lines:
            self.last_line = lines[-1].number

    async def _send(self, batch: list[Line]) -> None:
        """Send one batch; the service takes all of it or nothing."""
        while batch:
            answer = await self._answer(batch)
            if answer.status == HTTPStatus.ACCEPTED:
                self.taken += len(batch)
                self.last_line = batch[-1].number
                return
            index, refusal = _place(answer)
            if index is not None and index < len(batch):
                self._refuse(batch[index], refusal)
                batch = batch[:index] + batch[index + 1 :]
            elif answer.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}:
                raise answer.refusal()
            elif len(batch) == 1:
                self._refuse(batch[0], refusal)
                return
            else:
                half = len(batch) // 2
                await self._send(batch[:half])
                batch = batch[half:]

    async def _answer(self, batch: Sequence[Line]) -> Answer:
        """Send until there is an answer that asking again would not change."""
        body = b"[" + b",".join(line.raw for line in batch) + b"]"
        while True:
            at_least_s = 0.0
            try:
                answer = await self._client.post_events(body)
            except LinkError as error:
                why = str(error)
            else:
                if not answer.is_patient:
                    self._patience.progressed()
                    return answer
                why, at_least_s = str(answer.refusal()), answer.retry_after_s
            await self._patience.wait(why, at_least_s)

    def _is_object(self, line: Line) -> bool:
        """Tell whether a line is JSON at all: one that is not would spoil its batch."""
        try:
            _OBJECT.decode(line.raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._refuse(line, RefuseError("not a JSON object"))
            return False
        return True

    def _refuse(self, line: Line, error: RefuseError) -> None:
        self.refused += 1
        self._refused(line.number, error.field, str(error))


def _place(answer: Answer) -> tuple[int | None, RefuseError]:
    """Find which event of a batch an answer is about, and which of its fields."""
    refusal = answer.refusal()
    match = _PLACE.fullmatch(refusal.field or "")
    if match is None:
        return None, refusal
    return int(match["index"]), RefuseError(str(refusal), field=match["rest"] or None)
