"""The journal: incoming events, sealed and durable before they are acknowledged, read again at start.

One file per instance, UTC day, data key and run of the service, in the artifact format (kind `journal`):
`journal/<instance>/<day>/<artifact>.<data key>.journal`. A run never appends to an earlier run's file, so a torn tail
is simply where that file ends.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

import anyio
import anyio.to_thread
import msgspec
import structlog

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Entry, Header, Opener, Sealer, next_entry
from pipeline.crypt.contents import Record, decode_records, encode_records
from pipeline.crypt.segments import SEGMENT_LIMIT, DataKey, SegmentType
from pipeline.errors import HoldCode, KeyUnavailableError, PipelineError, SegmentForgedError, StoreIoError
from pipeline.ids import InstanceId, KeyId, Kind, new_artifact_id
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import LogLine
from pipeline.interim.reseal import reseal
from pipeline.ports import Clock, FileSystem
from pipeline.smallfiles import UNFINISHED, remove
from pipeline.tenants import Tenant

log = structlog.get_logger()

EVENT = "event"
"""Type of a journal record."""
REPLAYED_DAYS = 2
"""Before the newest day that there is. Contacts last hours; older files are kept for people, not for the service."""
_NAME = re.compile(r"[0-9a-f]{32}\.([0-9a-f]{32})\.journal")


class JournalEntry(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One event as it came, and the id that was given to the recording it announced."""

    event: msgspec.Raw
    recording_id: str | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """A journal entry as it is read again."""

    entry: JournalEntry
    arrived: datetime | None
    """When it was taken."""
    vouched: bool
    """It was acknowledged, with the log lines that it caused: something was written when it was known to be durable."""


@dataclass(slots=True)
class _OpenFile:
    handle: int
    directory: str
    day: date
    key_id: KeyId
    sealer: Sealer
    end: int = HEADER_SIZE
    durable: int = 0
    """As far as it was acknowledged."""
    broken: bool = False
    users: int = 0
    """Commits under way: until the last is done, the handle must not become another file's."""


class Journal:
    """Every instance's journal."""

    def __init__(self, root: str, files: FileSystem, commits: GroupCommit, clock: Clock) -> None:
        self._root = root
        self._files = files
        self._commits = commits
        self._clock = clock
        self._open: dict[InstanceId, _OpenFile] = {}

    async def append(self, tenant: Tenant, entries: Sequence[JournalEntry], lines: Sequence[LogLine]) -> None:
        """Make events durable, together with the log lines that they cause.

        Raises:
            StoreFullError, StoreIoError, KeyUnavailableError, KeyBusyError: nothing was acknowledged; send it again.

        """
        key = await tenant.ring.active()
        instance_id = tenant.instance.instance_id
        file = self._file(instance_id, key)
        file.users += 1
        try:
            for batch in _batches(entries, self._clock):
                segment = file.sealer.seal(SegmentType.EVENT, batch, file.durable)
                self._files.append(file.handle, [segment])
                file.end += len(segment)
            end = file.end
            directories = () if file.durable else (file.directory,)
            await self._commits.commit(Commit(handles=(file.handle,), directories=directories, lines=tuple(lines)))
            if file.broken:
                # Another sync of this file failed first: that this one did not proves nothing.
                raise StoreIoError("the disk refused a sync; send the events again")  # noqa: TRY301
        except BaseException:
            # What came after a failed write could not be read back: the next event begins a new file.
            file.broken = True
            if self._open.get(instance_id) is file:
                del self._open[instance_id]
            raise
        finally:
            file.users -= 1
            self._close_unused(instance_id, file)
        file.durable = max(file.durable, end)

    async def replay(self, tenant: Tenant) -> AsyncIterator[Replayed]:
        """Give the events of the last days, oldest file first; a file that is damaged gives what precedes the damage.

        Raises:
            KeyUnavailableError, KeyBusyError: they can't be opened now.

        """
        folder = f"{self._root}/{tenant.instance.instance_id}"
        for day in await anyio.to_thread.run_sync(self._last_days, folder):
            directory = f"{folder}/{day}"
            for name in sorted(await anyio.to_thread.run_sync(self._files.names, directory)):
                match = _NAME.fullmatch(name)
                key = await self._key(tenant, KeyId(UUID(hex=match[1]))) if match else None
                if key is None:
                    continue
                with contextlib.closing(self._read(f"{directory}/{name}", tenant, key)) as segments:
                    while (segment := await anyio.to_thread.run_sync(next, segments, None)) is not None:
                        records, vouched = segment
                        for record in records:
                            replayed = _replayed(record, vouched=vouched)
                            if replayed is not None:
                                yield replayed

    def sweep(self, instance_id: InstanceId, oldest: date) -> int:
        """Remove the files of days before `oldest`; give their number."""
        removed = 0
        folder = f"{self._root}/{instance_id}"
        for text in self._files.names(folder):
            day = _day(text)
            if day is None or day >= oldest:
                continue
            for name in self._files.names(f"{folder}/{text}"):
                if _NAME.fullmatch(name.removesuffix(UNFINISHED)):
                    self._files.unlink(f"{folder}/{text}/{name}")
                    removed += 1
        return removed

    def under(self, instance_id: InstanceId, key_id: KeyId) -> list[str]:
        """List the files that are sealed under a data key. Raises `StoreIoError`."""
        folder = f"{self._root}/{instance_id}"
        return [
            f"{folder}/{day}/{name}"
            for day in sorted(self._files.names(folder))
            for name in sorted(self._files.names(f"{folder}/{day}"))
            if (match := _NAME.fullmatch(name)) is not None and match[1] == key_id.hex
        ]

    def let_go(self, instance_id: InstanceId, key_id: KeyId) -> bool:
        """Write no more to the file that is sealed under a data key; False while it is being written to."""
        file = self._open.get(instance_id)
        if file is None or file.key_id != key_id:
            return True
        self._forget(instance_id)
        return file.users == 0

    async def give_key(self, path: str, old: DataKey, new: DataKey, line: LogLine) -> None:
        """Seal a file again under another data key; a copy takes its place. Read twice, its events are the same.

        A torn end, which was never acknowledged, is left out.

        Raises:
            SegmentForgedError: what was acknowledged does not open; it stays as it is.
            StoreFullError, StoreIoError: come back later.
            FileNotFoundError: it is gone.

        """
        place = path.replace(f".{old.key_id.hex}.", f".{new.key_id.hex}.")
        aside = f"{place}{UNFINISHED}"
        with anyio.CancelScope(shield=True):
            if await anyio.to_thread.run_sync(self._size, path) > HEADER_SIZE:
                found = await anyio.to_thread.run_sync(reseal, self._files, path, aside, old, new)
                if found.acknowledged > found.end:
                    self._files.unlink(aside)
                    raise SegmentForgedError("a file of the journal does not open as far as it was acknowledged")
                await self._commits.commit(Commit(lines=(line,), renames=((aside, place),)))
            await anyio.to_thread.run_sync(remove, self._files, path)

    def end_file(self, instance_id: InstanceId) -> bool:
        """Write no more to an instance's file: its next event begins a new one. False while it is being written to."""
        file = self._open.get(instance_id)
        self._forget(instance_id)
        return file is None or file.users == 0

    def close(self) -> None:
        """Let all files go."""
        for instance_id in list(self._open):
            self._forget(instance_id)

    # --- inside

    def _file(self, instance_id: InstanceId, key: DataKey) -> _OpenFile:
        now = self._clock.now()
        file = self._open.get(instance_id)
        if file is not None and (file.day, file.key_id) == (now.date(), key.key_id):
            return file
        self._forget(instance_id)
        artifact_id = new_artifact_id(now)
        header = Header(Kind.JOURNAL, instance_id, artifact_id, key.key_id, now).pack()
        directory = f"{self._root}/{instance_id}/{now.date()}"
        self._files.make_directory(directory)
        handle = self._files.create(f"{directory}/{artifact_id.hex}.{key.key_id.hex}.journal")
        try:
            self._files.append(handle, [header])
        except PipelineError:
            self._files.close(handle)
            raise
        file = self._open[instance_id] = _OpenFile(handle, directory, now.date(), key.key_id, Sealer(key, header))
        return file

    def _forget(self, instance_id: InstanceId) -> None:
        file = self._open.pop(instance_id, None)
        if file is not None:
            self._close_unused(instance_id, file)

    def _close_unused(self, instance_id: InstanceId, file: _OpenFile) -> None:
        if file.users == 0 and self._open.get(instance_id) is not file:
            self._files.close(file.handle)

    async def _key(self, tenant: Tenant, key_id: KeyId) -> DataKey | None:
        """Give the key of a file; None if it will not be had by waiting."""
        try:
            return await tenant.ring.opening(key_id)
        except SegmentForgedError:
            return None
        except KeyUnavailableError as error:
            if error.code is not HoldCode.KEY_MISMATCH:
                raise
            return None

    def _last_days(self, folder: str) -> list[str]:
        """Name the days to read: counted from the newest, or from today if that is earlier, as after a clock's jump."""
        days = sorted(day for text in self._files.names(folder) if (day := _day(text)) is not None)
        if not days:
            return []
        first = min(days[-1], self._clock.now().date()) - timedelta(days=REPLAYED_DAYS)
        return [str(day) for day in days if day >= first]

    def _size(self, path: str) -> int:
        handle = self._files.open(path)
        try:
            return self._files.size(handle)
        finally:
            self._files.close(handle)

    def _read(self, path: str, tenant: Tenant, key: DataKey) -> Generator[tuple[list[Record], bool]]:
        """Give a file's records, segment by segment, as far as they can be read; and whether they are vouched for."""
        try:
            handle = self._files.open(path)
        except (FileNotFoundError, StoreIoError):
            return
        try:
            raw = self._files.read(handle, 0, HEADER_SIZE)
            header = Header.parse(raw)
            if (header.kind, header.instance_id) == (Kind.JOURNAL, tenant.instance.instance_id):
                yield from self._records(handle, Opener(key, raw))
            else:
                log.warning("journal.foreign", file=path.rpartition("/")[2])
        except (SegmentForgedError, StoreIoError) as error:
            # A torn tail is how a crash leaves a file; whatever it is, what precedes it counts.
            log.warning("journal.ends_early", file=path.rpartition("/")[2], reason=error.reason, detail=str(error))
        finally:
            self._files.close(handle)

    def _records(self, handle: int, opener: Opener) -> Iterator[tuple[list[Record], bool]]:
        vouched = 0
        with contextlib.suppress(SegmentForgedError):  # of a torn tail
            for entry in self._entries(handle):
                vouched = entry.frame.durable
        for entry in self._entries(handle):
            sealed = self._files.read(handle, entry.position, entry.frame.sealed_size)
            records = decode_records(opener.open(entry.frame, entry.index, entry.media_offset, sealed))
            yield records, entry.end <= vouched

    def _entries(self, handle: int) -> Iterator[Entry]:
        """Give where segments lie, as far as that can be read."""
        size, at = self._files.size(handle), HEADER_SIZE
        entry: Entry | None = None
        while at < size:
            entry = next_entry(entry, self._files.read(handle, at, FRAME_PREFIX), size)
            yield entry
            at = entry.end


def _day(text: str) -> date | None:
    """Read a folder's name; None if it is none of ours."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if str(day) == text else None


def _replayed(record: Record, *, vouched: bool) -> Replayed | None:
    """Read one record; None for what a newer version may have written beside the events."""
    if record.type != EVENT:
        return None
    try:
        return Replayed(msgspec.json.decode(record.data, type=JournalEntry), record.arrived, vouched)
    except msgspec.ValidationError:
        log.warning("journal.not_replayed", reason="not an event of this version")
        return None


def _batches(entries: Sequence[JournalEntry], clock: Clock) -> list[bytes]:
    """Encode entries so that each batch fits into a segment."""
    arrived = clock.now()
    records = [Record(EVENT, msgspec.Raw(msgspec.json.encode(entry)), arrived) for entry in entries]
    whole = encode_records(records)
    if len(whole) <= SEGMENT_LIMIT:
        return [whole]
    return [encode_records([record]) for record in records]
