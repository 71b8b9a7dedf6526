"""The interim store: its folders, the scan at start, and every move of an artifact.

Files are the truth; there is no database. `artifacts/<shard>/` holds what waits, `lost+found/` what was cut or is not
ours. A move is durable when its call returns, with the log lines handed to it synced before it. Nothing here opens a
segment.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import msgspec

from pipeline.crypt.artifact import HEADER_SIZE, Header, Sealer
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import DeferError, HaltError, PipelineError, SegmentForgedError, StoreIoError
from pipeline.ids import ArtifactId, InstanceId
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.index import Index
from pipeline.interim.logs import LogLine
from pipeline.interim.marker import FORMAT_VERSION, Marker, read_marker, write_marker
from pipeline.interim.migration import OLDEST, migrate
from pipeline.interim.poison import moved
from pipeline.interim.reader import ArtifactReader
from pipeline.interim.recovery import Recovered, recover, renew
from pipeline.interim.reseal import Resealed, reseal
from pipeline.interim.room import QuotaOf, Room, unlimited
from pipeline.interim.scan import Scan, Scanned
from pipeline.interim.states import SHARDS, ArtifactName, State
from pipeline.interim.volume import Volume
from pipeline.interim.writer import ArtifactWriter, Digests, OutBuffers, Tally
from pipeline.ports import FileSystem


class InterimStore:
    """One store, held by one process (the caller holds its lock)."""

    def __init__(
        self,
        root: str,
        files: FileSystem,
        commits: GroupCommit,
        *,
        free_bytes: int,
        volume: Volume | None = None,
        quota_of: QuotaOf = unlimited,
    ) -> None:
        """Without a `volume` nothing watches how the disk answers, and there is no ballast: for looking only."""
        self.root = root
        self.index = Index()
        self.room = Room(root, files, self.index, free_bytes=free_bytes, volume=volume, quota_of=quota_of)
        self._files = files
        self._commits = commits
        self._buffers = OutBuffers()
        self._volume = volume
        self._claims: WeakValueDictionary[ArtifactId, anyio.Lock] = WeakValueDictionary()
        self._unsure: set[ArtifactId] = set()
        """Open artifacts whose last sync failed: what can be read of them may not be on the disk."""

    # --- start

    def open(self, expected_store_id: str | None) -> str:
        """Make the folders, check the marker, give back the store's id.

        Raises:
            HaltError: another format version, or another or an empty store where a known one should be; or the disk
                refuses.

        """
        try:
            return self._opened(expected_store_id)
        except DeferError as error:
            raise HaltError(f"the store can't be opened: {error}. Mend its volume and start again") from error

    def _opened(self, expected_store_id: str | None) -> str:
        marker = read_marker(self._files, self.root)
        if marker is None:
            if expected_store_id is not None:
                raise HaltError(
                    "the interim store is empty, but the configuration knows a store: is its volume mounted? "
                    "Nothing was changed. To begin a new store, remove the file store-id beside the configuration"
                )
            marker = Marker(store_id=secrets.token_hex(16), format_version=FORMAT_VERSION)
            write_marker(self._files, self.root, marker)
        elif not OLDEST <= marker.format_version <= FORMAT_VERSION:
            raise HaltError(
                f"this store has format version {marker.format_version}; this program reads {OLDEST} to"
                f" {FORMAT_VERSION}. Nothing was changed: use the program that wrote it, or a newer one"
            )
        elif expected_store_id not in {None, marker.store_id}:
            raise HaltError("this interim store is not the one the configuration knows; nothing was changed")
        # A process that was killed may have left names and folders that are not durable; what is built upon them is
        # lost with them.
        self._files.sync_volume(self.root)
        for shard in SHARDS:
            self._files.make_directory(f"{self.root}/artifacts/{shard}")
        self._files.make_directory(self.lost)
        if marker.format_version != FORMAT_VERSION:
            write_marker(self._files, self.root, Marker(marker.store_id, FORMAT_VERSION))
        migrate(self._files, self.root)
        if self._volume is not None:
            self._volume.is_known_as(marker.store_id)
            self._volume.ballast.find()
        return marker.store_id

    def scan(self) -> Scanned:
        """Read all names into the index, and end what a crash left half done: see `interim.scan`."""
        return Scan(self.root, self._files, self.index).run()

    @property
    def lost(self) -> str:
        """Folder of what was cut or is not ours."""
        return f"{self.root}/lost+found"

    def path(self, name: ArtifactName) -> str:
        """Where an artifact of that name lies."""
        return f"{self.root}/artifacts/{name.path}"

    def claim(self, artifact: ArtifactId) -> anyio.Lock:
        """Get the lock of a sealed or poison artifact: it is delivered, sealed again or erased by one task at a time.

        Its name may be another one when the lock is got: ask the index again.
        """
        return self._claims.setdefault(artifact, anyio.Lock(fast_acquire=True))

    # --- writing

    def create(self, name: ArtifactName, key: DataKey, created: datetime, head: bytes) -> ArtifactWriter:
        """Begin an artifact: header and segment 0 are written, nothing is durable yet.

        Raises:
            StoreFullError, VolumeFailedError: see `Room.check`.
            StoreIoError, StoreBusyError: the disk refuses.

        """
        self.room.check(name.instance_id)
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

    async def recover(
        self, name: ArtifactName, key: DataKey, see: Callable[[bytes], None]
    ) -> tuple[ArtifactWriter, Recovered] | None:
        """Open an artifact again that a crash or a failed write left: see `interim.recovery`.

        Gives None if it held nothing that was ever acknowledged; what there is of it is then in `lost+found/`.

        Raises:
            SegmentForgedError: damage below what was acknowledged; nothing was changed.
            StoreFullError, StoreIoError: come back later.

        """
        if self._commits.is_behind:
            await self.moves_done()
        with anyio.CancelScope(shield=True):  # a file that nobody holds would never be closed
            handle, found = await anyio.to_thread.run_sync(self._reopened, name, key, see)
        if found is None:
            self._files.close(handle)
            lost = f"{self.lost}/{secrets.token_hex(4)}.{name}"
            await self._commits.commit(Commit(renames=((self.path(name), lost),)))
            self.index.remove(name.artifact_id)
            return None
        self.index.found(name.artifact_id, found.digests.size_bytes)
        sealer = Sealer(key, found.header, index=found.index, media_offset=found.digests.size_bytes)
        # Nothing vouches for log lines that went with its first sync: until the next one, no segment shall.
        synced = found.end if found.vouched else 0
        return self._writer(name, handle, sealer, found.digests, found.tally, end=found.end, synced=synced), found

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

    async def give_key(
        self, name: ArtifactName, old: DataKey, new: DataKey, tell: Callable[[ArtifactName], Sequence[LogLine]]
    ) -> ArtifactName:
        """Seal an artifact again under another data key: a proven copy takes its place. Nobody else may be at it.

        Both are whole while both are there, so a crash between them loses nothing: the scan keeps one.

        Raises:
            SegmentForgedError: not all of it opens; it stays as it is.
            StoreFullError, StoreIoError, VolumeFailedError: come back later.

        """
        target = msgspec.structs.replace(name, key_id=new.key_id)
        path, place = self.path(name), self.path(target)
        aside = f"{place}.tmp"
        with anyio.CancelScope(shield=True):
            with _present():
                found = await anyio.to_thread.run_sync(self._resealed, path, aside, old, new)
            if not found.is_whole or found.is_finished is (name.state is State.OPEN):
                self._files.unlink(aside)
                raise SegmentForgedError("an artifact does not open to its end")
            try:
                await self._commits.commit(Commit(lines=tuple(tell(target)), renames=((aside, place),)))
            except DeferError:
                self._files.unlink(aside)
                raise
            await self._leave(name, target)
        self.index.put(target)
        if name.state is State.OPEN:
            self.index.found(name.artifact_id, found.media_bytes)
        return target

    async def leave(self, name: ArtifactName) -> bool:
        """Remove what is left of an artifact under a data key that it does not have any more; False if it has."""
        known = self.index.get(name.artifact_id)
        if known is None or known.key_id == name.key_id or str(known) not in self._names_beside(known):
            return False
        await self._remove_durably(self.path(name))
        return True

    def audit_stands(self, instance: InstanceId) -> bool:
        """Tell whether an instance's audit log can be written to, as far as is known: only its name is looked up."""
        return self._commits.audit.stands(f"{self.root}/audit/{instance}")

    async def record(self, lines: Sequence[LogLine]) -> None:
        """Write lines, durably. Raises `DeferError` if that can't be done: what they tell of must not be done then."""
        await self._commits.commit(Commit(lines=tuple(lines)))

    async def fold(self, receipts: Mapping[ArtifactName, bytes], log: str, lines: Sequence[LogLine] = ()) -> None:
        """Move old receipts into their instance's receipt log; `lines` tell of it, and are durable before."""
        moved = (LogLine(log, receipt) for receipt in receipts.values())
        unlinks = tuple(self.path(name) for name in receipts)
        await self._commits.commit(Commit(lines=(*lines, *moved), unlinks=unlinks))
        for name in receipts:
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

    def moved_poison(self) -> dict[ArtifactId, ArtifactName | None]:
        """Tell what a command did to poison meanwhile: see `interim.poison`."""
        return moved(self.root, self._files, self.index)

    # --- inside

    def _resealed(self, path: str, aside: str, old: DataKey, new: DataKey) -> Resealed:
        handle = self._files.open(path)
        try:
            self.room.check_copy(self._files.size(handle))
        finally:
            self._files.close(handle)
        return reseal(self._files, path, aside, old, new)

    async def _leave(self, name: ArtifactName, target: ArtifactName) -> None:
        """Remove the file that `target` stands in for. If a person moved it meanwhile, `target` goes instead."""
        try:
            await self._remove_durably(self.path(name))
        except StoreIoError:
            if str(name) in self._names_beside(name):
                self.index.put(target)
                raise
            await self._remove_durably(self.path(target))
            raise

    def _names_beside(self, name: ArtifactName) -> list[str]:
        return self._files.names(self.path(name).rpartition("/")[0])

    async def _remove_durably(self, path: str) -> None:
        """Remove a file so that no power cut brings it back: under a name that the scan removes, before it goes."""
        await self._commits.commit(Commit(renames=((path, f"{path}.tmp"),), unlinks=(f"{path}.tmp",)))

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
            admit=partial(self.room.take, name),
            on_failure=self._unsure.add,
        )

    def _reopened(self, name: ArtifactName, key: DataKey, see: Callable[[bytes], None]) -> tuple[int, Recovered | None]:
        path = self.path(name)
        with _present():
            handle = self._files.open(path, write=True)
        try:
            if name.artifact_id in self._unsure:
                handle = renew(self._files, handle, path)
            # Unsure again until the sync that recovery ends with.
            self._unsure.add(name.artifact_id)
            lost = f"{self.lost}/{secrets.token_hex(4)}.{name}.tail"
            found = recover(self._files, handle, name, key, lost, see)
            self._unsure.discard(name.artifact_id)
        except SegmentForgedError:
            self._unsure.discard(name.artifact_id)
            self._files.close(handle)
            raise
        except BaseException:
            self._files.close(handle)
            raise
        return handle, found


@contextmanager
def _present() -> Iterator[None]:
    """Take a file or folder that is not there for trouble with the disk: names are only ever changed here."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreIoError("a file of the store is not where its name says") from error
