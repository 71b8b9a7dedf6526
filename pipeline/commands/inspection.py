"""The checks of `pipeline verify`, artifact by artifact. Reads only; works beside a running service."""

from collections.abc import Sequence
from typing import Any

import anyio.to_thread

from pipeline.checksums import checksum_text
from pipeline.commands.access import Access
from pipeline.commands.options import Site
from pipeline.commands.plaintext import reading_store
from pipeline.commands.receipts import receipt_of
from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Entry, next_entry
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import DeferError, RejectError, SegmentForgedError, StoreIoError
from pipeline.intake.chats import render_again
from pipeline.intake.sealing import COPY
from pipeline.interim.reader import ArtifactReader, read_header
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.survey import is_held
from pipeline.interim.writer import Digests
from pipeline.ports import FileSystem


class Inspection:
    """One run over a store."""

    def __init__(self, site: Site, access: Access, *, read_data: bool) -> None:
        self._site = site
        self._access = access
        self._files = access.files
        self._store = reading_store(site, access)
        self._read_data = read_data
        self._problems: list[dict[str, str]] = []
        self._unopened: list[dict[str, str]] = []
        self._checked = 0
        self._poison = 0

    async def inspect(self, name: ArtifactName) -> None:
        """Check one artifact or receipt; what is wrong is remembered."""
        if name.standing is State.POISON:
            self._poison += 1
            return
        self._checked += 1
        try:
            await anyio.to_thread.run_sync(self._structure, name)
            if self._read_data and name.state is State.SEALED:
                await self._content(name)
        except FileNotFoundError:
            self._gone(name)
        except RejectError as error:
            self._problem(name, str(error))
        except StoreIoError as error:
            if is_held(self._site.root, self._files, name.artifact_id):
                self._problem(name, str(error))
            else:
                self._gone(name)
        except DeferError as error:
            self._unopened.append({"what": str(name.artifact_id), "why": str(error)})

    def strangers(self, paths: Sequence[str]) -> None:
        """Report files that are no artifacts."""
        for path in paths:
            self._problems.append({"what": path, "problem": "a file among the artifacts that bears no artifact's name"})

    def answer(self) -> dict[str, Any]:
        """Give what was found."""
        return {
            "checked": self._checked,
            "readData": self._read_data,
            "problems": self._problems,
            "unopened": self._unopened,
            "poison": self._poison,
        }

    # --- inside

    def _problem(self, name: ArtifactName, why: str) -> None:
        self._problems.append({"what": str(name.artifact_id), "problem": why})

    def _gone(self, name: ArtifactName) -> None:
        """Judge a file that went away after its name was read: a service moves on, but lets no sealed one vanish."""
        if name.state is State.SEALED and not is_held(self._site.root, self._files, name.artifact_id):
            self._problem(name, "a sealed artifact vanished while it was being checked")

    def _structure(self, name: ArtifactName) -> None:
        if name.state is State.DELIVERED:
            receipt_of(self._site.root, self._files, name)
            return
        handle = self._files.open(f"{self._site.root}/artifacts/{name.path}")
        try:
            _walk(self._files, handle, name)
        finally:
            self._files.close(handle)

    async def _content(self, name: ArtifactName) -> None:
        instance = self._site.loaded.instances.get(name.instance_id)
        if instance is None:
            self._unopened.append({"what": str(name.artifact_id), "why": "its instance is not configured"})
            return
        key = await (await self._access.ring(instance)).opening(name.key_id)
        await anyio.to_thread.run_sync(self._compare, name, key)

    def _compare(self, name: ArtifactName, key: DataKey) -> None:
        """Open every segment; compare what is to be delivered with the manifest."""
        with self._store.reading(name, key) as reader:
            manifest = reader.manifest()
            if (manifest.generation, manifest.object.size_bytes) != (name.generation, name.size_bytes):
                raise SegmentForgedError("an artifact's manifest and its name disagree")
            media = _open_all(reader)
            if manifest.object.renderer != COPY:
                media = Digests()
                media.update(render_again(reader))
        said = (manifest.object.size_bytes, manifest.object.crc64nvme, manifest.object.sha256)
        if said != (media.size_bytes, checksum_text(media.crc64nvme), media.sha256):
            raise SegmentForgedError("an artifact holds other bytes than its manifest says")


def _walk(files: FileSystem, handle: int, name: ArtifactName) -> None:
    """Hop over the segments. What was being written to may end in a torn one; what is sealed ends in its manifest."""
    size = files.size(handle)
    if name.state is State.OPEN and size < HEADER_SIZE:
        return
    read_header(files, handle, name)
    entry: Entry | None = None
    at = HEADER_SIZE
    while at < size:
        try:
            entry = next_entry(entry, files.read(handle, at, FRAME_PREFIX), size)
        except SegmentForgedError:
            if name.state is State.OPEN:
                return  # recovery judges it, with the key
            raise
        at = entry.end
    if name.state is State.SEALED and (entry is None or entry.frame.type is not SegmentType.MANIFEST):
        raise SegmentForgedError("a sealed artifact has no manifest at its end")


def _open_all(reader: ArtifactReader) -> Digests:
    """Open every segment once; give what the media add up to."""
    digests = Digests()
    for entry in reader.entries:
        plaintext = reader.open(entry)
        if entry.frame.type is SegmentType.MEDIA:
            digests.update(plaintext)
    reader.head()
    for _record in reader.records():
        pass
    return digests
