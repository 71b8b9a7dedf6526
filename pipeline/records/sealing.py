"""One record, sealed as one segment and bound to its place: class, scope, id and version. No I/O, no clock.

    u32 length of the head || head (JSON: id, contentType, part, putAt, perhaps subject) || body

The id in the context is the keyed hash that the engine knows; the id itself is in the sealed head alone, and has to
give that hash. A row that was put in another's place, or is of another version than it says, does not open.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from msgspec import Struct

from pipeline.crypt import segments
from pipeline.crypt.blind import BlindKey
from pipeline.crypt.segments import SEGMENT_LIMIT, DataKey
from pipeline.errors import SegmentForgedError
from pipeline.records.rows import Row
from pipeline.records.scopes import Scope

BODY_LIMIT = SEGMENT_LIMIT - 8192
"""Most bytes of a record; the rest of its segment is for the head."""
ID_LIMIT = 1024
"""Characters of an id."""

_DOMAIN = b"recording-pipeline/record/1"
_LENGTH = struct.Struct(">I")
_VERSION = struct.Struct(">Q")


class _Head(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    id: str
    content_type: str
    part: str
    put_at: datetime
    subject: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Head)


@dataclass(frozen=True, slots=True)
class Record:
    """A record in clear. `repr` shows nothing of it."""

    id: str = field(repr=False)
    body: bytes = field(repr=False)
    content_type: str
    version: int
    put_at: datetime
    part: str = ""
    subject: str = field(default="", repr=False)
    """Whose it is, where a class's parts are their subjects'."""


def tag_of(key: BlindKey, record_id: str) -> bytes:
    """Hash an id, for the engine to know a record by."""
    return key.digest("id", record_id)


def context(scope: Scope, tag: bytes, version: int) -> bytes:
    """Say where a record belongs; what was sealed for another place does not open."""
    place = (_DOMAIN, scope.policy.data_class.encode(), scope.shelf_name.encode(), tag.hex().encode())
    return b"\x00".join(place) + _VERSION.pack(version)


def seal(key: DataKey, scope: Scope, tag: bytes, record: Record) -> bytes:
    """Seal a record. Raises `ValueError` if its body is longer than `BODY_LIMIT`."""
    head = _encoder.encode(
        _Head(
            id=record.id,
            content_type=record.content_type,
            part=record.part,
            put_at=record.put_at,
            subject=record.subject,
        )
    )
    plaintext = b"".join((_LENGTH.pack(len(head)), head, record.body))
    return segments.seal(key, context(scope, tag, record.version), plaintext)


def open_record(key: DataKey, blind: Sequence[BlindKey], scope: Scope, row: Row) -> Record:
    """Open a record.

    Raises:
        SegmentForgedError: it is not what was sealed for its place.

    """
    plaintext = segments.open_segment(key, context(scope, row.tag, row.version), row.sealed)
    try:
        (size,) = _LENGTH.unpack_from(plaintext)
        head = _decoder.decode(plaintext[_LENGTH.size : _LENGTH.size + size])
    except (struct.error, msgspec.MsgspecError) as error:
        raise SegmentForgedError("a record's head can't be read; nothing of it was given out") from error
    if head.part != row.part or all(tag_of(each, head.id) != row.tag for each in blind):
        raise SegmentForgedError("a record is not the one that its row says; nothing of it was given out")
    return Record(
        id=head.id,
        body=plaintext[_LENGTH.size + size :],
        content_type=head.content_type,
        version=row.version,
        put_at=head.put_at,
        part=head.part,
        subject=head.subject,
    )
