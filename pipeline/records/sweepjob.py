"""A sweep that a person asks for: what the service does of it."""

from collections.abc import Mapping
from typing import Any

from pipeline.jobs import Ask, Progress
from pipeline.records.sweeping import Sweeper

VERB = "records-sweep"


class SweepJob:
    """Sweeps one instance's records once."""

    def __init__(self, sweeper: Sweeper) -> None:
        self._sweeper = sweeper

    async def __call__(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        """See `jobs.Handler`."""
        swept = await self._sweeper.sweep(ask.instance, dry=ask.details.get("dry") is not False)
        done = swept.removed.total()
        await progress(done, done)
        return {"removed": dict(swept.removed), "held": dict(swept.held), "unknown": swept.unknown}
