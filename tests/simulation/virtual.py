"""An event loop whose time jumps to the next timer when nothing is left to do, and whose order is a seed's.

No selector, no threads, no sockets: nothing can happen that was not asked for, so a seed replays. When nothing is
ready and no timer runs, what is waited for can never come, and that is an error instead of a test that hangs.
"""

import asyncio
import heapq
import random
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from anyio._backends._asyncio import CancelScope

_T = TypeVar("_T")
_MOST_TURNS = 50_000
"""Callbacks without a moment passing."""


class StuckError(Exception):
    """Every task waits for something that can't happen any more."""


class NumberedTask(asyncio.Task[Any]):
    """A task that knows the how manieth it is."""

    number = 0


class VirtualLoop(asyncio.BaseEventLoop):
    """`asyncio` with time of its own."""

    _ready: Any
    _scheduled: list[Any]

    def __init__(self, chance: random.Random | None = None) -> None:
        """Let `chance` choose who goes first of those that are ready; without it, whoever became ready first."""
        super().__init__()
        self._chance = chance
        self._now = 0.0
        self._turns = 0
        self._tasks_made = 0
        self.set_task_factory(self._task)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def _task(self, _loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> NumberedTask:
        task = NumberedTask(coroutine, loop=self, **more)
        self._tasks_made += 1
        task.number = self._tasks_made
        return task

    def forget_turns(self) -> None:
        """Begin to count anew what is done in no time."""
        self._turns = 0

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise StuckError("nothing is ready and no timer runs: what is waited for can't come")
            self._now, self._turns = max(self._now, scheduled[0]._when), 0
        while scheduled and scheduled[0]._when <= self._now:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                ready.append(timer)
        batch = list(ready)
        ready.clear()
        if self._chance is not None and len(batch) > 1:
            batch.sort(key=_number)  # what was cancelled at once comes in the order of addresses
            self._chance.shuffle(batch)
        self._turns += len(batch)
        if self._turns > _MOST_TURNS:
            raise StuckError("so much is done in no time that it can't be useful")
        for at, handle in enumerate(batch):
            if not handle._cancelled:
                try:
                    handle._run()
                except BaseException:
                    ready.extendleft(reversed(batch[at + 1 :]))
                    raise

    def _process_events(self, event_list: Any) -> None:
        raise NotImplementedError


def _number(handle: Any) -> int:
    """Tell whose turn it is."""
    owner = getattr(handle._callback, "__self__", None)
    if isinstance(owner, CancelScope):
        owner = owner._host_task
    return getattr(owner, "number", 0)


def run(main: Coroutine[Any, Any, _T], chance: random.Random | None = None) -> _T:
    """Run a coroutine in virtual time. Raises `AssertionError` if it leaves tasks behind."""
    loop = VirtualLoop(chance)
    try:
        result = loop.run_until_complete(main)
        left = asyncio.all_tasks(loop)
        assert not left, f"tasks are left: {sorted(task.get_name() for task in left)}"
    finally:
        _end(loop)
    return result


def _end(loop: VirtualLoop) -> None:
    """Let what is left after an error end without a word."""
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.forget_turns()
            loop.run_until_complete(asyncio.wait(left, timeout=60))
        for task in left:
            if task.done() and not task.cancelled():
                task.exception()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


class WorldClock:
    """`Clock` over a loop's time. The wall clock may be set and may stand still; the other does neither."""

    def __init__(self, start: datetime = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)) -> None:
        self._start = start
        self._since = _time()
        self._stuck: datetime | None = None

    def now(self) -> datetime:
        """Tell the wall time."""
        return self._stuck or self._start + timedelta(seconds=_time() - self._since)

    def monotonic(self) -> float:
        """Tell the loop's time."""
        return _time()

    def set_by(self, change: timedelta) -> None:
        """Let the wall clock jump."""
        self._start += change
        if self._stuck is not None:
            self._stuck += change

    def stop(self) -> None:
        """Let the wall clock stand still."""
        self._stuck = self.now()

    def copy(self) -> "WorldClock":
        """Give a clock that shows the same and goes on from there."""
        copy = WorldClock(self.now())
        copy._stuck = self._stuck
        return copy


def _time() -> float:
    return asyncio.get_running_loop().time()
