"""Read an audit log as far as it was acknowledged, whoever writes to it meanwhile."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from pipeline.audit.appender import LOCK
from pipeline.audit.chain import FileName, file_names
from pipeline.audit.files import held, pieces
from pipeline.ports import FileSystem

_LOG = re.compile(r"node|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How long a log was at a moment: what is written later is not seen."""

    directory: str
    files: tuple[FileName, ...]
    end: int
    """Length of the last file."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line and where it stands."""

    file: FileName
    offset: int
    text: bytes
    """Without its line feed."""
    is_whole: bool = True
    """False for what stands behind the last line feed of the last file: it was never acknowledged."""


def logs_in(files: FileSystem, audit: str) -> list[str]:
    """Name the logs that there are: instances' ids, and the node's. Other folders are none."""
    return sorted(name for name in files.sorted_out(audit)[1] if _LOG.fullmatch(name))


def snapshot(files: FileSystem, directory: str, *, sync: bool = False) -> Snapshot:
    """Look how long a log is, while nobody writes to it; `sync` makes sure that all of that is durable.

    Raises `StoreBusyError` if a writer does not let it go, `StoreIoError`.
    """
    names = files.names(directory)
    # A copy of a log, from a backup or an export, may have no lock file: nobody writes to it.
    with held(files, f"{directory}/{LOCK}") if LOCK in names else nullcontext():
        found = tuple(file_names(files.names(directory)))
        if not found:
            return Snapshot(directory, (), 0)
        with _opened(files, f"{directory}/{found[-1]}") as handle:
            seen = Snapshot(directory, found, files.size(handle))
    if sync:  # no writer waits for this: what it appends meanwhile is behind what was seen
        with _opened(files, f"{directory}/{found[-1]}", write=True) as handle:
            files.sync(handle)
    return seen


@contextmanager
def _opened(files: FileSystem, path: str, *, write: bool = False) -> Iterator[int]:
    handle = files.open(path, write=write)
    try:
        yield handle
    finally:
        files.close(handle)


def lines(files: FileSystem, seen: Snapshot, start: int = 0, offset: int = 0) -> Iterator[Line]:
    """Give the lines of a log from a place in file number `start` on. Raises `StoreIoError`."""
    for number in range(start, len(seen.files)):
        file, is_last = seen.files[number], number + 1 == len(seen.files)
        at, rest = offset if number == start else 0, b""
        for piece in pieces(files, f"{seen.directory}/{file}", at, seen.end if is_last else None):
            *whole, rest = (rest + piece).split(b"\n")
            for text in whole:
                yield Line(file, at, text)
                at += len(text) + 1
        if rest:
            yield Line(file, at, rest, is_whole=not is_last)
