"""Batches of records on their way to the service."""

from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from pipeline.client import Client, LinkError, Patience, Stream
from pipeline.errors import RefuseError

BATCH_LINES = 2000
BATCH_BYTES = 4 * 1024 * 1024
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


class Import:
    """Sends batches, each until it is taken."""

    def __init__(self, client: Client, path: str, patience: Patience) -> None:
        self._client = client
        self._path = path
        self._patience = patience
        self.taken = 0
        self.new = 0
        self.lines = 0
        self.bytes = 0

    async def send(self, batch: Batch) -> None:
        """Send one batch.

        Raises:
            RefuseError: the service will never take it.
            NotTakenError: it did not take it in time.

        """
        while True:
            at_least_s = 0.0
            try:
                answer = await self._client.ask("POST", self._path, {"Content-Type": "application/jsonl"}, batch.body)
            except LinkError as error:
                why = str(error)
            else:
                if answer.status == HTTPStatus.OK:
                    self._count(batch, answer.body)
                    self._patience.progressed()
                    return
                if not answer.is_patient:
                    raise answer.refusal()
                why, at_least_s = str(answer.refusal()), answer.retry_after_s
            await self._patience.wait(why, at_least_s)

    def _count(self, batch: Batch, body: bytes) -> None:
        try:
            told = msgspec.json.decode(body, type=_Taken)
        except msgspec.MsgspecError:
            raise RefuseError("what answered is no recording pipeline; is the address right?") from None
        self.taken += told.taken
        self.new += told.new
        self.lines += batch.lines
        self.bytes += len(batch.body)


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
