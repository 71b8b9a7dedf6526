"""What was done to a modelled file or directory since its last sync, and what a power cut may make of it.

A write may end whole, not at all, torn at a sector or a page, as zeros, or with its last blocks alone; all else is done
or not done. All values are immutable. For tests only.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, NamedTuple, TypeVar

SECTOR: Final = 512
PAGE: Final = 4096


class Fate(NamedTuple):
    """What a power cut does to one step: of a write it keeps `start` to `stop`, its length at least `length`."""

    start: int = 0
    stop: int = 0
    length: int = 0


KEPT: Final = Fate(0, 1 << 62, 1 << 62)
LOST: Final = Fate()
Fates = Mapping[int, Fate]
"""By number of step."""


class Standing(Enum):
    """What syncs have said about a step."""

    UNSYNCED = "unsynced"
    SURE = "sure"
    DOUBTFUL = "doubtful"


@dataclass(frozen=True, slots=True)
class Step:
    """Something done to a file or a directory."""

    number: int
    standing: Standing = field(default=Standing.UNSYNCED, kw_only=True)

    def fates(self) -> list[Fate]:
        """Give each way that it may end."""
        return [KEPT, LOST]

    def any_fate(self, chance: random.Random) -> Fate:
        """Give one of them, and of many more."""
        return chance.choice((KEPT, LOST))

    def fate(self, fates: Fates, default: Fate) -> Fate:
        """Tell which it is."""
        return KEPT if self.standing is Standing.SURE else fates.get(self.number, default)


@dataclass(frozen=True, slots=True)
class Write(Step):
    """Bytes put at the end of a file."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """Length of the file after it."""
        return self.offset + len(self.data)

    def fates(self) -> list[Fate]:
        """Give whole, nothing, zeros, its first sector, all but its last page (and that as zeros), its last page."""
        sector = (self.offset // SECTOR + 1) * SECTOR
        page = (self.end - 1) // PAGE * PAGE
        found = [KEPT, LOST, Fate(self.offset, self.offset, self.end)]
        if sector < self.end:
            found.append(Fate(self.offset, sector, sector))
        if page > self.offset:
            found += [Fate(self.offset, page, page), Fate(self.offset, page, self.end), Fate(page, self.end, self.end)]
        return found

    def any_fate(self, chance: random.Random) -> Fate:
        """Give one of these, torn at any block."""
        block = chance.choice((SECTOR, PAGE))
        at = (self.offset // block + chance.randint(0, len(self.data) // block + 1)) * block
        at = max(self.offset, min(at, self.end))
        torn = Fate(self.offset, at, at), Fate(self.offset, at, self.end), Fate(at, self.end, self.end)
        return chance.choice((KEPT, LOST, chance.choice(torn)))

    def onto(self, data: bytes, fate: Fate) -> bytes:
        """Give a file's bytes after it."""
        start, stop = max(fate.start, self.offset), min(fate.stop, self.end)
        length = min(fate.length, self.end)
        if len(data) < length:
            data += bytes(length - len(data))
        if start >= stop:
            return data
        return data[:start] + self.data[start - self.offset : stop - self.offset] + data[stop:]


@dataclass(frozen=True, slots=True)
class Cut(Step):
    """A file cut short."""

    size: int

    def onto(self, data: bytes, fate: Fate) -> bytes:
        """Give a file's bytes after it."""
        return data[: self.size] if fate == KEPT else data


@dataclass(frozen=True, slots=True)
class Entries(Step):
    """A name taken out of a directory, or put into it, or both at once."""

    removed: str | None
    added: tuple[str, int] | None

    def onto(self, names: Mapping[str, int], fate: Fate) -> Mapping[str, int]:
        """Give a directory's names after it."""
        if fate != KEPT:
            return names
        after = {name: what for name, what in names.items() if name != self.removed}
        if self.added is not None:
            after[self.added[0]] = self.added[1]
        return after


_Step = TypeVar("_Step", bound=Step)


def _stand(steps: Sequence[_Step], standing: Standing) -> tuple[_Step, ...]:
    return tuple(replace(step, standing=standing) if step.standing is Standing.UNSYNCED else step for step in steps)


def _is_doubtful(steps: Sequence[Step]) -> bool:
    return any(step.standing is Standing.DOUBTFUL for step in steps)


@dataclass(frozen=True, slots=True)
class File:
    """A file's bytes as they are read, as they were synced, and what was done between."""

    now: bytes = b""
    kept: bytes = b""
    steps: tuple[Write | Cut, ...] = ()

    def settled(self, fates: Fates, default: Fate) -> "File":
        """Give it after a power cut."""
        if not self.steps:
            return self
        left = self.kept
        for step in self.steps:
            left = step.onto(left, step.fate(fates, default))
        return File(left, left)

    def synced(self) -> "File":
        """Give it after a sync."""
        if _is_doubtful(self.steps):
            return replace(self, steps=_stand(self.steps, Standing.SURE))
        return File(self.now, self.now)

    def doubted(self) -> "File":
        """Give it after a sync that failed."""
        return replace(self, steps=_stand(self.steps, Standing.DOUBTFUL))


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory's names, likewise."""

    now: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[Entries, ...] = ()

    def settled(self, fates: Fates, default: Fate) -> "Directory":
        """Give it after a power cut."""
        if not self.steps:
            return self
        left = self.kept
        for step in self.steps:
            left = step.onto(left, step.fate(fates, default))
        return Directory(left, left)

    def synced(self) -> "Directory":
        """Give it after a sync."""
        if _is_doubtful(self.steps):
            return replace(self, steps=_stand(self.steps, Standing.SURE))
        return Directory(self.now, self.now)

    def doubted(self) -> "Directory":
        """Give it after a sync that failed."""
        return replace(self, steps=_stand(self.steps, Standing.DOUBTFUL))
