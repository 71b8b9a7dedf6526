"""What the event and manifest segments of an artifact hold: JSON of format version 1. No I/O, no clock.

Segment 0 is a `Head`, the last a `Manifest`, every other event segment one `Record` or a list of them. Unknown fields
are ignored, known ones are checked; a message never repeats a value.

A manifest whose lists are too long for one segment goes on before itself: its lists stand in `more` event segments
directly in front of it, each a record of the type `more`.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Literal, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Raw, Struct

from pipeline.crypt.segments import SEGMENT_LIMIT
from pipeline.errors import SegmentForgedError

Time = Annotated[datetime, Meta(tz=True)]
Count = Annotated[int, Meta(ge=0)]

MORE = "more"
"""Type of the records that continue a manifest's lists."""

_BATCH_SIZE = SEGMENT_LIMIT - 1024
"""Bytes of list items in one such record; the rest is for the JSON around them."""

_T = TypeVar("_T")


class Head(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Segment 0: what was known when the artifact was begun."""

    contact: str
    """Contact id that may stand in an object key."""
    original_contact: str | None = None
    """The id as it came, when it could not."""
    source_id: str
    recording_id: UUID
    content_type: str | None = None
    """As the source declared it."""
    started: Time | None = None
    """As the source stated it."""
    metadata: dict[str, str] = {}
    """What else the source said, as it came."""


class Record(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One event of a recording: a chat's item, a pause, or what a source said later."""

    type: str
    data: Raw
    """JSON, as `type` says."""
    arrived: Time | None = None


class Counts(Struct, frozen=True, kw_only=True, rename="camel"):
    """How many segments stand before the manifest, and how many plaintext bytes they hold. The head is an event."""

    media_segments: Count
    media_bytes: Count
    event_segments: Count
    event_bytes: Count


class Gap(Struct, frozen=True, rename={"start": "from", "end": "to"}):
    """A stretch of which no media came."""

    start: Time
    end: Time


class Pause(Struct, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """A stretch that was kept out of the recording on request."""

    start: Time
    end: Time
    kinds: tuple[str, ...]
    by: str
    reason: str


class Rendition(Struct, frozen=True, kw_only=True, rename="camel"):
    """The exact bytes to be delivered: what makes them from the segments, and what they then are."""

    renderer: str
    """Name and version: `copy/1` is the media as they are, `transcript/1` a chat's file."""
    size_bytes: Count
    crc64nvme: Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{11}=$")]
    """Base64, big endian, as S3 writes it."""
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    content_type: str
    extension: str


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """The last segment: what the artifact holds, and what is to become of it."""

    recording_id: UUID
    generation: Annotated[int, Meta(ge=1)]
    contact: str
    ending: Literal["complete", "recovered"]
    started: Time | None = None
    ended: Time | None = None
    counts: Counts
    association_id: str
    bucket: str
    keys: Annotated[tuple[str, ...], Meta(min_length=1, max_length=2)]
    """Object keys that it may take, the wanted one first."""
    quality: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    pauses: tuple[Pause, ...] = ()
    item_digests: tuple[str, ...] = ()
    """Digests of a chat's item ids, by which a late repeat is known."""
    more: Count = 0
    """How many event segments directly before this one continue its lists."""
    object: Rendition


class _Lists(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Data of a record of the type `more`."""

    item_digests: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    pauses: tuple[Pause, ...] = ()


_encoder = msgspec.json.Encoder()
_heads = msgspec.json.Decoder(Head)
_records = msgspec.json.Decoder(Record | list[Record])
_manifests = msgspec.json.Decoder(Manifest)
_lists = msgspec.json.Decoder(_Lists)


def encode_head(head: Head) -> bytes:
    """Write segment 0."""
    return _encoder.encode(head)


def decode_head(raw: bytes) -> Head:
    """Read segment 0.

    Raises:
        SegmentForgedError: it is no head.

    """
    return _decoded(_heads, raw, "head")


def encode_records(records: Sequence[Record]) -> bytes:
    """Write one event segment: the record itself if there is one, else a list."""
    return _encoder.encode(records[0] if len(records) == 1 else records)


def decode_records(raw: bytes) -> list[Record]:
    """Read one event segment behind the head.

    Raises:
        SegmentForgedError: it holds no records.

    """
    found = _decoded(_records, raw, "record")
    return found if isinstance(found, list) else [found]


def encode_manifest(manifest: Manifest) -> list[bytes]:
    """Write a manifest: the last is the manifest segment; those before it are event segments that belong to it.

    There are such only if its lists are too long. Its `counts` must then not count them: they are added here.
    """
    whole = _encoder.encode(manifest)
    if len(whole) <= SEGMENT_LIMIT:
        return [whole]
    more = [_encoder.encode(Record(MORE, Raw(_encoder.encode(lists)))) for lists in _spread(manifest)]
    counts = msgspec.structs.replace(
        manifest.counts,
        event_segments=manifest.counts.event_segments + len(more),
        event_bytes=manifest.counts.event_bytes + sum(map(len, more)),
    )
    rest = msgspec.structs.replace(manifest, counts=counts, more=len(more), item_digests=(), gaps=(), pauses=())
    return [*more, _encoder.encode(rest)]


def decode_manifest(raw: bytes) -> Manifest:
    """Read the manifest segment. If it has `more`, its lists are short of those: see `complete_manifest`.

    Raises:
        SegmentForgedError: it is no manifest.

    """
    return _decoded(_manifests, raw, "manifest")


def complete_manifest(manifest: Manifest, more: Sequence[bytes]) -> Manifest:
    """Put the lists of the `manifest.more` event segments directly before a manifest back into it.

    Raises:
        SegmentForgedError: they are others, or not as many.

    """
    records = [record for raw in more for record in decode_records(raw)]
    if len(more) != manifest.more or any(record.type != MORE for record in records):
        raise SegmentForgedError("an artifact's manifest is not continued as it says")
    lists = [_decoded(_lists, bytes(record.data), "record") for record in records]
    return msgspec.structs.replace(
        manifest,
        item_digests=manifest.item_digests + tuple(item for each in lists for item in each.item_digests),
        gaps=manifest.gaps + tuple(gap for each in lists for gap in each.gaps),
        pauses=manifest.pauses + tuple(pause for each in lists for pause in each.pauses),
    )


def _spread(manifest: Manifest) -> Iterator[_Lists]:
    for digests in _batches(manifest.item_digests):
        yield _Lists(item_digests=digests)
    for gaps in _batches(manifest.gaps):
        yield _Lists(gaps=gaps)
    for pauses in _batches(manifest.pauses):
        yield _Lists(pauses=pauses)


def _batches(items: Sequence[_T]) -> Iterator[tuple[_T, ...]]:
    """Divide a list so that the JSON of each piece fits into a segment."""
    batch: list[_T] = []
    size = 0
    for item in items:
        item_size = len(_encoder.encode(item)) + 1
        if batch and size + item_size > _BATCH_SIZE:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(item)
        size += item_size
    if batch:
        yield tuple(batch)


def _decoded(decoder: "msgspec.json.Decoder[_T]", raw: bytes, what: str) -> _T:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # The library's message may quote a value: only the path at its end is ours to repeat.
        path = str(error).rpartition(" - at ")[2] if isinstance(error, msgspec.ValidationError) else ""
        field = f" at {path}" if path.startswith("`$") else ""
        raise SegmentForgedError(f"an artifact's {what} is not of format version 1{field}") from None
