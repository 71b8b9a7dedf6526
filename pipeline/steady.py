"""Wall time for deciding what is old enough to go: a clock that jumps ahead makes nothing older than it is."""

from datetime import datetime, timedelta

from pipeline.ports import Clock


class Steady:
    """The wall clock, but never ahead of what has passed since the process began."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.now()
        self._began_at = clock.monotonic()

    def now(self) -> datetime:
        """Tell the time, or an earlier one: what is kept until then is kept too long rather than too short."""
        return min(self._clock.now(), self._passed())

    def jumped_s(self) -> float:
        """Tell by how much the wall clock has moved against the time that passed: ahead, or back if negative."""
        return (self._clock.now() - self._passed()).total_seconds()

    def _passed(self) -> datetime:
        return self._began + timedelta(seconds=self._clock.monotonic() - self._began_at)
