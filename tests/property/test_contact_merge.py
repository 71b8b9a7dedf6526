"""Whatever contact events say, and in whatever order they come: one record."""

import json
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.events import ContactEvent, parse
from pipeline.records.contactmerge import LIMIT, merged
from tests.property.examples import part

NAMES = st.sampled_from(
    ["channel", "Channel", "attributes", "Tags", "queueInfo", "initiationTimestamp", "disconnectTimestamp",
     "customerEndpoint", "NewestBy", "Truncated", "unheardOf", ""]
)  # fmt: skip
READ = {"channel", "Channel", "initiationTimestamp", "disconnectTimestamp"}
TIMES = st.sampled_from(["2026-11-23T14:01:00Z", "2026-11-23T14:02:00.5Z", "1970-01-01T00:00:00.001Z"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | TIMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", ""]), inner, max_size=3),
    max_leaves=6,
)
DETAILS = st.dictionaries(NAMES, VALUES, max_size=6)
TYPES = st.sampled_from(["INITIATED", "QUEUED", "CONTACT_DATA_UPDATED", "COMPLETED"])
SAID = st.lists(st.tuples(TYPES, st.none() | TIMES, DETAILS), min_size=1, max_size=5)


def events_of(said: list[tuple[str, str | None, dict[str, Any]]]) -> list[ContactEvent]:
    """Make events; what the intake itself reads is sound, all else is anything."""
    found = []
    for number, (event_type, time, anything) in enumerate(said):
        detail = {name: value for name, value in anything.items() if name not in READ}
        detail |= {"eventType": event_type, "contactId": "c-1", "initiationTimestamp": time}
        detail["channel"] = "VOICE" if "channel" in anything else ""
        kind = {"id": f"e-{number}", "detail-type": "Amazon Connect Contact Event", "source": "aws.connect"}
        (event,) = parse(json.dumps({**kind, "time": time, "detail": detail}).encode())
        assert isinstance(event, ContactEvent)
        found.append(event)
    return found


def record_of(events: list[ContactEvent], known: dict[str, Any] | None = None) -> dict[str, Any] | None:
    for event in events:
        body = merged(known, [event])
        if body is not None:
            known = msgspec.json.decode(body)
    return known


@settings(max_examples=part(60), deadline=None)
@given(SAID, st.randoms(use_true_random=False))
def test_any_order_any_grouping_and_any_repeat_give_the_same_record(said: list[Any], chance: Any) -> None:
    events = events_of(said)
    found = record_of(events)
    shuffled = [*events, *events]
    chance.shuffle(shuffled)
    assert record_of(shuffled) == found
    whole = merged(None, shuffled)
    assert whole is not None
    assert msgspec.json.decode(whole) == found
    assert merged(found, events) is None
    assert len(whole) <= LIMIT


@settings(max_examples=part(40), deadline=None)
@given(SAID, DETAILS)
@example([("INITIATED", None, {"Tags": {"a": False}})], {"Tags": {"a": None, "": None}})
def test_whatever_somebody_put_there_is_merged_with_once(said: list[Any], known: dict[str, Any]) -> None:
    events = events_of(said)
    found = record_of(events, known)
    assert found is not None
    assert found["ContactId"] == "c-1"
    assert merged(found, events) is None
