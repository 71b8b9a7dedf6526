"""How many calls a second KMS is asked, once it has said that they are too many: a token bucket on our side.

AWS shares a quota among all who call from one account in one Region, so a pace is shared by all instances there.
Without throttling there is none. Each throttled call halves it; it grows by the second until it is no limit any more.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import anyio

from pipeline.errors import KeyThrottledError
from pipeline.keyports import GeneratedKey, KeyDescription, KeyService
from pipeline.ports import Clock

T = TypeVar("T")

MOST = 64.0
"""Calls a second from which on nothing is limited; the least of AWS's quotas are thousands."""
LEAST = 1.0
GROWTH = 1.0
"""Calls a second that it grows by each second."""
PATIENCE_S = 10.0
"""A call that would have to wait longer is put off: its gate asks again."""


class Pace:
    """One bucket: gives each call its turn."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rate: float | None = None
        self._changed_at = 0.0
        self._next_at = 0.0

    @property
    def rate(self) -> float | None:
        """Calls a second that are made now; None for as many as there are."""
        if self._rate is None:
            return None
        now = self._clock.monotonic()
        self._rate = self._rate + GROWTH * (now - self._changed_at)
        self._changed_at = now
        if self._rate >= MOST:
            self._rate = None
        return self._rate

    def throttled(self) -> None:
        """Halve it."""
        self._rate = max(LEAST, (self.rate or MOST) / 2)
        self._changed_at = self._clock.monotonic()

    def turn_s(self) -> float:
        """Take the next turn; give the seconds until it comes. Raises `KeyThrottledError` if that is too long."""
        rate, now = self.rate, self._clock.monotonic()
        if rate is None:
            return 0.0
        turn = max(now, self._next_at)
        if turn - now > PATIENCE_S:
            raise KeyThrottledError("KMS asked for patience, and many wait for their turn; it is tried again")
        self._next_at = turn + 1.0 / rate
        return turn - now


class PacedKeys:
    """`KeyService` over another one, each call in its turn. Retries nothing."""

    def __init__(self, service: KeyService, pace_of: Callable[[str], Pace]) -> None:
        """`pace_of` gives the pace for a KMS key."""
        self._service = service
        self._pace_of = pace_of

    async def generate_data_key(
        self, key_arn: str, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> GeneratedKey:
        """See `KeyService`."""
        return await self._ask(key_arn, lambda: self._service.generate_data_key(key_arn, context, tokens))

    async def decrypt(
        self, key_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        """See `KeyService`."""
        return await self._ask(key_arn, lambda: self._service.decrypt(key_arn, wrapped, context, tokens))

    async def re_encrypt(
        self,
        source_arn: str,
        target_arn: str,
        wrapped: bytes,
        context: Mapping[str, str],
        tokens: Sequence[str] = (),
    ) -> bytes:
        """See `KeyService`."""
        return await self._ask(
            target_arn, lambda: self._service.re_encrypt(source_arn, target_arn, wrapped, context, tokens)
        )

    async def describe(self, key_arn: str, tokens: Sequence[str] = ()) -> KeyDescription:
        """See `KeyService`."""
        return await self._ask(key_arn, lambda: self._service.describe(key_arn, tokens))

    async def _ask(self, key_arn: str, call: Callable[[], Awaitable[T]]) -> T:
        pace = self._pace_of(key_arn)
        wait_s = pace.turn_s()
        if wait_s:
            await anyio.sleep(wait_s)
        try:
            return await call()
        except KeyThrottledError:
            pace.throttled()
            raise
