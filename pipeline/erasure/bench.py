"""What erasing works with: the store, the trail, the service's hands, and who signs."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import PurePath

import anyio.to_thread
import msgspec

from pipeline.erasure.letgo import Hands
from pipeline.erasure.progress import Erasures
from pipeline.erasure.receipt import Sign
from pipeline.erasure.records import RecordsErasure
from pipeline.errors import DeferError, HaltError
from pipeline.ids import RecordingId
from pipeline.instances import Instance
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import LogLine
from pipeline.interim.states import ArtifactName
from pipeline.keyports import GrantService
from pipeline.ports import Clock, FileSystem
from pipeline.records.shelves import Shelves
from pipeline.status import Facts, Failure, FailureCode, Status
from pipeline.tenants import Tenants
from pipeline.trail import Trail, subject_of


class LeftError(DeferError):
    """Something is there again, or still. The job goes on with it."""

    reason = "left"


class BackupUnderWayError(DeferError):
    """A backup is being made; it would keep what is erased meanwhile. It is waited for."""

    reason = "backup-under-way"


@dataclass(frozen=True, kw_only=True, slots=True)
class Workbench:
    """What erasing works with."""

    root: str
    config_dir: PurePath
    files: FileSystem
    commits: GroupCommit
    trail: Trail
    clock: Clock
    tenants: Tenants
    hands: Hands
    configure: Callable[[], Awaitable[None]]
    """Read the configuration again."""
    keys: Callable[[Instance, str], Awaitable[GrantService]]
    """Give the key service for a KMS key of an instance, configured or not any more."""
    alone: Callable[[], AbstractContextManager[object]]
    """Keep backups away meanwhile; `HaltError` while one is being made."""
    shelves: Shelves
    records: RecordsErasure
    sign: Sign

    @property
    def erasures(self) -> Erasures:
        """Every erasure that was begun."""
        return Erasures(str(self.config_dir), self.files)

    async def record(self, *lines: LogLine) -> None:
        """Make audit records durable."""
        await self.commits.commit(Commit(lines=lines))

    async def only_one(self, stack: ExitStack) -> None:
        """Be the only one that copies or destroys, until the stack ends. Raises `BackupUnderWayError`."""
        try:
            await anyio.to_thread.run_sync(stack.enter_context, self.alone())
        except HaltError as error:
            raise BackupUnderWayError("a backup is being made; its end is waited for") from error


def erased_lines(
    trail: Trail, instance: Instance | None, name: ArtifactName, contact: str, recording_id: RecordingId
) -> list[LogLine]:
    """Tell that an artifact is removed on request: to the outside, and to the audit trail."""
    gone = msgspec.structs.replace(name, sequence=name.sequence + 1)
    lines = [trail.moved(name, recording_id, "ArtifactErased", state=str(name.standing))]
    if instance is not None:
        failure = Failure(FailureCode.ERASED, "removed on request; nothing of it is held here")
        subject = subject_of(instance, contact, recording_id, gone)
        lines.insert(0, trail.status(subject, Status.FAILED, Facts(), failure=failure))
    return lines
