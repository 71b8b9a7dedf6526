"""The chat transcript file."""

import json
from datetime import UTC, datetime
from itertools import permutations
from typing import Any
from uuid import UUID

from pipeline.delivery.transcript import ArrivedItem, Rendered, render
from pipeline.events import parse_item
from pipeline.ids import InstanceId

INSTANCE = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001"))
CONTACT = "cccc3333-0000-4000-8000-000000000004"


def raw_item(number: int, second: int, **members: Any) -> bytes:
    known = {"AbsoluteTime": f"2026-11-23T09:00:{second:02d}.004Z", "Id": f"i-{number}", "Type": "MESSAGE", **members}
    return json.dumps(known, separators=(",", ":")).encode()


def rendered(*raws: bytes, initial_contact: str | None = None) -> Rendered:
    """Render items that arrived in this order."""
    return of([ArrivedItem(number, parse_item(raw)) for number, raw in enumerate(raws)], initial_contact)


def of(items: list[ArrivedItem], initial_contact: str | None = None) -> Rendered:
    return render(
        account_id="111122223333",
        instance_id=INSTANCE,
        contact=CONTACT,
        initial_contact=initial_contact,
        items=items,
    )


def transcript(*raws: bytes) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(rendered(*raws).data)["Transcript"]
    return items


def test_a_transcript_has_the_documented_shape_and_order_of_members() -> None:
    first = raw_item(1, 1, ParticipantId="p-customer", ContentType="text/plain", Content="My parcel has not come.")
    second = raw_item(2, 9, ParticipantId="p-agent")
    assert rendered(first, second) == Rendered(
        b'{"Version":"2019-08-26","AWSAccountId":"111122223333","InstanceId":"aaaa1111-0000-4000-8000-000000000001",'
        b'"InitialContactId":"cccc3333-0000-4000-8000-000000000004",'
        b'"ContactId":"cccc3333-0000-4000-8000-000000000004",'
        b'"Participants":[{"ParticipantId":"p-customer"},{"ParticipantId":"p-agent"}],'
        b'"Transcript":[' + first + b"," + second + b"]}",
        2,
        datetime(2026, 11, 23, 9, 0, 1, 4_000, tzinfo=UTC),
        datetime(2026, 11, 23, 9, 0, 9, 4_000, tzinfo=UTC),
    )


def test_an_empty_chat_is_a_transcript_without_items() -> None:
    empty = rendered(initial_contact="c-0")
    document = json.loads(empty.data)
    assert (document["InitialContactId"], document["Participants"], document["Transcript"]) == ("c-0", [], [])
    assert (empty.items, empty.started, empty.ended) == (0, None, None)


def test_items_are_ordered_by_time_then_arrival() -> None:
    items = transcript(raw_item(1, 5), raw_item(2, 1), raw_item(3, 5), raw_item(4, 0))
    assert [item["Id"] for item in items] == ["i-4", "i-2", "i-1", "i-3"]


def test_times_are_compared_as_times_not_as_text() -> None:
    zoned = raw_item(1, 0, AbsoluteTime="2026-11-23T10:00:01+01:00")
    plain = raw_item(2, 0, AbsoluteTime="2026-11-23T09:00:02Z")
    assert [item["Id"] for item in transcript(plain, zoned)] == ["i-1", "i-2"]


def test_an_item_that_came_twice_stands_once() -> None:
    assert len(transcript(raw_item(1, 1), raw_item(1, 1))) == 1


def test_of_items_with_one_id_the_first_to_arrive_counts() -> None:
    items = transcript(raw_item(1, 5, Content="said"), raw_item(1, 1, Content="never said"))
    assert [item["Content"] for item in items] == ["said"]


def test_the_order_in_which_items_are_handed_over_does_not_matter() -> None:
    raws = [raw_item(1, 5), raw_item(2, 1), raw_item(1, 3, Content="again"), raw_item(3, 5)]
    arrived = [ArrivedItem(number, parse_item(raw)) for number, raw in enumerate(raws)]
    assert len({of(list(order)).data for order in permutations(arrived)}) == 1


def test_unknown_members_and_types_are_kept_as_they_came() -> None:
    known = b'"Id":"i-1","Type":"Hologram","AbsoluteTime":"2026-11-23T09:00:00Z"'
    raw = b'{"New":{"b":1.10,"a":[ 1e2,null]},' + known + b',"\\u00e9":-0.0}'
    assert b'"Transcript":[' + raw.replace(b"\\u00e9", "é".encode()) + b"]}" in rendered(raw).data


def test_absent_is_omitted_never_null() -> None:
    (item,) = transcript(raw_item(1, 1, Content=None, DisplayName=None))
    assert set(item) == {"AbsoluteTime", "Id", "Type"}


def test_participants_stand_once_in_order_of_appearance() -> None:
    data = rendered(
        raw_item(1, 9, ParticipantId="p-late"),
        raw_item(2, 1, ParticipantId="p-first"),
        raw_item(3, 2, participantId="p-second"),
        raw_item(4, 3, ParticipantId="p-first"),
        raw_item(5, 4, ParticipantId=7),
        raw_item(6, 5),
    ).data
    participants = [each["ParticipantId"] for each in json.loads(data)["Participants"]]
    assert participants == ["p-first", "p-second", "p-late"]


def test_markup_and_odd_characters_come_out_as_they_went_in() -> None:
    text = '<script>\u202e\u200b"\\ \U0001f600\u2028'
    assert transcript(raw_item(1, 1, Content=text))[0]["Content"] == text
