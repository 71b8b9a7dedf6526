from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crypt.artifact import Frame, Header
from pipeline.crypt.segments import SegmentType
from pipeline.errors import SegmentForgedError
from tests.property.examples import part
from tests.unit.artifact_file import HEADER, Content, frames, read

CHUNK = 16 * 1024

plaintexts = st.one_of(st.binary(max_size=64), st.integers(CHUNK - 2, CHUNK + 2).map(bytes))
middle = st.lists(st.tuples(st.sampled_from([SegmentType.MEDIA, SegmentType.EVENT]), plaintexts), max_size=8)


def whole(between: list[Content]) -> list[Content]:
    return [(SegmentType.EVENT, b"head"), *between, (SegmentType.MANIFEST, b"end")]


@settings(max_examples=part(100), deadline=None)
@given(between=middle)
def test_any_artifact_opens_as_it_was_sealed(between: list[Content]) -> None:
    contents = whole(between)
    assert read(HEADER.pack() + b"".join(frames(contents))) == contents


@settings(max_examples=part(200), deadline=None)
@given(between=middle, order=st.data())
def test_any_other_run_of_its_segments_is_noticed(between: list[Content], order: st.DataObject) -> None:
    parts = frames(whole(between))
    shuffled = order.draw(st.lists(st.integers(0, len(parts) - 1), max_size=len(parts) + 2))
    if shuffled == list(range(len(parts))):
        return
    with pytest.raises(SegmentForgedError):
        read(HEADER.pack() + b"".join(parts[at] for at in shuffled))


@settings(max_examples=part(200), deadline=None)
@given(between=middle, place=st.data())
def test_any_flipped_bit_or_cut_is_noticed(between: list[Content], place: st.DataObject) -> None:
    raw = bytearray(HEADER.pack() + b"".join(frames(whole(between))))
    at = place.draw(st.integers(0, len(raw) - 1))
    cut = bytes(raw[:at])
    raw[at] ^= 1 << place.draw(st.integers(0, 7))
    for damaged in (bytes(raw), cut):
        with pytest.raises(SegmentForgedError):
            read(damaged)


@settings(max_examples=part(300), deadline=None)
@given(raw=st.binary(min_size=0, max_size=120))
def test_any_bytes_are_read_as_header_and_prefix_or_refused(raw: bytes) -> None:
    for noise in (raw, HEADER.pack()[:72] + raw[:24].ljust(24, b"\x00")):
        try:
            assert Header.parse(noise).pack() == noise
        except SegmentForgedError:
            assert noise != HEADER.pack()
    for noise in (raw[:13], b"\x00\x00\x00" + raw[:10]):
        with suppress(SegmentForgedError):
            assert Frame.parse(noise).pack() == noise
