"""Recovery of one open artifact: find where what was acknowledged ends, cut the torn tail, go on from there.

Idempotent. Cuts only what no segment vouches for: never below the synced offset that a later segment was sealed with,
and never more than a writer may leave unsynced. What is cut is kept in `lost+found/`. Synchronous: runs in a thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Entry, Header, Opener, next_entry
from pipeline.crypt.contents import Head, Manifest, decode_head, decode_manifest
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import SegmentForgedError
from pipeline.interim.reader import read_header
from pipeline.interim.states import ArtifactName
from pipeline.interim.writer import Digests, Tally
from pipeline.ports import FileSystem

FIRST_BYTES = 64 * 1024
"""Media from the beginning that is given back, for the checks of its format."""
_MOST_UNSYNCED = 16 * 1024 * 1024
"""A writer never leaves more than this behind its last sync."""


@dataclass(slots=True)
class Recovered:
    """What an open artifact holds: everything up to `end` is authentic and synced."""

    head: Head
    header: bytes
    end: int
    index: int
    """Index of the next segment."""
    digests: Digests
    tally: Tally
    first: bytes
    created: datetime
    manifest: Manifest | None = None
    """The writer had finished: only the rename was missing."""


@dataclass(slots=True)
class _Opened:
    entry: Entry
    plaintext: bytes

    @property
    def end(self) -> int:
        return self.entry.end


def recover(files: FileSystem, handle: int, name: ArtifactName, key: DataKey, lost: str) -> Recovered | None:
    """Read an open artifact from the front and cut its torn tail, a copy of which goes to the path `lost`.

    Gives None if the file holds nothing that was ever acknowledged (no whole segment 0).

    Raises:
        SegmentForgedError: damage below what was acknowledged; nothing was cut.

    """
    size = files.size(handle)
    if size < HEADER_SIZE + FRAME_PREFIX:
        return None
    header = read_header(files, handle, name)
    opener = Opener(key, header)
    state = Recovered(
        head=None,  # type: ignore[arg-type]  # the first segment sets it, or None is returned
        header=header,
        end=HEADER_SIZE,
        index=0,
        digests=Digests(),
        tally=Tally(),
        first=b"",
        created=Header.parse(header).created,
    )
    last: Entry | None = None
    for opened in _segments(files, handle, opener, None, size):
        last = opened.entry
        _take(state, opened)
    if state.end < size:
        _check_cut(files, handle, opener, last, state.end, size)
        _cut(files, handle, state.end, size, lost)
    return None if last is None else state


def _take(state: Recovered, opened: _Opened) -> None:
    kind = opened.entry.frame.type
    if state.index == 0:
        if kind is not SegmentType.EVENT:
            raise SegmentForgedError("an artifact does not begin with its head")
        state.head = decode_head(opened.plaintext)
    if kind is SegmentType.MEDIA:
        state.digests.update(opened.plaintext)
        state.first += opened.plaintext[: FIRST_BYTES - len(state.first)]
    state.tally.count(kind, len(opened.plaintext))
    if kind is SegmentType.MANIFEST:
        state.manifest = decode_manifest(opened.plaintext)
    state.end = opened.end
    state.index += 1


def _segments(files: FileSystem, handle: int, opener: Opener, previous: Entry | None, size: int) -> Iterator[_Opened]:
    """Yield segments for as long as they open."""
    at = HEADER_SIZE if previous is None else previous.end
    while at < size:
        try:
            entry = next_entry(previous, files.read(handle, at, FRAME_PREFIX), size)
            sealed = files.read(handle, entry.position, entry.frame.sealed_size)
            plaintext = opener.open(entry.frame, entry.index, entry.media_offset, sealed)
        except SegmentForgedError:
            return
        yield _Opened(entry, plaintext)
        at, previous = entry.end, entry


def _check_cut(files: FileSystem, handle: int, opener: Opener, last: Entry | None, end: int, size: int) -> None:
    """Refuse to cut at `end` if anything shows that it was acknowledged."""
    if size - end > _MOST_UNSYNCED:
        raise SegmentForgedError("more of an artifact does not open than a crash can have torn")
    previous, at = last, end
    while at < size:
        try:
            entry = next_entry(previous, files.read(handle, at, FRAME_PREFIX), size)
        except SegmentForgedError:
            return
        sealed = files.read(handle, entry.position, entry.frame.sealed_size)
        try:
            opener.open(entry.frame, entry.index, entry.media_offset, sealed)
        except SegmentForgedError:
            pass
        else:
            if entry.frame.durable > end:
                raise SegmentForgedError("a segment that was acknowledged does not open")
        previous, at = entry, entry.end


def _cut(files: FileSystem, handle: int, end: int, size: int, lost: str) -> None:
    """Keep a copy of the tail, durable, and only then cut it off."""
    files.unlink(lost)
    copy = files.create(lost)
    try:
        for at in range(end, size, 1024 * 1024):
            files.append(copy, [files.read(handle, at, min(1024 * 1024, size - at))])
        files.sync(copy)
    finally:
        files.close(copy)
    files.sync_directory(lost.rpartition("/")[0])
    files.truncate(handle, end)
    files.sync(handle)
