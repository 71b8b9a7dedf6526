"""Retired data keys are destroyed a week after nothing here needs them any more: what they sealed is then unreadable.

Needed is a data key while an artifact that is not delivered, a receipt that is a file of its own, a journal file or
anything in `lost+found/` was sealed under it. Since when one is not needed is kept, in `keys/<instance>/unneeded.json`:
a restart begins no new week. The newest key of a ring stays, and so do all while a legal hold keeps the instance.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

import anyio
import anyio.to_thread
import msgspec
import structlog
from msgspec import Meta

from pipeline.errors import PipelineError
from pipeline.ids import InstanceId, KeyId
from pipeline.interim.commit import GroupCommit
from pipeline.interim.keyuse import KeyUse, key_uses
from pipeline.interim.survey import survey
from pipeline.ports import Clock, FileSystem
from pipeline.rekey import destroy_data_key
from pipeline.smallfiles import read_whole, write_whole
from pipeline.steady import Steady
from pipeline.tenants import Tenant, Tenants
from pipeline.trail import Trail

log = structlog.get_logger()

WAIT = timedelta(days=7)
EVERY = timedelta(hours=1)
REASON = "retired, and not needed for seven days"
_FILE = "unneeded.json"
_SIZE_LIMIT = 256 * 1024
_Since = dict[UUID, Annotated[datetime, Meta(tz=True)]]


class RetiredKeys:
    """Looks at every ring now and then."""

    def __init__(
        self,
        root: str,
        *,
        tenants: Tenants,
        files: FileSystem,
        commits: GroupCommit,
        trail: Trail,
        clock: Clock,
        keeps_all: Callable[[InstanceId], bool],
    ) -> None:
        """`keeps_all` tells whether a legal hold forbids to destroy what is an instance's."""
        self._root = root
        self._tenants = tenants
        self._files = files
        self._commits = commits
        self._trail = trail
        self._steady = Steady(clock)
        self._keeps_all = keeps_all

    async def run(self) -> None:
        """Look every hour until cancelled; not at once: a clock may be set soon after its machine's start."""
        while True:
            await anyio.sleep(EVERY.total_seconds())
            try:
                await self.once()
            except PipelineError as error:
                log.warning("keys.retiring_deferred", reason=error.reason)

    async def once(self) -> int:
        """Destroy what is due; give the number of data keys. Raises `StoreFullError`, `StoreIoError`."""
        retired = [(tenant, keys) for tenant in self._tenants if (keys := _retired(tenant))]
        if not retired:
            return 0
        found = await anyio.to_thread.run_sync(survey, self._root, self._files)
        uses = await anyio.to_thread.run_sync(key_uses, self._root, self._files, found)
        destroyed = 0
        for tenant, keys in retired:
            instance = tenant.instance.instance_id
            unneeded = [key for key in keys if not _is_needed(uses.get((instance, key)))]
            destroyed += await self._one(tenant, unneeded)
        return destroyed

    async def _one(self, tenant: Tenant, unneeded: list[KeyId]) -> int:
        path = f"{self._root}/keys/{tenant.instance.instance_id}/{_FILE}"
        known = await anyio.to_thread.run_sync(self._read, path)
        now = self._steady.now()
        since = {key: min(known.get(key, now), now) for key in unneeded}
        if since != known:
            await anyio.to_thread.run_sync(write_whole, self._files, path, msgspec.json.encode(since))
        due = [key for key, began in since.items() if now - began >= WAIT]
        if not due or await anyio.to_thread.run_sync(self._keeps_all, tenant.instance.instance_id):
            return 0
        for key in due:
            await destroy_data_key(tenant, KeyId(key), self._commits, self._trail, reason=REASON)
        return len(due)

    def _read(self, path: str) -> _Since:
        """Read since when keys are not needed; a file that can't be read begins anew."""
        raw = read_whole(self._files, path, _SIZE_LIMIT)
        try:
            return {} if raw is None else msgspec.json.decode(raw, type=_Since)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {}


def _retired(tenant: Tenant) -> list[KeyId]:
    """List the keys of a ring that nothing new is sealed under, but for the newest: it carries the ring's name key."""
    files = tenant.ring.files
    return [key for key in files.newest_first()[1:] if not files.is_within_limits(key)]


def _is_needed(use: KeyUse | None) -> bool:
    return use is not None and (use.is_needed or use.artifacts > 0)
