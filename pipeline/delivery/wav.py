"""Judge a WAV while it comes in: sizes that disagree, no samples, a dead channel, its duration. No I/O.

Nothing is decoded and nothing kept but a few numbers. A dead channel is looked for in every seventh frame, and no
longer once every channel was heard, so most recordings cost one look at their first samples.
Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF); RFC 2361 (format codes).
"""

from dataclasses import dataclass
from datetime import timedelta

from pipeline.ports import Buffer
from pipeline.status import Quality

UNTIL_END = (0, 0xFFFFFFFF)
"""Sizes that a recorder writes when it doesn't know yet."""
_MOST_CHUNKS = 1000
"""Chunks before the samples. A file of more is no recorder's, and walking it would cost more than receiving it."""
_MOST_CHANNELS = 16
_FORMAT_LEAST, _FORMAT_MOST = 16, 40
_EXTENSIBLE = 0xFFFE
_PCM, _FLOAT, _ALAW, _ULAW = 1, 3, 6, 7
_PROBE = 4096
"""Samples looked at first: sound is usually heard there, and the rest need not be touched."""
_EVERY = 7
"""Of so many frames one is looked at. A prime: test tones have their zeros at even steps."""


@dataclass(frozen=True, slots=True)
class Format:
    """What `fmt ` says of the samples."""

    code: int
    channels: int
    bytes_per_s: int
    frame_bytes: int
    bits: int

    @classmethod
    def parse(cls, raw: Buffer) -> "Format":
        """Read the chunk; at least its first 16 bytes."""
        numbers = bytes(raw)
        code = _u16(numbers, 0)
        if code == _EXTENSIBLE and len(numbers) >= 26:
            code = _u16(numbers, 24)  # the format behind it, in the first bytes of its GUID
        return cls(code, _u16(numbers, 2), _u32(numbers, 8), max(1, _u16(numbers, 12)), _u16(numbers, 14))

    @property
    def silence(self) -> bytes:
        """Bytes that a silent sample may consist of; none where samples can't be told apart."""
        if self.code == _PCM:
            return b"\x80" if self.bits <= 8 else b"\0"
        return {_FLOAT: b"\0", _ALAW: b"\xd5\x55", _ULAW: b"\xff\x7f"}.get(self.code, b"")

    def channel_places(self) -> list[range]:
        """Give the places of each channel's bytes in a frame; no channels where silence can't be told."""
        if not self.silence or not 1 <= self.channels <= _MOST_CHANNELS or self.frame_bytes % self.channels:
            return []
        width = self.frame_bytes // self.channels
        return [range(channel * width, (channel + 1) * width) for channel in range(self.channels)] if width <= 8 else []


_UNKNOWN = Format(0, 0, 0, 1, 0)


class WavCheck:
    """Walks the chunks of a body that begins with `RIFF`, piece by piece, up to the samples; then listens."""

    def __init__(self) -> None:
        self._at = 0
        self._skip = 0
        self._held = bytearray()
        self._wanted = 12
        self._in_format = False
        self._after_format = 0
        self._chunks = 0
        self._format = _UNKNOWN
        self._riff_bytes = 0
        self._data_offset: int | None = None
        self._data_bytes = 0
        self._quiet: list[range] = []
        """Channels in which nothing was heard yet."""

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes."""
        if self._data_offset is not None and not self._quiet:
            return
        rest = memoryview(piece)
        while rest and self._data_offset is None and self._chunks <= _MOST_CHUNKS:
            if self._skip:
                taken = min(self._skip, len(rest))
                self._skip -= taken
            else:
                taken = min(self._wanted - len(self._held), len(rest))
                self._held += rest[:taken]
            self._at += taken
            rest = rest[taken:]
            if len(self._held) == self._wanted:
                self._step(bytes(self._held))
                self._held.clear()
        if self._data_offset is not None:
            self._listen(rest, self._data_offset)

    def flags(self, size_bytes: int) -> list[Quality]:
        """Judge a body of that length."""
        if self._data_offset is None:
            # The file ended before its samples; where the walk was given up, that is not known.
            return [Quality.SUSPECT_EMPTY] if self._chunks <= _MOST_CHUNKS else []
        flags = []
        if self._samples(size_bytes) < self._format.frame_bytes:
            flags.append(Quality.SUSPECT_EMPTY)
        elif self._quiet:
            flags.append(Quality.SUSPECT_SILENT)
        if not self._is_open_ended(size_bytes) and not self._agrees(size_bytes, self._data_offset):
            flags.append(Quality.SUSPECT_SHORT)
        return flags

    def duration(self, size_bytes: int) -> timedelta | None:
        """Tell how long the samples that are there last, if the header says how fast they are."""
        if not self._format.bytes_per_s:
            return None
        return timedelta(seconds=self._samples(size_bytes) / self._format.bytes_per_s)

    # --- inside

    def _step(self, held: bytes) -> None:
        """Go on from what was collected: RIFF's head, the head of a chunk, or the content of `fmt `."""
        if self._in_format:
            self._format = Format.parse(held)
            self._quiet = self._format.channel_places()
            self._in_format, self._wanted, self._skip = False, 8, self._after_format
        elif self._at == 12:
            self._riff_bytes, self._wanted = _u32(held, 4), 8
        else:
            self._chunks += 1
            self._begin(held[:4], _u32(held, 4))

    def _begin(self, name: bytes, size: int) -> None:
        padded = size + size % 2  # a chunk of odd size is followed by a pad byte
        if name == b"data":
            self._data_offset, self._data_bytes = self._at, size
        elif name == b"fmt " and size >= _FORMAT_LEAST:
            self._in_format, self._wanted = True, min(size, _FORMAT_MOST)
            self._after_format = padded - self._wanted
        else:
            self._skip = padded

    def _listen(self, piece: memoryview, data_offset: int) -> None:
        """Look for channels in which anything is heard, in the samples of a piece."""
        at = self._at - data_offset
        self._at += len(piece)
        if self._data_bytes not in UNTIL_END:
            piece = piece[: max(0, self._data_bytes - at)]
        for part in (piece[:_PROBE], piece[_PROBE:]):
            if not self._quiet:
                return
            samples = bytes(part)  # stepping through a view is several times slower
            self._quiet = [places for places in self._quiet if not self._is_heard(samples, at, places)]
            at += len(part)

    def _is_heard(self, samples: bytes, at: int, places: range) -> bool:
        step, silence = self._format.frame_bytes * _EVERY, self._format.silence
        return any(samples[(place - at) % step :: step].translate(None, silence) for place in places)

    def _is_open_ended(self, size_bytes: int) -> bool:
        is_whole = abs(self._riff_bytes + 8 - size_bytes) <= 1
        return self._data_bytes in UNTIL_END and not (self._data_bytes == 0 and is_whole)

    def _samples(self, size_bytes: int) -> int:
        """Tell how many bytes of samples there are."""
        held = max(0, size_bytes - (self._data_offset or size_bytes))
        return held if self._is_open_ended(size_bytes) else min(held, self._data_bytes)

    def _agrees(self, size_bytes: int, data_offset: int) -> bool:
        """Compare the header with the file, within one frame. Chunks may follow the samples if RIFF's size has them."""
        claimed = data_offset + self._data_bytes
        with_tail = claimed if self._riff_bytes in UNTIL_END else max(claimed, self._riff_bytes + 8)
        return claimed - self._format.frame_bytes <= size_bytes <= with_tail + self._format.frame_bytes


def _u16(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 2], "little")


def _u32(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")
