"""Small WAV and MP4 files, made by hand: whole, and wrong in every way that is wanted. For tests only."""

import struct
from collections.abc import Iterable

from pipeline.delivery.media import MediaCheck, Verdict

# --- WAV


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def fmt(code: int = 1, channels: int = 2, rate: int = 8000, bits: int = 16) -> bytes:
    frame = channels * -(-bits // 8)
    return chunk(b"fmt ", struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits))


FMT = fmt()


def wav_of(
    samples: bytes, *, form: bytes = FMT, before: bytes = b"", after: bytes = b"", claim: int | None = None
) -> bytes:
    """Make a WAV whose header says `claim`; RIFF's own size follows the claim."""
    claimed = len(samples) if claim is None else claim
    body = b"WAVE" + form + before + b"data" + struct.pack("<I", claimed)
    riff = 0xFFFFFFFF if claimed == 0xFFFFFFFF else len(body) + claimed + len(after)
    return b"RIFF" + struct.pack("<I", riff) + body + samples + after


def stereo(left: Iterable[int], right: Iterable[int]) -> bytes:
    samples = [sample for pair in zip(left, right, strict=True) for sample in pair]
    return struct.pack(f"<{len(samples)}h", *samples)


# --- MP4


def box(name: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", len(body) + 8) + name + body


def big_box(name: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4sQ", 1, name, len(body) + 16) + body


FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2")
MDAT = box(b"mdat", b"media" * 20)


def header_box(name: bytes, scale: int, units: int, version: int = 0) -> bytes:
    """Make `mvhd` or `mdhd`."""
    times = struct.pack(">QQIQ" if version else ">IIII", 0, 0, scale, units)
    return box(name, bytes([version, 0, 0, 0]), times, bytes(80))


def moov(scale: int = 1000, units: int = 10_000, *inside: bytes, version: int = 0) -> bytes:
    return box(b"moov", header_box(b"mvhd", scale, units, version), *inside)


def live_moov(scale: int, sample_units: int, track: int = 1) -> bytes:
    """Make the index of a file that grows by fragments: no duration, samples of one length."""
    tkhd = box(b"tkhd", struct.pack(">IIII", 7, 0, 0, track), bytes(68))
    trak = box(b"trak", tkhd, box(b"mdia", header_box(b"mdhd", scale, 0)))
    trex = box(b"trex", struct.pack(">IIIIII", 0, track, 1, sample_units, 0, 0))
    return moov(1000, 0, trak, box(b"mvex", trex))


def fragment(run: bytes, tfhd: bytes = struct.pack(">II", 0, 1), media: bytes = b"frames") -> bytes:
    traf = box(b"traf", box(b"tfhd", tfhd), box(b"trun", run))
    return box(b"moof", box(b"mfhd", bytes(8)), traf) + box(b"mdat", media)


def run_of(samples: int) -> bytes:
    return struct.pack(">II", 0, samples)


# --- judging


def judge(body: bytes, declared: str | None = None, piece: int = 100_000) -> Verdict:
    check = MediaCheck()
    for start in range(0, len(body), piece):
        check.feed(body[start : start + piece])
    return check.verdict(len(body), declared)
