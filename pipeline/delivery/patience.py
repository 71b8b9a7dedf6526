"""Patience: one step of a multipart upload is done again a few times before all of the upload is.

One part that a busy bucket did not take must not cost the gigabytes before it. Whoever is busy for longer is left to
the delivery schedule; nothing but `DestinationBusyError` is waited for.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import anyio

from pipeline.delivery.lanes import Backoff
from pipeline.errors import DestinationBusyError
from pipeline.ports import Clock

TRIES = 5
LONGEST_S = 30.0
"""From the first try on: a bucket that lets a request hang is not given a second one."""
_FIRST = timedelta(seconds=0.5)
_MOST = timedelta(seconds=8)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait between tries, by whose clock and chance."""

    clock: Clock
    random: Callable[[], float]

    async def with_step(self, step: Callable[[], Awaitable[_T]]) -> _T:
        """Do a step until it is done. Raises what it raises; `DestinationBusyError` only after some tries."""
        until = self.clock.monotonic() + LONGEST_S
        backoff = Backoff(_FIRST, _MOST, self.random)
        tried = 1
        while True:
            try:
                return await step()
            except DestinationBusyError as error:
                wait_s = (error.retry_after_s or 0.0) + backoff.delay_s(tried)
                if tried >= TRIES or self.clock.monotonic() + wait_s > until:
                    raise
            await anyio.sleep(wait_s)
            tried += 1
