"""Contact events merged into one record: in any order, however often, with nothing older over anything newer."""

import itertools
import json
from typing import Any

import pytest

from pipeline.events import ContactEvent, parse
from pipeline.records.contactmerge import LIMIT, merged, shown
from tests.unit.keyring_fakes import A

ARN = f"arn:aws:connect:eu-central-1:111122223333:instance/{A}"


def event(event_type: str, minute: int | None, number: int = 0, **detail: Any) -> ContactEvent:
    envelope = {
        "id": f"e-{number or minute}",
        "detail-type": "Amazon Connect Contact Event",
        "source": "aws.connect",
        "detail": {"eventType": event_type, "contactId": "c-1", "instanceArn": ARN, **detail},
    }
    if minute is not None:
        envelope["time"] = f"2026-11-23T14:{minute:02}:00Z"
    (parsed,) = parse(json.dumps(envelope).encode())
    assert isinstance(parsed, ContactEvent)
    return parsed


def record(*events: ContactEvent, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Merge one at a time, as they come."""
    found = known
    for each in events:
        body = merged(found, [each])
        if body is not None:
            found = json.loads(body)
    assert found is not None
    return found


LIFE = (
    event("INITIATED", 1, channel="VOICE", initiationTimestamp="2026-11-23T14:01:00Z", attributes={"a": "1", "b": "1"}),
    event("QUEUED", 2, queueInfo={"queueArn": "q-1"}, tags={"aws:connect:systemEndpoint": "+4930111"}),
    event(
        "CONTACT_DATA_UPDATED", 3, attributes={"b": "2"}, customerId="Erika", queueInfo={"queueType": "STANDARD"},
        initiationTimestamp="2026-11-23T14:03:00Z",
    ),
    event("COMPLETED", 4, channel="VOICE", disconnectTimestamp="2026-11-23T14:04:00Z", attributes={"b": "3"}),
)  # fmt: skip


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_same_events_give_the_same_record_in_any_order_and_however_often(order: tuple[int, ...]) -> None:
    events = [LIFE[number] for number in order]
    found = record(*events)
    assert found == record(*LIFE) == json.loads(merged(None, events) or b"{}")
    assert all(merged(found, [each]) is None for each in LIFE)
    assert shown(json.dumps(found).encode()) == {
        "Attributes": {"a": "1", "b": "3"},
        "Channel": "VOICE",
        "ContactId": "c-1",
        "CustomerId": "Erika",
        "DisconnectTimestamp": "2026-11-23T14:04:00Z",
        "EventType": "COMPLETED",
        "InitiationTimestamp": "2026-11-23T14:01:00Z",
        "InstanceArn": ARN,
        "QueueInfo": {"QueueArn": "q-1", "QueueType": "STANDARD"},
        "SystemEndpoint": {"Address": "+4930111"},
        "Tags": {"aws:connect:systemEndpoint": "+4930111"},
    }


def test_an_initiated_of_a_later_time_overwrites_nothing_of_a_completed_and_adds_what_is_new() -> None:
    late = event("INITIATED", 9, channel="CHAT", attributes={"b": "0", "c": "9"}, disconnectTimestamp=None)
    found = record(*LIFE, late)
    assert (found["Channel"], found["EventType"]) == ("VOICE", "COMPLETED")
    assert found["Attributes"] == {"a": "1", "b": "3", "c": "9"}
    assert found["InitiationTimestamp"] == "2026-11-23T14:01:00Z"


def test_a_change_after_the_end_counts_and_the_contact_stays_completed() -> None:
    found = record(*LIFE, event("CONTACT_DATA_UPDATED", 8, attributes={"b": "8"}))
    assert (found["EventType"], found["Attributes"]["b"]) == ("COMPLETED", "8")


def test_what_is_not_set_or_left_out_changes_nothing() -> None:
    unset = event(
        "DISCONNECTED", 9, disconnectTimestamp="1970-01-01T00:00:00.001Z", channel="", customerId=None, queueInfo=None,
        agentInfo={"connectedToAgentTimestamp": "1970-01-01T00:00:00.001Z"}, tags=[1],
    )  # fmt: skip
    found, known = record(*LIFE, unset), record(*LIFE)
    assert shown(json.dumps(found).encode()) == shown(json.dumps(known).encode())


def test_names_are_found_in_any_case_and_unknown_ones_are_kept() -> None:
    given = {
        "EVENTTYPE": "QUEUED",
        "ContactId": "c-1",
        "customerendpoint": {"Address": "+4930"},
        "agentInfo": {"agentArn": "x"},
        "shoeSize": 43,
        "NewestBy": {"Channel": "9"},
        "attributes": {"lower": "kept", "": "no name"},
    }
    envelope = {"detail-type": "Amazon Connect Contact Event", "source": "aws.connect", "Detail": given}
    (parsed,) = parse(json.dumps(envelope).encode())
    assert isinstance(parsed, ContactEvent)
    assert shown(merged(None, [parsed]) or b"") == {
        "EventType": "QUEUED",
        "ContactId": "c-1",
        "CustomerEndpoint": {"Address": "+4930"},
        "AgentInfo": {"AgentArn": "x"},
        "ShoeSize": 43,
        "Attributes": {"lower": "kept"},
    }


def test_an_undated_event_only_adds() -> None:
    found = record(*LIFE, event("QUEUED", None, 9, channel="TASK", customerId="Max", relatedContactId="c-0"))
    assert (found["Channel"], found["CustomerId"], found["RelatedContactId"]) == ("VOICE", "Erika", "c-0")


def test_events_merge_into_what_somebody_put_and_take_its_place_where_they_say_something() -> None:
    found = record(*LIFE, known={"Note": "kept", "Channel": "TASK", "Attributes": {"z": "kept"}})
    assert (found["Note"], found["Channel"], found["Attributes"]["z"]) == ("kept", "VOICE", "kept")


def test_what_somebody_put_in_the_place_of_a_group_gives_way_to_it() -> None:
    found = record(*LIFE, known={"Attributes": "none", "NewestBy": {"Attributes": "x", "Channel": {"a": "b"}}})
    assert found["Attributes"] == {"a": "1", "b": "3"}


def test_what_is_too_large_is_left_out_and_that_is_said() -> None:
    found = record(*LIFE, event("CONTACT_DATA_UPDATED", 5, attributes={"huge": "x" * LIMIT, "b": "5"}))
    assert found["Truncated"] is True
    assert found["Attributes"] == {"a": "1", "b": "5"}
    many = event("CONTACT_DATA_UPDATED", 6, attributes={f"n{number}": "y" * 900 for number in range(900)})
    found = record(*LIFE, many)
    assert LIMIT / 2 < len(json.dumps(found)) < LIMIT * 1.2
    assert found["ContactId"] == "c-1"
