"""The checks of what comes in as a recording: never an exception, the same verdict for any pieces, bounded memory."""

from collections.abc import Sequence
from datetime import timedelta

from pipeline.delivery.media import MediaCheck, Verdict
from pipeline.delivery.naming import CONTENT_TYPES
from pipeline.status import Quality
from tests.media_files import FTYP, MDAT, chunk, fmt, fragment, live_moov, moov, run_of, stereo, wav_of

_DURATION = timedelta(minutes=10)


def wavs() -> Sequence[bytes]:
    sound = stereo(range(100), range(100))
    return [
        wav_of(sound),
        wav_of(sound, before=chunk(b"LIST", b"INFOx"), after=chunk(b"LIST", b"INFOx")),
        wav_of(b"\xff" * 600, form=fmt(7, 2, 8000, 8)),
        wav_of(bytes(600), form=fmt(3, 1, 48000, 32), claim=0xFFFFFFFF),
        wav_of(b""),
    ]


def mp4s() -> Sequence[bytes]:
    live = FTYP + live_moov(1000, 200)
    return [FTYP + moov() + MDAT, FTYP + MDAT * 6 + moov(version=1), live + fragment(run_of(5)) * 3, live]


def transcripts() -> Sequence[bytes]:
    return [b'{"Version":"2019-08-26","Transcript":[{"Id":"1","Content":"hello"}]}', b'[{"Transcript":[]}]']


def judged(data: bytes) -> None:
    """Judge it whole, and in pieces whose sizes its own first bytes choose."""
    whole = _verdict([data])
    assert whole.flags == tuple(flag for flag in Quality if flag in whole.flags)
    assert whole.content_type in CONTENT_TYPES.get(whole.extension, ("application/octet-stream",))
    step = 1 + (data[0] % 64 if data else 0)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert _verdict(pieces) == whole


def _verdict(pieces: list[bytes]) -> Verdict:
    check = MediaCheck()
    for piece in pieces:
        check.feed(piece)
    return check.verdict(sum(map(len, pieces)), None, _DURATION)
