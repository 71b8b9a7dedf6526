"""What contact events say of a contact, merged into one record: `contact_metadata`. Pure.

Events come late, twice and in any order. Each member of the record remembers the event that set it (`NewestBy`), and
another sets it only if it is newer: so the same events give the same record, whatever their order, and a repeat
changes nothing. What INITIATED says never replaces what any other event said; that a contact is COMPLETED stays. The
time of initiation is the oldest event's, since for campaign calls it moves. Attributes, tags and what is told of agent
and queue are merged one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipeline.caseless import UNREADABLE, parse_time, read_object
from pipeline.errors import RefuseError
from pipeline.events import ContactEvent

LIMIT = 256 * 1024
"""Bytes of a record made of events. Amazon Connect allows 32 KiB of attributes."""
MARKS = "NewestBy"
TRUNCATED = "Truncated"
INITIATED_AT = "InitiationTimestamp"
_NESTED = frozenset({"AgentInfo", "QueueInfo"})
_KEYED = frozenset({"Attributes", "Tags", "SegmentAttributes"})
"""Whose names are somebody's own, and stay as they are spelled."""
_SYSTEM_ENDPOINT = "aws:connect:systemEndpoint"
_KNOWN = {
    name.lower(): name
    for name in (
        *_NESTED, *_KEYED, INITIATED_AT, "ContactId", "InitialContactId", "PreviousContactId", "RelatedContactId",
        "CustomerId", "CustomerEndpoint", "SystemEndpoint", "AdditionalEndpoints", "EventType", "Channel",
        "InitiationMethod", "InstanceArn", "ConnectedToSystemTimestamp", "DisconnectTimestamp",
    )
}  # fmt: skip
_NO_TIME = datetime.min.replace(tzinfo=UTC)
_FAR = datetime.max.replace(tzinfo=UTC)

Place = tuple[str, ...]
"""A member's name, and the name within it where those are merged one by one."""


def merged(record: Mapping[str, Any] | None, events: Sequence[ContactEvent]) -> bytes | None:
    """Merge events of one contact into its record; `None` if that changes nothing."""
    before = dict(record or {})
    values, marks = _leaves(before), _marks(before)
    for event in events:
        for place, value in _said(event):
            mark = _mark(event, place)
            if place not in values or mark > marks.get(place, ""):
                values[place], marks[place] = value, mark
    after = _fitting(values, marks, was_cut=before.get(TRUNCATED) is True)
    return None if after == before else msgspec.json.encode(after, order="deterministic")


def shown(body: bytes) -> dict[str, Any]:
    """Give a record as people see it: without what only merging needs."""
    try:
        found = msgspec.json.decode(body)
    except UNREADABLE:
        return {}
    return {name: value for name, value in found.items() if name != MARKS} if isinstance(found, dict) else {}


# --- inside


def _said(event: ContactEvent) -> Iterator[tuple[Place, Any]]:
    """Give what an event says, member by member; what it leaves out, or has not set, changes nothing."""
    detail = read_object(event.raw, "").object("detail")
    said = {_canonical(name): value for name, value in reversed(list(detail.values.items()))}
    said["EventType"] = event.event_type
    tags = said.get("Tags")
    number = tags.get(_SYSTEM_ENDPOINT) if isinstance(tags, dict) else None
    if isinstance(number, str) and "SystemEndpoint" not in said:
        said["SystemEndpoint"] = {"Address": number}
    for name, value in said.items():
        if name in {MARKS, TRUNCATED}:
            continue
        if name not in _NESTED | _KEYED:
            if _is_set(name, value):
                yield (name,), value
        elif isinstance(value, dict):
            for key, each in value.items():
                inner = key if name in _KEYED else _canonical(key)
                if inner and _is_set(inner, each):
                    yield (name, inner), each


def _canonical(name: str) -> str:
    return _KNOWN.get(name.lower(), name[:1].upper() + name[1:])


def _is_set(name: str, value: Any) -> bool:
    if value is None or value == "" or not name:
        return False
    if not name.endswith("Timestamp"):
        return True
    try:
        return parse_time(value, name) is not None
    except RefuseError:
        return False


def _mark(event: ContactEvent, place: Place) -> str:
    """Say how new what an event says is: the greater mark counts."""
    name = event.envelope_id or ""
    if place == (INITIATED_AT,):
        # The oldest event counts: the more time there is till the end of all time, the greater.
        left = _FAR - (event.time or _FAR)
        return f"{left.days:08}.{left.seconds:05}.{left.microseconds:06} {name}"
    rank = 0 if event.event_type == "INITIATED" else 1
    if place == ("EventType",) and event.event_type == "COMPLETED":
        rank = 2
    return f"{rank} {(event.time or _NO_TIME).isoformat(timespec='microseconds')} {name}"


def _leaves(record: Mapping[str, Any]) -> dict[Place, Any]:
    found: dict[Place, Any] = {}
    for name, value in record.items():
        if name in {MARKS, TRUNCATED}:
            continue
        if name in _NESTED | _KEYED and isinstance(value, dict):
            found |= {(name, key): each for key, each in value.items()}
        else:
            found[(name,)] = value
    return found


def _marks(record: Mapping[str, Any]) -> dict[Place, str]:
    given = record.get(MARKS)
    found: dict[Place, str] = {}
    for name, value in given.items() if isinstance(given, dict) else ():
        if isinstance(value, dict):
            found |= {(name, key): str(each) for key, each in value.items()}
        else:
            found[(name,)] = str(value)
    return found


def _fitting(values: Mapping[Place, Any], marks: Mapping[Place, str], *, was_cut: bool) -> dict[str, Any]:
    """Put a record together; what makes it too large is left out, the largest first, and that is said."""
    sizes = {place: len(msgspec.json.encode((place, value))) + 80 for place, value in values.items()}
    left_out: set[Place] = set()
    total = sum(sizes.values())
    for place in sorted(sizes, key=lambda each: (sizes[each], each), reverse=True):
        if total <= LIMIT:
            break
        left_out.add(place)
        total -= sizes[place]
    record: dict[str, Any] = {}
    newest: dict[str, Any] = {}
    for place, value in values.items():
        if place not in left_out:
            _put(record, place, value)
            if place in marks:
                _put(newest, place, marks[place])
    if newest:
        record[MARKS] = newest
    if left_out or was_cut:
        record[TRUNCATED] = True
    return record


def _put(record: dict[str, Any], place: Place, value: Any) -> None:
    name, *inner = place
    if not inner:
        record[name] = value
        return
    if not isinstance(record.get(name), dict):
        record[name] = {}  # somebody put something else there
    record[name][inner[0]] = value
