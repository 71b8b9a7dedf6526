"""How far an erasure has come: what was found when it began, which nobody could tell afterwards.

`erasures/<job>.json` in the configuration directory, apart from the store that is being emptied. Synchronous.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from pipeline.errors import RefuseError
from pipeline.ports import FileSystem
from pipeline.smallfiles import read_whole, write_whole

FOLDER = "erasures"
_SIZE_LIMIT = 16 * 2**20
Time = Annotated[datetime, Meta(tz=True)]


class ErasedKey(Struct, frozen=True, kw_only=True, rename="camel"):
    """A data key, and who could have unwrapped it."""

    key_id: UUID
    created_at: Time | None = None
    """None: its ring file could not be read."""
    kms_key_arns: tuple[str, ...] = ()


class ErasedArtifact(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One artifact of a recording that is erased."""

    artifact_id: UUID
    kind: str
    generation: int
    state: str
    """As it was found: `open`, `sealed`, `poison`, or `done`, of which only the receipt was here."""
    data_key_id: UUID | None = None
    size_bytes: int | None = None
    recording_id: UUID | None = None
    contact: str | None = None
    """As object keys carry it; None: its head did not open."""
    bucket: str | None = None
    key: str | None = None
    version_id: str | None = None


class Inventory(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What was found, once nobody wrote any more."""

    data_keys: tuple[ErasedKey, ...] = ()
    counts: dict[str, int] = {}
    buckets: dict[str, int] = {}
    """Delivered objects by `s3://bucket`, as receipts here tell."""


class Erasure(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One erasure, as far as it has come."""

    job_id: UUID
    what: str
    """`instance` or `recording`."""
    instance_id: UUID
    alias: str | None = None
    account_id: str | None = None
    reason: str
    asked_by: str
    asked_at: Time
    begun_at: Time
    forced: bool = False
    configuration: str | None = None
    """The instance's file as it was; until the erasure has ended."""
    inventory: Inventory | None = None
    artifacts: tuple[ErasedArtifact, ...] = ()
    keys_destroyed_at: Time | None = None
    cleared: dict[str, int] = {}
    """What was removed, by place; of the last run in which there was any."""
    ended_at: Time | None = None
    receipt: dict[str, Any] = {}


class Erasures:
    """Every erasure that was begun here."""

    def __init__(self, config_dir: str, files: FileSystem) -> None:
        self._root = f"{config_dir}/{FOLDER}"
        self._files = files

    def get(self, job_id: UUID) -> Erasure | None:
        """Give one; None if it has not begun.

        Raises:
            RefuseError: its file can't be read.

        """
        raw = read_whole(self._files, self._path(job_id), _SIZE_LIMIT)
        return None if raw is None else _decoded(raw)

    def all(self) -> list[Erasure]:
        """Give all, the oldest first. Raises `RefuseError` if one can't be read."""
        found = []
        for name in self._files.names(self._root):
            if name.endswith(".json"):
                raw = read_whole(self._files, f"{self._root}/{name}", _SIZE_LIMIT)
                if raw is not None:
                    found.append(_decoded(raw))
        return sorted(found, key=lambda erasure: (erasure.begun_at, erasure.job_id))

    def put(self, erasure: Erasure) -> None:
        """Remember how far it has come, durably."""
        write_whole(self._files, self._path(erasure.job_id), msgspec.json.format(msgspec.json.encode(erasure)))

    def _path(self, job_id: UUID) -> str:
        return f"{self._root}/{job_id}.json"


def _decoded(raw: bytes) -> Erasure:
    try:
        return msgspec.json.decode(raw, type=Erasure)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RefuseError("the file of an erasure that was begun can't be read; see erasures/") from error
