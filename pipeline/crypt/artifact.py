"""The layout of an artifact file: header, then segments, then nothing behind the manifest. No I/O, no clock.

    header, 96 bytes                                        0   8  magic        24  16  instance id
    then, again and again                                   8   1  version = 1  40  16  artifact id
      u32 sealed length, u8 type, u64 durable, sealed bytes 9   1  kind         56  16  data key id
                                                           10   2  length = 96  72   8  created, Unix ms
    all integers big endian                                12  12  zero         80  16  zero

Segment 0 is an event, the head; the last is the manifest. The sealed length tells the plaintext length, so a reader
hops over segments without opening them. Readers refuse everything that version 1 does not name: there is no fallback.
JSON inside the segments is the exception: unknown fields are ignored, so that a writer may say more.
"""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from pipeline.crypt import segments
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind
from pipeline.ports import Buffer

HEADER_SIZE = 96
FRAME_PREFIX = 13
"""Bytes before the sealed bytes of each segment."""

_MAGIC = b"\x89RPI\r\n\x1a\n"  # as PNG's: not text, and a transfer in text mode shows
_VERSION = 1
_HEADER = struct.Struct(">8sBBH12s16s16s16sQ16s")
_PREFIX = struct.Struct(">IBQ")
_KIND_CODES = {Kind.VOICE: 1, Kind.SCREEN: 2, Kind.CHAT: 3, Kind.JOURNAL: 4}
_KINDS = {code: kind for kind, code in _KIND_CODES.items()}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Header(msgspec.Struct, frozen=True):
    """Whose artifact a file is. It stands in clear, and in the context of every segment."""

    kind: Kind
    instance_id: InstanceId
    artifact_id: ArtifactId
    key_id: KeyId
    created: datetime
    """Aware; kept to the millisecond."""

    def pack(self) -> bytes:
        """Write the 96 bytes."""
        return _HEADER.pack(
            _MAGIC,
            _VERSION,
            _KIND_CODES[self.kind],
            HEADER_SIZE,
            bytes(12),
            self.instance_id.bytes,
            self.artifact_id.bytes,
            self.key_id.bytes,
            (self.created - _EPOCH) // _MILLISECOND,
            bytes(16),
        )

    @classmethod
    def parse(cls, raw: Buffer) -> "Header":
        """Read the 96 bytes.

        Raises:
            SegmentForgedError: they are not a header of format version 1; the message names the field.

        """
        if len(raw) != HEADER_SIZE:
            raise _refused("size")
        magic, version, kind, length, zero, instance, artifact, key, created, more_zero = _HEADER.unpack(raw)
        if magic != _MAGIC:
            raise _refused("magic")
        if version != _VERSION:
            raise _refused("version")
        if kind not in _KINDS:
            raise _refused("kind")
        if length != HEADER_SIZE:
            raise _refused("length")
        if any(zero) or any(more_zero):
            raise _refused("reserved bytes")
        try:
            time = _EPOCH + created * _MILLISECOND
        except OverflowError as error:
            raise _refused("created") from error
        return cls(
            _KINDS[kind],
            InstanceId(UUID(bytes=instance)),
            ArtifactId(UUID(bytes=artifact)),
            KeyId(UUID(bytes=key)),
            time,
        )


def _refused(field: str) -> SegmentForgedError:
    return SegmentForgedError(f"an artifact's header is not of format version 1: {field}")


class Frame(msgspec.Struct, frozen=True):
    """What stands before each segment in clear. The type and `durable` are in the segment's context too."""

    sealed_size: int
    type: SegmentType
    durable: int
    """The file offset that was known to be synced when the segment was sealed."""

    @property
    def plaintext_size(self) -> int:
        """Bytes the segment holds."""
        return segments.plaintext_size(self.sealed_size)

    def pack(self) -> bytes:
        """Write the 13 bytes."""
        return _PREFIX.pack(self.sealed_size, self.type, self.durable)

    @classmethod
    def parse(cls, raw: Buffer) -> "Frame":
        """Read the 13 bytes.

        Raises:
            SegmentForgedError: they are fewer or more, the type is unknown, or no segment has that length.

        """
        if len(raw) != FRAME_PREFIX:
            raise SegmentForgedError("an artifact is cut off before a segment")
        sealed_size, code, durable = _PREFIX.unpack(raw)
        segments.plaintext_size(sealed_size)
        try:
            return cls(sealed_size, SegmentType(code), durable)
        except ValueError as error:
            raise SegmentForgedError("a segment has a type that format version 1 does not know") from error


class Sealer:
    """Seals the segments of one artifact, in order: it counts their index and the media before them.

    To go on with an artifact after a crash, give it where the last segment that opens left off.
    """

    __slots__ = ("_finished", "_header", "_key", "index", "media_offset")

    def __init__(self, key: DataKey, header: bytes, *, index: int = 0, media_offset: int = 0) -> None:
        if Header.parse(header).key_id != key.key_id:
            raise ValueError("the header names another data key")
        self._key = key
        self._header = header
        self._finished = False
        self.index = index
        """Number of the next segment."""
        self.media_offset = media_offset
        """Bytes of media sealed so far."""

    def seal(self, segment_type: SegmentType, plaintext: Buffer, durable: int) -> bytes:
        """Seal a small segment; give back its prefix and sealed bytes.

        Raises:
            ValueError: it is over 1 MiB, segment 0 is no event, or the manifest was sealed already.

        """
        context = self._context(segment_type, durable)
        sealed = segments.seal(self._key, context, plaintext)
        self._count(segment_type, len(plaintext))
        return Frame(len(sealed), segment_type, durable).pack() + sealed

    def seal_into(
        self, segment_type: SegmentType, plaintext: Buffer | list[memoryview], durable: int, out: memoryview
    ) -> int:
        """Seal a segment into a buffer of the caller's, prefix first; give back how many bytes that took.

        Args:
            segment_type: what it holds.
            plaintext: the bytes, whole or in parts; not in `out`.
            durable: the file offset that is known to be synced.
            out: at least 13 bytes more than the segment's sealed size.

        Raises:
            ValueError: as `seal`, or `out` is too short.

        """
        context = self._context(segment_type, durable)
        size = segments.seal_into(self._key, context, plaintext, out[FRAME_PREFIX:])
        _PREFIX.pack_into(out, 0, size, segment_type, durable)
        self._count(segment_type, segments.plaintext_size(size))
        return FRAME_PREFIX + size

    def _context(self, segment_type: SegmentType, durable: int) -> bytes:
        if self._finished:
            raise ValueError("nothing may follow the manifest")
        if self.index == 0 and segment_type is not SegmentType.EVENT:
            raise ValueError("segment 0 is an event")
        return segments.context(self._header, self.index, self.media_offset, durable, segment_type)

    def _count(self, segment_type: SegmentType, size_bytes: int) -> None:
        self.index += 1
        self._finished = segment_type is SegmentType.MANIFEST
        if segment_type is SegmentType.MEDIA:
            self.media_offset += size_bytes


class Opener:
    """Opens the segments of one artifact, in any order.

    Raises:
        SegmentForgedError: `header` is none, or names another data key than `key`.

    """

    __slots__ = ("_header", "_key")

    def __init__(self, key: DataKey, header: bytes) -> None:
        if Header.parse(header).key_id != key.key_id:
            raise _refused("data key id")
        self._key = key
        self._header = header

    def open(self, frame: Frame, index: int, media_offset: int, sealed: Buffer) -> bytes:
        """Open one segment.

        Raises:
            SegmentForgedError: it is not what was sealed for that place of this artifact.

        """
        context = self._context(frame, index, media_offset, sealed)
        return segments.open_segment(self._key, context, sealed)

    def open_into(self, frame: Frame, index: int, media_offset: int, sealed: Buffer, out: memoryview) -> int:
        """Open one segment into a buffer of the caller's; give back how many bytes it holds.

        `out` holds plaintext only if this returns.

        Raises:
            SegmentForgedError: as `open`.
            ValueError: `out` has fewer than `frame.plaintext_size` bytes.

        """
        context = self._context(frame, index, media_offset, sealed)
        return segments.open_into(self._key, context, sealed, out)

    def _context(self, frame: Frame, index: int, media_offset: int, sealed: Buffer) -> bytes:
        if len(sealed) != frame.sealed_size:
            raise SegmentForgedError("an artifact is cut off inside a segment")
        return segments.context(self._header, index, media_offset, frame.durable, frame.type)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a segment lies, as the prefixes before it say. Nothing of it has been authenticated."""

    frame: Frame
    position: int
    """File offset of its sealed bytes."""
    index: int
    media_offset: int
    """Bytes of media before it."""

    @property
    def end(self) -> int:
        """File offset of what follows it."""
        return self.position + self.frame.sealed_size

    @property
    def media_end(self) -> int:
        """Bytes of media up to and with it."""
        if self.frame.type is not SegmentType.MEDIA:
            return self.media_offset
        return self.media_offset + self.frame.plaintext_size


def next_entry(previous: Entry | None, prefix: Buffer, file_size: int) -> Entry:
    """Read the prefix that stands at the end of `previous` (behind the header, if there is none before).

    Raises:
        SegmentForgedError: it is none, its segment goes beyond the file or follows the manifest, segment 0 is no
            event, or `durable` is past the segment itself or goes back.

    """
    frame = Frame.parse(prefix)
    start = HEADER_SIZE if previous is None else previous.end
    entry = Entry(
        frame,
        position=start + FRAME_PREFIX,
        index=0 if previous is None else previous.index + 1,
        media_offset=0 if previous is None else previous.media_end,
    )
    if entry.end > file_size:
        raise SegmentForgedError("an artifact is cut off inside a segment")
    if previous is None and frame.type is not SegmentType.EVENT:
        raise SegmentForgedError("an artifact does not begin with its head")
    if previous is not None and previous.frame.type is SegmentType.MANIFEST:
        raise SegmentForgedError("something follows an artifact's manifest")
    if not (0 if previous is None else previous.frame.durable) <= frame.durable <= start:
        raise SegmentForgedError("a segment names a synced offset that can't have been")
    return entry
