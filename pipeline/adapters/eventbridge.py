"""An EventBridge bus that status events go to: `EventSink`. Nothing is retried here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pipeline.errors import DeferError

if TYPE_CHECKING:
    from types_aiobotocore_events import EventBridgeClient

SOURCE = "pipeline.recordings"
"""EventBridge keeps sources that begin with `aws.` for itself."""
_REPEATS = "eventDeduplicationId"
BATCH_ENTRIES = 10
PATIENCE_S = 30.0
"""How long one request may take."""


class _Event(msgspec.Struct, rename={"detail_type": "detail-type"}):
    detail_type: str
    detail: dict[str, Any]
    time: str
    resources: list[str] = []
    id: str = ""


class EventBridgeSink:
    """`EventSink`: status events to a bus, by a client from `adapters.aws`. The bus keeps no order.

    It gives each event an id of its own: what tells repeats is `eventDeduplicationId` in the detail, which an event
    that is handed on as it came gets from its envelope.
    """

    def __init__(self, client: "EventBridgeClient", bus: str) -> None:
        self._client: Any = client
        self._bus = bus
        self._events = msgspec.json.Decoder(_Event)

    async def send(self, events: Sequence[bytes]) -> None:
        for start in range(0, len(events), BATCH_ENTRIES):
            entries = [self._entry(event) for event in events[start : start + BATCH_ENTRIES]]
            try:
                with anyio.fail_after(PATIENCE_S):
                    answer = await self._client.put_events(Entries=entries)
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code", "an unknown error")
                raise DeferError(f"the event bus answered {code}; it is tried again") from error
            except (BotoCoreError, ResponseParserError, OSError, ValueError, RecursionError) as error:
                message = f"no answer from the event bus ({type(error).__name__}); it is tried again"
                raise DeferError(message) from error
            if answer.get("FailedEntryCount", len(entries)) > 0:
                raise DeferError("the event bus did not take all of the events; they are sent again")

    def _entry(self, event: bytes) -> dict[str, Any]:
        given = self._events.decode(event)
        detail = {_REPEATS: given.id, **given.detail} if given.id else given.detail
        return {
            "EventBusName": self._bus,
            "Source": SOURCE,
            "DetailType": given.detail_type,
            "Detail": msgspec.json.encode(detail).decode(),
            "Time": given.time,
            "Resources": given.resources,
        }
