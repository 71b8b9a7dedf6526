"""Parse incoming events once; trust them afterwards. No I/O, no clock.

An event comes in the EventBridge envelope: Amazon Connect's contact events, and our own chat messages and recording
start and stop. Documented samples differ from one another in case, in ARNs and in what they leave out, so names are
looked up without regard to case, ARNs are split on "/", and unknown words are kept. JSON objects end at this module's
border: what leaves it is typed.

Bad input is a `RefuseError` that names the field by its JSON path, as the sender spelled it, and never repeats a value.
Nothing else is raised, whatever the bytes are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from pipeline.errors import RefuseError
from pipeline.ids import RECORDINGS, InstanceId, Kind

MAX_EVENTS = 1000
"""Events in one list. EventBridge's own PutEvents takes 10, an SQS message holds one."""
MAX_DEPTH = 64
"""Objects and lists within one another. Documented events stay under 10."""
MAX_TEXT = 256
"""Characters of an id or a word (Amazon Connect's limit for contact and item ids)."""
MAX_SOURCE_ID = 1024
"""Characters of a source id, which may be an URL's path."""
UNSET_BEFORE = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
"""Amazon Connect writes 1970-01-01T00:00:00.001Z for a time that is not set."""

_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


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
    except _UNREADABLE:
        raise RefuseError("the body is not valid JSON; nothing of it was taken") from None
    if len(envelopes) > MAX_EVENTS:
        raise RefuseError(f"the list holds more than {MAX_EVENTS} events; send fewer at a time")
    return [_parse_envelope(bytes(raw), f"[{index}]") for index, raw in enumerate(envelopes)]


def parse_item(raw: bytes, path: str = "item") -> Item:
    """Parse one transcript item.

    Raises:
        RefuseError: it has no id or time to know it by, or one of its known fields has the wrong type.

    """
    item = _read_object(raw, path)
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


def parse_time(text: object, path: str) -> datetime | None:
    """Read an ISO 8601 time, with or without fraction; UTC where it names no zone. "Not set" gives `None`.

    Raises:
        RefuseError: it is not one.

    """
    try:
        moment = msgspec.convert(text, datetime) if isinstance(text, str) else None
        if moment is not None:
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        moment = None
    if moment is None:
        raise RefuseError("must be a time, as 2026-11-23T14:05:12.000Z", field=path)
    return None if moment < UNSET_BEFORE else moment


# --- one envelope


def _parse_envelope(raw: bytes, path: str) -> Incoming:
    envelope = _read_object(raw, path)
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


def _header(envelope: "_Fields", raw: bytes, instance_id: InstanceId | None) -> dict[str, Any]:
    return {"envelope_id": envelope.text("id"), "time": envelope.time("time"), "instance_id": instance_id, "raw": raw}


def _contact_header(envelope: "_Fields", detail: "_Fields", raw: bytes) -> dict[str, Any]:
    return {
        **_header(envelope, raw, _instance(envelope, detail)),
        "contact": detail.identifier("contactId"),
        "initial_contact": detail.text("initialContactId"),
    }


def _contact_event(envelope: "_Fields", raw: bytes) -> ContactEvent:
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


def _met_agent(detail: "_Fields") -> bool:
    """Tell whether an event of a later time says so; an event may have any of these in its place."""
    if not isinstance(detail.find("agentInfo")[1], dict):
        return False
    return detail.object("agentInfo").time("connectedToAgentTimestamp") is not None


def _chat_message(envelope: "_Fields", raw: bytes) -> ChatMessage:
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


def _recording(envelope: "_Fields", detail: "_Fields", raw: bytes) -> dict[str, Any]:
    word = detail.word("recordingKind") or ""
    kind = next((kind for kind in RECORDINGS if kind.value == word.lower()), None)
    if kind is None:
        raise detail.refusal("recordingKind", f"must be one of {', '.join(RECORDINGS)}")
    source_id = detail.identifier("sourceId", limit=MAX_SOURCE_ID)
    return {**_contact_header(envelope, detail, raw), "kind": kind, "source_id": source_id}


# --- the instance an event claims


def _instance(envelope: "_Fields", detail: "_Fields") -> InstanceId | None:
    """Find the instance; an event that names one in an unreadable way, and nowhere else, is refused."""
    instance_id = _find_instance(envelope)
    if instance_id is None and detail.find("instanceArn")[1] is not None:
        raise detail.refusal("instanceArn", "names no instance: its last path element must be a UUID")
    return instance_id


def _find_instance(envelope: "_Fields") -> InstanceId | None:
    """Look where instances are named, the surest place first; `resources` may begin with a placeholder."""
    _, detail = envelope.find("detail")
    places: list[object] = []
    if isinstance(detail, dict):
        fields = _Fields(detail, "detail")
        places.append(fields.find("instanceArn")[1])
        _, tags = fields.find("tags")
        if isinstance(tags, dict):
            places.append(_Fields(tags, "detail.tags").find("aws:connect:instanceId")[1])
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


# --- JSON objects, seen without regard to case


def _read_object(raw: bytes, path: str) -> "_Fields":
    where = path or None
    if _is_too_deep(raw):
        raise RefuseError(f"objects and lists may be nested {MAX_DEPTH} deep, not more", field=where)
    try:
        values = _ANY.decode(raw)
    except _UNREADABLE:
        # The foreign errors are not chained: some of them carry the whole input.
        raise RefuseError("the event is not valid JSON in UTF-8; nothing of it was taken", field=where) from None
    if not isinstance(values, dict):
        raise RefuseError("must be a JSON object", field=where)
    return _Fields(values, path)


def _is_too_deep(raw: bytes) -> bool:
    """Count brackets outside strings. Also of what a repeated name hides from the decoded form."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _JSON_STRING.sub(b"", raw).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


class _Fields:
    """A decoded JSON object whose names are found in any case, and the path that leads to it.

    An exactly spelled name comes before others; of names that differ in case only, the first counts. `null` and
    absent are the same.
    """

    __slots__ = ("_names", "_path", "_values")

    def __init__(self, values: Mapping[str, object], path: str) -> None:
        self._values = values
        self._path = path
        self._names = {name.lower(): name for name in reversed(list(values))}

    def path_of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def find(self, name: str) -> tuple[str, object]:
        """Give the name as it is spelled here, and its value; `None` if there is none."""
        spelled = name if name in self._values else self._names.get(name.lower(), name)
        return spelled, self._values.get(spelled)

    def refusal(self, name: str, message: str) -> RefuseError:
        return RefuseError(message, field=self.path_of(self.find(name)[0]))

    def object(self, name: str) -> "_Fields":
        spelled, value = self.find(name)
        if not isinstance(value, dict):
            raise self.refusal(name, "is required, and must be a JSON object")
        return _Fields(value, self.path_of(spelled))

    def text(self, name: str, *, limit: int = MAX_TEXT) -> str | None:
        """Give a string without control characters; empty counts as absent."""
        _, value = self.find(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > limit or _CONTROL.search(value):
            raise self.refusal(name, f"must be a string of at most {limit} characters, without control characters")
        return value

    def word(self, name: str) -> str | None:
        value = self.text(name)
        return None if value is None else value.upper()

    def identifier(self, name: str, *, limit: int = MAX_TEXT) -> str:
        value = self.text(name, limit=limit)
        if value is None:
            raise self.refusal(name, f"is required: 1 to {limit} characters")
        return value

    def flag(self, name: str) -> bool:
        _, value = self.find(name)
        if value is not None and not isinstance(value, bool):
            raise self.refusal(name, "must be true or false")
        return value is True

    def time(self, name: str) -> datetime | None:
        spelled, value = self.find(name)
        return None if value is None or value == "" else parse_time(value, self.path_of(spelled))
