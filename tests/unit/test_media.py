"""Quality flags from the bytes and the length."""

from datetime import timedelta

import pytest

from pipeline.delivery.media import MediaCheck, Verdict
from pipeline.status import Quality
from tests.media_files import FMT, FTYP, MDAT, chunk, judge, moov, wav_of

EMPTY, SHORT, FORMAT = Quality.SUSPECT_EMPTY, Quality.SUSPECT_SHORT, Quality.SUSPECT_FORMAT


def wav(data_bytes: int, *, before: bytes = b"", after: bytes = b"", claim: int | None = None) -> bytes:
    return wav_of(b"\x01" * data_bytes, before=before, after=after, claim=claim)


def test_a_whole_wav_has_no_flags() -> None:
    assert judge(wav(32_000), "audio/x-wav") == Verdict("audio/wav", "wav", ())


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
    assert judge(b"", "audio/wav") == Verdict("audio/wav", "wav", (EMPTY,))
    assert judge(b"").flags == (EMPTY, FORMAT)


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
    assert judge(wav(1_000, before=odd, after=odd, claim=2_000)).flags == (SHORT,)


def test_the_samples_are_found_however_far_into_the_file() -> None:
    far = wav(1_000, before=chunk(b"LIST", b"x" * 300_000), claim=9_000)
    assert judge(far).flags == (SHORT,)
    assert judge(far, piece=100).flags == (SHORT,)


def test_bytes_of_no_known_format_are_flagged() -> None:
    assert judge(b"\x01" * 1_000, "audio/wav") == Verdict("audio/wav", "wav", (FORMAT,))
    assert judge(b"\x01" * 1_000) == Verdict("application/octet-stream", "bin", (FORMAT,))


def test_other_formats_are_only_named() -> None:
    assert judge(b"OggS" + bytes(600)) == Verdict("audio/ogg", "ogg", ())


def test_an_absurd_header_is_survived() -> None:
    assert judge(wav(100).replace(FMT, chunk(b"fmt ", bytes(16)))).flags == ()
    assert judge(b"RIFF\xff\xff\xff\xffWAVE" + b"\xff" * 600).flags == (EMPTY,)
    assert judge(b"RIFF\xff\xff\xff\xffWAVE" + chunk(b"JUNK", b"") * 2_000 + wav(100)[12:]).flags == ()


# --- what events say

SECONDS_10 = wav_of(b"\x01" * 320_000)
MOVIE_10 = FTYP + moov(1000, 10_000) + MDAT


@pytest.mark.parametrize("body", [SECONDS_10, MOVIE_10], ids=["wav", "mp4"])
@pytest.mark.parametrize(
    ("expected_s", "is_short"), [(None, False), (5, False), (12, False), (12.5, True), (947, True), (-3, False)]
)
def test_what_is_shorter_than_its_events_by_more_than_2_s_and_2_percent_is_flagged(
    body: bytes, expected_s: float | None, is_short: bool
) -> None:
    check = MediaCheck()
    check.feed(body)
    expected = None if expected_s is None else timedelta(seconds=expected_s)
    assert (SHORT in check.verdict(len(body), None, expected).flags) is is_short


def test_a_long_call_may_lack_two_percent() -> None:
    body = wav_of(b"\x01" * 320_000, form=chunk(b"fmt ", FMT[8:16] + (320).to_bytes(4, "little") + FMT[20:24]))
    for expected_s, is_short in ((1_019, False), (1_022, True)):  # it lasts 1,000 s
        check = MediaCheck()
        check.feed(body)
        assert (check.verdict(len(body), None, timedelta(seconds=expected_s)).flags == (SHORT,)) is is_short


def test_a_call_of_which_only_the_header_came_is_empty_whatever_it_should_be() -> None:
    check = MediaCheck()
    check.feed(wav(0))
    assert check.verdict(44, None, timedelta(minutes=23)).flags == (EMPTY,)


def test_a_verdict_may_be_asked_for_again() -> None:
    for body in (SECONDS_10, MOVIE_10[:-10], b'{"Transcript":[]}', wav(3)):
        check = MediaCheck()
        check.feed(body)
        assert check.verdict(len(body), None) == check.verdict(len(body), None)


# --- transcripts that are handed over as files

TRANSCRIPT = b'{"Version":"2019-08-26","Transcript":[{"Id":"1"}]}'


@pytest.mark.parametrize(
    ("body", "flags"),
    [
        (TRANSCRIPT, ()),
        (TRANSCRIPT + b" \r\n", ()),
        (b'{"Transcript":[]}', (EMPTY,)),
        (TRANSCRIPT[:-1], (SHORT,)),
        (TRANSCRIPT[:30], (SHORT,)),
        (TRANSCRIPT + b"}", (FORMAT,)),
        (b'{"Transcript":nothing}', (FORMAT,)),
        (b'{"Transcript":"none"}', ()),
        (b'[{"any":"list"}]', ()),
        (TRANSCRIPT[:-1] + b',"x":"' + b"x" * 600 + b'\xff"}', (FORMAT,)),
        (b'{"a":' + b"[" * 100_000, (FORMAT,)),
        (TRANSCRIPT[:-1] + b',"x":"' + b"x" * 300_000 + b'"}\n', ()),
        (TRANSCRIPT[:-1] + b',"x":"' + b"x" * 300_000, (SHORT,)),
    ],
)
def test_json_is_read_to_its_end(body: bytes, flags: tuple[Quality, ...]) -> None:
    assert judge(body, "application/json", piece=9_000) == Verdict("application/json", "json", flags)
