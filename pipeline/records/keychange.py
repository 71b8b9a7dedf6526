"""A change of a scope's KMS key: what the service does of it. The command names the keys, in the configuration."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pipeline.crypt.rewrap import SideError
from pipeline.errors import NoSuchRecordError, RecordsUnservedError
from pipeline.jobs import Ask, JobFailedError, Progress
from pipeline.records.reencrypt import reencrypt, standing
from pipeline.records.rows import RecordEngine
from pipeline.records.shelves import Shelf, Shelves

VERB = "records-key-change"


class RecordKeyChangeJob:
    """Seals the records of a scope under the KMS key that its configuration names."""

    def __init__(self, shelves: Shelves, engine: RecordEngine, configure: Callable[[], Awaitable[None]]) -> None:
        """`configure` reads the configuration: the job follows it, and names no KMS key itself."""
        self._shelves = shelves
        self._engine = engine
        self._configure = configure

    async def __call__(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        """See `jobs.Handler`."""
        await self._configure()
        try:
            shelf = self._shelves.get(ask.instance, str(ask.details.get("class")), str(ask.details.get("scope")))
            ring = await shelf.opened()
        except (NoSuchRecordError, RecordsUnservedError) as error:
            raise JobFailedError(str(error)) from error
        ring.ask_now()
        try:
            await reencrypt(shelf, self._engine, progress)
        except SideError as error:
            raise JobFailedError(str(error), {"failedSide": error.side, **await self._facts(shelf)}) from error
        return await self._facts(shelf)

    async def _facts(self, shelf: Shelf) -> dict[str, Any]:
        now = await standing(shelf, self._engine)
        assert shelf.keys is not None
        return {"kmsKeyArn": shelf.keys.current, "done": now.done, "total": now.total}
