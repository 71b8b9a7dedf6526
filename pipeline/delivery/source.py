"""What is to be delivered of one artifact: its manifest, and the bytes its renderer makes of its segments.

Nothing is given out that does not authenticate; a rendering is compared with the manifest before its first byte leaves.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import anyio.to_thread

from pipeline.crypt.contents import Manifest
from pipeline.crypt.segments import DataKey
from pipeline.errors import SegmentForgedError
from pipeline.intake.chats import render_again
from pipeline.intake.sealing import COPY
from pipeline.interim.reader import ArtifactReader
from pipeline.interim.states import ArtifactName
from pipeline.interim.store import InterimStore
from pipeline.interim.writer import INLINE_LIMIT


class MediaSource:
    """Media as they came."""

    def __init__(self, reader: ArtifactReader) -> None:
        self._reader = reader
        self.size_bytes = reader.media_bytes

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        if len(buffer) <= INLINE_LIMIT:
            self._reader.read_into(offset, buffer)
        else:
            await anyio.to_thread.run_sync(self._reader.read_into, offset, buffer)


class RenderedSource:
    """Bytes that a renderer made."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size_bytes = len(data)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        buffer[:] = self._data[offset : offset + len(buffer)]


Source = MediaSource | RenderedSource


@contextmanager
def opened(store: InterimStore, name: ArtifactName, key: DataKey) -> Iterator[tuple[Manifest, Source]]:
    """Open a sealed artifact for delivery.

    Raises:
        SegmentForgedError: it does not authenticate, or its name, manifest and content disagree.

    """
    with store.reading(name, key) as reader:
        manifest = reader.manifest()
        if (manifest.generation, manifest.object.size_bytes) != (name.generation, name.size_bytes):
            raise SegmentForgedError("an artifact's manifest and its name disagree")
        source = _source(reader, manifest)
        if source.size_bytes != manifest.object.size_bytes:
            raise SegmentForgedError("an artifact holds other bytes than its manifest says")
        yield manifest, source


def _source(reader: ArtifactReader, manifest: Manifest) -> Source:
    if manifest.object.renderer == COPY:
        return MediaSource(reader)
    data = render_again(reader)
    if hashlib.sha256(data).hexdigest() != manifest.object.sha256:
        raise SegmentForgedError("a transcript renders to other bytes than its manifest says")
    return RenderedSource(data)
