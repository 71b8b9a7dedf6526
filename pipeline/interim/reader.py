"""One artifact being read: its segments in place, opened only where a range touches them.

Synchronous: small artifacts are read inline, large ones in a thread by the caller. Gives out nothing that did not
authenticate, and of an open artifact nothing beyond `limit`.
"""

from bisect import bisect_right
from collections.abc import Iterator

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Entry, Header, Opener, next_entry
from pipeline.crypt.contents import (
    MORE,
    Head,
    Manifest,
    Record,
    complete_manifest,
    decode_head,
    decode_manifest,
    decode_records,
)
from pipeline.crypt.segments import SEGMENT_LIMIT, DataKey, SegmentType, plaintext_size
from pipeline.errors import SegmentForgedError
from pipeline.interim.states import ArtifactName
from pipeline.ports import FileSystem

_WHOLE = 2 * 1024 * 1024
"""Files up to this size are read in one go."""


def read_header(files: FileSystem, handle: int, name: ArtifactName) -> bytes:
    """Read the header and check that it says what the file's name says.

    Raises:
        SegmentForgedError: it does not, or is no header.

    """
    raw = files.read(handle, 0, HEADER_SIZE)
    header = Header.parse(raw)
    said = (header.kind, header.instance_id, header.artifact_id, header.key_id)
    if said != (name.kind, name.instance_id, name.artifact_id, name.key_id):
        raise SegmentForgedError("an artifact's header and its name disagree")
    return raw


def read_head(files: FileSystem, path: str, name: ArtifactName, key: DataKey) -> Head:
    """Open segment 0 alone, whatever may be wrong behind it.

    Raises:
        SegmentForgedError: it does not authenticate.
        FileNotFoundError: there is no such file.
        StoreIoError: it can't be read.

    """
    handle = files.open(path)
    try:
        opener = Opener(key, read_header(files, handle, name))
        entry = next_entry(None, files.read(handle, HEADER_SIZE, FRAME_PREFIX), files.size(handle))
        if entry.frame.type is not SegmentType.EVENT:
            raise SegmentForgedError("an artifact does not begin with its head")
        sealed = files.read(handle, entry.position, entry.frame.sealed_size)
        return decode_head(opener.open(entry.frame, entry.index, entry.media_offset, sealed))
    finally:
        files.close(handle)


class ArtifactReader:
    """Reads one artifact through `handle`, up to file offset `limit`."""

    def __init__(
        self, files: FileSystem, handle: int, name: ArtifactName, key: DataKey, *, limit: int | None = None
    ) -> None:
        self._files = files
        self._handle = handle
        self._size = files.size(handle) if limit is None else limit
        self._blob = files.read(handle, 0, self._size) if self._size <= _WHOLE else b""
        self._opener = Opener(key, read_header(files, handle, name))
        self.name = name
        self.entries = list(self._walk())
        """Every segment, in order."""
        self._media = [entry for entry in self.entries if entry.frame.type is SegmentType.MEDIA]
        self._starts = [entry.media_offset for entry in self._media]
        self._scratch = bytearray()

    @property
    def media_bytes(self) -> int:
        """Plaintext media in all."""
        if not self._media:
            return 0
        last = self._media[-1]
        return last.media_offset + plaintext_size(last.frame.sealed_size)

    def head(self) -> Head:
        """Open segment 0."""
        if not self.entries or self.entries[0].frame.type is not SegmentType.EVENT:
            raise SegmentForgedError("an artifact does not begin with its head")
        return decode_head(self.open(self.entries[0]))

    def manifest(self) -> Manifest:
        """Open the manifest, and check that it is the last segment and counts what is there."""
        if not self.entries or self.entries[-1].frame.type is not SegmentType.MANIFEST:
            raise SegmentForgedError("a sealed artifact has no manifest at its end")
        manifest = decode_manifest(self.open(self.entries[-1]))
        events = [entry for entry in self.entries if entry.frame.type is SegmentType.EVENT]
        counts = manifest.counts
        if (counts.media_segments, counts.media_bytes, counts.event_segments) != (
            len(self._media),
            self.media_bytes,
            len(events),
        ):
            raise SegmentForgedError("an artifact's manifest and its segments disagree")
        more = self.entries[-1 - manifest.more : -1]
        return complete_manifest(manifest, [self.open(entry) for entry in more])

    def records(self) -> Iterator[Record]:
        """Open every event segment behind the head, in order; those that continue a manifest are left out."""
        for entry in self.entries[1:]:
            if entry.frame.type is SegmentType.EVENT:
                yield from (record for record in decode_records(self.open(entry)) if record.type != MORE)

    def open(self, entry: Entry) -> bytes:
        """Open one segment."""
        return self._opener.open(entry.frame, entry.index, entry.media_offset, self._sealed(entry))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with media from `offset`.

        Raises:
            SegmentForgedError: a segment does not authenticate, or the range goes beyond the media.

        """
        at, end = offset, offset + len(buffer)
        if not 0 <= at <= end <= self.media_bytes:
            raise SegmentForgedError("an artifact is shorter than its manifest says")
        index = bisect_right(self._starts, offset) - 1
        while at < end:
            entry = self._media[index]
            size = plaintext_size(entry.frame.sealed_size)
            start = at - entry.media_offset
            take = min(size - start, end - at)
            target = buffer[at - offset : at - offset + take]
            if take == size:
                self._open_into(entry, target)
            else:
                self._scratch = self._scratch or bytearray(SEGMENT_LIMIT)
                whole = memoryview(self._scratch)[:size]
                self._open_into(entry, whole)
                target[:] = whole[start : start + take]
            at += take
            index += 1

    def _open_into(self, entry: Entry, target: memoryview) -> None:
        self._opener.open_into(entry.frame, entry.index, entry.media_offset, self._sealed(entry), target)

    def _sealed(self, entry: Entry) -> bytes | memoryview:
        if self._blob:
            return memoryview(self._blob)[entry.position : entry.end]
        return self._files.read(self._handle, entry.position, entry.frame.sealed_size)

    def _walk(self) -> Iterator[Entry]:
        entry: Entry | None = None
        at = HEADER_SIZE
        while at < self._size:
            prefix = self._blob[at : at + FRAME_PREFIX] or self._files.read(self._handle, at, FRAME_PREFIX)
            entry = next_entry(entry, prefix, self._size)
            yield entry
            at = entry.end
