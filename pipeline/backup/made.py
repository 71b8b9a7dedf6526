"""The backups that were made here: what tells whoever erases something where a copy of it may still be.

`backups/<backup id>.json` in the configuration directory. Synchronous.
"""

from datetime import datetime
from pathlib import Path, PurePath
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from pipeline.config import MAX_FILE_BYTES, sync_directory, write_private
from pipeline.errors import RefuseError

BACKUPS = "backups"


class Made(Struct, frozen=True, kw_only=True, rename="camel"):
    """One backup, wherever it has gone since."""

    backup_id: UUID
    store_id: str
    folder: str
    """Where it was written."""
    begun_at: Annotated[datetime, Meta(tz=True)]
    ended_at: Annotated[datetime, Meta(tz=True)]
    made_by: str
    files: int
    size_bytes: int
    manifest_sha256: str
    config: bool


def remember(config_dir: PurePath, made: Made) -> None:
    """Put a backup on the list; it is durable when this returns."""
    write_private(_path(config_dir, made.backup_id), msgspec.json.format(msgspec.json.encode(made)))


def forget(config_dir: PurePath, backup_id: UUID) -> None:
    """Take a backup that was destroyed off the list."""
    path = _path(config_dir, backup_id)
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def all_made(config_dir: PurePath) -> list[Made]:
    """Give the backups on the list, the oldest first.

    Raises:
        RefuseError: an entry can't be read, so that nobody can tell which there are.

    """
    found = [_read(path) for path in Path(config_dir, BACKUPS).glob("[!.]*.json")]
    return sorted(found, key=lambda made: (made.begun_at, made.backup_id))


def _path(config_dir: PurePath, backup_id: UUID) -> Path:
    return Path(config_dir, BACKUPS, f"{backup_id}.json")


def _read(path: Path) -> Made:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=Made)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RefuseError(f"{path.name} in the list of backups can't be read; mend it or remove it") from error
