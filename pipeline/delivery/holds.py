"""Holds: keys and destinations that can't be used now. They survive a restart and are what an operator is shown.

On disk: one small JSON file per hold, `holds/<instance>.<scope>.json`; the scope is `keys`, `sealing`, the kind of
recording whose destination it is, or one data key whose ring file can't be used. Artifacts are not touched by a hold:
they stay sealed and go out in order when it ends.
"""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import anyio
import msgspec

from pipeline import holdwords
from pipeline.errors import HoldCode, HoldError, StoreIoError
from pipeline.ids import InstanceId, KeyId, Kind
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.states import ArtifactName
from pipeline.ports import FileSystem
from pipeline.trail import Trail

KEYS = holdwords.KEYS
"""Scope of a hold on the instance's own KMS key."""
SEALING = holdwords.SEALING
"""Scope of a hold on new recordings alone: KMS makes no data keys, and opens those that there are."""


def data_key_scope(key_id: KeyId) -> str:
    """Name the scope of a hold on what is sealed under one data key."""
    return f"key-{key_id}"


def scopes_of(name: ArtifactName) -> tuple[str, ...]:
    """Name every scope whose hold an artifact waits for."""
    return KEYS, str(name.kind), data_key_scope(name.key_id)


class Hold(msgspec.Struct, frozen=True, rename="camel"):
    """Why something waits."""

    instance_id: UUID
    scope: str
    code: HoldCode
    message: str
    inaccessible_since: datetime
    """`inaccessibleEncryptionDateTime`: when it was first seen."""
    kms_key_arn: str | None = None
    """The KMS key that it is about, if it is about one."""


class Holds:
    """Every hold in force."""

    def __init__(self, root: str, files: FileSystem, commits: GroupCommit, trail: Trail) -> None:
        self._root = root
        self._files = files
        self._commits = commits
        self._trail = trail
        self._holds: dict[tuple[UUID, str], Hold] = {}
        self._lock = anyio.Lock()

    def load(self) -> None:
        """Read what an earlier run left. A file that can't be read is passed over: the hold will be seen again."""
        self._files.make_directory(self._root)
        for hold in read_holds(self._root, self._files):
            self._holds[hold.instance_id, hold.scope] = hold

    def all(self) -> list[Hold]:
        """Every hold."""
        return list(self._holds.values())

    def get(self, instance: InstanceId, kind: Kind) -> Hold | None:
        """Tell what holds one destination, if anything does."""
        return self._holds.get((instance, KEYS)) or self._holds.get((instance, kind))

    def at(self, instance: InstanceId, scope: str) -> Hold | None:
        """Give the hold of one scope."""
        return self._holds.get((instance, scope))

    def of(self, name: ArtifactName) -> list[Hold]:
        """Give every hold that an artifact waits for."""
        found = (self._holds.get((name.instance_id, scope)) for scope in scopes_of(name))
        return [hold for hold in found if hold is not None]

    async def begin(self, instance: InstanceId, scope: str, error: HoldError, now: datetime) -> bool:
        """Put a hold in force, durably; False if the same one was already."""
        async with self._lock:  # many attempts end at once, and all of them find the same
            known = self._holds.get((instance, scope))
            if known is not None and known.code is error.code:
                return False
            since = known.inaccessible_since if known else now
            hold = Hold(instance, scope, error.code, str(error), since, error.key_arn)
            line = self._trail.changed(
                instance, "HoldBegun", scope=scope, code=error.code, kmsKeyArn=error.key_arn, message=str(error)
            )
            await self._commits.commit(Commit(files=((self._path(hold), msgspec.json.encode(hold)),), lines=(line,)))
            self._holds[instance, scope] = hold
            return True

    async def end(self, instance: InstanceId, scope: str) -> bool:
        """Lift a hold; False if there was none."""
        async with self._lock:
            hold = self._holds.get((instance, scope))
            if hold is None:
                return False
            line = self._trail.changed(instance, "HoldEnded", scope=scope, code=hold.code)
            await self._commits.commit(Commit(lines=(line,), unlinks=(self._path(hold),)))
            del self._holds[instance, scope]
            return True

    async def drop_gone(self, is_gone: Callable[[InstanceId], bool]) -> None:
        """Drop the holds of instances that are gone, and their files: nothing waits for them any more.

        Raises:
            DeferError: it could not be done now; the next call does it.

        """
        async with self._lock:
            for hold in [hold for hold in self._holds.values() if is_gone(InstanceId(hold.instance_id))]:
                await self._commits.commit(Commit(unlinks=(self._path(hold),)))
                del self._holds[hold.instance_id, hold.scope]

    async def forget(self, instance: InstanceId) -> None:
        """Hold nothing of an instance any more; its files are removed by whoever asks for this."""
        async with self._lock:
            for key in [key for key in self._holds if key[0] == instance]:
                del self._holds[key]

    def _path(self, hold: Hold) -> str:
        return f"{self._root}/{hold.instance_id}.{hold.scope}.json"


def remove_holds(root: str, files: FileSystem, instance: InstanceId) -> None:
    """Remove the files of an instance's holds, durably; nothing happens if there are none. Synchronous."""
    names = [name for name in files.names(root) if name.startswith(f"{instance}.")]
    for name in names:
        files.unlink(f"{root}/{name}")
    if names:
        files.sync_directory(root)


def read_holds(root: str, files: FileSystem) -> list[Hold]:
    """Read the holds in force from disk, also beside a running service."""
    found = []
    for name in sorted(files.names(root)):
        if not name.endswith(".json"):
            continue
        try:
            handle = files.open(f"{root}/{name}")
        except (FileNotFoundError, StoreIoError):
            continue
        try:
            found.append(msgspec.json.decode(files.read(handle, 0, 65536), type=Hold))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, StoreIoError):
            continue
        finally:
            files.close(handle)
    return found
