"""Which bodies of one source stay: the same bytes again are dropped, so is an unfinished one that goes on in another.

Asked when a body ends or its source fell silent, under the lock of that source.
"""

from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

import anyio

from pipeline.errors import SegmentForgedError
from pipeline.ids import InstanceId
from pipeline.intake.history import History
from pipeline.intake.reception import Answer, Reception
from pipeline.interim.index import Index
from pipeline.interim.states import ArtifactName, State
from pipeline.tenants import Tenant

Reopen = Callable[[Tenant, ArtifactName], Awaitable[Reception | None]]
"""Bring an open artifact into memory; None if there is nothing of it, or it is sealed by now."""
Drop = Callable[[Reception, str], Awaitable[None]]
"""Remove an open artifact, for a reason."""


class Generations:
    """Compares a body with the others of its source."""

    def __init__(self, index: Index, history: History, reopen: Reopen, drop: Drop) -> None:
        self._index = index
        self._history = history
        self._reopen = reopen
        self._drop = drop
        self._locks: WeakValueDictionary[tuple[InstanceId, str], anyio.Lock] = WeakValueDictionary()

    def lock(self, reception: Reception) -> anyio.Lock:
        """Get the lock of one source: one decision at a time about which of its generations stay."""
        return self._locks.setdefault((reception.name.instance_id, reception.tags[0]), anyio.Lock(fast_acquire=True))

    async def unfinished_before(self, reception: Reception) -> list[Reception]:
        """Bring the other unfinished bodies of the same source into memory."""
        found = [
            await self._reopen(reception.tenant, name)
            for name in self._earlier(reception)
            if name.standing is State.OPEN
        ]
        return [old for old in found if old is not None and not old.attached]

    async def repeated(self, reception: Reception) -> Answer | None:
        """Find an earlier generation with the same bytes, and what its source was told."""
        digests = reception.writer.digests
        for name in self._earlier(reception):
            if name.size_bytes != digests.size_bytes:
                continue
            try:
                answer = await self._history.answer(reception.tenant, name)
            except SegmentForgedError:
                continue
            if answer is not None and answer.sha256 == digests.sha256:
                return answer
        return None

    async def goes_on(self, reception: Reception, unfinished: list[Reception]) -> bool:
        """Tell whether a longer unfinished body begins with this one."""
        size = reception.writer.digests.size_bytes
        for other in unfinished:
            if other.writer.digests.size_bytes > size and await self._history.contains(other, reception):
                return True
        return False

    async def absorb(self, reception: Reception, unfinished: list[Reception]) -> int:
        """Drop unfinished bodies that this one begins with; give the generation that is then free for it."""
        generation = reception.name.generation
        for old in unfinished:
            if old.attached or not await self._history.contains(reception, old):
                continue
            # What was acknowledged of the old one must be durable in the new one first, and what was to be told of it.
            reception.writer.lines += old.writer.lines
            await reception.writer.sync()
            await self._drop(old, "continued")
            generation = min(generation, old.name.generation)
            reception.told = reception.told or old.told
        return generation

    # --- inside

    def _earlier(self, reception: Reception) -> list[ArtifactName]:
        held = self._index.generations(reception.name.instance_id, reception.tags)
        return [name for name in held if name.artifact_id != reception.name.artifact_id]
