"""Quality flags from the first bytes and the length."""

import struct

import pytest

from pipeline.delivery.media import HEAD_BYTES, MediaCheck, Verdict, wav_layout
from pipeline.status import Quality

EMPTY, SHORT, FORMAT = Quality.SUSPECT_EMPTY, Quality.SUSPECT_SHORT, Quality.SUSPECT_FORMAT


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


FMT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 2, 8000, 32000, 4, 16))


def wav(data_bytes: int, *, before: bytes = b"", after: bytes = b"", claim: int | None = None) -> bytes:
    """Make a WAV of `data_bytes` of sound whose header says `claim`; RIFF's own size follows the claim."""
    claimed = data_bytes if claim is None else claim
    body = b"WAVE" + FMT + before + b"data" + struct.pack("<I", claimed)
    riff = 0xFFFFFFFF if claimed == 0xFFFFFFFF else len(body) + claimed + len(after)
    return b"RIFF" + struct.pack("<I", riff) + body + b"\x01" * data_bytes + after


def judge(body: bytes, declared: str | None = "audio/wav", piece: int = 100_000) -> Verdict:
    check = MediaCheck(declared)
    for start in range(0, len(body), piece):
        check.feed(body[start : start + piece])
    return check.verdict(len(body))


def test_a_whole_wav_has_no_flags() -> None:
    assert judge(wav(32_000)) == Verdict("audio/wav", "wav", ())


@pytest.mark.parametrize("piece", [1, 7, 511, 513])
def test_a_body_in_small_pieces_is_judged_the_same(piece: int) -> None:
    assert judge(wav(1_000, claim=2_000), piece=piece) == judge(wav(1_000, claim=2_000))


def test_a_header_without_samples_is_empty() -> None:
    assert len(wav(0)) == 44
    assert judge(wav(0)).flags == (EMPTY,)
    assert judge(wav(0, claim=0xFFFFFFFF)).flags == (EMPTY,)
    assert judge(wav(0, after=chunk(b"LIST", b"INFOx"))).flags == (EMPTY,)


def test_less_than_one_frame_is_empty() -> None:
    assert judge(wav(3)).flags == (EMPTY,)
    assert judge(wav(4)).flags == ()


def test_no_bytes_at_all_are_empty() -> None:
    assert judge(b"") == Verdict("audio/wav", "wav", (EMPTY,))
    assert judge(b"", None).flags == (EMPTY, FORMAT)


def test_a_file_that_ends_before_its_samples_is_empty() -> None:
    assert judge(wav(0)[:30]).flags == (EMPTY,)
    assert judge(b"RIFF\x04\0\0\0WAVE").flags == (EMPTY,)


def test_an_unfinished_header_means_until_the_end_of_the_file() -> None:
    assert judge(wav(1_000, claim=0xFFFFFFFF)).flags == ()
    assert judge(wav(1_000, claim=0)).flags == ()


@pytest.mark.parametrize(("claim", "flags"), [(1_000, ()), (1_004, ()), (996, ()), (1_005, (SHORT,)), (995, (SHORT,))])
def test_a_header_that_disagrees_by_more_than_a_frame_is_short(claim: int, flags: tuple[Quality, ...]) -> None:
    assert judge(wav(1_000, claim=claim)).flags == flags


def test_a_file_cut_right_after_its_header_is_empty_and_short() -> None:
    assert judge(wav(0, claim=1_000)).flags == (EMPTY, SHORT)


def test_chunks_may_precede_and_follow_the_samples() -> None:
    odd = chunk(b"LIST", b"INFOx") + chunk(b"fact", b"\0\0\0\0")
    assert judge(wav(1_000, before=odd, after=odd)).flags == ()
    assert wav_layout(wav(1_000, before=odd)) is not None


def test_the_samples_are_found_far_into_the_file_but_not_without_end() -> None:
    near = wav(1_000, before=chunk(b"LIST", b"x" * (HEAD_BYTES - 1_000)), claim=9_000)
    far = wav(1_000, before=chunk(b"LIST", b"x" * HEAD_BYTES), claim=9_000)
    assert judge(near).flags == (SHORT,)
    assert judge(near, piece=100).flags == (SHORT,)
    assert judge(far).flags == ()


@pytest.mark.parametrize(
    ("begun", "wants_more"),
    [
        (wav(100), True),
        (wav(2_000), False),
        (wav(0, before=chunk(b"LIST", b"x" * 2_000))[:1_000], True),
        (wav(0, before=chunk(b"LIST", b"x" * 2_000)) + bytes(4_000), False),
        (b"\x01" * 512, False),
    ],
)
def test_no_more_is_wanted_than_is_needed(begun: bytes, wants_more: bool) -> None:
    check = MediaCheck(None)
    check.feed(begun)
    assert check.wants_more is wants_more


def test_bytes_of_no_known_format_are_flagged() -> None:
    assert judge(b"\x01" * 1_000) == Verdict("audio/wav", "wav", (FORMAT,))
    assert judge(b"\x01" * 1_000, None) == Verdict("application/octet-stream", "bin", (FORMAT,))


def test_other_formats_are_only_named() -> None:
    assert judge(b"\0\0\0\x18ftypisom" + bytes(600), None) == Verdict("video/mp4", "mp4", ())


def test_an_absurd_header_is_survived() -> None:
    zero_frames = wav(100).replace(FMT, chunk(b"fmt ", bytes(16)))
    assert judge(zero_frames).flags == ()
    assert judge(b"RIFF\xff\xff\xff\xffWAVE" + b"\xff" * 600).flags == (EMPTY,)
    assert judge(b"RIFF\xff\xff\xff\xffWAVE" + b"\xff" * HEAD_BYTES).flags == ()
