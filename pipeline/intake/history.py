"""What is already held of a source: the answers that were given, and bytes that a new body may contain."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar
from uuid import UUID

import anyio.to_thread
import msgspec

from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.ids import ArtifactId, RecordingId
from pipeline.intake.reception import Answer, Reception
from pipeline.interim.reader import ArtifactReader
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.tenants import Tenant

_T = TypeVar("_T")

_PIECE = 1024 * 1024


class _ReceiptFacts(msgspec.Struct, frozen=True, rename="camel"):
    recording_id: UUID
    artifact_id: UUID
    generation: int
    size_bytes: int
    sha256: str


async def following(store: InterimStore, name: ArtifactName, read: Callable[[ArtifactName], Awaitable[_T]]) -> _T:
    """Read an artifact by its name; by its new one, if it has moved on since that was looked up."""
    while True:
        try:
            return await read(name)
        except StoreIoError:
            await store.moves_done()
            now = store.index.get(name.artifact_id)
            if now is None or now == name:
                raise
            name = now


class History:
    """Reads earlier generations: receipts as they are, sealed artifacts by their manifest."""

    def __init__(self, store: InterimStore) -> None:
        self._store = store

    async def answer(self, tenant: Tenant, name: ArtifactName) -> Answer | None:
        """Give what a sealed or delivered artifact's source was told; None for an open one.

        Raises:
            SegmentForgedError: it does not authenticate.
            KeyUnavailableError, KeyBusyError: its data key can't be had now.

        """
        return await following(self._store, name, partial(self._answer, tenant))

    async def _answer(self, tenant: Tenant, name: ArtifactName) -> Answer | None:
        if name.state is State.OPEN:
            return None
        if name.state is State.DELIVERED:
            try:
                facts = msgspec.json.decode(self._store.receipt(name), type=_ReceiptFacts)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise SegmentForgedError("a receipt is damaged; its recording is delivered") from None
            return Answer(
                str(facts.recording_id), str(facts.artifact_id), facts.generation, facts.size_bytes, facts.sha256
            )
        key = await tenant.ring.opening(name.key_id)
        with self._store.reading(name, key) as reader:
            manifest = reader.manifest()
        return Answer(
            str(manifest.recording_id),
            str(name.artifact_id),
            manifest.generation,
            manifest.object.size_bytes,
            manifest.object.sha256,
        )

    async def recording_of(
        self, tenant: Tenant, tags: Sequence[str], in_memory: Callable[[ArtifactId], Reception | None]
    ) -> RecordingId | None:
        """Find the recording that the generations of a source are of; None if there is none.

        Raises:
            StoreIoError: one that is there can't be read now.
            KeyUnavailableError, KeyBusyError: its data key can't be had now.

        """
        while earlier := self._store.index.generations(tenant.instance.instance_id, tags):
            try:
                return await self._recording_among(tenant, earlier, in_memory)
            except StoreIoError:
                if all(self._store.index.get(name.artifact_id) is not None for name in earlier):
                    raise
                # One was dropped while it was looked at: its bytes are in another.
        return None

    async def _recording_among(
        self, tenant: Tenant, earlier: list[ArtifactName], in_memory: Callable[[ArtifactId], Reception | None]
    ) -> RecordingId:
        """Ask each generation in turn. A damaged one does not stop a new one."""
        for name in earlier:
            reception = in_memory(name.artifact_id)
            if reception is not None:
                return reception.recording_id
            try:
                return await following(self._store, name, partial(self._recording_id, tenant))
            except SegmentForgedError:
                continue
        return RecordingId(earlier[0].artifact_id)

    async def _recording_id(self, tenant: Tenant, name: ArtifactName) -> RecordingId:
        answer = await self._answer(tenant, name)
        if answer is not None:
            return RecordingId(UUID(answer.recording_id))
        key = await tenant.ring.opening(name.key_id)
        with self._store.reading(name, key) as reader:
            return RecordingId(reader.head().recording_id)

    async def contains(self, new: Reception, old: Reception) -> bool:
        """Tell whether the bytes of an unfinished artifact are the beginning of a finished body."""
        size = old.writer.digests.size_bytes
        if size > new.writer.digests.size_bytes:
            return False
        old_key = await old.tenant.ring.opening(old.name.key_id)
        new_key = await new.tenant.ring.opening(new.name.key_id)
        with (
            self._store.reading(old.name, old_key, limit=old.writer.end) as before,
            self._store.reading(new.name, new_key, limit=new.writer.end) as after,
        ):
            return await anyio.to_thread.run_sync(_begins_with, after, before, size)


def _begins_with(whole: ArtifactReader, beginning: ArtifactReader, size: int) -> bool:
    left, right = bytearray(_PIECE), bytearray(_PIECE)
    for at in range(0, size, _PIECE):
        length = min(_PIECE, size - at)
        whole.read_into(at, memoryview(left)[:length])
        beginning.read_into(at, memoryview(right)[:length])
        if left[:length] != right[:length]:
            return False
    return True
