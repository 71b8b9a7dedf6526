import asyncio
import os
import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store_fixture import World, node, source

MIB = 1024 * 1024
LARGE = os.urandom(2 * MIB + 54_321)
"""Not kept in memory as a whole, and of segments that are read in part."""


async def read(body: bytes, cuts: list[int], ranges: list[tuple[int, int]], root: Path) -> list[bytes]:
    async with node(World(root=root)) as process:
        reception = await process.recorder.begin(process.a, source())
        for start, end in pairwise([0, *sorted(cuts), len(body)]):
            await process.send(reception, body[start:end])
            if start % 2:
                await reception.writer.sync()
        await process.recorder.finish(reception, None)
        name = process.sealed[-1]
        key = await process.a.ring.opening(name.key_id)
        found = []
        with process.store.reading(name, key) as reader:
            for offset, size in ranges:
                room = bytearray(size)
                reader.read_into(offset, memoryview(room))
                found.append(bytes(room))
        return found


def check(body: bytes, data: st.DataObject) -> None:
    place = st.integers(0, len(body))
    cuts = data.draw(st.lists(place, max_size=6))
    pairs = data.draw(st.lists(st.tuples(place, place), min_size=1, max_size=12))
    ranges = [(min(pair), abs(pair[0] - pair[1])) for pair in pairs]
    with tempfile.TemporaryDirectory() as root:
        found = asyncio.run(read(body, cuts, ranges, Path(root)))
    assert found == [body[offset : offset + size] for offset, size in ranges]


@settings(max_examples=8, deadline=None)
@given(body=st.binary(max_size=200), data=st.data())
def test_any_range_of_a_small_artifact_is_the_slice(body: bytes, data: st.DataObject) -> None:
    check(body, data)


@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_any_range_of_a_large_artifact_is_the_slice(data: st.DataObject) -> None:
    check(LARGE, data)
