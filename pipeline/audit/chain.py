"""The chain of an audit log: each line carries its index and the hash of the line before. Pure.

A log is a folder of files `<index of its first line, 12 digits>.<hour>.jsonl`, read in the order of their names. The
hash of a line, which has no line feed, is the leaf hash of RFC 9162 (2.1.1), so that one serves chain and tree. Refuses
to mend anything: what does not follow is for the caller to judge.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

NO_HASH = "0" * 64
"""Stands for the line before the first."""
_HEAD = re.compile(rb'\{"logIndex":(0|[1-9][0-9]{0,17}),"previousHash":"([0-9a-f]{64})",')
_FILE = re.compile(r"(?P<first>[0-9]{12})\.(?P<hour>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2})\.jsonl")


@dataclass(frozen=True, slots=True)
class Link:
    """What a line says of its place."""

    index: int
    previous: str
    """Hex hash of the line before it."""


@dataclass(frozen=True, order=True, slots=True)
class FileName:
    """One file of a log."""

    first: int
    """Index of its first line."""
    hour: str
    """When it was begun, UTC."""

    def __str__(self) -> str:
        return f"{self.first:012}.{self.hour}.jsonl"


def leaf_hash(line: bytes) -> bytes:
    """Hash a line (RFC 9162, 2.1.1: a leaf)."""
    return hashlib.sha256(b"\0" + line).digest()


def linked(record: bytes, index: int, previous: str) -> bytes:
    """Give a record, a JSON object with members, its place in the log."""
    return b'{"logIndex":%d,"previousHash":"%s",%s' % (index, previous.encode(), record[1:])


def link_of(line: bytes) -> Link | None:
    """Read a line's place; None if it says none, or has a hole where a power cut left zeros."""
    match = _HEAD.match(line)
    if match is None or b"\0" in line:
        return None
    return Link(int(match[1]), match[2].decode())


def record_of(line: bytes) -> bytes:
    """Give a line's record as it was before it had a place."""
    match = _HEAD.match(line)
    return line if match is None else b"{" + line[match.end() :]


def file_names(names: Iterable[str]) -> list[FileName]:
    """Find the files of a log among the names of its folder, in order."""
    matches = (_FILE.fullmatch(name) for name in names)
    return sorted(FileName(int(match["first"]), match["hour"]) for match in matches if match)
