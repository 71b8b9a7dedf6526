"""Recovery of one open artifact: find where what was acknowledged ends, cut the torn tail, go on from there.

Idempotent. Cuts only what no segment vouches for: never below the synced offset that a later segment was sealed with,
and never more than a writer may leave unsynced. What is cut is kept in `lost+found/`. What is left is synced before it
counts: a process that died may have written it without syncing it. Synchronous: runs in a thread.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Entry, Frame, Header, Opener, next_entry
from pipeline.crypt.contents import Head, Manifest, decode_head, decode_manifest
from pipeline.crypt.segments import DataKey, SegmentType, sealed_size
from pipeline.errors import SegmentForgedError
from pipeline.interim.reader import read_header
from pipeline.interim.states import ArtifactName
from pipeline.interim.writer import Digests, Tally
from pipeline.ports import FileSystem

_MOST_UNSYNCED = 16 * 1024 * 1024
"""A writer never leaves more than this behind its last sync."""
_MOST_DAMAGED = 64
"""Segments in a row whose lengths are damaged, past which the next whole one is still looked for."""
_TAGGED_CHUNK = 16 * 1024 + 16
_PREFIX = re.compile(rb"(?=\x00[\x00-\x10]..[\x01-\x03]\x00{3}.{5})", re.DOTALL)
"""What a segment's prefix looks like: a length of little over 1 MiB at most, a type, an offset under 1 TiB."""


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
    created: datetime
    vouched: int = 0
    """The largest synced offset that a segment names: up to there it was acknowledged, log lines included."""
    manifest: Manifest | None = None
    """The writer had finished: only the rename was missing."""


@dataclass(slots=True)
class _Opened:
    entry: Entry
    plaintext: bytes

    @property
    def end(self) -> int:
        return self.entry.end


def recover(
    files: FileSystem,
    handle: int,
    name: ArtifactName,
    key: DataKey,
    lost: str,
    see: Callable[[bytes], None] = lambda _media: None,
) -> Recovered | None:
    """Read an open artifact from the front and cut its torn tail, a copy of which goes to the path `lost`.

    All its media are shown to `see`, in order.

    Gives None if the file holds nothing that was ever acknowledged (no whole segment 0); it is left as it is.

    Raises:
        SegmentForgedError: damage below what was acknowledged; nothing was cut.

    """
    size = files.size(handle)
    if size < HEADER_SIZE + FRAME_PREFIX:
        return None
    header = files.read(handle, 0, HEADER_SIZE)
    if not _is_header(header):
        _check_beginning(files, handle, size)
        return None
    read_header(files, handle, name)
    opener = Opener(key, header)
    state = Recovered(
        head=None,  # type: ignore[arg-type]  # the first segment sets it, or None is returned
        header=header,
        end=HEADER_SIZE,
        index=0,
        digests=Digests(),
        tally=Tally(),
        created=Header.parse(header).created,
    )
    last: Entry | None = None
    for opened in _segments(files, handle, opener, size):
        last = opened.entry
        _take(state, opened, see)
    if state.end < size:
        _check_cut(files, handle, opener, last, state.end, size)
    if last is None:
        _check_beginning(files, handle, size)
        return None
    if state.end < size:
        _cut(files, handle, state.end, size, lost)
    files.sync(handle)
    return state


def renew(files: FileSystem, handle: int, path: str) -> int:
    """Copy a file whose sync failed to a new inode, as it is, and give that one's handle; `handle` is let go.

    The page cache may show what the disk never got, and a second sync of the same file would not say so.
    """
    aside = path + ".tmp"
    files.unlink(aside)
    copy = files.create(aside)
    try:
        _copy(files, handle, copy, 0, files.size(handle))
        files.sync(copy)
        files.rename(aside, path)
        files.sync_directory(path.rpartition("/")[0])
    except BaseException:
        files.close(copy)
        raise
    files.close(handle)
    return copy


def _take(state: Recovered, opened: _Opened, see: Callable[[bytes], None]) -> None:
    kind = opened.entry.frame.type
    if state.index == 0:
        if kind is not SegmentType.EVENT:
            raise SegmentForgedError("an artifact does not begin with its head")
        state.head = decode_head(opened.plaintext)
    if kind is SegmentType.MEDIA:
        state.digests.update(opened.plaintext)
        see(opened.plaintext)
    state.tally.count(kind, len(opened.plaintext))
    state.vouched = max(state.vouched, opened.entry.frame.durable)
    if kind is SegmentType.MANIFEST:
        state.manifest = decode_manifest(opened.plaintext)
    state.end = opened.end
    state.index += 1


def _is_header(raw: bytes) -> bool:
    try:
        Header.parse(raw)
    except SegmentForgedError:
        return False
    return True


def _check_beginning(files: FileSystem, handle: int, size: int) -> None:
    """Refuse to give up a file that does not even begin, if anything shows that it was acknowledged.

    Nothing in it can be authenticated, so here the offsets that stand in clear count.
    """
    entry: Entry | None = None
    at = HEADER_SIZE
    while at < size:
        try:
            entry = next_entry(entry, files.read(handle, at, FRAME_PREFIX), size)
        except SegmentForgedError:
            break
        if entry.index > 0 and entry.frame.durable > 0:
            raise SegmentForgedError("the beginning of an artifact that was acknowledged does not open")
        at = entry.end
    if size > _MOST_UNSYNCED:
        raise SegmentForgedError("more of an artifact does not open than a crash can have torn")


def _segments(files: FileSystem, handle: int, opener: Opener, size: int) -> Iterator[_Opened]:
    """Yield segments for as long as they open."""
    previous: Entry | None = None
    at = HEADER_SIZE
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
    """Refuse to cut at `end` if a segment behind it opens and says that more was synced."""
    if size - end > _MOST_UNSYNCED:
        raise SegmentForgedError("more of an artifact does not open than a crash can have torn")
    tail = files.read(handle, end, size - end)
    while (entry := _next_whole(opener, tail, end, last)) is not None:
        if entry.frame.durable > end:
            raise SegmentForgedError("a segment that was acknowledged does not open")
        last = entry


def _next_whole(opener: Opener, tail: bytes, offset: int, last: Entry | None) -> Entry | None:
    """Find the next segment behind `last` that opens, in the bytes from `offset` on."""
    after = offset if last is None else last.end
    for match in _PREFIX.finditer(tail, max(0, after - offset)):
        start = match.start()
        try:
            frame = Frame.parse(tail[start : start + FRAME_PREFIX])
        except SegmentForgedError:
            continue
        position = start + FRAME_PREFIX
        sealed = tail[position : position + frame.sealed_size]
        for index, media_offset in _places(last, offset + start - after):
            with contextlib.suppress(SegmentForgedError):
                opener.open(frame, index, media_offset, sealed)
                return Entry(frame, offset + position, index, media_offset)
    return None


def _places(last: Entry | None, gap: int) -> Iterator[tuple[int, int]]:
    """Give the index and media offset that a segment may have, `gap` bytes behind `last`.

    Provided that what is damaged between them is all events, or all media: how many there are and how long together
    tells how much they held, but for the tags of their chunks (C2SP chunked-encryption: one for each 16 KiB begun).
    """
    index, media_offset = (-1, 0) if last is None else (last.index, last.media_end)
    if gap == 0:
        yield index + 1, media_offset
    for between in range(1, _MOST_DAMAGED + 1):
        held = gap - between * (FRAME_PREFIX + sealed_size(0))
        if held < 0:
            return
        yield index + between + 1, media_offset
        for tags in range(held // _TAGGED_CHUNK + 1):
            yield index + between + 1, media_offset + held - 16 * tags


def _cut(files: FileSystem, handle: int, end: int, size: int, lost: str) -> None:
    """Keep a copy of the tail, durable, and only then cut it off."""
    copy = files.create(lost)
    try:
        _copy(files, handle, copy, end, size)
        files.sync(copy)
    except BaseException:
        files.unlink(lost)
        raise
    finally:
        files.close(copy)
    files.sync_directory(lost.rpartition("/")[0])
    files.truncate(handle, end)


def _copy(files: FileSystem, source: int, target: int, start: int, end: int) -> None:
    for at in range(start, end, 1024 * 1024):
        files.append(target, [files.read(source, at, min(1024 * 1024, end - at))])
