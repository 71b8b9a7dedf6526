"""Whatever the bytes are: events, or a refusal."""

import json
from contextlib import suppress
from copy import deepcopy
from datetime import UTC
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.caseless import parse_time
from pipeline.errors import RefuseError
from pipeline.events import ChatMessage, ContactEvent, OtherEvent, parse, parse_item
from tests.property.examples import part

ARN = "arn:aws:connect:eu-central-1:111122223333:instance/aaaa1111-0000-4000-8000-000000000001"
ITEM = {"AbsoluteTime": "2026-11-23T09:00:09.004Z", "Id": "i-2", "Type": "MESSAGE", "ContentType": "text/plain"}
KNOWN: list[dict[str, Any]] = [
    {
        "id": "e-1",
        "detail-type": "Amazon Connect Contact Event",
        "source": "aws.connect",
        "time": "2026-11-23T14:21:00Z",
        "resources": [ARN],
        "detail": {
            "eventType": "COMPLETED",
            "contactId": "c-1",
            "channel": "VOICE",
            "instanceArn": ARN,
            "initiationTimestamp": "2026-11-23T14:05:12.000Z",
            "disconnectTimestamp": "2026-11-23T14:20:59.000Z",
            "tags": {"aws:connect:instanceId": ARN},
        },
    },
    {"detail-type": "Chat Message", "detail": {"contactId": "c", "instanceArn": ARN, "item": ITEM, "final": False}},
    {
        "detail-type": "Recording Started",
        "detail": {"contactId": "c", "recordingKind": "voice", "sourceId": "s", "startTime": "2026-11-23T09:00:09Z"},
    },
    {"detail-type": "Recording Stopped", "detail": {"contactId": "c", "recordingKind": "chat", "sourceId": "s"}},
]
SOUND = [json.dumps(each).encode() for each in KNOWN]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, each in inner for deeper in paths_of(each, (*path, key)))]


PLACES = [(number, path) for number, each in enumerate(KNOWN) for path in paths_of(each) if path]


@settings(max_examples=part(150), deadline=None)
@given(st.binary(max_size=200))
@example(b"\xff")
@example(b"[" * 5_000)
def test_any_bytes_give_events_or_a_refusal(body: bytes) -> None:
    with suppress(RefuseError):
        parse(body)


@settings(max_examples=part(150), deadline=None)
@given(st.sampled_from(SOUND), st.integers(0, 1_000), st.integers(0, 3), st.binary(max_size=3))
def test_a_sound_event_with_bytes_put_in_or_taken_away_gives_events_or_a_refusal(
    body: bytes, at: int, cut: int, added: bytes
) -> None:
    with suppress(RefuseError):
        parse(body[:at] + added + body[at + cut :])


@settings(max_examples=part(150), deadline=None)
@given(st.sampled_from(PLACES), JSON_VALUES)
def test_any_value_at_any_place_gives_an_event_or_a_refusal_that_names_a_place_in_it(
    place: tuple[int, tuple[Any, ...]], value: Any
) -> None:
    number, path = place
    changed = deepcopy(KNOWN[number])
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    body = json.dumps([changed]).encode()
    try:
        (parsed,) = parse(body)
    except RefuseError as refused:
        assert refused.field is None or refused.field.startswith("[0]")  # noqa: PT017
        return
    assert json.loads(parsed.raw) == json.loads(body)[0]
    if not isinstance(parsed, OtherEvent):
        assert 1 <= len(parsed.contact) <= 256
    if isinstance(parsed, ContactEvent):
        times = (parsed.time, parsed.initiated, parsed.disconnected)
        assert all(moment is None or moment.tzinfo is UTC for moment in times)


@settings(max_examples=part(200), deadline=None)
@given(st.dictionaries(st.text(max_size=10), JSON_VALUES, max_size=5), st.text(min_size=1, max_size=30))
def test_an_item_that_is_taken_can_be_read_again_from_its_own_bytes(members: dict[str, Any], secret: str) -> None:
    item = {**members, **ITEM, "Content": secret}
    body = json.dumps({"detail-type": "Chat Message", "detail": {"contactId": "c", "item": item}}, indent=1).encode()
    try:
        (message,) = parse(body)
    except RefuseError:
        return
    assert isinstance(message, ChatMessage)
    assert message.item is not None
    assert message.item.raw in body
    assert parse_item(message.item.raw) == message.item


@settings(max_examples=part(200), deadline=None)
@given(st.text(max_size=40) | st.datetimes().map(str))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with suppress(RefuseError):
        moment = parse_time(text, "x")
        assert moment is None or moment.tzinfo is UTC
