from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crypt.segments import (
    SEGMENT_LIMIT,
    DataKey,
    SegmentType,
    context,
    open_into,
    open_segment,
    plaintext_size,
    seal,
    seal_into,
    sealed_size,
)
from pipeline.errors import SegmentForgedError
from pipeline.ids import KeyId
from tests.property.examples import part
from tests.unit import c2sp

SECRET = bytes(range(32))
KEY = DataKey(KeyId(UUID(int=1)), SECRET)
HEADER = bytes(96)
CHUNK = 16 * 1024

u64 = st.integers(0, 2**64 - 1)
near_a_chunk = st.builds(lambda chunks, off: max(chunks * CHUNK + off, 0), st.integers(0, 4), st.integers(-20, 20))
near_the_limit = st.integers(SEGMENT_LIMIT - 20, SEGMENT_LIMIT)
sizes = st.one_of(st.integers(0, 300), near_a_chunk, near_the_limit)


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@settings(max_examples=part(60), deadline=None)
@given(size=sizes, index=u64, media=u64, durable=u64, kind=st.sampled_from(SegmentType))
def test_any_segment_is_opened_by_us_and_by_an_independent_reader(
    size: int, index: int, media: int, durable: int, kind: SegmentType
) -> None:
    plaintext = pattern(size)
    place = context(HEADER, index, media, durable, kind)
    sealed = seal(KEY, place, plaintext)
    assert len(sealed) == sealed_size(size)
    assert plaintext_size(len(sealed)) == size
    assert c2sp.open_message(SECRET, c2sp.segment_context(HEADER, index, media, durable, kind), sealed) == plaintext
    assert open_segment(KEY, place, sealed) == plaintext


@settings(max_examples=part(60), deadline=None)
@given(size=sizes, cuts=st.lists(st.integers(0, SEGMENT_LIMIT), max_size=8))
def test_any_split_into_parts_seals_the_same_plaintext(size: int, cuts: list[int]) -> None:
    whole = memoryview(pattern(size))
    borders = sorted({0, size, *(cut % (size + 1) for cut in cuts)})
    parts = [whole[start:end] for start, end in pairwise(borders)]
    out = bytearray(sealed_size(size))
    assert seal_into(KEY, b"place", parts, memoryview(out)) == len(out)
    back = bytearray(size)
    assert open_into(KEY, b"place", out, memoryview(back)) == size
    assert back == whole


@settings(max_examples=part(150), deadline=None)
@given(size=st.one_of(st.integers(0, 300), near_a_chunk), data=st.data())
def test_any_damage_is_found_and_leaves_no_plaintext(size: int, data: st.DataObject) -> None:
    sealed = bytearray(seal(KEY, b"place", b"\xff" * size))
    damage = data.draw(st.sampled_from(["flip", "cut", "more", "zero"]))
    at = data.draw(st.integers(0, len(sealed) - 1))
    if damage == "flip":
        sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "cut":
        del sealed[at:]
    elif damage == "more":
        sealed += bytes(data.draw(st.integers(1, 2 * CHUNK)))
    else:
        if not any(sealed[at:]):
            sealed[at] = 1
        sealed[at:] = bytes(len(sealed) - at)
    out = bytearray(size + 3 * CHUNK)
    with pytest.raises(SegmentForgedError):
        open_into(KEY, b"place", sealed, memoryview(out))
    assert not any(out)
    with pytest.raises(SegmentForgedError):
        open_segment(KEY, b"place", sealed)


@settings(max_examples=part(300), deadline=None)
@given(length=st.one_of(st.integers(0, 200_000), st.integers(0, 2**32)))
def test_any_length_is_refused_or_has_one_plaintext_length(length: int) -> None:
    try:
        size = plaintext_size(length)
    except SegmentForgedError:
        return
    assert 0 <= size <= SEGMENT_LIMIT
    assert sealed_size(size) == length
