"""Fetch what was brought to an instance's bucket of its audit log: checkpoints and digests, all of them."""

import gzip
import zlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from pipeline.audit.digests import SignedDigest
from pipeline.audit.hourly import Place
from pipeline.errors import RefuseError
from pipeline.ports import Destination, ObjectFacts

_AT_ONCE = 16
_LARGEST_BYTES = 16 * 2**20
_T = TypeVar("_T")


async def checkpoints(destination: Destination, place: Place) -> list[str]:
    """Give every checkpoint. Raises as `Destination.read`."""

    async def fetch(number: int) -> str:
        _, body = await _read(destination, place.checkpoint(number))
        return body.decode("utf-8", "replace")

    return await _all(destination, place.checkpoint, fetch)


async def digests(destination: Destination, place: Place) -> list[SignedDigest]:
    """Give every digest, its signature as the object's metadata have it. Raises as `Destination.read`."""

    async def fetch(number: int) -> SignedDigest:
        facts, body = await _read(destination, place.digest(number))
        try:
            document = gzip.decompress(body)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            document = b""
        return SignedDigest(document, facts.metadata.get("signature", ""))

    return await _all(destination, place.digest, fetch)


async def _all(destination: Destination, key: Callable[[int], str], fetch: Callable[[int], Awaitable[_T]]) -> list[_T]:
    count = await _count(destination, key)
    found: dict[int, _T] = {}
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def one(number: int) -> None:
        async with limiter:
            found[number] = await fetch(number)

    async with anyio.create_task_group() as group:
        for number in range(1, count + 1):
            group.start_soon(one, number)
    return [found[number] for number in sorted(found)]


async def _count(destination: Destination, key: Callable[[int], str]) -> int:
    """Count the objects of a series that has no hole in it: they were written in order, and never overwritten."""
    least, most = 0, 1
    while await destination.head(key(most)) is not None:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        if await destination.head(key(middle)) is not None:
            least = middle
        else:
            most = middle
    return least


async def _read(destination: Destination, key: str) -> tuple[ObjectFacts, bytes]:
    facts = await destination.head(key)
    if facts is None or not facts.size_bytes or facts.size_bytes > _LARGEST_BYTES:
        raise RefuseError("an object of the audit trail is gone from the bucket, or is none of ours")
    return facts, await destination.read(key, 0, facts.size_bytes)
