"""A whole artifact file in memory, written and read the way the interim store does. For tests only."""

import os
from datetime import UTC, datetime
from uuid import UUID

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Entry, Frame, Header, Opener, Sealer, next_entry
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind

KEY = DataKey(KeyId(UUID(int=7)), os.urandom(32))
HEADER = Header(
    kind=Kind.VOICE,
    instance_id=InstanceId(UUID(int=11)),
    artifact_id=ArtifactId(UUID(int=13)),
    key_id=KEY.key_id,
    created=datetime(2026, 11, 23, 14, 5, 12, 345_000, tzinfo=UTC),
)
Content = tuple[SegmentType, bytes]


def frames(contents: list[Content], header: Header = HEADER) -> list[bytes]:
    """Seal segments; each is synced before the next."""
    sealer = Sealer(KEY, header.pack())
    done, durable = [], 0
    for kind, plaintext in contents:
        done.append(sealer.seal(kind, plaintext, durable))
        durable = HEADER_SIZE + sum(map(len, done))
    return done


def read(raw: bytes, key: DataKey = KEY) -> list[Content]:
    """Open a whole file: header, every segment, and nothing behind the manifest, which must be there."""
    opener = Opener(key, raw[:HEADER_SIZE])
    contents: list[Content] = []
    entry: Entry | None = None
    at = HEADER_SIZE
    while at < len(raw):
        entry = next_entry(entry, raw[at : at + FRAME_PREFIX], len(raw))
        sealed = raw[entry.position : entry.end]
        contents.append((entry.frame.type, opener.open(entry.frame, entry.index, entry.media_offset, sealed)))
        at = entry.end
    if entry is None or entry.frame.type is not SegmentType.MANIFEST:
        raise SegmentForgedError("no manifest")
    return contents


def resealed_prefix(frame: bytes, **changes: int) -> bytes:
    """Change what stands in clear before a segment."""
    was = Frame.parse(frame[:FRAME_PREFIX])
    now = Frame(
        was.sealed_size,
        SegmentType(changes.get("type", was.type)),
        changes.get("durable", was.durable),
    )
    return now.pack() + frame[FRAME_PREFIX:]
