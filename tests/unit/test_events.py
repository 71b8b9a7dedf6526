"""What comes out of documented, and of odd, events."""

import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from pipeline.caseless import MAX_DEPTH, parse_time
from pipeline.errors import RefuseError
from pipeline.events import (
    MAX_EVENTS,
    ChatMessage,
    ContactEvent,
    OtherEvent,
    RecordingStarted,
    RecordingStopped,
    parse,
    parse_item,
)
from pipeline.ids import Kind

INSTANCE = UUID("aaaa1111-0000-4000-8000-000000000001")
CONTACT = "cccc3333-0000-4000-8000-000000000003"
INSTANCE_ARN = f"arn:aws:connect:eu-central-1:111122223333:instance/{INSTANCE}"
EVENT: dict[str, Any] = {
    "version": "0",
    "id": "e1d2c3b4-0000-4000-8000-00000000000e",
    "detail-type": "Amazon Connect Contact Event",
    "source": "aws.connect",
    "account": "111122223333",
    "time": "2026-11-23T14:21:00Z",
    "region": "eu-central-1",
    "resources": [f"{INSTANCE_ARN}/contact/{CONTACT}", INSTANCE_ARN],
    "detail": {
        "eventType": "DISCONNECTED",
        "contactId": CONTACT,
        "channel": "VOICE",
        "instanceArn": INSTANCE_ARN,
        "initiationMethod": "INBOUND",
        "initiationTimestamp": "2026-11-23T14:05:12.000Z",
        "connectedToSystemTimestamp": "1970-01-01T00:00:00.001Z",
        "disconnectTimestamp": "2026-11-23T14:20:59Z",
        "tags": {"aws:connect:instanceId": str(INSTANCE)},
    },
}
ITEM = {
    "AbsoluteTime": "2026-11-23T09:00:09.004Z",
    "Content": "My parcel has not come.",
    "ContentType": "text/plain",
    "Id": "i-2",
    "Type": "MESSAGE",
    "ParticipantId": "p-customer",
}


def at(hour: int, minute: int, second: int = 0, millisecond: int = 0) -> datetime:
    return datetime(2026, 11, 23, hour, minute, second, millisecond * 1000, tzinfo=UTC)


def event(**detail: Any) -> dict[str, Any]:
    """`EVENT` with some of its detail changed; `...` takes a member away."""
    changed = deepcopy(EVENT)
    changed["detail"] = {k: v for k, v in {**changed["detail"], **detail}.items() if v is not ...}
    return changed


def parse_one(value: object) -> Any:
    (parsed,) = parse(json.dumps(value).encode())
    return parsed


def refusal_of(value: object) -> RefuseError:
    with pytest.raises(RefuseError) as caught:
        parse(value if isinstance(value, bytes) else json.dumps(value).encode())
    return caught.value


def own(detail_type: str, **detail: Any) -> dict[str, Any]:
    return {
        "detail-type": detail_type,
        "source": "pipeline.chat",
        "detail": {"instanceArn": INSTANCE_ARN, "contactId": CONTACT, **detail},
    }


def test_a_documented_contact_event_is_understood() -> None:
    raw = json.dumps(EVENT).encode()
    assert parse(raw) == [
        ContactEvent(
            envelope_id="e1d2c3b4-0000-4000-8000-00000000000e",
            time=at(14, 21),
            instance_id=INSTANCE,  # type: ignore[arg-type]
            raw=raw,
            contact=CONTACT,
            initial_contact=None,
            event_type="DISCONNECTED",
            channel="VOICE",
            initiation_method="INBOUND",
            initiated=at(14, 5, 12),
            connected=None,
            disconnected=at(14, 20, 59),
        )
    ]


def test_names_are_found_in_any_case() -> None:
    pascal = deepcopy(EVENT)
    pascal["detail"] = {name[0].upper() + name[1:]: value for name, value in EVENT["detail"].items()}
    expected, parsed = parse_one(EVENT), parse_one(pascal)
    assert (parsed.contact, parsed.event_type, parsed.initiated) == (CONTACT, "DISCONNECTED", at(14, 5, 12))
    assert parsed.instance_id == expected.instance_id


def test_one_pascal_object_inside_a_camel_payload_is_read() -> None:
    parsed = parse_one(event(instanceArn=..., tags=..., Tags={"AWS:Connect:InstanceId": str(INSTANCE)}))
    assert parsed.instance_id == INSTANCE


def test_the_exact_spelling_comes_before_another_case() -> None:
    assert parse_one(event(ContactId="another")).contact == CONTACT


def test_of_a_repeated_name_one_value_is_taken() -> None:
    raw = json.dumps(EVENT).replace('"contactId":', '"contactId": "twice", "contactId":').encode()
    assert parse(raw)[0].contact == CONTACT  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("field", "name"), [("channel", "channel"), ("eventType", "event_type"), ("initiationMethod", "initiation_method")]
)
def test_words_lose_their_case_and_unknown_ones_are_kept(field: str, name: str) -> None:
    assert getattr(parse_one(event(**{field: "Voice"})), name) == "VOICE"
    assert getattr(parse_one(event(**{field: "Hologram_2"})), name) == "HOLOGRAM_2"


@pytest.mark.parametrize("value", ["1970-01-01T00:00:00.001Z", "1970-01-01T00:00:00Z", None, ""])
def test_a_time_that_is_not_set_is_none(value: str | None) -> None:
    assert parse_one(event(disconnectTimestamp=value)).disconnected is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23T14:05:12Z", at(14, 5, 12)),
        ("2026-11-23T14:05:12.250Z", at(14, 5, 12, 250)),
        ("2026-11-23T15:05:12.250+01:00", at(14, 5, 12, 250)),
        ("2026-11-23T09:05:12-0500", at(14, 5, 12)),
        ("2026-11-23T14:05:12", at(14, 5, 12)),
    ],
)
def test_times_are_read_as_utc(text: str, moment: datetime) -> None:
    parsed = parse_time(text, "x")
    assert parsed == moment
    assert parsed is not None
    assert parsed.utcoffset() == timedelta(0)


@pytest.mark.parametrize("value", ["yesterday", 5, True, [], "0001-01-01T00:00:00+23:00", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_is_refused_with_its_path(value: object) -> None:
    assert refusal_of(event(initiationTimestamp=value)).field == "detail.initiationTimestamp"


@pytest.mark.parametrize(
    "changes",
    [
        {"instanceArn": f"arn:aws::connect:us-west-2:123456789012:instance/{INSTANCE}"},
        {"instanceArn": str(INSTANCE).upper()},
        {"instanceArn": f"{INSTANCE_ARN}/contact/{CONTACT}"},
        {"instanceArn": ...},
        {"instanceArn": None},
        {"instanceArn": "placeholder"},
        {"instanceArn": ..., "tags": ...},
        {"instanceArn": ..., "tags": "none"},
    ],
)
def test_the_instance_is_found_wherever_it_is_named(changes: dict[str, Any]) -> None:
    assert parse_one(event(**changes)).instance_id == INSTANCE


def test_resources_are_searched_not_indexed() -> None:
    changed = event(instanceArn=..., tags=...)
    changed["resources"] = ["...", 7, "arn:aws:...", f"{INSTANCE_ARN}/contact/{CONTACT}"]
    assert parse_one(changed).instance_id == INSTANCE


def test_the_instance_arn_counts_before_the_tag_and_the_tag_before_resources() -> None:
    second, third = (f"aaaa1111-0000-4000-8000-00000000000{n}" for n in (2, 3))
    changed = event(tags={"aws:connect:instanceId": second})
    changed["resources"] = [f"arn:x:instance/{third}"]
    assert parse_one(changed).instance_id == INSTANCE
    del changed["detail"]["instanceArn"]
    assert str(parse_one(changed).instance_id) == second
    del changed["detail"]["tags"]
    assert str(parse_one(changed).instance_id) == third


def test_an_event_that_names_no_instance_is_left_to_its_caller() -> None:
    changed = event(instanceArn=..., tags=...)
    del changed["resources"]
    assert parse_one(changed).instance_id is None


@pytest.mark.parametrize(
    "arn", ["placeholder", 17, {"a": 1}, "arn:aws:connect:x:1:instance/aaaa1111000040008000000000000001"]
)
def test_an_instance_that_cant_be_read_and_stands_nowhere_else_is_refused(arn: object) -> None:
    changed = event(instanceArn=arn, tags=...)
    del changed["resources"]
    refused = refusal_of(changed)
    assert refused.field == "detail.instanceArn"
    assert str(arn) not in str(refused)


@pytest.mark.parametrize("criteria", [{}, {"steps": []}, [], [{"step": 1}], None, "none"])
def test_routing_criteria_queue_and_recordings_of_any_shape_are_no_obstacle(criteria: object) -> None:
    parsed = parse_one(
        event(routingCriteria=criteria, recordings=criteria, queueInfo=criteria, initiationMethod="OUTBOUND")
    )
    assert parsed.initiation_method == "OUTBOUND"


def test_ids_of_the_chain_are_read() -> None:
    parsed = parse_one(event(initialContactId="first", previousContactId="before", relatedContactId="beside"))
    assert (parsed.initial_contact, parsed.previous_contact, parsed.related_contact) == ("first", "before", "beside")


@pytest.mark.parametrize("contact", ["", None, ..., 5, "x" * 257, "line\nfeed", "\x1b[2J", ["secret-value"]])
def test_a_bad_contact_id_is_refused_by_path_and_never_repeated(contact: object) -> None:
    refused = refusal_of(event(contactId=contact))
    assert refused.field == "detail.contactId"
    assert "secret-value" not in str(refused)
    assert "xxx" not in str(refused)


def test_a_contact_id_may_be_as_long_as_documented() -> None:
    assert parse_one(event(contactId="x" * 256)).contact == "x" * 256


def test_a_refused_field_is_named_as_the_sender_spelled_it() -> None:
    changed = event(eventType=..., EventType=7)
    assert refusal_of([EVENT, changed]).field == "[1].detail.EventType"


def test_a_list_is_parsed_in_order_and_each_keeps_its_own_bytes() -> None:
    first, second = event(contactId="first"), event(contactId="second")
    body = json.dumps([first, second], indent=1).encode()
    parsed: list[Any] = parse(b"\n " + body + b" ")
    assert [each.contact for each in parsed] == ["first", "second"]
    assert [json.loads(each.raw) for each in parsed] == [first, second]


def test_an_empty_list_holds_no_events() -> None:
    assert parse(b" [] ") == []


def test_one_bad_event_refuses_the_list() -> None:
    assert refusal_of([EVENT, EVENT, event(contactId=...)]).field == "[2].detail.contactId"


def test_a_list_has_a_limit() -> None:
    other = {"detail-type": "x"}
    assert len(parse(json.dumps([other] * MAX_EVENTS).encode())) == MAX_EVENTS
    assert "1000" in str(refusal_of([other] * (MAX_EVENTS + 1)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[",
        b"[1,",
        b"null",
        b'"secret-value"',
        b"NaN",
        b"{}{}",
        b"\xef\xbb\xbf{}",
        b'{"detail-type":"\xff secret-value"}',
        b'{"detail-type":"\\ud800"}',
        b'{"detail-type":"x","n":1e999}',
        b'{"detail-type":"x","n":NaN}',
        b'{"detail-type":"x","n":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_broken_json_is_refused_and_not_repeated(body: bytes) -> None:
    refused = refusal_of(body)
    assert "secret-value" not in str(refused)
    assert refused.__cause__ is None
    assert refused.__suppress_context__ or refused.__context__ is None


def test_huge_numbers_that_json_allows_are_no_obstacle() -> None:
    raw = json.dumps(EVENT).replace('"version": "0"', '"version": -' + "9" * 400).encode()
    assert isinstance(parse(raw)[0], ContactEvent)


def test_nesting_is_bounded_and_brackets_in_text_do_not_count() -> None:
    def nested(levels: int) -> bytes:
        return b'{"detail-type":"x","n":' + b"[" * levels + b"]" * levels + b"}"

    assert parse(nested(MAX_DEPTH - 1))
    refused = refusal_of(b"[" + nested(MAX_DEPTH) + b"]")
    assert (refused.field, "64" in str(refused)) == ("[0]", True)
    assert parse(b'{"detail-type":"x","n":"\\"' + b"[{" * 100 + b'"}')
    assert parse(b'{"detail-type":"x","n":[' + b"[]," * 100 + b"[]]}")


@pytest.mark.parametrize("detail", [None, "text", [], 5])
def test_a_contact_event_without_a_detail_object_is_refused(detail: object) -> None:
    assert refusal_of({**EVENT, "detail": detail}).field == "detail"


def test_an_event_without_a_type_is_refused() -> None:
    assert refusal_of({"source": "aws.connect"}).field == "detail-type"


def test_an_event_of_another_type_is_kept_whatever_its_detail_is() -> None:
    other = parse_one({**EVENT, "detail-type": "Object Created", "source": "aws.s3", "detail": "odd"})
    assert isinstance(other, OtherEvent)
    assert (other.source, other.detail_type, other.instance_id) == ("aws.s3", "Object Created", INSTANCE)


def test_a_contact_event_of_another_source_is_not_believed() -> None:
    assert isinstance(parse_one({**EVENT, "source": "somebody"}), OtherEvent)


def test_a_chat_message_keeps_its_item_as_it_came() -> None:
    raw_item = (
        b'{ "AbsoluteTime":"2026-11-23T09:00:09.004Z" ,"Id":"i-2","Score":1.10,\n"Content":"\\u00e9","New":{"x":null}}'
    )
    body = (
        b'{"detail-type":"Chat Message","source":"pipeline.chat","detail":{"contactId":"c-1","item":' + raw_item + b"}}"
    )
    (message,) = parse(body)
    assert isinstance(message, ChatMessage)
    assert message.item is not None
    assert message.item.raw == raw_item
    assert (message.item.id, message.item.absolute_time) == ("i-2", at(9, 0, 9, 4))
    assert (message.item.type, message.final, message.ends_chat) == (None, False, False)
    assert (message.envelope_id, message.time, message.instance_id, message.contact) == (None, None, None, "c-1")


def test_a_chat_ends_by_word_or_by_item() -> None:
    ended = {"Id": "i-4", "AbsoluteTime": "2026-11-23T09:07:40.900Z", "Type": "EVENT"}
    ended["ContentType"] = "application/vnd.amazonaws.connect.event.chat.ended"
    assert parse_one(own("Chat Message", final=True)).ends_chat
    assert parse_one(own("Chat Message", item=ITEM, final=True)).ends_chat
    assert parse_one(own("Chat Message", item=ended)).ends_chat
    assert parse_one(own("Chat Message", item={**ITEM, "Type": "Chat_Ended"})).ends_chat
    assert not parse_one(own("Chat Message", item=ITEM, final=False)).ends_chat


@pytest.mark.parametrize(
    ("detail", "field"),
    [
        ({}, "detail.item"),
        ({"item": 5}, "detail.item"),
        ({"item": {**ITEM, "Id": ""}}, "detail.item.Id"),
        ({"item": {**ITEM, "Id": 5}}, "detail.item.Id"),
        ({"item": {**ITEM, "Id": "x" * 257}}, "detail.item.Id"),
        ({"item": {**ITEM, "AbsoluteTime": None}}, "detail.item.AbsoluteTime"),
        ({"item": {**ITEM, "AbsoluteTime": "noon"}}, "detail.item.AbsoluteTime"),
        ({"item": ITEM, "final": "yes"}, "detail.final"),
        ({"item": ITEM, "contactId": None}, "detail.contactId"),
    ],
)
def test_a_chat_message_that_cant_be_placed_is_refused(detail: dict[str, Any], field: str) -> None:
    assert refusal_of(own("Chat Message", **detail)).field == field


def test_a_camel_case_item_is_understood() -> None:
    item = parse_item(b'{"id":"i-1","absoluteTime":"2026-11-23T09:00:00Z","type":"Message"}')
    assert (item.id, item.absolute_time, item.type) == ("i-1", at(9, 0), "MESSAGE")


def test_recording_start_and_stop_are_understood() -> None:
    started = parse_one(
        own("Recording Started", recordingKind="Voice", sourceId="leg-1", startTime="2026-11-23T14:05:12Z")
    )
    stopped = parse_one(own("recording stopped", recordingKind="screen", sourceId="s" * 1024))
    assert isinstance(started, RecordingStarted)
    assert (started.kind, started.source_id, started.start) == (Kind.VOICE, "leg-1", at(14, 5, 12))
    assert isinstance(stopped, RecordingStopped)
    assert (stopped.kind, stopped.contact, stopped.end) == (Kind.SCREEN, CONTACT, None)


@pytest.mark.parametrize(
    ("detail", "field"),
    [
        ({"sourceId": "s"}, "detail.recordingKind"),
        ({"sourceId": "s", "recordingKind": "journal"}, "detail.recordingKind"),
        ({"recordingKind": "voice"}, "detail.sourceId"),
        ({"recordingKind": "voice", "sourceId": "s" * 1025}, "detail.sourceId"),
        ({"recordingKind": "voice", "sourceId": "s", "startTime": 5}, "detail.startTime"),
    ],
)
def test_a_recording_that_cant_be_known_again_is_refused(detail: dict[str, Any], field: str) -> None:
    assert refusal_of(own("Recording Started", **detail)).field == field


def test_an_event_shows_no_payload_when_printed() -> None:
    message = parse_one(own("Chat Message", item=ITEM))
    assert "parcel" not in repr(message)
