"""Judge a recording while it comes in: type, extension, quality flags. No I/O; nothing is decoded.

A verdict never stops delivery. It depends on the bytes and the length alone, not on the pieces in which they came, so
it is the same after a crash, when recovery feeds what it kept. Memory is bounded, whatever the bytes are.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from pipeline.delivery.mp4 import Mp4Check
from pipeline.delivery.naming import SNIFF_BYTES, sniff
from pipeline.delivery.transcript import TranscriptCheck
from pipeline.delivery.wav import WavCheck
from pipeline.ports import Buffer
from pipeline.status import Quality

_TOLERATED = timedelta(seconds=2)
_TOLERATED_SHARE = 0.02
"""A recording may be shorter than events say by the larger of the two."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the object is to be called, and what is odd about it."""

    content_type: str
    extension: str
    flags: tuple[Quality, ...]


class FormatCheck(Protocol):
    """Judges bodies of one format."""

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes, the first included."""
        ...

    def flags(self, size_bytes: int) -> list[Quality]:
        """Judge a body of that length, all of which was fed. May be asked again."""
        ...

    def duration(self, size_bytes: int) -> timedelta | None:
        """Tell how long it plays, if that is known."""
        ...


_CHECKS: dict[str, type[FormatCheck]] = {"wav": WavCheck, "mp4": Mp4Check, "json": TranscriptCheck}


class MediaCheck:
    """Sees a body, piece by piece, and judges when its length is known."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._check: FormatCheck | None = None

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes of the body."""
        if len(self._head) == SNIFF_BYTES:
            if self._check is not None:
                self._check.feed(piece)
            return
        missing = SNIFF_BYTES - len(self._head)
        self._head += piece[:missing]
        if len(self._head) == SNIFF_BYTES:
            self._check = self._begun()
            if self._check is not None:
                self._check.feed(memoryview(piece)[missing:])

    def verdict(self, size_bytes: int, declared: str | None, expected: timedelta | None = None) -> Verdict:
        """Judge a body of that length.

        Args:
            size_bytes: of the whole body, all of which was fed.
            declared: the content type that its sender declared.
            expected: how long the recording was, as events or its source say.

        """
        content_type, extension, suspect = sniff(bytes(self._head), declared)
        flags = {Quality.SUSPECT_FORMAT} if suspect else set()
        check = self._check if len(self._head) == SNIFF_BYTES else self._begun()
        if size_bytes == 0:
            flags.add(Quality.SUSPECT_EMPTY)
        elif check is not None:
            flags.update(check.flags(size_bytes))
            if Quality.SUSPECT_EMPTY not in flags and _is_short(check.duration(size_bytes), expected):
                flags.add(Quality.SUSPECT_SHORT)
        return Verdict(content_type, extension, tuple(flag for flag in Quality if flag in flags))

    def _begun(self) -> FormatCheck | None:
        """Begin the check of the format that the first bytes are of."""
        _, extension, suspect = sniff(bytes(self._head), None)
        if suspect or extension not in _CHECKS:
            return None
        check = _CHECKS[extension]()
        check.feed(self._head)
        return check


def _is_short(duration: timedelta | None, expected: timedelta | None) -> bool:
    if duration is None or expected is None:
        return False
    return expected - duration > max(_TOLERATED, expected * _TOLERATED_SHARE)
