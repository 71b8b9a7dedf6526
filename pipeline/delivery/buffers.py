"""Memory for the bytes that are being uploaded: reused, and never more than a limit.

Fresh buffers cost more than the cipher, and an upload without a bound on them costs the whole machine.
"""

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator

import anyio

SMALLEST = 64 * 1024
MIB = 2**20


def size_class(size_bytes: int) -> int:
    """Round up, so that buffers can be used again: powers of two up to 1 MiB, then whole MiB."""
    if size_bytes <= MIB:
        return max(SMALLEST, 1 << (size_bytes - 1).bit_length()) if size_bytes else SMALLEST
    return -(-size_bytes // MIB) * MIB


class BufferPool:
    """Leases buffers, first come, first served. Leased and idle ones together never exceed the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._leased_bytes = 0
        self._idle: defaultdict[int, list[bytearray]] = defaultdict(list)
        self._turn = anyio.Lock()
        self._returned = anyio.Event()

    @property
    def leased_bytes(self) -> int:
        """Bytes of the buffers that are out now."""
        return self._leased_bytes

    @property
    def idle_bytes(self) -> int:
        """Bytes of the buffers that wait to be used again."""
        return sum(size * len(buffers) for size, buffers in self._idle.items())

    @contextlib.asynccontextmanager
    async def lease(self, size_bytes: int) -> AsyncIterator[memoryview]:
        """Lease a buffer of `size_bytes`, of any content; wait until there is room.

        A buffer whose block failed is not used again: a transport that is being closed may still send from it, and
        would send what somebody else put there. Raises `ValueError` for more than the limit.
        """
        held = size_class(size_bytes)
        if held > self.limit_bytes:
            raise ValueError("a buffer larger than the pool was asked for")
        async with self._turn:
            while self._leased_bytes + held > self.limit_bytes:
                self._returned = anyio.Event()
                await self._returned.wait()
            self._leased_bytes += held
        buffer = self._take(held)
        try:
            yield memoryview(buffer)[:size_bytes]
            self._idle[held].append(buffer)
        finally:
            self._leased_bytes -= held
            self._returned.set()

    def _take(self, held: int) -> bytearray:
        """Give an idle buffer of that size, or a new one in the room of other idle ones."""
        if self._idle[held]:
            return self._idle[held].pop()
        for size in sorted(self._idle, reverse=True):
            while self._idle[size] and self._leased_bytes + self.idle_bytes > self.limit_bytes:
                self._idle[size].pop()
        return bytearray(held)
