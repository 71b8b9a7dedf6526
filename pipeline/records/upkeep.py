"""What the record store does by itself: no key stays longer than it may, and the service's own rotates."""

import contextlib

import anyio
import structlog

from pipeline.crypt.rewrap import let_go_of_others, rewrap
from pipeline.errors import PipelineError
from pipeline.ports import Clock
from pipeline.records.rows import RecordEngine
from pipeline.records.search import SearchIndexes
from pipeline.records.shelves import Shelf, Shelves

log = structlog.get_logger()

_EVERY_S = 1.0
_ROTATED_EVERY_S = 60.0


class Upkeep:
    """Drops data keys whose time is over, and indexes of what is refused; wraps again under the service's next key.

    Has what was removed overwritten, too.
    """

    def __init__(self, shelves: Shelves, search: SearchIndexes, engine: RecordEngine, clock: Clock) -> None:
        self._shelves = shelves
        self._search = search
        self._engine = engine
        self._clock = clock
        self._rotate_at = 0.0

    async def run(self) -> None:
        """Do so until cancelled."""
        while True:
            await self.once()
            await anyio.sleep(_EVERY_S)

    async def once(self) -> None:
        """Do what is to be done now."""
        for shelf in self._shelves:
            if shelf.ring is not None:
                shelf.ring.expire()
        with contextlib.suppress(PipelineError):  # the next time
            await self._search.tend()
        with contextlib.suppress(PipelineError):
            await self._engine.settled()
        if self._clock.monotonic() >= self._rotate_at:
            self._rotate_at = self._clock.monotonic() + _ROTATED_EVERY_S
            for shelf in self._shelves:
                await self._rotate(shelf)

    async def _rotate(self, shelf: Shelf) -> None:
        """Wrap a scope's data keys under the service's own KMS key, where the one before it is configured too."""
        if shelf.keys is None or shelf.keys.is_customers or shelf.keys.previous is None or shelf.trouble is not None:
            return
        try:
            ring = await shelf.opened()
            if all(len(file.wrapped) == 1 and file.wrapped_under(shelf.keys.current) for file in ring.files):
                return
            await rewrap(ring, self._clock, _untold)
            changed = await let_go_of_others(ring)
        except PipelineError as error:
            log.warning("records.rotation_deferred", scope=shelf.scope.name, reason=error.reason, detail=str(error))
        else:
            log.info("records.rotated", scope=shelf.scope.name, data_keys=changed)


async def _untold(_done: int, _total: int) -> None:
    """Tell nobody: it takes a moment."""
