"""Parse incoming events once; trust them afterwards. No I/O, no clock.

An event comes in the EventBridge envelope: Amazon Connect's contact events, and our own chat messages and recording
start and stop. Documented samples differ from one another in case, in ARNs and in what they leave out, so names are
looked up without regard to case, ARNs are split on "/", and unknown words are kept. JSON objects end at this module's
border: what leaves it is typed.

Bad input is a `RefuseError` that names the field by its JSON path, as the sender spelled it, and never repeats a value.
Nothing else is raised, whatever the bytes are.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from pipeline.caseless import UNREADABLE, Fields, read_object
from pipeline.errors import RefuseError
from pipeline.ids import RECORDINGS, InstanceId, Kind

MAX_EVENTS = 1000
"""Events in one list. EventBridge's own PutEvents takes 10, an SQS message holds one."""
MAX_SOURCE_ID = 1024
"""Characters of a source id, which may be an URL's path."""

_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """What every event has. `envelope_id`, `time` and `instance_id` are `None` where the event doesn't say."""

    envelope_id: str | None
    time: datetime | None
    """When the event was made, as its envelope says."""
    instance_id: InstanceId | None
    """What the event claims; an authenticated caller's own instance is the truth."""
    raw: bytes = field(repr=False)
    """The envelope as it came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactEnvelope(Envelope):
    """An event of one contact; `initial_contact` is the first of its chain, where the event says so."""

    contact: str
    initial_contact: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactEvent(ContactEnvelope):
    """A contact moved on. Words are in upper case; one that nobody knows is kept."""

    event_type: str
    channel: str | None = None
    initiation_method: str | None = None
    initiated: datetime | None = None
    connected: datetime | None = None
    disconnected: datetime | None = None
    met_agent: bool = False
    """An agent was connected, now or before."""
    previous_contact: str | None = None
    related_contact: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item of a chat transcript, kept as it came; `id` and `absolute_time` are what order and sameness hang on."""

    id: str
    absolute_time: datetime
    type: str | None
    content_type: str | None
    raw: bytes = field(repr=False)

    @property
    def ends_chat(self) -> bool:
        """Whether this item says that the chat is over."""
        return self.type == "CHAT_ENDED" or (self.content_type or "").lower().endswith(".event.chat.ended")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage(ContactEnvelope):
    """One item of a chat, or the word that no more will come, or both."""

    item: Item | None
    final: bool

    @property
    def ends_chat(self) -> bool:
        """Whether the chat may be sealed after this."""
        return self.final or (self.item is not None and self.item.ends_chat)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingStarted(ContactEnvelope):
    """A recorder began: bytes of this source are to be expected."""

    kind: Kind
    source_id: str
    start: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingStopped(ContactEnvelope):
    """A recorder ended."""

    kind: Kind
    source_id: str
    end: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherEvent(Envelope):
    """An event of a type that nothing here acts on. It is kept, and that is all."""

    source: str
    detail_type: str


Incoming = ContactEvent | ChatMessage | RecordingStarted | RecordingStopped | OtherEvent


def parse(body: bytes) -> list[Incoming]:
    """Parse one envelope, or a list of them; all or nothing.

    The caller has limited the body's size.

    Raises:
        RefuseError: with the JSON path of what is wrong.

    """
    body = body.strip(b" \t\r\n")
    if body[:1] != b"[":
        return [_parse_envelope(body, "")]
    try:
        envelopes = _LIST.decode(body)
    except UNREADABLE:
        raise RefuseError("the body is not valid JSON; nothing of it was taken") from None
    if len(envelopes) > MAX_EVENTS:
        raise RefuseError(f"the list holds more than {MAX_EVENTS} events; send fewer at a time")
    return [_parse_envelope(bytes(raw), f"[{index}]") for index, raw in enumerate(envelopes)]


def parse_item(raw: bytes, path: str = "item") -> Item:
    """Parse one transcript item.

    Raises:
        RefuseError: it has no id or time to know it by, or one of its known fields has the wrong type.

    """
    item = read_object(raw, path)
    absolute_time = item.time("AbsoluteTime")
    if absolute_time is None:
        raise item.refusal("AbsoluteTime", "is required")
    return Item(
        id=item.identifier("Id"),
        absolute_time=absolute_time,
        type=item.word("Type"),
        content_type=item.text("ContentType"),
        raw=raw,
    )


# --- one envelope


def _parse_envelope(raw: bytes, path: str) -> Incoming:
    envelope = read_object(raw, path)
    detail_type = envelope.text("detail-type")
    if detail_type is None:
        raise envelope.refusal("detail-type", "is required")
    source = envelope.text("source") or ""
    match source.lower(), detail_type.lower():
        case "aws.connect", "amazon connect contact event":
            return _contact_event(envelope, raw)
        case _, "chat message":
            return _chat_message(envelope, raw)
        case _, "recording started":
            detail = envelope.object("detail")
            return RecordingStarted(**_recording(envelope, detail, raw), start=detail.time("startTime"))
        case _, "recording stopped":
            detail = envelope.object("detail")
            return RecordingStopped(**_recording(envelope, detail, raw), end=detail.time("endTime"))
        case _:
            header = _header(envelope, raw, _find_instance(envelope))
            return OtherEvent(**header, source=source, detail_type=detail_type)


def _header(envelope: Fields, raw: bytes, instance_id: InstanceId | None) -> dict[str, Any]:
    return {"envelope_id": envelope.text("id"), "time": envelope.time("time"), "instance_id": instance_id, "raw": raw}


def _contact_header(envelope: Fields, detail: Fields, raw: bytes) -> dict[str, Any]:
    return {
        **_header(envelope, raw, _instance(envelope, detail)),
        "contact": detail.identifier("contactId"),
        "initial_contact": detail.text("initialContactId"),
    }


def _contact_event(envelope: Fields, raw: bytes) -> ContactEvent:
    detail = envelope.object("detail")
    event_type = detail.word("eventType")
    if event_type is None:
        raise detail.refusal("eventType", "is required")
    return ContactEvent(
        **_contact_header(envelope, detail, raw),
        event_type=event_type,
        channel=detail.word("channel"),
        initiation_method=detail.word("initiationMethod"),
        initiated=detail.time("initiationTimestamp"),
        connected=detail.time("connectedToSystemTimestamp"),
        disconnected=detail.time("disconnectTimestamp"),
        met_agent=event_type == "CONNECTED_TO_AGENT" or _met_agent(detail),
        previous_contact=detail.text("previousContactId"),
        related_contact=detail.text("relatedContactId"),
    )


def _met_agent(detail: Fields) -> bool:
    """Tell whether an event of a later time says so; an event may have any of these in its place."""
    if not isinstance(detail.find("agentInfo")[1], dict):
        return False
    return detail.object("agentInfo").time("connectedToAgentTimestamp") is not None


def _chat_message(envelope: Fields, raw: bytes) -> ChatMessage:
    detail = envelope.object("detail")
    final = detail.flag("final")
    key, value = detail.find("item")
    item = None
    if value is not None:
        item = parse_item(_raw_item(raw, envelope.find("detail")[0], key), detail.path_of(key))
    elif not final:
        raise detail.refusal("item", "is required, unless final is true")
    return ChatMessage(**_contact_header(envelope, detail, raw), item=item, final=final)


def _raw_item(raw: bytes, detail_key: str, item_key: str) -> bytes:
    detail = _OBJECT.decode(_OBJECT.decode(raw)[detail_key])
    return bytes(detail[item_key])


def _recording(envelope: Fields, detail: Fields, raw: bytes) -> dict[str, Any]:
    word = detail.word("recordingKind") or ""
    kind = next((kind for kind in RECORDINGS if kind.value == word.lower()), None)
    if kind is None:
        raise detail.refusal("recordingKind", f"must be one of {', '.join(RECORDINGS)}")
    source_id = detail.identifier("sourceId", limit=MAX_SOURCE_ID)
    return {**_contact_header(envelope, detail, raw), "kind": kind, "source_id": source_id}


# --- the instance an event claims


def _instance(envelope: Fields, detail: Fields) -> InstanceId | None:
    """Find the instance; an event that names one in an unreadable way, and nowhere else, is refused."""
    instance_id = _find_instance(envelope)
    if instance_id is None and detail.find("instanceArn")[1] is not None:
        raise detail.refusal("instanceArn", "names no instance: its last path element must be a UUID")
    return instance_id


def _find_instance(envelope: Fields) -> InstanceId | None:
    """Look where instances are named, the surest place first; `resources` may begin with a placeholder."""
    _, detail = envelope.find("detail")
    places: list[object] = []
    if isinstance(detail, dict):
        fields = Fields(detail, "detail")
        places.append(fields.find("instanceArn")[1])
        _, tags = fields.find("tags")
        if isinstance(tags, dict):
            places.append(Fields(tags, "detail.tags").find("aws:connect:instanceId")[1])
    _, resources = envelope.find("resources")
    if isinstance(resources, list):
        places += resources
    named = (_instance_in(place) for place in places if isinstance(place, str))
    return next((found for found in named if found is not None), None)


def _instance_in(text: str) -> InstanceId | None:
    """Take the UUID that follows "instance/" in an ARN, however the ARN begins; or `text` itself."""
    parts = text.split("/", 4)
    after = [parts[index + 1] for index in range(len(parts) - 1) if parts[index].endswith("instance")]
    for candidate in [*after, *parts[:1]]:
        if _UUID.fullmatch(candidate):
            return InstanceId(UUID(candidate))
    return None
