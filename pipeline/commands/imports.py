"""Batches of records on their way to the service: two at a time, so that one is sealed while another is written.

Two that name the same record are sent one after the other: what stands last in the file is what stays.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import anyio
import anyio.to_thread
import msgspec

from pipeline.client import Client, LinkError, Patience, Stream
from pipeline.errors import PipelineError, RefuseError

BATCH_LINES = 5000
BATCH_BYTES = 8 * 1024 * 1024
AT_ONCE = 2
"""Batches under way: what the service needs a core and a disk for, one after the other."""
_READ = 1024 * 1024
_LONGEST_LINE = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines as they came."""

    body: bytes
    lines: int


class _Taken(msgspec.Struct, frozen=True):
    taken: int
    new: int


class _Named(msgspec.Struct, frozen=True):
    id: str


@dataclass(slots=True, eq=False)
class _Sending:
    """A batch that is under way."""

    batch: Batch
    ids: frozenset[str]
    """Of its records; empty if a line can't be read, which the service will say."""
    done: anyio.Event = field(default_factory=anyio.Event)
    is_taken: bool = False


class Import:
    """Sends batches, each until it is taken."""

    def __init__(self, client: Client, path: str, patience: Patience) -> None:
        self._client = client
        self._path = path
        self._patience = patience
        self._under_way: list[_Sending] = []
        self._error: PipelineError | None = None
        self.taken = 0
        self.new = 0
        self.lines = 0
        """All up to this one are taken."""
        self.bytes = 0

    async def send_all(self, pieces: Iterator[Batch], told: Callable[[int], None]) -> None:
        """Send batches; `told` is told how many bytes are taken.

        Raises:
            RefuseError: the service will never take one. What came before it is taken, and perhaps what came after it.
            NotTakenError: it did not take one in time.

        """
        async with anyio.create_task_group() as group:
            while self._error is None and (piece := await _next(pieces)) is not None:
                sending = _Sending(piece, _ids(piece.body))
                while self._error is None and self._must_wait(sending):
                    await self._under_way[0].done.wait()
                    self._settle(told)
                if self._error is None:
                    self._under_way.append(sending)
                    group.start_soon(self._send, sending)
        self._settle(told)
        if self._error is not None:
            raise self._error

    def _must_wait(self, sending: _Sending) -> bool:
        others = self._under_way
        return len(others) >= AT_ONCE or any(not each.ids.isdisjoint(sending.ids) for each in others)

    def _settle(self, told: Callable[[int], None]) -> None:
        """Count what is taken, in the order of the lines."""
        while self._under_way and self._under_way[0].is_taken:
            batch = self._under_way.pop(0).batch
            self.lines += batch.lines
            self.bytes += len(batch.body)
            told(self.bytes)

    async def _send(self, sending: _Sending) -> None:
        """Send one batch until it is taken; what ends that ends the import."""
        try:
            while self._error is None:
                at_least_s = 0.0
                try:
                    headers = {"Content-Type": "application/jsonl"}
                    answer = await self._client.ask("POST", self._path, headers, sending.batch.body)
                except LinkError as error:
                    why = str(error)
                else:
                    if answer.status == HTTPStatus.OK:
                        self._count(answer.body)
                        self._patience.progressed()
                        sending.is_taken = True
                        return
                    if not answer.is_patient:
                        raise answer.refusal()
                    why, at_least_s = str(answer.refusal()), answer.retry_after_s
                await self._patience.wait(why, at_least_s)
        except PipelineError as error:
            self._error = self._error or error
        finally:
            sending.done.set()

    def _count(self, body: bytes) -> None:
        try:
            told = msgspec.json.decode(body, type=_Taken)
        except msgspec.MsgspecError:
            raise RefuseError("what answered is no recording pipeline; is the address right?") from None
        self.taken += told.taken
        self.new += told.new


async def _next(pieces: Iterator[Batch]) -> Batch | None:
    """Read on in a thread: the other end of a pipe may be slow."""
    return await anyio.to_thread.run_sync(partial(next, pieces, None), abandon_on_cancel=True)


def _ids(body: bytes) -> frozenset[str]:
    lines = (line for line in body.splitlines() if line.strip())
    try:
        return frozenset(_decoder.decode(line).id for line in lines)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return frozenset()


_decoder = msgspec.json.Decoder(_Named)


def batches(stream: Stream) -> Iterator[Batch]:
    """Cut a stream into batches of whole lines.

    Raises:
        RefuseError: a line is longer than any record may be.

    """
    kept = bytearray()
    while True:
        piece = stream.read1(_READ)
        kept += piece
        while True:
            end = _end(kept, is_last=not piece)
            if not end:
                break
            body = bytes(kept[:end])
            del kept[:end]
            yield Batch(body, body.count(b"\n") + (not body.endswith(b"\n")))
        if not piece:
            return
        if len(kept) > BATCH_BYTES + _LONGEST_LINE:
            raise RefuseError("a line is longer than a record may be")


def _end(kept: bytearray, *, is_last: bool) -> int:
    """Tell where a batch ends; 0 if there is none to send yet."""
    at = lines = 0
    while lines < BATCH_LINES and at < BATCH_BYTES:
        end = kept.find(b"\n", at) + 1
        if not end:
            return len(kept) if is_last else 0
        at, lines = end, lines + 1
    return at
