"""Events come in: durable in the journal, or in a chat's artifact, before they are acknowledged."""

from collections.abc import Sequence

import msgspec

from pipeline.crypt.segments import SEGMENT_LIMIT
from pipeline.errors import RefuseError
from pipeline.events import (
    ChatMessage,
    ContactEvent,
    Incoming,
    OtherEvent,
    RecordingStarted,
    RecordingStopped,
    parse,
)
from pipeline.ids import Kind, RecordingId
from pipeline.intake.chats import Chats
from pipeline.intake.contacts import Contact, ContactChange, ContactTable, Expected, object_contact
from pipeline.intake.journal import Journal, JournalEntry
from pipeline.intake.recordevents import RecordEvents
from pipeline.intake.replay import Replay
from pipeline.interim.logs import LogLine
from pipeline.interim.room import Room
from pipeline.status import Facts, Status
from pipeline.tenants import Tenant
from pipeline.trail import Subject, Trail

MAX_EVENT_BYTES = SEGMENT_LIMIT - 4096
"""One event is sealed as one record of a segment; the rest is for the JSON around it."""


class ForeignInstanceError(RefuseError):
    """An event names an instance that its sender may not name."""

    reason = "not-found"


class EventIntake:
    """Takes events of any source that knows whose they are."""

    def __init__(
        self,
        *,
        room: Room,
        journal: Journal,
        chats: Chats,
        contacts: ContactTable,
        replay: Replay,
        trail: Trail,
        records: RecordEvents | None = None,
    ) -> None:
        self._records = records
        self._room = room
        self._journal = journal
        self._chats = chats
        self._contacts = contacts
        self._replay = replay
        self._trail = trail

    async def take(self, tenant: Tenant, body: bytes) -> int:
        """Take one event or a list; give their number when all are durable.

        Raises:
            RefuseError: one can't be read, or names another instance; none was taken.
            DeferError: send them again.

        """
        self._room.check(tenant.instance.instance_id, len(body))
        incoming = parse(body)
        for index, event in enumerate(incoming):
            if event.instance_id not in {None, tenant.instance.instance_id}:
                raise ForeignInstanceError("there is no such instance for you", field=f"[{index}].detail.instanceArn")
            if len(event.raw) > MAX_EVENT_BYTES:
                raise RefuseError(f"one event may have at most {MAX_EVENT_BYTES} bytes", field=f"[{index}]")
        count = len(incoming)
        if self._records is not None:
            incoming = await self._records.take(tenant, incoming)
        await self._replay.done(tenant)
        instance = tenant.instance
        changes = [self._contacts.merge(instance.instance_id, event, expects=instance.expects) for event in incoming]
        await self._write_journal(tenant, incoming, changes)
        await self._append_chats(tenant, incoming)
        for event, change in zip(incoming, changes, strict=True):
            await self._end_chat(tenant, event, change)
        return count

    # --- inside

    async def _write_journal(
        self, tenant: Tenant, incoming: Sequence[Incoming], changes: Sequence[ContactChange | None]
    ) -> None:
        """Chat messages have a durable place of their own; everything else goes to the journal."""
        entries = [
            JournalEntry(msgspec.Raw(event.raw), _recording_of(event, change))
            for event, change in zip(incoming, changes, strict=True)
            if not isinstance(event, ChatMessage)
        ]
        if not entries:
            return
        untold = self._contacts.untold(tenant.instance.instance_id)
        lines: dict[RecordingId, LogLine] = {}
        for recording, (contact, expected) in untold.items():
            # Of what has begun INITIATED is told with its first bytes, unless it is dropped before they are durable.
            if not await self._chats.is_begun(tenant, contact.contact, expected):
                lines[recording] = self._initiated(tenant, contact, recording, expected)
        await self._journal.append(tenant, entries, list(lines.values()))
        for recording in untold:
            self._contacts.told(recording, begun=recording not in lines)

    async def _append_chats(self, tenant: Tenant, incoming: Sequence[Incoming]) -> None:
        by_contact: dict[str, list[ChatMessage]] = {}
        for event in incoming:
            if isinstance(event, ChatMessage) and event.item is not None:
                by_contact.setdefault(event.contact, []).append(event)
        for contact, messages in by_contact.items():
            await self._chats.append(tenant, contact, [each.item for each in messages if each.item is not None])

    async def _end_chat(self, tenant: Tenant, event: Incoming, change: ContactChange | None) -> None:
        if isinstance(event, OtherEvent) or change is None:
            return
        ended = isinstance(event, ChatMessage) and event.ends_chat
        stopped = isinstance(event, RecordingStopped) and event.kind is Kind.CHAT
        # Also if it is a repeat: the first time, the chat may not have been sealed for some reason.
        completed = isinstance(event, ContactEvent) and event.event_type == "COMPLETED"
        if ended or stopped:
            await self._chats.end(tenant, event.contact, even_if_empty=True)
        elif completed:
            await self._chats.end(tenant, event.contact, even_if_empty=False)

    def _initiated(self, tenant: Tenant, contact: Contact, recording_id: RecordingId, expected: Expected) -> LogLine:
        subject = Subject(
            instance=tenant.instance,
            contact=object_contact(contact.contact, tenant.instance.instance_id)[0],
            kind=expected.kind,
            recording_id=recording_id,
        )
        return self._trail.status(subject, Status.INITIATED, Facts(start=expected.start))


def _recording_of(event: Incoming, change: ContactChange | None) -> str | None:
    """Give the id of the recording that an event speaks of, also if it is a repeat of one that was not written."""
    if change is None or not isinstance(event, RecordingStarted | RecordingStopped):
        return None
    expected = change.contact.expectation(event.kind, event.source_id)
    return None if expected is None else str(expected.recording_id)
