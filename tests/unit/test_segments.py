import copy
import pickle
from uuid import UUID

import pytest

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
from tests.unit import c2sp

CANARY = b"canary-secret-of-32-bytes-exact!"
KEY = DataKey(KeyId(UUID(int=1)), CANARY)
OTHER_KEY = DataKey(KeyId(UUID(int=1)), bytes(32))
HEADER = bytes(range(96))
PLACE = context(HEADER, 3, 70_000, 4_096, SegmentType.MEDIA)
BORDERS = [0, 1, 16_383, 16_384, 16_385, 32_767, 32_768, SEGMENT_LIMIT - 1, SEGMENT_LIMIT]


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("size", BORDERS)
def test_an_independent_reader_opens_what_is_sealed(size: int) -> None:
    plaintext = pattern(size)
    sealed = seal(KEY, PLACE, plaintext)
    place = c2sp.segment_context(HEADER, 3, 70_000, 4_096, 1)
    assert c2sp.open_message(CANARY, place, sealed) == plaintext
    assert open_segment(KEY, PLACE, sealed) == plaintext


@pytest.mark.parametrize("size", BORDERS)
def test_the_sealed_length_tells_the_plaintext_length(size: int) -> None:
    assert len(seal(KEY, PLACE, pattern(size))) == sealed_size(size)
    assert plaintext_size(sealed_size(size)) == size


@pytest.mark.parametrize(
    "length",
    [
        -1,
        0,
        56,
        71,
        56 + 16_400,  # a last chunk that is missing
        56 + 16_400 + 1,
        56 + 16_400 + 15,  # a last chunk without room for its tag
        sealed_size(SEGMENT_LIMIT) + 1,
        2**32 - 1,
    ],
)
def test_a_length_that_no_segment_has_is_refused(length: int) -> None:
    with pytest.raises(SegmentForgedError):
        plaintext_size(length)


def test_every_length_below_three_chunks_is_either_refused_or_right() -> None:
    possible = {sealed_size(size): size for size in range(3 * 16_384)}
    for length in range(sealed_size(3 * 16_384 - 1) + 1):
        if length in possible:
            assert plaintext_size(length) == possible[length]
        else:
            with pytest.raises(SegmentForgedError):
                plaintext_size(length)


def test_the_same_bytes_never_seal_to_the_same_segment() -> None:
    assert len({seal(KEY, PLACE, b"same") for _ in range(100)}) == 100


@pytest.mark.parametrize("size", BORDERS)
def test_sealing_into_a_buffer_gives_a_segment_that_opens_into_a_buffer(size: int) -> None:
    plaintext = pattern(size)
    out = bytearray(b"\xaa" * (sealed_size(size) + 5))
    assert seal_into(KEY, PLACE, plaintext, memoryview(out)) == sealed_size(size)
    assert out[sealed_size(size) :] == b"\xaa" * 5
    back = bytearray(b"\xbb" * (size + 5))
    assert open_into(KEY, PLACE, out[: sealed_size(size)], memoryview(back)) == size
    assert back == plaintext + b"\xbb" * 5


@pytest.mark.parametrize("size", BORDERS)
def test_buffers_of_just_the_right_size_suffice(size: int) -> None:
    out, back = bytearray(sealed_size(size)), bytearray(size)
    seal_into(KEY, PLACE, pattern(size), memoryview(out))
    open_into(KEY, PLACE, out, memoryview(back))
    assert back == pattern(size)


def test_a_plaintext_in_parts_is_sealed_as_one() -> None:
    whole = pattern(100_000)
    parts = [memoryview(whole)[at : at + 7_777] for at in range(0, len(whole), 7_777)]
    out = bytearray(sealed_size(len(whole)))
    seal_into(KEY, PLACE, parts, memoryview(out))
    assert open_segment(KEY, PLACE, out) == whole


def test_a_short_buffer_is_refused_before_anything_is_written() -> None:
    out = bytearray(sealed_size(10) - 1)
    with pytest.raises(ValueError, match="too short"):
        seal_into(KEY, PLACE, bytes(10), memoryview(out))
    assert not any(out)
    back = bytearray(9)
    with pytest.raises(ValueError, match="too short"):
        open_into(KEY, PLACE, seal(KEY, PLACE, b"0123456789"), memoryview(back))
    assert not any(back)


def test_more_than_one_mebibyte_is_not_sealed() -> None:
    with pytest.raises(ValueError, match="1 MiB"):
        seal(KEY, PLACE, bytes(SEGMENT_LIMIT + 1))
    with pytest.raises(ValueError, match="1 MiB"):
        seal_into(KEY, PLACE, [bytes(SEGMENT_LIMIT), b"x"], memoryview(bytearray(2 * SEGMENT_LIMIT)))


def test_more_than_one_mebibyte_is_not_opened() -> None:
    encryptor = KEY.encryptor(PLACE)
    sealed = encryptor.update(bytes(SEGMENT_LIMIT + 1)) + encryptor.finalize()
    with pytest.raises(SegmentForgedError):
        open_segment(KEY, PLACE, sealed)
    with pytest.raises(SegmentForgedError):
        open_into(KEY, PLACE, sealed, memoryview(bytearray(2 * SEGMENT_LIMIT)))


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(context(bytes(96), 3, 70_000, 4_096, SegmentType.MEDIA), id="another header"),
        pytest.param(context(HEADER, 4, 70_000, 4_096, SegmentType.MEDIA), id="another index"),
        pytest.param(context(HEADER, 3, 70_001, 4_096, SegmentType.MEDIA), id="another media offset"),
        pytest.param(context(HEADER, 3, 70_000, 4_095, SegmentType.MEDIA), id="another durable offset"),
        pytest.param(context(HEADER, 3, 70_000, 4_096, SegmentType.EVENT), id="another type"),
    ],
)
def test_a_segment_opens_only_in_its_place(place: bytes) -> None:
    with pytest.raises(SegmentForgedError):
        open_segment(KEY, place, seal(KEY, PLACE, b"here"))


def test_a_segment_opens_only_under_its_key() -> None:
    with pytest.raises(SegmentForgedError):
        open_segment(OTHER_KEY, PLACE, seal(KEY, PLACE, b"mine"))


def test_every_flipped_bit_is_found() -> None:
    sealed = seal(KEY, PLACE, b"twenty bytes of text")
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SegmentForgedError):
            open_segment(KEY, PLACE, flipped)


@pytest.mark.parametrize("at", [60, 20_000, sealed_size(40_000) - 1], ids=["first", "second", "last"])
def test_a_buffer_is_zeroed_when_a_chunk_does_not_authenticate(at: int) -> None:
    """The library writes each chunk as soon as that chunk is known; the caller must see none of them."""
    sealed = bytearray(seal(KEY, PLACE, b"p" * 40_000))
    sealed[at] ^= 1
    out = bytearray(b"\xcc" * 40_010)
    with pytest.raises(SegmentForgedError):
        open_into(KEY, PLACE, sealed, memoryview(out))
    assert out == bytes(40_000) + b"\xcc" * 10


def test_whole_chunks_cut_off_a_message_are_missed() -> None:
    sealed = seal(KEY, PLACE, bytes(40_000))
    for keep in (56 + 16_400, 56 + 2 * 16_400):
        with pytest.raises(SegmentForgedError):
            open_segment(KEY, PLACE, sealed[:keep])
        # the same with a last chunk taken from further on
        with pytest.raises(SegmentForgedError):
            open_segment(KEY, PLACE, sealed[:keep] + sealed[56 + 2 * 16_400 + 16 :])


def test_a_data_key_shows_its_id_and_never_its_secret() -> None:
    shown = f"{KEY!r} {KEY} {[KEY]!r} {KEY:}"
    assert "00000000-0000-0000-0000-000000000001" in shown
    assert "canary" not in shown
    assert not hasattr(KEY, "__dict__")


def test_a_data_key_can_be_neither_pickled_nor_copied() -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not written anywhere"):
            attempt(KEY)


def test_a_data_key_is_hashed_and_compared_by_its_id() -> None:
    assert {KEY: 1}[DataKey(KEY.key_id, bytes(32))] == 1
    assert DataKey(KeyId(UUID(int=2)), CANARY) != KEY
    assert object() != KEY


def test_a_secret_of_another_length_is_no_data_key() -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        DataKey(KEY.key_id, CANARY[:-1])
    assert "canary" not in str(caught.value)
