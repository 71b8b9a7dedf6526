"""The walk through an MP4's boxes: what is whole, cut, without its index, and how long it plays."""

import struct
from datetime import timedelta

import pytest

from pipeline.delivery.mp4 import Mp4Check
from pipeline.status import Quality
from tests.media_files import (
    FTYP,
    MDAT,
    big_box,
    box,
    fragment,
    header_box,
    judge,
    live_moov,
    moov,
    run_of,
)

EMPTY, SHORT, NO_MOOV = Quality.SUSPECT_EMPTY, Quality.SUSPECT_SHORT, Quality.SUSPECT_NO_MOOV
FORMAT, RECOVERED = Quality.SUSPECT_FORMAT, Quality.RECOVERED
LIVE = FTYP + live_moov(1000, 200)
"""The beginning of a file that grows by fragments: five pictures a second."""


@pytest.mark.parametrize("piece", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("body", "flags"),
    [
        pytest.param(FTYP + moov() + MDAT, (), id="index first"),
        pytest.param(FTYP + MDAT + moov(), (), id="index last"),
        pytest.param(FTYP + big_box(b"mdat", b"media") + moov(), (), id="sizes of 64 bits"),
        pytest.param(FTYP + moov() + struct.pack(">I", 0) + b"mdat" + b"media", (), id="to the end of the file"),
        pytest.param(box(b"wide") + MDAT + moov(), (), id="without ftyp"),
        pytest.param(FTYP + MDAT, (NO_MOOV,), id="no index"),
        pytest.param(FTYP + MDAT[:-1], (SHORT, NO_MOOV), id="media cut, no index"),
        pytest.param(FTYP + moov() + MDAT[:-1], (SHORT,), id="media cut"),
        pytest.param(FTYP + moov() + MDAT + b"\0\0\0", (SHORT,), id="the head of a box cut"),
        pytest.param(FTYP + moov() + big_box(b"mdat", b"media")[:12], (EMPTY, SHORT), id="a long size cut"),
        pytest.param(FTYP + moov() + struct.pack(">I4sQ", 1, b"mdat", 2**64 - 1) + b"x", (SHORT,), id="endless"),
        pytest.param(FTYP + MDAT + moov()[:-1], (SHORT, NO_MOOV), id="index cut"),
        pytest.param(FTYP + moov() + box(b"mdat"), (EMPTY,), id="no media"),
        pytest.param(FTYP + moov(), (EMPTY,), id="nothing but an index"),
        pytest.param(FTYP, (EMPTY, NO_MOOV), id="nothing but a type"),
        pytest.param(FTYP + moov() + MDAT + b"\0\0\0\5junk", (FORMAT,), id="a size that can't be"),
        pytest.param(FTYP + moov() + MDAT + struct.pack(">I4sQ", 1, b"junk", 5), (FORMAT,), id="nor a long one"),
        pytest.param(FTYP + box(b"moov", b"\0\0\0\5junkjunk") + MDAT, (), id="damage inside of the index"),
        pytest.param(FTYP + box(b"moov", struct.pack(">I4s", 999, b"trak")) + MDAT, (), id="more inside than fits"),
        pytest.param(FTYP + box(b"moov", *[box(b"moov")] * 3, b"\0\0\0") + MDAT, (), id="boxes in boxes"),
        pytest.param(LIVE + fragment(run_of(5)) * 3, (), id="fragments"),
        pytest.param(LIVE, (EMPTY,), id="no fragment"),
        pytest.param(LIVE + fragment(run_of(5)) * 3 + fragment(run_of(5))[:-1], (RECOVERED,), id="fragment cut"),
        pytest.param(LIVE + fragment(run_of(5)) + fragment(run_of(5))[:30], (RECOVERED,), id="fragment's index cut"),
        pytest.param(LIVE + fragment(run_of(5)) + fragment(run_of(5))[:-14], (RECOVERED,), id="half a pair"),
        pytest.param(box(b"styp", b"msdh") + fragment(run_of(5)), (NO_MOOV,), id="fragments without an index"),
    ],
)
def test_what_the_boxes_say(body: bytes, flags: tuple[Quality, ...], piece: int) -> None:
    assert judge(body, piece=piece).flags == flags


def test_what_begins_with_no_known_box_is_of_no_known_format() -> None:
    assert judge(box(b"uuid", bytes(600)) + MDAT, "video/mp4").flags == (FORMAT,)


def lasts(body: bytes, piece: int = 100_000) -> timedelta | None:
    check = Mp4Check()
    for at in range(0, len(body), piece):
        check.feed(body[at : at + piece])
    return check.duration(len(body))


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def with_durations(*units: int) -> bytes:
    """Make a run whose samples have lengths of their own, and sizes."""
    return struct.pack(">III", 0x301, len(units), 64) + b"".join(struct.pack(">II", each, 10) for each in units)


@pytest.mark.parametrize("piece", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("body", "duration"),
    [
        pytest.param(FTYP + moov(600, 1500) + MDAT, seconds(2.5), id="as the index says"),
        pytest.param(FTYP + moov(600, 1500, version=1) + MDAT, seconds(2.5), id="in 64 bits"),
        pytest.param(FTYP + moov(600, 2**32 - 1) + MDAT, None, id="not known yet"),
        pytest.param(FTYP + moov(0, 1500) + MDAT, None, id="no time units"),
        pytest.param(FTYP + moov(1, 2**40, version=1) + MDAT, None, id="absurd"),
        pytest.param(FTYP + MDAT, None, id="no index"),
        pytest.param(LIVE + fragment(run_of(5)) * 3, seconds(3), id="fragments"),
        pytest.param(
            LIVE + fragment(run_of(5)) * 3 + fragment(run_of(5))[:-1], seconds(3), id="a torn one not counted"
        ),
        pytest.param(
            LIVE + fragment(run_of(5), struct.pack(">III", 8, 1, 400)), seconds(2), id="fragment's own length"
        ),
        pytest.param(
            LIVE + fragment(run_of(5), struct.pack(">IIQII", 0xB, 1, 0, 1, 400)), seconds(2), id="behind other fields"
        ),
        pytest.param(LIVE + fragment(with_durations(100, 900, 500)), seconds(1.5), id="samples' own lengths"),
        pytest.param(LIVE + fragment(with_durations(100, 900)[:-1]), None, id="a run cut"),
        pytest.param(LIVE + fragment(b"\0"), None, id="a run of nothing"),
        pytest.param(LIVE + fragment(run_of(5) + bytes(70_000)), None, id="a run too large to be read"),
        pytest.param(FTYP + box(b"moov", box(b"mvhd", b"\1")) + MDAT, None, id="an index without numbers"),
        pytest.param(header_box(b"mvhd", 600, 600) + FTYP + MDAT, None, id="outside of an index"),
    ],
)
def test_how_long_it_plays(body: bytes, duration: timedelta | None, piece: int) -> None:
    assert lasts(body, piece) == duration


def test_fragments_of_many_tracks_do_not_fill_the_memory() -> None:
    body = LIVE + b"".join(fragment(run_of(1), struct.pack(">II", 0, track)) for track in range(1_000))
    assert lasts(body) is None
    assert judge(body).flags == ()


def test_a_file_of_nothing_but_tiny_boxes_is_given_up_and_not_judged() -> None:
    tiny = box(b"free") * 50_000
    assert judge(FTYP + tiny).flags == ()
    assert judge(FTYP + box(b"moov", tiny)).flags == ()
    assert lasts(FTYP + moov() + tiny) is None
    few = box(b"free") * 5_000
    assert judge(FTYP + few + moov() + MDAT).flags == ()
    assert judge(FTYP + few + MDAT).flags == (NO_MOOV,)
