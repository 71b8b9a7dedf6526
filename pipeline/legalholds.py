"""Legal holds: what a person said must not be removed, of whom, why, and since when.

`legal-holds/<hold id>.json` in the configuration directory, apart from the store: who can write to the store can't lift
one. A hold is on all of an instance, on one of its contacts, or on one recording. It stops removal, not delivery. What
can't be read counts as a hold on everything. Synchronous: callers choose the thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from pipeline.config import MAX_FILE_BYTES, sync_directory, write_private
from pipeline.errors import RefuseError
from pipeline.ids import InstanceId

LEGAL_HOLDS = "legal-holds"


class LegalHold(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One hold. Without contact and recording it is on all of the instance."""

    hold_id: UUID
    instance_id: UUID
    contact: str | None = None
    """As object keys carry it, so that it tells nothing about a person."""
    recording_id: UUID | None = None
    """A recording's id, or that of one of its artifacts."""
    reason: str
    placed_by: str
    placed_at: Annotated[datetime, Meta(tz=True)]

    @property
    def is_on_all(self) -> bool:
        """Tell whether it is on all of its instance."""
        return self.contact is None and self.recording_id is None


@dataclass(frozen=True, slots=True)
class LegalHolds:
    """Every hold in force."""

    holds: tuple[LegalHold, ...]

    def of(self, instance: InstanceId) -> list[LegalHold]:
        """Give the holds on an instance, or on anything of it."""
        return [hold for hold in self.holds if hold.instance_id == instance]

    def on_all(self, instance: InstanceId) -> LegalHold | None:
        """Find a hold on all of an instance."""
        return next((hold for hold in self.of(instance) if hold.is_on_all), None)

    def on(self, instance: InstanceId, contact: str, ids: Iterable[UUID]) -> LegalHold | None:
        """Find a hold on one recording, given its contact as object keys carry it, and its ids."""
        known = set(ids)
        for hold in self.of(instance):
            if hold.is_on_all or hold.recording_id in known or (hold.contact is not None and hold.contact == contact):
                return hold
        return None


def load_legal_holds(config_dir: PurePath) -> LegalHolds:
    """Read every hold.

    Raises:
        RefuseError: one can't be read, or there is no such directory: nobody can tell what is held.

    """
    if not Path(config_dir).is_dir():
        raise RefuseError("the configuration directory is not there, so nobody can tell what is under a legal hold")
    return LegalHolds(tuple(_read(path) for path in sorted(Path(config_dir, LEGAL_HOLDS).glob("[!.]*.json"))))


def place(config_dir: PurePath, hold: LegalHold) -> None:
    """Put a hold in force; it is durable when this returns."""
    write_private(_path(config_dir, hold.hold_id), msgspec.json.format(msgspec.json.encode(hold)))


def release(config_dir: PurePath, hold: LegalHold) -> None:
    """Lift a hold, durably."""
    path = _path(config_dir, hold.hold_id)
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def keeps_all(config_dir: PurePath, instance: InstanceId) -> bool:
    """Tell whether anything of an instance is held; also if nobody can tell."""
    try:
        return bool(load_legal_holds(config_dir).of(instance))
    except RefuseError:
        return True


def _path(config_dir: PurePath, hold_id: UUID) -> Path:
    return Path(config_dir, LEGAL_HOLDS, f"{hold_id}.json")


def _read(path: Path) -> LegalHold:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=LegalHold)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"the legal hold {path.name} can't be read; until it is mended nothing may be removed"
        raise RefuseError(message) from error
