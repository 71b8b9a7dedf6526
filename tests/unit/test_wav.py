"""A channel in which nothing is ever heard, in every form that samples have."""

import math
import random

import pytest

from pipeline.status import Quality
from tests.media_files import chunk, fmt, judge, stereo, wav_of

SILENT = (Quality.SUSPECT_SILENT,)
RATE = 8000
CHANCE = random.Random(1)
SPEECH = [CHANCE.randint(-9000, 9000) for _ in range(RATE // 4)]
NOTHING = [0] * len(SPEECH)


@pytest.mark.parametrize(
    ("left", "right", "flags"),
    [
        (SPEECH, SPEECH, ()),
        (SPEECH, NOTHING, SILENT),
        (NOTHING, SPEECH, SILENT),
        (NOTHING, NOTHING, SILENT),
        (SPEECH, [*NOTHING[:-800], *SPEECH[:800]], ()),  # a tenth of a second at the end
        (SPEECH, [*SPEECH[:800], *NOTHING[:-800]], ()),
        ([1] * len(SPEECH), [256] * len(SPEECH), ()),  # one bit, in the lower or the higher byte
    ],
)
@pytest.mark.parametrize("piece", [1, 97, 65_536])
def test_a_channel_without_a_sound_is_flagged(
    left: list[int], right: list[int], flags: tuple[Quality, ...], piece: int
) -> None:
    assert judge(wav_of(stereo(left, right)), piece=piece).flags == flags


@pytest.mark.parametrize("hertz", [400, 440, 500, 1000, 2000])
def test_a_test_tone_is_heard(hertz: int) -> None:
    tone = [round(9000 * math.sin(2 * math.pi * hertz * at / RATE)) for at in range(RATE)]
    assert judge(wav_of(stereo(tone, tone))).flags == ()


FORMS = [
    pytest.param(fmt(7, 2, RATE, 8), b"\xff\x7f", b"\x91\x11", id="µ-law"),
    pytest.param(fmt(6, 2, RATE, 8), b"\xd5\x55", b"\x91\x11", id="A-law"),
    pytest.param(fmt(1, 2, RATE, 8), b"\x80\x80", b"\x91\x11", id="8 bits"),
    pytest.param(fmt(1, 1, RATE, 16), b"\0\0", b"\1\0", id="mono"),
    pytest.param(fmt(1, 2, 48000, 24), bytes(6), b"\0\0\1" * 2, id="24 bits"),
    pytest.param(fmt(3, 2, 48000, 32), bytes(8), b"\0\0\x80\x3f" * 2, id="float"),
    pytest.param(fmt(1, 16, RATE, 16), bytes(32), b"\0\1" * 16, id="16 channels"),
]


@pytest.mark.parametrize(("form", "silence", "sound"), FORMS)
def test_silence_is_known_in_each_form(form: bytes, silence: bytes, sound: bytes) -> None:
    assert judge(wav_of(silence * 9_000, form=form)).flags == SILENT
    assert judge(wav_of(sound * 9_000, form=form)).flags == ()


def test_an_extensible_format_is_what_its_guid_says() -> None:
    guid = b"\x07\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    basis = fmt(0xFFFE, 2, RATE, 8)[8:24]
    extensible = chunk(b"fmt ", basis + b"\x16\0\x08\0\0\0\0\0" + guid)
    assert judge(wav_of(b"\xff" * 9_000, form=extensible)).flags == SILENT
    assert judge(wav_of(b"\0" * 9_000, form=extensible)).flags == ()


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(fmt(49, 1, RATE, 0), id="GSM"),
        pytest.param(fmt(1, 65_535, RATE, 8), id="too many channels"),
        pytest.param(fmt(1, 0, RATE, 16), id="no channels"),
    ],
)
def test_where_silence_can_not_be_told_nothing_is_flagged(form: bytes) -> None:
    assert judge(wav_of(bytes(200_000), form=form)).flags == ()


def test_only_samples_are_listened_to() -> None:
    silent = wav_of(stereo(NOTHING, NOTHING), before=chunk(b"LIST", b"noise" * 20), after=chunk(b"LIST", b"noise" * 20))
    for piece in (13, 65_536):
        assert judge(silent, piece=piece).flags == SILENT


def test_one_without_a_known_end_is_listened_to_up_to_the_end_of_the_file() -> None:
    late = stereo(NOTHING, NOTHING) + stereo(SPEECH, SPEECH)
    for claim in (0, 0xFFFFFFFF):
        assert judge(wav_of(late, claim=claim)).flags == ()
        assert judge(wav_of(stereo(NOTHING, SPEECH), claim=claim)).flags == SILENT
