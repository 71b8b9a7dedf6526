"""A backup's manifest: every file with its length and SHA-256. Written last and synced: a backup without it is half.

`manifest.jsonl`: a line about the backup, one for each file in order of the paths, and one that ends it with their
number and the SHA-256 of all lines before it. Paths are below the backup's folder and can't lead out of it.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from pipeline.backup.copies import Copied
from pipeline.errors import RefuseError
from pipeline.ports import FileSystem

NAME = "manifest.jsonl"
VERSION = 1
_PART = re.compile(r"(?!\.\.?$)[^/\x00-\x1f]{1,255}")
_PIECE = 2**20


class Beginning(Struct, frozen=True, kw_only=True, rename="camel"):
    """The first line."""

    version: int = VERSION
    backup_id: UUID
    store_id: str
    begun_at: Annotated[datetime, Meta(tz=True)]
    """Everything acknowledged before is in it."""
    ended_at: Annotated[datetime, Meta(tz=True)]
    made_by: str
    config: bool
    """It holds the configuration too."""
    unread: tuple[str, ...] = ()
    """What the disk did not give back."""


class _File(Struct, frozen=True, kw_only=True, rename="camel"):
    path: str
    size_bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class _End(Struct, frozen=True, kw_only=True, rename="camel"):
    files: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says it holds."""

    beginning: Beginning
    files: tuple[Copied, ...]
    sha256: str
    """Of the manifest itself."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def write_manifest(files: FileSystem, folder: str, beginning: Beginning, copied: Iterable[Copied]) -> Manifest:
    """Make all that was copied durable, and only then the manifest that vouches for it."""
    listed = tuple(sorted(copied, key=lambda file: file.path))
    raw = _encoded(beginning, listed)
    files.sync_volume(folder)
    aside = f"{folder}/{NAME}.tmp"
    handle = files.create(aside)
    try:
        for at in range(0, len(raw), _PIECE):
            files.append(handle, [raw[at : at + _PIECE]])
        files.sync(handle)
    finally:
        files.close(handle)
    files.rename(aside, f"{folder}/{NAME}")
    files.sync_directory(folder)
    return Manifest(beginning, listed, hashlib.sha256(raw).hexdigest())


def read_manifest(files: FileSystem, folder: str) -> Manifest:
    """Read a manifest.

    Raises:
        RefuseError: there is none, it is damaged, or of another version.
        StoreIoError: it can't be read.

    """
    try:
        handle = files.open(f"{folder}/{NAME}")
    except FileNotFoundError:
        raise RefuseError("there is no manifest: this is no backup, or half of one that broke off") from None
    try:
        raw = files.read(handle, 0, files.size(handle))
    finally:
        files.close(handle)
    *lines, last = raw.split(b"\n")
    try:
        if last or len(lines) < 2:
            raise msgspec.DecodeError("cut off")
        beginning = msgspec.json.decode(lines[0], type=Beginning)
        listed = [msgspec.json.decode(line, type=_File) for line in lines[1:-1]]
        end = msgspec.json.decode(lines[-1], type=_End)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RefuseError("the manifest is damaged: nothing of this backup can be vouched for") from None
    if beginning.version != VERSION:
        raise RefuseError(f"this backup has format version {beginning.version}; this program reads {VERSION}")
    before = raw[: len(raw) - len(lines[-1]) - 1]
    if end != _End(files=len(listed), sha256=hashlib.sha256(before).hexdigest()):
        raise RefuseError("the manifest is damaged: nothing of this backup can be vouched for")
    if not all(_PART.fullmatch(part) for file in listed for part in file.path.split("/")):
        raise RefuseError("the manifest names a path that no backup has")
    copied = tuple(Copied(file.path, file.size_bytes, file.sha256) for file in listed)
    return Manifest(beginning, copied, hashlib.sha256(raw).hexdigest())


def _encoded(beginning: Beginning, listed: Iterable[Copied]) -> bytes:
    lines = [msgspec.json.encode(beginning)]
    lines += [
        msgspec.json.encode(_File(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)) for file in listed
    ]
    raw = b"\n".join(lines) + b"\n"
    end = _End(files=len(lines) - 1, sha256=hashlib.sha256(raw).hexdigest())
    return raw + msgspec.json.encode(end) + b"\n"
