"""The event parser: `RefuseError` or typed events; whatever chat item is accepted can be rendered and read again."""

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from pipeline.caseless import MAX_TEXT
from pipeline.delivery.transcript import ArrivedItem, render
from pipeline.errors import RefuseError
from pipeline.events import MAX_SOURCE_ID, ChatMessage, ContactEnvelope, RecordingStarted, parse, parse_item
from pipeline.ids import InstanceId

_FIXTURES = Path(__file__).parents[2] / "fixtures" / "events"
_INSTANCE = InstanceId(UUID(int=3))


def events() -> Sequence[bytes]:
    lines = [line for file in sorted(_FIXTURES.glob("*.jsonl")) for line in file.read_bytes().splitlines()]
    return [*lines[::7], b"[" + b",".join(lines[:3]) + b"]"]


def event(data: bytes) -> None:
    """Parse it as a body, and as a chat's item."""
    with contextlib.suppress(RefuseError):
        for each in parse(data):
            assert each.raw in data
            assert each.time is None or each.time.utcoffset() == datetime.now(UTC).utcoffset()
            if isinstance(each, ContactEnvelope):
                assert 1 <= len(each.contact) <= MAX_TEXT
                assert "\0" not in each.contact
                assert "\n" not in each.contact
            if isinstance(each, RecordingStarted):
                assert 1 <= len(each.source_id) <= MAX_SOURCE_ID
            if isinstance(each, ChatMessage) and each.item is not None:
                _rendered(each.item.raw)
    with contextlib.suppress(RefuseError):
        _rendered(parse_item(data).raw)


def _rendered(raw: bytes) -> None:
    items = [ArrivedItem(0, parse_item(raw)), ArrivedItem(1, parse_item(raw))]
    made = render(account_id="1", instance_id=_INSTANCE, contact="c", initial_contact=None, items=items)
    assert made.items == 1
    assert len(json.loads(made.data)["Transcript"]) == 1
