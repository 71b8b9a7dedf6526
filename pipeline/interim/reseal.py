"""One file in the artifact layout, sealed again under another data key: every segment opened, and sealed at its place.

The copy has the same segments of the same lengths at the same offsets, so what its segments say of offsets stays true.
It counts only when it was synced and read back: each segment must open under the new key to what the old one held.
Synchronous: runs in a thread.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Entry, Header, Opener, Sealer, next_entry
from pipeline.crypt.contents import decode_manifest
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.ports import FileSystem

COPY = "copy/1"
"""The renderer that gives the media as they came: see `intake.sealing`."""


@dataclass(frozen=True, slots=True)
class Resealed:
    """What was sealed again."""

    end: int
    """How far the source opens, and the copy goes."""
    size_bytes: int
    """Length of the source."""
    media_bytes: int
    acknowledged: int
    """The largest synced offset that anything in the source names, also where it does not open."""
    is_finished: bool
    """The last segment is a manifest."""

    @property
    def is_whole(self) -> bool:
        """Nothing is left behind in the source."""
        return self.end == self.size_bytes


def reseal(files: FileSystem, source: str, target: str, old: DataKey, new: DataKey) -> Resealed:
    """Copy the file at `source` to a new one at `target`, which is synced and compared when this returns.

    What does not open, and what follows it, is left out: see `Resealed`.

    Raises:
        SegmentForgedError: it has no header of an artifact under `old`, or its manifest says otherwise than its media.
        StoreFullError, StoreIoError: the disk refuses.
        FileNotFoundError: there is no such source.

    """
    handle = files.open(source)
    try:
        files.unlink(target)  # a crash may have left one
        copy = files.create(target)
        try:
            found = _copied(files, handle, copy, old, new)
        except BaseException:
            files.unlink(target)
            raise
        finally:
            files.close(copy)
    finally:
        files.close(handle)
    return found


def _copied(files: FileSystem, handle: int, copy: int, old: DataKey, new: DataKey) -> Resealed:
    raw = files.read(handle, 0, HEADER_SIZE)
    header = replace(Header.parse(raw), key_id=new.key_id).pack()
    opener, sealer = Opener(old, raw), Sealer(new, header)
    files.append(copy, [header])
    before, media = hashlib.sha256(), hashlib.sha256()
    end, last = HEADER_SIZE, b""
    is_finished = False
    for entry, plaintext in _opened(files, handle, opener):
        files.append(copy, [sealer.seal(entry.frame.type, plaintext, entry.frame.durable)])
        _digest(before, entry, plaintext)
        end, is_finished = entry.end, entry.frame.type is SegmentType.MANIFEST
        if entry.frame.type is SegmentType.MEDIA:
            media.update(plaintext)
        elif is_finished:
            last = plaintext
    if is_finished:
        _check_manifest(last, media.hexdigest())
    files.sync(copy)
    _compare(files, copy, Opener(new, header), before.digest())
    return Resealed(end, files.size(handle), sealer.media_offset, _acknowledged(files, handle), is_finished)


def _check_manifest(raw: bytes, media_sha256: str) -> None:
    manifest = decode_manifest(raw)
    if manifest.object.renderer == COPY and manifest.object.sha256 != media_sha256:
        raise SegmentForgedError("an artifact holds other bytes than its manifest says")


def _compare(files: FileSystem, copy: int, opener: Opener, wanted: bytes) -> None:
    after = hashlib.sha256()
    for entry, plaintext in _opened(files, copy, opener):
        _digest(after, entry, plaintext)
    if after.digest() != wanted:
        raise StoreIoError("a copy that was written does not read back as it was; the file that was there stays")


def _digest(digest: "hashlib._Hash", entry: Entry, plaintext: bytes) -> None:
    frame = entry.frame
    digest.update(b"%d %d %d %d\n" % (frame.type, entry.position, frame.durable, len(plaintext)))
    digest.update(plaintext)


def _opened(files: FileSystem, handle: int, opener: Opener) -> Iterator[tuple[Entry, bytes]]:
    """Yield segments for as long as they open."""
    for entry in _entries(files, handle):
        try:
            sealed = files.read(handle, entry.position, entry.frame.sealed_size)
            plaintext = opener.open(entry.frame, entry.index, entry.media_offset, sealed)
        except SegmentForgedError:
            return
        yield entry, plaintext


def _entries(files: FileSystem, handle: int) -> Iterator[Entry]:
    """Give where segments lie, as far as that can be read."""
    size, at = files.size(handle), HEADER_SIZE
    entry: Entry | None = None
    while at < size:
        try:
            entry = next_entry(entry, files.read(handle, at, FRAME_PREFIX), size)
        except SegmentForgedError:
            return
        yield entry
        at = entry.end


def _acknowledged(files: FileSystem, handle: int) -> int:
    return max((entry.frame.durable for entry in _entries(files, handle)), default=0)
