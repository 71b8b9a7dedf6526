"""A change of an instance's KMS key: what the service does of it, and what is remembered of it.

The command `pipeline keys change` names the KMS keys, in the configuration, and is the first and the last to act; the
service wraps the data keys of the one ring that is in use. Remembered, in `changes/<instance>.json`, is which KMS key
was left, since delivered objects may need it for long.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.rewrap import SideError, let_go_of_others, rewrap, standing
from pipeline.ids import InstanceId
from pipeline.jobs import Ask, JobFailedError, Progress
from pipeline.ports import Clock, FileSystem
from pipeline.smallfiles import read_whole, write_whole
from pipeline.tenants import Tenants

VERB = "keys-change"
_SIZE_LIMIT = 64 * 1024


class UpdateStatus(StrEnum):
    """Where a change is."""

    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class KeyChange(Struct, frozen=True, kw_only=True, rename="camel"):
    """The last change of one instance's KMS key."""

    instance_id: UUID
    old_kms_key_arn: str
    new_kms_key_arn: str
    begun_at: Annotated[datetime, Meta(tz=True)]
    completed_at: Annotated[datetime, Meta(tz=True)] | None = None
    delivered_under_old_key: int | None = None
    """Objects and older versions of them that the bucket keeps under another KMS key; None: not counted yet."""
    counted_at: Annotated[datetime, Meta(tz=True)] | None = None


def read_change(root: str, files: FileSystem, instance: InstanceId) -> KeyChange | None:
    """Give the last change of an instance's KMS key; None if there was none, or it can't be read.

    Raises:
        StoreIoError: the disk refuses.

    """
    raw = read_whole(files, _path(root, instance), _SIZE_LIMIT)
    try:
        return None if raw is None else msgspec.json.decode(raw, type=KeyChange)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write_change(root: str, files: FileSystem, change: KeyChange) -> None:
    """Remember a change, durably. Raises `StoreFullError`, `StoreIoError`."""
    write_whole(files, _path(root, InstanceId(change.instance_id)), msgspec.json.encode(change))


def _path(root: str, instance: InstanceId) -> str:
    return f"{root}/changes/{instance}.json"


class KeyChangeJob:
    """Wraps the data keys of an instance under the KMS key that its configuration names."""

    def __init__(self, tenants: Tenants, configure: Callable[[], Awaitable[None]], clock: Clock) -> None:
        """`configure` reads the configuration: the job follows it, and names no KMS key itself."""
        self._tenants = tenants
        self._configure = configure
        self._clock = clock

    async def __call__(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        """See `jobs.Handler`."""
        await self._configure()
        tenant = self._tenants.get(ask.instance)
        if tenant is None:
            raise JobFailedError("the instance is not configured, or its file can't be used; mend it, then ask again")
        ring = tenant.ring
        ring.ask_now()
        try:
            await rewrap(ring, self._clock, progress)
            await let_go_of_others(ring)
        except SideError as error:
            raise JobFailedError(str(error), {"failedSide": error.side, **_facts(ring)}) from error
        return _facts(ring)


def _facts(ring: KeyRing) -> dict[str, Any]:
    now = standing(ring)
    return {"kmsKeyArn": ring.files.current_arn, "done": now.done, "total": now.total}
