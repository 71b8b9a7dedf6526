"""The address of an upload, or of a record: what its URL path says. Pure.

    /v1/instances/{instance}/contacts/{contact}/{voice|screen|chat}[/{name}][.{ext}]
    /v1/instances/{instance}/records/{class}[/{id}]
    /v1/instances/{instance}/subject/{export|erase|opt-out}

Split before it is unquoted, so that an escaped slash stays inside its segment. The extension is only for recorders
that need one in their URL; what a recording is, its first bytes tell.
"""

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes
from uuid import UUID

from pipeline.ids import RECORDINGS, InstanceId, Kind

_LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class Address:
    """Where a recording belongs, and its source id if nothing better is given."""

    instance_id: InstanceId
    contact: str
    kind: Kind
    source_id: str


@dataclass(frozen=True, slots=True)
class RecordAddress:
    """Where a record belongs; all records of a class if it has no id."""

    instance_id: InstanceId
    data_class: str
    record_id: str | None

    @property
    def route(self) -> str:
        """The address without what is anybody's."""
        last = "" if self.record_id is None else "/{id}"
        return "/v1/instances/{instance}/records/{class}" + last


def parse_record_address(raw_path: bytes) -> RecordAddress | None:
    """Read the path of a record, still percent-encoded; None if it names nothing that could exist."""
    segments = raw_path.split(b"/")
    if len(segments) not in {6, 7} or segments[:3] != [b"", b"v1", b"instances"] or segments[4] != b"records":
        return None
    texts = [_text(segment) for segment in (segments[3], *segments[5:])]
    if not all(texts):
        return None
    instance, data_class, *last = [text or "" for text in texts]
    try:
        instance_id = InstanceId(UUID(instance))
    except ValueError:
        return None
    return RecordAddress(instance_id, data_class, last[0] if last else None)


def parse_subject_address(raw_path: bytes) -> tuple[InstanceId, str] | None:
    """Read the path of a question about one person: the instance, and what is asked; None if it names nothing."""
    segments = raw_path.split(b"/")
    if len(segments) != 6 or segments[:3] != [b"", b"v1", b"instances"] or segments[4] != b"subject":
        return None
    instance, asked = _text(segments[3]), _text(segments[5])
    try:
        return InstanceId(UUID(instance or "")), asked or ""
    except ValueError:
        return None


def parse_address(raw_path: bytes) -> Address | None:
    """Read the path of a PUT or HEAD, still percent-encoded; None if it names nothing that could exist."""
    segments = raw_path.split(b"/")
    if len(segments) not in {7, 8} or segments[:3] != [b"", b"v1", b"instances"] or segments[4] != b"contacts":
        return None
    instance, contact = _text(segments[3]), _text(segments[5])
    last = [_text(segment) for segment in segments[6:]]
    if instance is None or not contact or None in last:
        return None
    kind = kind_of("/".join(part or "" for part in last))
    if kind is None or last[-1] == "":
        return None
    try:
        instance_id = InstanceId(UUID(instance))
    except ValueError:
        return None
    return Address(instance_id, contact, kind, source_of(contact, "/".join(part or "" for part in last)))


def kind_of(last: str) -> Kind | None:
    """Give the kind that the end of a path names: `voice`, `voice.wav`, `voice/leg-1.wav`; None if it names none."""
    word, slash, _ = last.partition("/")
    word = word if slash else word.partition(".")[0]
    return next((kind for kind in RECORDINGS if kind == word), None)


def source_of(contact: str, last: str) -> str:
    """Give the source id of what is put there without an `Idempotency-Key`."""
    return f"{contact}/{last}"


def _text(segment: bytes) -> str | None:
    """Unquote one segment; None if it is not UTF-8, too long, or holds a control character."""
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        return None
    return text if len(text) <= _LONGEST_NAME and text.isprintable() else None
