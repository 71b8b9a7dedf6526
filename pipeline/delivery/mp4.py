"""Judge an MP4 while it comes in, by walking its boxes: no index, cut off, no media, its duration. No I/O.

Nothing is decoded. Only the small boxes that tell a duration are kept, one at a time; media is stepped over.
Source: ISO/IEC 14496-12 (boxes; moov, mvhd, tkhd, mdhd, trex, tfhd, trun).
"""

import struct
from collections import defaultdict
from datetime import timedelta
from struct import iter_unpack, unpack_from

from pipeline.ports import Buffer
from pipeline.status import Quality

_ENDLESS = 2**65
"""Where a box ends that goes on to the end of the file."""
_ENTERED = frozenset({b"moov", b"trak", b"mdia", b"mvex", b"moof", b"traf"})
"""Boxes whose content is boxes, and wanted."""
_READ = frozenset({b"mvhd", b"tkhd", b"mdhd", b"trex", b"tfhd", b"trun"})
_READ_MOST = 64 * 1024
_FREE_BOXES = 20_000
_BYTES_PER_BOX = 128
"""A file of many more and smaller boxes is not judged: to walk through it would cost more than to receive it."""
_DEEPEST = 8
_MOST_TRACKS = 64
_UNSET = (0, 2**32 - 1, 2**64 - 1)
_LONGEST = timedelta(days=3650)


class Timing:
    """What the small boxes say of how long the tracks last. What can't be read makes it unknown, never wrong."""

    def __init__(self) -> None:
        self.is_known = True
        self._movie: tuple[int, int] = 1, 0
        """Time units in a second, and how many of them it lasts."""
        self._track = 0
        self._scales: dict[int, int] = {}
        self._sample_units: dict[int, int] = {}
        self._units = 0
        """How long a sample of this track fragment lasts, unless its run says so itself."""
        self._coming: defaultdict[int, int] = defaultdict(int)
        self._played: defaultdict[int, int] = defaultdict(int)

    def read(self, name: bytes, raw: bytes) -> None:
        """Take the content of one box."""
        try:
            self._read(name, raw)
        except (struct.error, IndexError):
            self.is_known = False
        if max(map(len, (self._scales, self._sample_units, self._coming, self._played))) > _MOST_TRACKS:
            self.is_known = False

    def settle(self) -> None:
        """Count what was announced since the last time: its media is there."""
        for track, units in self._coming.items():
            self._played[track] += units
        self._coming.clear()

    def duration(self) -> timedelta | None:
        """Tell how long the longest track lasts: as the movie's header says, else as long as its samples."""
        scale, units = self._movie
        if units in _UNSET:
            lengths = [units / self._scales[track] for track, units in self._played.items() if self._scales.get(track)]
        else:
            lengths = [units / scale] if scale else []
        seconds = max(lengths, default=0.0)
        return timedelta(seconds=seconds) if self.is_known and 0 < seconds < _LONGEST.total_seconds() else None

    # --- inside

    def _read(self, name: bytes, raw: bytes) -> None:
        if not self.is_known:
            return
        match name:
            case b"mvhd":
                self._movie = _scale_and_units(raw)
            case b"tkhd":
                (self._track,) = unpack_from(">I", raw, 20 if raw[0] == 1 else 12)
            case b"mdhd":
                self._scales[self._track] = _scale_and_units(raw)[0]
            case b"trex":
                track, units = unpack_from(">4xI4xI", raw)
                self._sample_units[track] = units
            case b"tfhd":
                self._begin_fragment(raw)
            case _:
                self._coming[self._track] += self._run_units(raw)

    def _begin_fragment(self, raw: bytes) -> None:
        flags, self._track = _two(raw)
        self._units = self._sample_units.get(self._track, 0)
        if flags & 0x8:  # behind the data offset and the sample description, if there are such
            (self._units,) = unpack_from(">I", raw, 8 + 8 * bool(flags & 0x1) + 4 * bool(flags & 0x2))

    def _run_units(self, raw: bytes) -> int:
        flags, samples = _two(raw)
        if not flags & 0x100:
            return samples * self._units
        at = 8 + 4 * bool(flags & 0x1) + 4 * bool(flags & 0x4)
        words = (flags >> 8 & 0xF).bit_count()
        table = raw[at : at + 4 * words * samples]
        if len(table) < 4 * words * samples:
            raise struct.error
        return sum(int(first) for first, *_ in iter_unpack(f">{words}I", table))


def _two(raw: bytes) -> tuple[int, int]:
    """Read the version and flags of a box, and the number behind them."""
    flags, number = unpack_from(">II", raw)
    return flags, number


def _scale_and_units(raw: bytes) -> tuple[int, int]:
    """Read what `mvhd` and `mdhd` have in common: time units in a second, and length in units."""
    scale, units = unpack_from(">IQ", raw, 20) if raw[0] == 1 else unpack_from(">II", raw, 12)
    return scale, units


class Mp4Check:
    """Walks the boxes of a body, piece by piece."""

    def __init__(self) -> None:
        self._at = 0
        self._skip = 0
        self._held = bytearray()
        self._wanted = 8
        self._reading = b""
        """The box whose content is being collected; empty: the head of a box is."""
        self._boxes = 0
        self._inside: list[int] = []
        """Where the boxes end that were entered."""
        self._top, self._top_end = b"", 0
        self._media_at: int | None = None
        self._has_index = False
        self._is_fragmented = False
        self._lacks_media = False
        """A fragment was announced whose media did not come yet."""
        self._is_damaged = False
        self._is_given_up = False
        self._timing = Timing()

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes."""
        rest = memoryview(piece)
        while rest:
            if self._skip:
                taken = min(self._skip, len(rest))
                self._skip -= taken
            else:
                taken = min(self._wanted - len(self._held), len(rest))
                self._held += rest[:taken]
            self._at += taken
            rest = rest[taken:]
            if len(self._held) == self._wanted:
                self._step()

    def flags(self, size_bytes: int) -> list[Quality]:
        """Judge a body of that length."""
        if self._is_given_up:
            return []
        is_whole = self._is_whole(size_bytes)
        flags = []
        if self._media_at is None or size_bytes <= self._media_at:
            flags.append(Quality.SUSPECT_EMPTY)
        if not self._has_index:
            flags.append(Quality.SUSPECT_NO_MOOV)
        if self._is_damaged:
            flags.append(Quality.SUSPECT_FORMAT)
        if not is_whole or self._lacks_media:
            flags.append(Quality.RECOVERED if self._is_fragmented else Quality.SUSPECT_SHORT)
        return flags

    def duration(self, size_bytes: int) -> timedelta | None:
        """Tell how long it plays, if that is known."""
        self._is_whole(size_bytes)
        return None if self._is_given_up else self._timing.duration()

    # --- inside

    def _is_whole(self, size_bytes: int) -> bool:
        """Tell whether the body ends where a box ends; if so, count that one."""
        if self._is_damaged:
            return True
        if size_bytes < self._top_end < _ENDLESS:
            return False
        self._count_top()
        return not self._held or bool(self._inside)

    def _step(self) -> None:
        held = bytes(self._held)
        if self._reading:
            self._timing.read(self._reading, held)
            self._reading, self._wanted = b"", 8
            self._held.clear()
            self._leave()
            return
        size, name = int.from_bytes(held[:4]), held[4:8]
        if size == 1 and len(held) == 8:
            self._wanted = 16
            return
        self._held.clear()
        self._wanted = 8
        self._boxes += 1
        self._begin(name, int.from_bytes(held[8:]) if size == 1 else size, len(held))

    def _begin(self, name: bytes, size: int, head: int) -> None:
        end = _ENDLESS if size == 0 else self._at - head + size
        if self._boxes > _FREE_BOXES + self._at // _BYTES_PER_BOX:
            self._is_given_up, self._skip = True, _ENDLESS
            return
        is_damaged = 0 < size < head
        if not self._inside:
            if is_damaged:
                self._is_damaged, self._skip = True, _ENDLESS
                return
            self._begin_top(name, end)
        elif is_damaged or end > self._inside[-1]:  # what it would be inside of ends before it does
            self._timing.is_known = False
            name, end = b"", self._inside[-1]
        self._go_into(name, end)
        self._leave()

    def _begin_top(self, name: bytes, end: int) -> None:
        self._count_top()
        self._top, self._top_end = name, end
        if name == b"mdat" and end > self._at and self._media_at is None:
            self._media_at = self._at

    def _go_into(self, name: bytes, end: int) -> None:
        self._is_fragmented = self._is_fragmented or (name == b"mvex" and bool(self._inside))
        size = end - self._at
        if name in _ENTERED and len(self._inside) < _DEEPEST:
            self._inside.append(end)
        elif name in _READ and self._inside and 0 < size <= _READ_MOST:
            self._reading, self._wanted = name, size
        else:
            self._timing.is_known = self._timing.is_known and not (name in _READ and self._inside)
            self._skip = size

    def _leave(self) -> None:
        """Leave the boxes that end here, or that have no room for another."""
        while self._inside and not self._reading and self._inside[-1] - self._at - self._skip < 8:
            self._skip = self._inside.pop() - self._at

    def _count_top(self) -> None:
        """Count the last box of the top level, which is whole."""
        match self._top:
            case b"moov":
                self._has_index = True
            case b"moof":
                self._lacks_media = True
            case b"mdat":
                self._lacks_media = False
                self._timing.settle()
