"""Judge a recording by its first bytes and its length: type, extension, quality flags. No I/O; nothing is decoded.

A verdict never stops delivery. Recorders that lost the audio emit a WAV of a header and no samples, well formed and
44 bytes long: that is what `SUSPECT_EMPTY` is for. Of MP4 only the first box is looked at.
Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF).
"""

from dataclasses import dataclass

from pipeline.delivery.naming import SNIFF_BYTES, sniff
from pipeline.ports import Buffer
from pipeline.status import Quality

SETTLED_BYTES = SNIFF_BYTES
"""What is enough to know most files."""
HEAD_BYTES = SETTLED_BYTES * 128
"""How far into a WAV its samples are looked for: `LIST` and other chunks may precede them."""
_UNTIL_END = (0, 0xFFFFFFFF)
"""Sizes that a recorder writes when it doesn't know yet."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the object is to be called, and what is odd about it."""

    content_type: str
    extension: str
    flags: tuple[Quality, ...]


@dataclass(frozen=True, slots=True)
class WavLayout:
    """Where a WAV says its samples are."""

    riff_bytes: int
    """What the RIFF header says follows its first 8 bytes."""
    frame_bytes: int
    data_offset: int
    data_bytes: int


class MediaCheck:
    """Sees the beginning of a body, piece by piece, and judges when the length is known.

    Keeps no more than it needs: usually the first piece settles it.
    """

    def __init__(self, declared: str | None) -> None:
        """Begin with what the sender declared as content type."""
        self._declared = declared
        self._head = bytearray()
        self._enough = SETTLED_BYTES

    @property
    def wants_more(self) -> bool:
        """Whether the next piece still matters. After a restart only the beginning has to be fed again."""
        return len(self._head) < self._enough

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes of the body. What comes when no more is wanted is ignored."""
        rest = memoryview(piece)
        while rest and self.wants_more:
            taken = rest[: self._enough - len(self._head)]
            self._head += taken
            rest = rest[len(taken) :]
            if len(self._head) == self._enough < HEAD_BYTES and self._seeks_samples():
                self._enough *= 2  # doubled, so that many small pieces are not walked again and again

    def _seeks_samples(self) -> bool:
        return self._head[:4] == b"RIFF" and wav_layout(self._head) is None

    def verdict(self, size_bytes: int) -> Verdict:
        """Judge a body of that length."""
        head = bytes(self._head)
        content_type, extension, suspect = sniff(head, self._declared)
        flags = [Quality.SUSPECT_FORMAT] if suspect else []
        if size_bytes == 0:
            flags.append(Quality.SUSPECT_EMPTY)
        elif head[:4] == b"RIFF" and extension == "wav":
            flags += _wav_flags(head, size_bytes)
        return Verdict(content_type, extension, tuple(flag for flag in Quality if flag in flags))


def wav_layout(head: bytes | bytearray) -> WavLayout | None:
    """Walk the RIFF chunks up to `data`; `None` if they don't get that far within `head`."""
    offset, frame_bytes = 12, 1
    while offset + 8 <= len(head):
        name, size = head[offset : offset + 4], int.from_bytes(head[offset + 4 : offset + 8], "little")
        if name == b"data":
            return WavLayout(int.from_bytes(head[4:8], "little"), frame_bytes, offset + 8, size)
        if name == b"fmt ":
            frame_bytes = max(1, int.from_bytes(head[offset + 20 : offset + 22], "little"))
        offset += 8 + size + size % 2  # a chunk of odd size is followed by a pad byte
    return None


def _wav_flags(head: bytes, size_bytes: int) -> list[Quality]:
    layout = wav_layout(head)
    if layout is None:
        # The file ended before its samples began; a head that ended first proves nothing.
        return [Quality.SUSPECT_EMPTY] if size_bytes <= len(head) else []
    held = max(0, size_bytes - layout.data_offset)
    is_whole = abs(layout.riff_bytes + 8 - size_bytes) <= 1
    open_ended = layout.data_bytes in _UNTIL_END and not (layout.data_bytes == 0 and is_whole)
    samples = held if open_ended else min(held, layout.data_bytes)
    flags = []
    if samples < layout.frame_bytes:
        flags.append(Quality.SUSPECT_EMPTY)
    if not open_ended and not _agrees(layout, size_bytes):
        flags.append(Quality.SUSPECT_SHORT)
    return flags


def _agrees(layout: WavLayout, size_bytes: int) -> bool:
    """Compare the header with the file, within one frame. Chunks may follow the samples if RIFF's size has them."""
    claimed = layout.data_offset + layout.data_bytes
    with_tail = claimed if layout.riff_bytes in _UNTIL_END else max(claimed, layout.riff_bytes + 8)
    return claimed - layout.frame_bytes <= size_bytes <= with_tail + layout.frame_bytes
