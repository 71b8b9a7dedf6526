"""A recording's plaintext, whoever holds it: the interim store by its data key, or the bucket by its KMS key.

From the store nothing comes that does not authenticate. A bucket is asked for exactly what a receipt names.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from uuid import UUID

from pipeline.commands.access import Access
from pipeline.commands.find import Found
from pipeline.commands.options import Site
from pipeline.delivery.source import opened
from pipeline.errors import DestinationBusyError, RefuseError
from pipeline.instances import Instance
from pipeline.interim.commit import GroupCommit
from pipeline.interim.states import State
from pipeline.interim.store import InterimStore

PIECE = 1024 * 1024
BUCKET_PIECE = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plaintext:
    """Bytes that can be read, and what they must be."""

    recording_id: UUID
    size_bytes: int
    sha256: str
    content_type: str | None
    read: Callable[[int, int], AsyncIterator[bytes]]
    """Give the bytes from a start to an end."""


def reading_store(site: Site, access: Access) -> InterimStore:
    """Look into the store without holding it: for reading artifacts, and nothing else."""
    return InterimStore(site.root, access.files, GroupCommit(access.files), free_bytes=0)


@asynccontextmanager
async def from_store(site: Site, access: Access, found: Found) -> AsyncIterator[Plaintext]:
    """Open a sealed artifact; a chat's is the transcript that is delivered of it.

    Raises:
        RefuseError: it is still being received.
        SegmentForgedError: it does not authenticate.
        KeyUnavailableError, KeyBusyError: its data key can't be had now.

    """
    name = found.name
    assert name is not None
    if name.state is State.OPEN:
        raise RefuseError("it is still being received, and is opened once it is sealed", field="ID")
    ring = await access.ring(_instance(site, found))
    with opened(reading_store(site, access), name, await ring.opening(name.key_id)) as (manifest, source):

        async def read(start: int, end: int) -> AsyncIterator[bytes]:
            buffer = bytearray(PIECE)
            for at in range(start, end, PIECE):
                await ring.opening(name.key_id)  # a key that was withdrawn meanwhile opens nothing more
                piece = memoryview(buffer)[: min(PIECE, end - at)]
                await source.read_into(at, piece)
                yield bytes(piece)

        rendition = manifest.object
        yield Plaintext(manifest.recording_id, rendition.size_bytes, rendition.sha256, rendition.content_type, read)


@asynccontextmanager
async def from_bucket(site: Site, access: Access, found: Found) -> AsyncIterator[Plaintext]:
    """Read a delivered recording's object, as its receipt names it.

    Raises:
        RefuseError: the instance has no storage for this kind any more.
        DestinationHeldError, DestinationBusyError: the bucket can't be used now, or the object is not there.

    """
    receipt = found.receipt
    assert receipt is not None
    instance = _instance(site, found)
    storage = instance.storage.get(found.kind)
    if storage is None:
        raise RefuseError("the instance's file names no storage for this kind any more", field="storage")
    destination = await access.destination(instance, replace(storage, bucket=receipt.bucket))

    async def read(start: int, end: int) -> AsyncIterator[bytes]:
        at = start
        while at < end:
            piece = await destination.read(receipt.key, at, min(BUCKET_PIECE, end - at))
            if not piece:
                raise DestinationBusyError("the bucket gave less of an object than it was asked for")
            yield piece
            at += len(piece)

    yield Plaintext(receipt.recording_id, receipt.size_bytes, receipt.sha256, None, read)


def _instance(site: Site, found: Found) -> Instance:
    instance = site.loaded.instances.get(found.instance_id)
    if instance is None:
        raise RefuseError("its instance is not configured here, so no key opens it", field="instance")
    return instance
