"""SQS: a queue that events arrive on, and a queue that status events go to.

A queue is only ever a hint: messages may be lost, repeated, reordered or late. Nothing is retried here.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pipeline.errors import DeferError
from pipeline.ports import QueueMessage

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient

BATCH_MESSAGES = 10
BATCH_BYTES = 2**20
"""Of one request, whatever its number of messages (SQS quotas)."""
PATIENCE_S = 30.0
"""How long one request may take, apart from its waiting for messages."""


class SqsQueue:
    """A queue to read from, by a client from `adapters.aws`. Raises `DeferError` for whatever goes wrong."""

    def __init__(self, client: "SQSClient", url: str) -> None:
        self._client = client
        self._url = url

    async def receive(self, most: int = BATCH_MESSAGES, wait: timedelta = timedelta(0)) -> list[QueueMessage]:
        """Take up to `most` (at most 10) messages; wait for the first as long as `wait` (at most 20 s)."""
        seconds = int(wait.total_seconds())
        with _edge(seconds):
            answer = await self._client.receive_message(
                QueueUrl=self._url, MaxNumberOfMessages=most, WaitTimeSeconds=seconds
            )
            return [
                QueueMessage(given["Body"].encode(), given["ReceiptHandle"], given["MessageId"])
                for given in answer.get("Messages", [])
            ]

    async def extend(self, message: QueueMessage, seconds: int) -> None:
        """Keep a message from others for `seconds` from now (at most 12 hours after it was taken)."""
        with _edge():
            await self._client.change_message_visibility(
                QueueUrl=self._url, ReceiptHandle=message.receipt, VisibilityTimeout=seconds
            )

    async def delete(self, messages: Sequence[QueueMessage]) -> list[QueueMessage]:
        """Remove messages whose work is durable; give back those that were not removed and will come again."""
        failed: list[QueueMessage] = []
        for start in range(0, len(messages), BATCH_MESSAGES):
            batch = messages[start : start + BATCH_MESSAGES]
            with _edge():
                answer = await self._client.delete_message_batch(
                    QueueUrl=self._url,
                    Entries=[{"Id": str(number), "ReceiptHandle": one.receipt} for number, one in enumerate(batch)],
                )
            removed = {entry["Id"] for entry in answer.get("Successful", [])}
            failed += [one for number, one in enumerate(batch) if str(number) not in removed]
        return failed


_PLAIN = re.compile(r"[A-Za-z0-9:/._-]{1,128}")


class _Detail(msgspec.Struct, rename="camel"):
    recording_id: str = ""
    event_deduplication_id: str = ""


class _Event(msgspec.Struct):
    detail: _Detail
    id: str = ""
    resources: list[str] = []


class SqsSink:
    """`EventSink`: status events to a queue.

    In a FIFO queue a recording, or a case, is a message group, and the event's own id removes repeats.
    """

    def __init__(self, client: "SQSClient", url: str) -> None:
        self._client: Any = client
        self._url = url
        self._fifo = url.endswith(".fifo")
        self._events = msgspec.json.Decoder(_Event)

    async def send(self, events: Sequence[bytes]) -> None:
        for batch in batches([(self._detail(event), event) for event in events]):
            entries = [self._entry(number, detail, event) for number, (detail, event) in enumerate(batch)]
            with _edge():
                answer = await self._client.send_message_batch(QueueUrl=self._url, Entries=entries)
            if len(answer.get("Successful", [])) != len(batch):
                raise DeferError("the queue did not take all of the events; they are sent again")

    def _detail(self, event: bytes) -> _Detail:
        """Tell a recording's event; one that is handed on as it came by its id, grouped by the last it is about."""
        given = self._events.decode(event)
        if given.detail.recording_id:
            return given.detail
        return _Detail(_plain(given.resources[-1] if given.resources else given.id), _plain(given.id))

    def _entry(self, number: int, detail: _Detail, event: bytes) -> dict[str, str]:
        entry = {"Id": str(number), "MessageBody": event.decode()}
        if self._fifo:
            entry["MessageGroupId"] = detail.recording_id
            entry["MessageDeduplicationId"] = detail.event_deduplication_id
        return entry


def _plain(name: str) -> str:
    """Give an id as SQS takes it in a FIFO queue: 1 to 128 characters of some kinds; else its hash."""
    return name if _PLAIN.fullmatch(name) else hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


def batches(events: Sequence[tuple[_Detail, bytes]]) -> Iterator[list[tuple[_Detail, bytes]]]:
    """Cut events into requests, in order.

    No recording is twice in one request: of a request some messages may be taken and others not, and a recording's
    later event must not overtake an earlier one.
    """
    batch: list[tuple[_Detail, bytes]] = []
    recordings: set[str] = set()
    size_bytes = 0
    for detail, event in events:
        full = len(batch) == BATCH_MESSAGES or size_bytes + len(event) > BATCH_BYTES
        if batch and (full or detail.recording_id in recordings):
            yield batch
            batch, recordings, size_bytes = [], set(), 0
        batch.append((detail, event))
        recordings.add(detail.recording_id)
        size_bytes += len(event)
    if batch:
        yield batch


@contextlib.contextmanager
def _edge(wait_s: float = 0) -> Iterator[None]:
    """Bound one request in time; let only our own exceptions out."""
    try:
        with anyio.fail_after(PATIENCE_S + wait_s):
            yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an unknown error")
        raise DeferError(f"the queue answered {code}; it is tried again") from error
    except (BotoCoreError, ResponseParserError, OSError, ValueError, LookupError, RecursionError) as error:
        raise DeferError(f"no answer from the queue ({type(error).__name__}); it is tried again") from error
