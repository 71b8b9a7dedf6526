"""Memory for the bytes that are being uploaded: reused, and never more than a limit.

Fresh buffers cost more than the cipher, and an upload without a bound on them costs the whole machine. No owner may
have all of them: a bucket that takes bytes slowly, or no more at all, must leave room for the others.
"""

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field

import anyio

SMALLEST = 64 * 1024
MIB = 2**20


def size_class(size_bytes: int) -> int:
    """Round up, so that buffers can be used again: powers of two up to 1 MiB, then whole MiB."""
    if size_bytes <= MIB:
        return max(SMALLEST, 1 << (size_bytes - 1).bit_length()) if size_bytes else SMALLEST
    return -(-size_bytes // MIB) * MIB


@dataclass(eq=False, slots=True)
class _Waiting:
    owner: Hashable
    held: int
    granted: anyio.Event = field(default_factory=anyio.Event)


class BufferPool:
    """Leases buffers, first come, first served. Leased and idle ones together never exceed the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._share_bytes = limit_bytes - limit_bytes // 8
        """The most that one owner may have, unless it is a single buffer."""
        self._leased_bytes = 0
        self._owned: defaultdict[Hashable, int] = defaultdict(int)
        self._idle: defaultdict[int, list[bytearray]] = defaultdict(list)
        self._waiting: list[_Waiting] = []
        self._spoiled: set[int] = set()

    @property
    def leased_bytes(self) -> int:
        """Bytes of the buffers that are out now."""
        return self._leased_bytes

    @property
    def idle_bytes(self) -> int:
        """Bytes of the buffers that wait to be used again."""
        return sum(size * len(buffers) for size, buffers in self._idle.items())

    @contextlib.asynccontextmanager
    async def lease(self, size_bytes: int, owner: Hashable) -> AsyncIterator[memoryview]:
        """Lease a buffer of `size_bytes`, of any content; wait until there is room, and room for its owner.

        A buffer whose block failed is not used again: a transport that is being closed may still send from it, and
        would send what somebody else put there. Raises `ValueError` for more than the limit.
        """
        held = size_class(size_bytes)
        if held > self.limit_bytes:
            raise ValueError("a buffer larger than the pool was asked for")
        if self._waiting or not self._fits(owner, held):
            await self._wait(_Waiting(owner, held))
        else:
            self._grant(owner, held)
        buffer = self._take(held)
        try:
            yield memoryview(buffer)[:size_bytes]
            if id(buffer) not in self._spoiled:
                self._idle[held].append(buffer)
        finally:
            self._spoiled.discard(id(buffer))
            self._give_back(owner, held)

    def spoil(self, buffer: memoryview) -> None:
        """Let a leased buffer not be used again though its block may end well: something of it failed meanwhile."""
        self._spoiled.add(id(buffer.obj))

    # --- inside

    def _fits(self, owner: Hashable, held: int) -> bool:
        return self._leased_bytes + held <= self.limit_bytes and not self._has_its_share(owner, held)

    def _has_its_share(self, owner: Hashable, held: int) -> bool:
        owned = self._owned.get(owner, 0)
        return owned > 0 and owned + held > self._share_bytes

    def _grant(self, owner: Hashable, held: int) -> None:
        self._leased_bytes += held
        self._owned[owner] += held

    async def _wait(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._serve()
        try:
            await waiting.granted.wait()
        except BaseException:
            if waiting.granted.is_set():
                self._give_back(waiting.owner, waiting.held)
            else:
                self._waiting.remove(waiting)
                self._serve()
            raise

    def _give_back(self, owner: Hashable, held: int) -> None:
        self._leased_bytes -= held
        self._owned[owner] -= held
        if not self._owned[owner]:
            del self._owned[owner]
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        """Let those go on for whom there is room, in turn; who has its share already holds up nobody."""
        at_their_share: set[Hashable] = set()
        for waiting in list(self._waiting):
            if waiting.owner in at_their_share or self._has_its_share(waiting.owner, waiting.held):
                at_their_share.add(waiting.owner)
                continue
            if self._leased_bytes + waiting.held > self.limit_bytes:
                return  # nor does anybody behind it: it would never come to its turn
            self._waiting.remove(waiting)
            self._grant(waiting.owner, waiting.held)
            waiting.granted.set()

    def _take(self, held: int) -> bytearray:
        """Give an idle buffer of that size, or a new one in the room of other idle ones."""
        if self._idle[held]:
            return self._idle[held].pop()
        for size in sorted(self._idle, reverse=True):
            while self._idle[size] and self._leased_bytes + self.idle_bytes > self.limit_bytes:
                self._idle[size].pop()
        return bytearray(held)
