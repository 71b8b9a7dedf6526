"""One artifact being received: plaintext in, sealed segments on disk, acknowledged by `sync` only.

Any failed write or sync closes the writer for good, since the page cache may lie after it; what was acknowledged is
safe, and `recovery` finds it. A long body is synced while more of it comes. Small segments are sealed inline, since a
hop to a thread costs more than the cipher; large ones in a thread, together with their hashes and their write. Whatever
touches the file holds the lock, closing it included, and a sync under way is waited for before: a descriptor that was
closed may be another file's by the time it is used.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread
from awscrt import checksums

from pipeline.crypt.artifact import FRAME_PREFIX, Sealer
from pipeline.crypt.segments import SEGMENT_LIMIT, SegmentType, sealed_size
from pipeline.errors import DeferError, PipelineError, WriterClosedError
from pipeline.ids import ArtifactId
from pipeline.interim.commit import Commit, GroupCommit, Pending
from pipeline.interim.logs import LogLine
from pipeline.interim.states import ArtifactName
from pipeline.ports import Buffer, FileSystem

INLINE_LIMIT = 256 * 1024
"""Plaintext up to here is sealed on the event loop: 0.1 ms."""
_SYNC_EVERY = 4 * 1024 * 1024
"""Bytes after which a writer syncs by itself. Twice as many may be unsynced; recovery counts on at most 16 MiB."""
_SMALL = 16 * 1024
"""Pieces below this are joined while they wait: many tiny ones would take far more memory than their bytes."""
_OUT_SIZE = FRAME_PREFIX + sealed_size(SEGMENT_LIMIT)


class Digests:
    """SHA-256 and CRC64NVME of the bytes so far."""

    __slots__ = ("_sha256", "crc64nvme", "size_bytes")

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.crc64nvme = 0
        self.size_bytes = 0

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        self._sha256.update(data)
        self.crc64nvme = checksums.crc64nvme(data, self.crc64nvme)
        self.size_bytes += len(data)

    @property
    def sha256(self) -> str:
        """Hex digits."""
        return self._sha256.hexdigest()


@dataclass(slots=True)
class Tally:
    """Segments written so far, the head among the events."""

    media_segments: int = 0
    event_segments: int = 0
    event_bytes: int = 0

    def count(self, kind: SegmentType, size_bytes: int) -> None:
        """Take note of one."""
        if kind is SegmentType.MEDIA:
            self.media_segments += 1
        elif kind is SegmentType.EVENT:
            self.event_segments += 1
            self.event_bytes += size_bytes


class OutBuffers:
    """Reused buffers for sealed segments: fresh ones cost more page faults than the cipher costs time."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def lease(self) -> bytearray:
        """Take one; give it back with `release`."""
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(_OUT_SIZE)

    def release(self, buffer: bytearray) -> None:
        """Let it be used again."""
        if len(self._free) < 4:
            self._free.append(buffer)


@dataclass(frozen=True, slots=True)
class _Behind:
    """A sync under way, and how far the file and the media will be durable with it."""

    pending: Pending
    lines: tuple[LogLine, ...]
    end: int
    taken: int


class ArtifactWriter:
    """Appends to one open artifact.

    `size_bytes` is what was taken, `durable_bytes` what may be acknowledged (both plaintext media). `lines` are log
    lines that go to disk with the next sync.
    """

    def __init__(
        self,
        *,
        name: ArtifactName,
        path: str,
        handle: int,
        end: int,
        synced: int,
        sealer: Sealer,
        digests: Digests,
        tally: Tally,
        files: FileSystem,
        commits: GroupCommit,
        buffers: OutBuffers,
        admit: Callable[[int], None],
        on_failure: Callable[[ArtifactId], None],
    ) -> None:
        self.name = name
        self.path = path
        self.handle = handle
        self.digests = digests
        self.tally = tally
        self.durable_bytes = digests.size_bytes
        self.lines: list[LogLine] = []
        self._end = end
        self._synced = synced
        self._sealer = sealer
        self._files = files
        self._commits = commits
        self._buffers = buffers
        self._admit = admit
        self._on_failure = on_failure
        self._taken_bytes = digests.size_bytes
        self._waiting: deque[bytearray | memoryview] = deque()
        self._waiting_bytes = 0
        self._behind: _Behind | None = None
        self._concluded = False
        self._broken = False
        self._lock = anyio.Lock(fast_acquire=True)

    @property
    def size_bytes(self) -> int:
        """Media taken so far."""
        return self._taken_bytes

    @property
    def end(self) -> int:
        """Length of the file: up to here everything is whole segments."""
        return self._end

    @property
    def is_dirty(self) -> bool:
        """Something was taken that is not durable yet."""
        return self._waiting_bytes > 0 or self._end > self._synced

    @property
    def is_concluded(self) -> bool:
        """No more media is taken."""
        return self._concluded

    @property
    def is_broken(self) -> bool:
        """A write or sync failed: nothing more can be written through this object."""
        return self._broken

    async def append(self, chunk: bytes) -> None:
        """Take media. Durable only after `sync`; seals and writes whole segments as they fill.

        Raises:
            StoreFullError, VolumeFailedError: see `Room.check`; the chunk is not taken, what was can still be synced.
            WriterClosedError, StoreIoError: ask for the offset and go on from there.

        """
        self._check_open()
        self._admit(len(chunk))
        self._wait_with(chunk)
        if self._waiting_bytes < SEGMENT_LIMIT:
            return
        async with self._lock:
            self._check_open()
            while self._waiting_bytes >= SEGMENT_LIMIT:
                await self._write_media(SEGMENT_LIMIT)
                if self._end - (self._behind.end if self._behind else self._synced) >= _SYNC_EVERY:
                    await self._caught_up()
                    self._behind = self._sync_begun()

    async def append_records(self, kind: SegmentType, records: Sequence[bytes]) -> None:
        """Write each of `records` as a segment of its own, behind the media taken so far."""
        async with self._lock:
            self._check()
            await self._flush()
            try:
                self._seal_records(kind, records)
            except BaseException:  # also of memory: what was counted is not what was written
                await self._fail()
                raise

    async def sync(self) -> None:
        """Make all that was taken durable. Only now may its source be told so."""
        async with self._lock:
            self._check()
            await self._flush()
            await self._caught_up()
            if self._end > self._synced or self.lines:
                self._behind = self._sync_begun()
                await self._caught_up()

    async def conclude(self) -> None:
        """Write all that was taken, without making it durable; no more media is taken from then on."""
        async with self._lock:
            self._check()
            self._concluded = True
            await self._flush()

    async def finish(self, lines: Sequence[LogLine], rename: tuple[str, str]) -> None:
        """Make all that was written durable, and its new name with it; the file is let go, whatever happens."""
        try:
            async with self._lock:
                self._check()
                await self._caught_up()
                every = (*self._take_lines(), *lines)
                try:
                    await self._commits.commit(Commit(handles=(self.handle,), lines=every, renames=(rename,)))
                except DeferError:
                    self._untold(every)
                    await self._fail()
                    raise
        finally:
            await self.close()

    async def close(self) -> None:
        """Let the file go. What was not synced may be lost, and was never acknowledged."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                await self._close()

    # --- under the lock

    async def _close(self) -> None:
        if self._broken:
            return
        self._broken = True
        if self._behind is not None:  # it uses the descriptor
            try:
                await self._behind.pending.wait()
            except PipelineError:
                self._untold(self._behind.lines)
        self._files.close(self.handle)

    async def _fail(self) -> None:
        """Close, and let it be known that what was not synced may never be, although it can be read."""
        self._on_failure(self.name.artifact_id)
        await self._close()

    def _take_lines(self) -> tuple[LogLine, ...]:
        lines, self.lines = tuple(self.lines), []
        return lines

    def _untold(self, lines: Sequence[LogLine]) -> None:
        """Keep lines that may not be on the disk, for whoever goes on with this recording; told twice is harmless."""
        self.lines[:0] = lines

    def _check_open(self) -> None:
        self._check()
        if self._concluded:
            raise WriterClosedError("this recording is being sealed; send what is left under the same source id")

    def _check(self) -> None:
        if self._broken:
            raise WriterClosedError("this upload was broken off here; ask for its offset and go on from there")

    async def _flush(self) -> None:
        while self._waiting_bytes:
            await self._write_media(min(self._waiting_bytes, SEGMENT_LIMIT))

    def _sync_begun(self) -> _Behind:
        directories = () if self._synced else (self.path.rpartition("/")[0],)
        lines = self._take_lines()
        commit = Commit(handles=(self.handle,), directories=directories, lines=lines)
        return _Behind(self._commits.submit(commit), lines, self._end, self.digests.size_bytes)

    async def _caught_up(self) -> None:
        """Wait for the sync that is under way, if one is."""
        behind = self._behind
        if behind is None:
            return
        try:
            await behind.pending.wait()
        except DeferError:
            await self._fail()
            raise
        self._behind = None
        self._synced, self.durable_bytes = behind.end, behind.taken

    async def _write_media(self, size_bytes: int) -> None:
        parts = self._take(size_bytes)
        try:
            if size_bytes <= INLINE_LIMIT:
                self._seal_media(parts)
            else:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._seal_media, parts)
        except BaseException:  # as above
            await self._fail()
            raise
        self._waiting_bytes -= size_bytes

    def _seal_records(self, kind: SegmentType, records: Sequence[bytes]) -> None:
        sealed = []
        for record in records:
            segment = self._sealer.seal(kind, record, self._synced)
            self._end += len(segment)
            self.tally.count(kind, len(record))
            sealed.append(segment)
        self._files.append(self.handle, sealed)

    def _seal_media(self, parts: list[memoryview]) -> None:
        for part in parts:
            self.digests.update(part)
        out = self._buffers.lease()
        try:
            size = self._sealer.seal_into(SegmentType.MEDIA, parts, self._synced, memoryview(out))
            self._end += size
            self.tally.count(SegmentType.MEDIA, 0)
            self._files.append(self.handle, [memoryview(out)[:size]])
        finally:
            self._buffers.release(out)

    def _wait_with(self, chunk: bytes) -> None:
        self._taken_bytes += len(chunk)
        self._waiting_bytes += len(chunk)
        last = self._waiting[-1] if self._waiting else None
        if len(chunk) >= _SMALL:
            self._waiting.append(memoryview(chunk))
        elif isinstance(last, bytearray) and len(last) < _SMALL:
            last += chunk
        else:
            self._waiting.append(bytearray(chunk))

    def _take(self, size_bytes: int) -> list[memoryview]:
        """Take exactly that many waiting bytes, in order."""
        parts, wanted = [], size_bytes
        while wanted:
            part = memoryview(self._waiting.popleft())
            if len(part) > wanted:
                self._waiting.appendleft(part[wanted:])
                part = part[:wanted]
            parts.append(part)
            wanted -= len(part)
        return parts
