"""Search files for plaintext that must not be there.

Every regular file below a folder, whole. It looks for bytes as they are, so it finds neither what was compressed nor
what was encoded; nothing here is either. `check` proves that it can find at all.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError

_PIECE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Marker:
    """Bytes that must not be found, and where they come from."""

    raw: bytes
    place: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A marker that was found."""

    file: Path
    marker: Marker


@dataclass(frozen=True, slots=True)
class Searched:
    """What was searched, and what was found in it."""

    files: int = 0
    size_bytes: int = 0
    hits: tuple[Hit, ...] = ()

    def __add__(self, other: "Searched") -> "Searched":
        """Count two searches together."""
        return Searched(self.files + other.files, self.size_bytes + other.size_bytes, self.hits + other.hits)


class BlindSearchError(PipelineError):
    """The search did not find what was put there for it; what it says of other files means nothing."""

    reason = "blind-search"


def search(root: Path, markers: Sequence[Marker], *, without: Path | None = None) -> Searched:
    """Search every file below `root`, except below `without`. A file that goes away meanwhile is left out."""
    found = Searched()
    for path in _files(root, without):
        try:
            found += _search_file(path, markers)
        except FileNotFoundError:
            continue
    return found


def check(markers: Sequence[Marker]) -> None:
    """Plant every marker in scratch files, each also across the border of two pieces, and look for them.

    Raises:
        BlindSearchError: one of them is not found, or one is found where none is.

    """
    with tempfile.TemporaryDirectory(prefix="pipeline-demo-scratch-") as folder:
        scratch = Path(folder) / "some" / "where"
        scratch.mkdir(parents=True)
        (scratch / "none").write_bytes(bytes(_PIECE + 1))
        if search(Path(folder), markers).hits:
            raise BlindSearchError("the search finds plaintext where there is none")
        (scratch / "all").write_bytes(b"\x00".join(marker.raw for marker in markers))
        longest = max(markers, key=lambda marker: len(marker.raw))
        (scratch / "border").write_bytes(bytes(_PIECE - len(longest.raw) // 2) + longest.raw)
        hits = {(hit.file.name, hit.marker) for hit in search(Path(folder), markers).hits}
        if not hits >= {("all", marker) for marker in markers} | {("border", longest)}:
            raise BlindSearchError("the search does not find a marker that was planted for it")


def _files(root: Path, without: Path | None) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if here / name != without)
        yield from (here / name for name in sorted(names) if (here / name).is_file() and not (here / name).is_symlink())


def _search_file(path: Path, markers: Sequence[Marker]) -> Searched:
    """Search one file, a piece at a time; pieces overlap, so that nothing hides at their border."""
    overlap = max((len(marker.raw) for marker in markers), default=1) - 1
    hits: dict[Marker, Hit] = {}
    size_bytes = 0
    with path.open("rb") as file:
        rest = b""
        while piece := file.read(_PIECE):
            size_bytes += len(piece)
            held = rest + piece
            hits |= {marker: Hit(path, marker) for marker in markers if marker.raw in held}
            rest = held[-overlap:] if overlap else b""
    return Searched(1, size_bytes, tuple(hits.values()))
