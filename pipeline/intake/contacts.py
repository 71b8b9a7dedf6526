"""What is known of each contact, merged from events that come late, twice, in any order or never. No I/O, no clock.

Merging is idempotent and does not depend on order: of two values of one field the one from the newer event counts,
and a field that an event leaves out changes nothing. The start of a contact is the exception, the *oldest* event's
value counts: for campaign calls the initiation time moves between the first event and later ones. So neither a list of
seen ids nor an order is needed, and replaying the journal builds the same table.

The table is a memory, not a record: it is bounded, and the contact that was quiet longest is forgotten first.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid5

from pipeline.events import ChatMessage, ContactEvent, Incoming, OtherEvent, RecordingStarted, RecordingStopped
from pipeline.ids import InstanceId, Kind, RecordingId
from pipeline.intake.address import kind_of, source_of
from pipeline.intake.awaited import Awaited

MAX_CONTACTS = 20_000
"""About 1 KB each."""
MAX_EXPECTED = 100
"""Recordings expected of one contact; the first announced is forgotten first."""

_CHANNELS = {Kind.VOICE: ("VOICE",), Kind.CHAT: ("CHAT",)}
"""Of contacts that a rule expects such a recording of; a screen may be recorded whatever the agent does."""
_LAST = frozenset({"COMPLETED", "DISCONNECTED"})
"""Contact events after which no more is recorded."""
_OBJECT_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,255}")
_UNDATED = datetime.min.replace(tzinfo=UTC)


def object_contact(contact: str, instance_id: InstanceId) -> tuple[str, str | None]:
    """Give the contact id as object keys and events may carry it, and the outside id if that had to stay behind.

    A Call-ID or a room name may hold a number or a name, and characters that a key must not have. A UUIDv5 of
    instance and outside id stands in, so that all recordings of one contact share it and nothing need be stored.
    """
    if _OBJECT_SAFE.fullmatch(contact):
        return contact, None
    return str(uuid5(instance_id, contact)), contact


@dataclass(frozen=True, slots=True)
class Expected:
    """A recording that an event announced. Its id is the artifact id of its first generation, once bytes come."""

    kind: Kind
    source_id: str
    recording_id: RecordingId
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contact:
    """What is known of one contact."""

    instance_id: InstanceId
    contact: str
    started: datetime | None = None
    """When it began: what object keys are stamped with."""
    ended: datetime | None = None
    channel: str | None = None
    completed: bool = False
    met_agent: bool = False
    initial_contact: str | None = None
    expected: tuple[Expected, ...] = ()

    def expectation(self, kind: Kind, source_id: str) -> Expected | None:
        """Find what was announced for a source."""
        return next((each for each in self.expected if (each.kind, each.source_id) == (kind, source_id)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactChange:
    """What an event made true. A repeat makes nothing true."""

    contact: Contact
    completed: bool = False
    """The contact's COMPLETED was not known before."""
    stopped: Expected | None = None
    """A recording whose end was not known before."""


Mark = tuple[datetime, str]
"""How new a value is: its event's time, then its envelope's id so that equal times don't hang on order.

An event without a time gives way to every other.
"""


@dataclass(slots=True)
class _Entry:
    contact: Contact
    marks: dict[str, Mark] = field(default_factory=dict)
    """Of each field of `contact` that an event has set."""


class ContactTable:
    """Contacts by instance and outside contact id."""

    def __init__(self, new_recording: Callable[[], RecordingId], *, limit: int = MAX_CONTACTS) -> None:
        """`new_recording` names a recording that is announced before its first byte."""
        self._new_recording = new_recording
        self._limit = limit
        self._entries: OrderedDict[tuple[InstanceId, str], _Entry] = OrderedDict()
        self.awaited = Awaited()
        """What was announced and has not come; remembered when its contact is forgotten."""
        self._untold: dict[RecordingId, tuple[Contact, Expected]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, instance_id: InstanceId, contact: str) -> Contact | None:
        """Tell what is known of a contact; `None` if nothing."""
        entry = self._entries.get((instance_id, contact))
        return None if entry is None else entry.contact

    def expected(self, instance_id: InstanceId, contact: str, kind: Kind, source_id: str | None) -> RecordingId | None:
        """Find the id that was given to an announced recording; `source_id` None is any of that kind."""
        known = self.get(instance_id, contact)
        for each in () if known is None else known.expected:
            if each.kind is kind and source_id in {None, each.source_id}:
                return each.recording_id
        awaited = self.awaited.find(instance_id, contact, kind, source_id)
        return None if awaited is None else awaited.announced.recording_id

    def untold(self, instance_id: InstanceId) -> dict[RecordingId, tuple[Contact, Expected]]:
        """Give the announced recordings of an instance whose INITIATED may not be durable."""
        return {recording: known for recording, known in self._untold.items() if known[0].instance_id == instance_id}

    def is_told(self, instance_id: InstanceId, contact: str, kind: Kind, source_id: str | None) -> bool:
        """Tell whether INITIATED of a recording that is awaited is known to be durable; told twice is harmless."""
        awaited = self.awaited.find(instance_id, contact, kind, source_id)
        return awaited is not None and awaited.told

    def told(self, recording: RecordingId, *, begun: bool) -> None:
        """Take note that INITIATED of an announced recording is durable, or left to what had `begun` before it."""
        known = self._untold.pop(recording, None)
        if known is None or begun:
            return
        contact, expected = known
        awaited = self.awaited.find(contact.instance_id, contact.contact, expected.kind, expected.source_id)
        if awaited is not None and awaited.announced.recording_id == recording:
            awaited.told = True

    def merge(
        self,
        instance_id: InstanceId,
        event: Incoming,
        heard: datetime | None = None,
        *,
        expects: Sequence[str] = (),
        told: bool = False,
    ) -> ContactChange | None:
        """Take an event; `None` if it is of no contact.

        Args:
            instance_id: whose it is, whatever instance it claims.
            event: the event.
            heard: when it arrived, if that was not just now.
            expects: what each contact of this instance that meets an agent has to bring: see `Instance.expects`.
            told: INITIATED of what it announces is durable.

        """
        if isinstance(event, OtherEvent):
            return None
        entry = self._entry(instance_id, event.contact)
        mark = (event.time or _UNDATED, event.envelope_id or "")
        _set_newest(entry, mark, {"initial_contact": event.initial_contact})
        match event:
            case ContactEvent():
                if event.event_type in _LAST or event.disconnected is not None:
                    self.awaited.end(instance_id, event.contact, heard)
                change = _merge_contact_event(entry, mark, event)
                self._expect(entry, expects, heard, told=told)
                return change
            case RecordingStarted():
                return self._merge_recording(entry, event, heard, told=told, start=event.start or event.time)
            case RecordingStopped():
                change = self._merge_recording(entry, event, heard, told=told, end=event.end or event.time)
                self.awaited.end(instance_id, event.contact, heard, event.source_id)
                return change
            case ChatMessage():
                return ContactChange(contact=entry.contact)

    def forget(self, instance_id: InstanceId) -> None:
        """Forget all that is known of an instance's contacts, and what they have to bring."""
        for key in [key for key in self._entries if key[0] == instance_id]:
            del self._entries[key]
        for recording in self.untold(instance_id):
            del self._untold[recording]
        self.awaited.forget_all(instance_id)

    def _entry(self, instance_id: InstanceId, contact: str) -> _Entry:
        key = (instance_id, contact)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(Contact(instance_id=instance_id, contact=contact))
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return entry

    def _merge_recording(
        self,
        entry: _Entry,
        event: RecordingStarted | RecordingStopped,
        heard: datetime | None,
        *,
        told: bool,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> ContactChange:
        """Add what is new. Of several starts the earliest counts, of several ends the latest."""
        before = entry.contact.expectation(event.kind, event.source_id)
        # One that is awaited is known, also if its contact was forgotten.
        awaited = self.awaited.find(entry.contact.instance_id, entry.contact.contact, event.kind, event.source_id)
        known = before or Expected(
            event.kind,
            event.source_id,
            self._new_recording() if awaited is None else awaited.announced.recording_id,
        )
        after = replace(
            known,
            start=min(filter(None, (known.start, start)), default=None),
            end=max(filter(None, (known.end, end)), default=None),
        )
        if after != before:
            others = tuple(each for each in entry.contact.expected if each is not before)
            entry.contact = replace(entry.contact, expected=(*others, after)[-MAX_EXPECTED:])
        if before is None:
            self._await(entry.contact, after, heard)
        if before is None and awaited is None and not told:
            self._untold[after.recording_id] = (entry.contact, after)
        return ContactChange(
            contact=entry.contact,
            stopped=after if after.end is not None and known.end is None else None,
        )

    def _expect(self, entry: _Entry, expects: Sequence[str], heard: datetime | None, *, told: bool) -> None:
        """Announce what a rule says of such a contact. The names that are given out are always the same."""
        if not entry.contact.met_agent or entry.contact.channel is None:
            return
        for last in expects:
            contact, kind = entry.contact, kind_of(last)
            if kind is None or contact.channel not in _CHANNELS.get(kind, (contact.channel,)):
                continue
            source_id = source_of(contact.contact, last)
            if contact.expectation(kind, source_id) is not None:
                continue
            expected = Expected(kind, source_id, RecordingId(uuid5(contact.instance_id, source_id)))
            entry.contact = replace(contact, expected=(*contact.expected, expected)[-MAX_EXPECTED:])
            if self.awaited.find(contact.instance_id, contact.contact, kind, source_id) is None and not told:
                self._untold[expected.recording_id] = (entry.contact, expected)
            self._await(entry.contact, expected, heard)

    def _await(self, contact: Contact, expected: Expected, heard: datetime | None) -> None:
        self.awaited.announce(contact.instance_id, contact.contact, expected, heard)
        if contact.completed or contact.ended is not None:
            self.awaited.end(contact.instance_id, contact.contact, heard)


def _merge_contact_event(entry: _Entry, mark: Mark, event: ContactEvent) -> ContactChange:
    was_completed = entry.contact.completed
    _set_newest(entry, mark, {"ended": event.disconnected, "channel": event.channel})
    age = (event.time or datetime.max.replace(tzinfo=UTC), mark[1])
    if event.initiated is not None and ("started" not in entry.marks or age < entry.marks["started"]):
        entry.contact = replace(entry.contact, started=event.initiated)
        entry.marks["started"] = age
    if event.met_agent:
        entry.contact = replace(entry.contact, met_agent=True)
    if event.event_type == "COMPLETED":
        entry.contact = replace(entry.contact, completed=True)
    return ContactChange(contact=entry.contact, completed=entry.contact.completed and not was_completed)


def _set_newest(entry: _Entry, mark: Mark, values: Mapping[str, object]) -> None:
    newer: dict[str, Any] = {
        name: value
        for name, value in values.items()
        if value is not None and (name not in entry.marks or mark > entry.marks[name])
    }
    entry.contact = replace(entry.contact, **newer)
    entry.marks.update(dict.fromkeys(newer, mark))
