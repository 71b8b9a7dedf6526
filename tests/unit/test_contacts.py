"""What the table knows after events that came in any order, twice, or not at all."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count, permutations
from typing import Any
from uuid import UUID

import pytest

from pipeline.events import ChatMessage, ContactEvent, Incoming, OtherEvent, RecordingStarted, RecordingStopped
from pipeline.ids import InstanceId, Kind, RecordingId
from pipeline.intake.contacts import MAX_EXPECTED, Contact, ContactTable, Expected, object_contact

A = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001"))
B = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000002"))


def at(minute: int, second: int = 0) -> datetime:
    return datetime(2026, 11, 23, 14, minute, second, tzinfo=UTC)


def contact_event(event_type: str, minute: int | None, contact: str = "c-1", **known: Any) -> ContactEvent:
    return ContactEvent(
        envelope_id=f"{event_type}-{minute}",
        time=None if minute is None else at(minute),
        instance_id=None,
        raw=b"{}",
        contact=contact,
        initial_contact=known.pop("initial_contact", None),
        event_type=event_type,
        **known,
    )


HEADER: dict[str, Any] = {
    "envelope_id": "e",
    "instance_id": None,
    "raw": b"{}",
    "contact": "c-1",
    "initial_contact": None,
}


def started(source_id: str = "leg-1", start: datetime | None = None, kind: Kind = Kind.VOICE) -> RecordingStarted:
    return RecordingStarted(**HEADER, time=at(6), kind=kind, source_id=source_id, start=start)


def stopped(source_id: str = "leg-1", end: datetime | None = None) -> RecordingStopped:
    return RecordingStopped(**HEADER, time=at(21), kind=Kind.VOICE, source_id=source_id, end=end)


def recordings() -> Iterator[RecordingId]:
    return (RecordingId(UUID(int=number)) for number in count(1))


def table(limit: int = 100) -> ContactTable:
    ids = recordings()
    return ContactTable(lambda: next(ids), limit=limit)


def known(contacts: ContactTable, contact: str = "c-1") -> Contact:
    found = contacts.get(A, contact)
    assert found is not None
    return found


def test_a_contact_that_nobody_spoke_of_is_unknown() -> None:
    assert table().get(A, "c-1") is None


def test_every_order_of_events_gives_the_same_contact() -> None:
    """Campaign calls move the initiation time; the oldest event's value is the start."""
    events = [
        contact_event("INITIATED", 1, initiated=at(1), channel="VOICE"),
        contact_event("CONNECTED_TO_SYSTEM", 2, initiated=at(2), initial_contact="c-0"),
        contact_event("DISCONNECTED", 3, initiated=at(2), disconnected=at(3)),
        contact_event("COMPLETED", 5, initiated=at(2), disconnected=at(3, 30), channel="CHAT"),
        contact_event("UNDATED", None, initiated=at(9), channel="TASK", disconnected=at(9)),
    ]
    expected = Contact(
        instance_id=A,
        contact="c-1",
        started=at(1),
        ended=at(3, 30),
        channel="CHAT",
        completed=True,
        initial_contact="c-0",
    )
    for order in permutations(events):
        contacts = table()
        for event in order:
            contacts.merge(A, event)
        assert known(contacts) == expected


def test_events_of_the_same_second_do_not_hang_on_order() -> None:
    first, second = contact_event("X", 1, channel="VOICE"), contact_event("Y", 1, channel="CHAT")
    forth, back = table(), table()
    for one, other in ((first, second), (second, first)):
        forth.merge(A, one)
        back.merge(A, other)
    assert known(forth) == known(back)


def test_an_event_without_a_time_still_tells_what_nobody_else_told() -> None:
    contacts = table()
    contacts.merge(A, contact_event("INITIATED", None, initiated=at(9), channel="VOICE"))
    assert (known(contacts).started, known(contacts).channel) == (at(9), "VOICE")
    contacts.merge(A, contact_event("QUEUED", 2, initiated=at(1), channel="CHAT"))
    assert (known(contacts).started, known(contacts).channel) == (at(1), "CHAT")


def test_completed_becomes_true_once() -> None:
    contacts = table()
    events = [contact_event("DISCONNECTED", 1), contact_event("COMPLETED", 2), contact_event("COMPLETED", 2)]
    changes = [contacts.merge(A, event) for event in [*events, contact_event("CONTACT_DATA_UPDATED", 3)]]
    assert [change.completed for change in changes if change] == [False, True, False, False]
    assert known(contacts).completed


def test_instances_do_not_share_a_contact() -> None:
    contacts = table()
    contacts.merge(A, contact_event("COMPLETED", 1))
    assert contacts.get(B, "c-1") is None


def test_an_event_of_no_contact_changes_nothing() -> None:
    contacts = table()
    other = OtherEvent(envelope_id=None, time=None, instance_id=A, raw=b"{}", source="aws.s3", detail_type="x")
    assert contacts.merge(A, other) is None
    assert len(contacts) == 0


def test_a_chat_message_tells_of_its_chain() -> None:
    contacts = table()
    message = ChatMessage(**{**HEADER, "initial_contact": "c-0"}, time=at(1), item=None, final=True)
    change = contacts.merge(A, message)
    assert change is not None
    assert (change.contact.initial_contact, change.completed, change.contact.expected) == ("c-0", False, ())


def test_an_announced_recording_is_expected_under_one_id() -> None:
    contacts = table()
    first, again = contacts.merge(A, started(start=at(5))), contacts.merge(A, started(start=at(5)))
    assert first is not None
    assert again is not None
    announced = Expected(Kind.VOICE, "leg-1", RecordingId(UUID(int=1)), start=at(5))
    assert known(contacts).expected == first.contact.expected == again.contact.expected == (announced,)
    assert known(contacts).expectation(Kind.SCREEN, "leg-1") is None


def test_sources_and_kinds_are_told_apart() -> None:
    contacts = table()
    for event in (started("leg-1"), started("leg-2"), started("leg-1", kind=Kind.SCREEN)):
        contacts.merge(A, event)
    assert len({each.recording_id for each in known(contacts).expected}) == 3


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_start_and_stop_in_any_order_give_earliest_start_and_latest_end(order: tuple[int, ...]) -> None:
    contacts = table()
    events: list[Incoming] = [started(start=at(5)), started(start=at(7)), stopped(end=at(20)), stopped(end=at(19))]
    changes = [contacts.merge(A, events[index]) for index in order]
    (expected,) = known(contacts).expected
    assert (expected.start, expected.end) == (at(5), at(20))
    assert len(contacts.untold(A)) == 1
    assert sum(change is not None and change.stopped is not None for change in changes) == 1


def test_a_start_or_stop_without_its_own_time_takes_the_envelopes() -> None:
    contacts = table()
    contacts.merge(A, started())
    contacts.merge(A, stopped())
    (expected,) = known(contacts).expected
    assert (expected.start, expected.end) == (at(6), at(21))


def test_the_contact_that_was_quiet_longest_is_forgotten_first() -> None:
    contacts = table(limit=2)
    for contact in ("c-1", "c-2", "c-1", "c-3"):
        contacts.merge(A, contact_event("QUEUED", 1, contact=contact))
    assert [contacts.get(A, contact) is not None for contact in ("c-1", "c-2", "c-3")] == [True, False, True]
    assert len(contacts) == 2


def test_a_contact_expects_a_bounded_number_of_recordings() -> None:
    contacts = table()
    for number in range(MAX_EXPECTED + 1):
        contacts.merge(A, started(f"leg-{number}"))
    expected = known(contacts).expected
    assert (len(expected), expected[0].source_id) == (MAX_EXPECTED, "leg-1")


@pytest.mark.parametrize("contact", ["c", "cccc3333-0000-4000-8000-000000000003", "9" * 256, "a-"])
def test_a_plain_contact_id_is_used_as_it_is(contact: str) -> None:
    assert object_contact(contact, A) == (contact, None)


@pytest.mark.parametrize("contact", ["-a", "a/b", "a.b", "+49 30 1234", "call@host", "a\n", "ä", "x" * 257, ".."])
def test_another_contact_id_is_replaced_by_a_stable_id_of_our_own(contact: str) -> None:
    shown, outside = object_contact(contact, A)
    assert (UUID(shown).version, outside) == (5, contact)
    assert object_contact(contact, A)[0] == shown
    assert object_contact(contact, B)[0] != shown
