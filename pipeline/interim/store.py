"""The interim store: its folders, the scan at start, and every move of an artifact.

Files are the truth; there is no database. `artifacts/<shard>/` holds what waits, `lost+found/` what was cut or is not
ours. A move is durable when its call returns, with the log lines handed to it synced before it. Nothing here opens a
segment.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import anyio.to_thread
import msgspec

from pipeline.crypt.artifact import HEADER_SIZE, Header, Sealer
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import HaltError, PipelineError, SegmentForgedError, StoreFullError, StoreIoError
from pipeline.ids import ArtifactId
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.index import Index
from pipeline.interim.logs import LogLine
from pipeline.interim.reader import ArtifactReader
from pipeline.interim.recovery import Recovered, recover, renew
from pipeline.interim.states import ArtifactName, State, parse_name
from pipeline.interim.writer import ArtifactWriter, Digests, OutBuffers, Tally
from pipeline.ports import FileSystem

FORMAT_VERSION = 1
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError)
_PER_ARTIFACT = 8 * 1024
"""Room kept for each undelivered artifact's receipt, events and audit records."""
_SHARDS = [f"{number:02x}" for number in range(256)]
_ROOM_CHECKED_EVERY = 64
"""Artifacts begun between two questions for the free room."""


class _Marker(msgspec.Struct, frozen=True, rename="camel"):
    """`store.json`: which store this is."""

    store_id: str
    format_version: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """What the scan at start found besides good names."""

    moved_aside: int
    finished: int
    """Media whose receipt was durable already, removed now."""


class InterimStore:
    """One store, held by one process (the caller holds its lock)."""

    def __init__(self, root: str, files: FileSystem, commits: GroupCommit, *, free_bytes: int) -> None:
        self.root = root
        self.index = Index()
        self._files = files
        self._commits = commits
        self._buffers = OutBuffers()
        self._free_bytes = free_bytes
        self._until_room_check = 0
        self._unsure: set[ArtifactId] = set()
        """Open artifacts whose last sync failed: what can be read of them may not be on the disk."""

    # --- start

    def open(self, expected_store_id: str | None) -> str:
        """Make the folders, check the marker, give back the store's id.

        Raises:
            HaltError: another format version, or another or an empty store where a known one should be.

        """
        marker = self._marker()
        if marker is None:
            if expected_store_id is not None:
                raise HaltError(
                    "the interim store is empty, but the configuration knows a store: is its volume mounted? "
                    "Nothing was changed. To begin a new store, remove the file store-id beside the configuration"
                )
            marker = _Marker(store_id=secrets.token_hex(16), format_version=FORMAT_VERSION)
            self._write_marker(marker)
        elif marker.format_version != FORMAT_VERSION:
            raise HaltError(
                f"this store has format version {marker.format_version}; this program reads {FORMAT_VERSION}"
            )
        elif expected_store_id not in {None, marker.store_id}:
            raise HaltError("this interim store is not the one the configuration knows; nothing was changed")
        for shard in _SHARDS:
            self._files.make_directory(f"{self.root}/artifacts/{shard}")
        self._files.make_directory(self.lost)
        # Also of folders that were there: the process that made them may have died before it did this.
        self._files.sync_directory(f"{self.root}/artifacts")
        self._files.sync_directory(self.root)
        return marker.store_id

    def scan(self) -> Scanned:
        """Read all names into the index, and end what a crash left half done. Opens no artifact."""
        moved = finished = 0
        for shard in _SHARDS:
            names, strangers = self._listed(shard)
            for text in strangers:
                self._aside(shard, text)
            receipts = {name.artifact_id: name for name in names if name.standing is State.DELIVERED}
            moved += len(strangers)
            for name in names:
                receipt = receipts.get(name.artifact_id)
                if name.standing is State.SEALED and receipt is not None:
                    if self._receipt_agrees(receipt, name):
                        self._files.unlink(self.path(name))
                        finished += 1
                        continue
                    self._aside(shard, str(receipts.pop(name.artifact_id)))
                    moved += 1
            for name in names:
                is_gone = name.standing is State.SEALED and name.artifact_id in receipts
                is_aside = name.standing is State.DELIVERED and name.artifact_id not in receipts
                if not is_gone and not is_aside:
                    self.index.put(name)
        return Scanned(moved, finished)

    @property
    def lost(self) -> str:
        """Folder of what was cut or is not ours."""
        return f"{self.root}/lost+found"

    def path(self, name: ArtifactName) -> str:
        """Where an artifact of that name lies."""
        return f"{self.root}/artifacts/{name.path}"

    # --- writing

    def create(self, name: ArtifactName, key: DataKey, created: datetime, head: bytes) -> ArtifactWriter:
        """Begin an artifact: header and segment 0 are written, nothing is durable yet.

        Raises:
            StoreFullError: the room kept for what is already held would be touched.
            StoreIoError: the disk refuses.

        """
        if self._until_room_check > 0:
            self._until_room_check -= 1
        else:
            self.check_room()
            self._until_room_check = _ROOM_CHECKED_EVERY
        header = Header(name.kind, name.instance_id, name.artifact_id, name.key_id, created).pack()
        sealer = Sealer(key, header)
        segment = sealer.seal(SegmentType.EVENT, head, 0)
        tally = Tally()
        tally.count(SegmentType.EVENT, len(head))
        with _present():
            handle = self._files.create(self.path(name))
        try:
            self._files.append(handle, [header, segment])
        except PipelineError:
            self._files.close(handle)
            self._files.unlink(self.path(name))
            raise
        self.index.put(name)
        return self._writer(name, handle, sealer, Digests(), tally, end=HEADER_SIZE + len(segment), synced=0)

    async def recover(self, name: ArtifactName, key: DataKey) -> tuple[ArtifactWriter, Recovered] | None:
        """Open an artifact again that a crash or a failed write left: see `interim.recovery`.

        Gives None if it held nothing that was ever acknowledged; what there is of it is then in `lost+found/`.

        Raises:
            SegmentForgedError: damage below what was acknowledged; nothing was changed.
            StoreFullError, StoreIoError: come back later.

        """
        with anyio.CancelScope(shield=True):  # a file that nobody holds would never be closed
            handle, found = await anyio.to_thread.run_sync(self._reopened, name, key)
        if found is None:
            self._files.close(handle)
            lost = f"{self.lost}/{secrets.token_hex(4)}.{name}"
            await self._commits.commit(Commit(renames=((self.path(name), lost),)))
            self.index.remove(name.artifact_id)
            return None
        sealer = Sealer(key, found.header, index=found.index, media_offset=found.digests.size_bytes)
        return self._writer(name, handle, sealer, found.digests, found.tally, end=found.end, synced=found.end), found

    def check_room(self) -> None:
        """Refuse new artifacts, and more of those that are open, before the disk is full.

        Raises:
            StoreFullError: less is free than what is held will need for its receipts, events and audit records.

        """
        undelivered = len(self.index) - self.index.count(State.DELIVERED)
        needed = self._free_bytes + undelivered * _PER_ARTIFACT
        with _present():
            free = self._files.free_bytes(self.root)
        if free < needed:
            raise StoreFullError("the interim store has no room for more; what it holds is safe and being delivered")

    # --- moves

    async def seal(self, writer: ArtifactWriter, target: ArtifactName, lines: Sequence[LogLine]) -> None:
        """Sync a finished artifact and give it its sealed name. Its manifest must have been written.

        The writer is closed, whatever happens.
        """
        await writer.finish(lines, (self.path(writer.name), self.path(target)))
        self.index.put(target)

    async def settle(
        self, name: ArtifactName, receipt: bytes, lines: Sequence[LogLine], volumes: tuple[str, ...]
    ) -> ArtifactName:
        """Write the receipt beside the media, and only when it is durable remove the media."""
        target = name.delivered()
        await self._commits.commit(
            Commit(
                volumes=volumes,
                files=((self.path(target), receipt),),
                lines=tuple(lines),
                unlinks=(self.path(name),),
            )
        )
        self.index.put(target)
        return target

    async def reject(self, name: ArtifactName, code: str, lines: Sequence[LogLine]) -> ArtifactName:
        """Keep the bytes under a name that asks for a person."""
        target = name.rejected(code)
        await self._commits.commit(
            Commit(lines=tuple(lines), renames=((self.path(name), self.path(target)),)),
        )
        self.index.put(target)
        return target

    async def drop(self, name: ArtifactName, lines: Sequence[LogLine]) -> None:
        """Remove an artifact whose bytes are held under another name, or that holds none.

        Under a name that the scan removes, before it goes: a power cut must not bring it back.
        """
        path, gone = self.path(name), f"{self.path(name)}.tmp"
        await self._commits.commit(Commit(lines=tuple(lines), renames=((path, gone),), unlinks=(gone,)))
        self.index.remove(name.artifact_id)

    async def fold(self, name: ArtifactName, receipt: bytes, log: str) -> None:
        """Move an old receipt into the instance's receipt log."""
        await self._commits.commit(Commit(lines=(LogLine(log, receipt),), unlinks=(self.path(name),)))
        self.index.remove(name.artifact_id)

    async def moves_done(self) -> None:
        """Wait until every move that is under way is in the index."""
        await self._commits.commit(Commit())

    @contextmanager
    def reading(self, name: ArtifactName, key: DataKey, *, limit: int | None = None) -> Iterator[ArtifactReader]:
        """Open an artifact for reading, up to file offset `limit`.

        Raises:
            SegmentForgedError: its header and name disagree, or its segments don't fit together.

        """
        with _present():
            handle = self._files.open(self.path(name))
        try:
            yield ArtifactReader(self._files, handle, name, key, limit=limit)
        finally:
            self._files.close(handle)

    def receipt(self, name: ArtifactName) -> bytes:
        """Read a delivered artifact's receipt."""
        with _present():
            handle = self._files.open(self.path(name))
        try:
            return self._files.read(handle, 0, self._files.size(handle))
        finally:
            self._files.close(handle)

    # --- inside

    def _writer(
        self, name: ArtifactName, handle: int, sealer: Sealer, digests: Digests, tally: Tally, *, end: int, synced: int
    ) -> ArtifactWriter:
        return ArtifactWriter(
            name=name,
            path=self.path(name),
            handle=handle,
            end=end,
            synced=synced,
            sealer=sealer,
            digests=digests,
            tally=tally,
            files=self._files,
            commits=self._commits,
            buffers=self._buffers,
            check_room=self.check_room,
            on_failure=self._unsure.add,
        )

    def _reopened(self, name: ArtifactName, key: DataKey) -> tuple[int, Recovered | None]:
        path = self.path(name)
        with _present():
            handle = self._files.open(path, write=True)
        try:
            if name.artifact_id in self._unsure:
                handle = renew(self._files, handle, path)
            # Unsure again until the sync that recovery ends with.
            self._unsure.add(name.artifact_id)
            found = recover(self._files, handle, name, key, f"{self.lost}/{secrets.token_hex(4)}.{name}.tail")
            self._unsure.discard(name.artifact_id)
        except SegmentForgedError:
            self._unsure.discard(name.artifact_id)
            self._files.close(handle)
            raise
        except BaseException:
            self._files.close(handle)
            raise
        return handle, found

    def _marker(self) -> _Marker | None:
        try:
            handle = self._files.open(f"{self.root}/store.json")
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(self._files.read(handle, 0, 4096), type=_Marker)
        except _UNREADABLE as error:
            raise HaltError("store.json is damaged; restore it from a backup") from error
        finally:
            self._files.close(handle)

    def _write_marker(self, marker: _Marker) -> None:
        self._files.make_directory(self.root)
        aside = f"{self.root}/store.json.tmp"
        self._files.unlink(aside)
        handle = self._files.create(aside)
        try:
            self._files.append(handle, [msgspec.json.encode(marker)])
            self._files.sync(handle)
        finally:
            self._files.close(handle)
        self._files.rename(aside, f"{self.root}/store.json")
        self._files.sync_directory(self.root)

    def _listed(self, shard: str) -> tuple[list[ArtifactName], list[str]]:
        """Give the artifacts of a shard, and the names of what is not ours; what was being written aside is removed."""
        names: list[ArtifactName] = []
        strangers: list[str] = []
        for text in self._files.names(f"{self.root}/artifacts/{shard}"):
            name = _name_in(shard, text.removesuffix(".tmp"))
            if name is None:
                strangers.append(text)
            elif not text.endswith(".tmp"):
                names.append(name)
            else:
                self._files.unlink(f"{self.root}/artifacts/{shard}/{text}")
        return names, strangers

    def _aside(self, shard: str, text: str) -> None:
        """Keep what is not ours, out of the way."""
        safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in text)
        safe = safe[:200]
        self._files.rename(f"{self.root}/artifacts/{shard}/{text}", f"{self.lost}/{secrets.token_hex(4)}.{safe}")

    def _receipt_agrees(self, receipt: ArtifactName, sealed: ArtifactName) -> bool:
        """Tell whether a receipt found beside media is that media's."""
        try:
            said = msgspec.json.decode(self.receipt(receipt), type=_ReceiptClaim)
        except (*_UNREADABLE, StoreIoError):
            return False
        return (said.artifact_id, said.generation, said.size_bytes) == (
            sealed.artifact_id,
            sealed.generation,
            sealed.size_bytes,
        )


class _ReceiptClaim(msgspec.Struct, frozen=True, rename="camel"):
    """As much of a receipt as the scan needs."""

    artifact_id: UUID
    generation: int
    size_bytes: int


def _name_in(shard: str, text: str) -> ArtifactName | None:
    try:
        name = parse_name(text)
    except SegmentForgedError:
        return None
    return name if name.shard == shard else None


@contextmanager
def _present() -> Iterator[None]:
    """Take a file or folder that is not there for trouble with the disk: names are only ever changed here."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreIoError("a file of the store is not where its name says") from error
