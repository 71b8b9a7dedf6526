"""Speakers who were recognised: what is kept for as long as it serves stays for that much longer.

Nothing of a speaker is opened but their key's place: the time stands beside what is sealed.
"""

from dataclasses import replace

from pipeline.errors import RecordBusyError
from pipeline.instances import Instance
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.ports import Clock
from pipeline.records import finding, subjectkeys
from pipeline.records.policy import Disused
from pipeline.records.retention import expiry
from pipeline.records.rows import RecordEngine, Row, RowChange, RowConflictError
from pipeline.records.shelves import Shelf
from pipeline.records.store import SUBJECTS
from pipeline.trail import Trail

MOST = 10_000
"""Records of one speaker: more is a mistake."""
_ATTEMPTS = 8


class Speakers:
    """Takes note that speakers were recognised."""

    def __init__(self, engine: RecordEngine, commits: GroupCommit, trail: Trail, clock: Clock) -> None:
        self._engine = engine
        self._commits = commits
        self._trail = trail
        self._clock = clock

    async def authenticated(self, caller: Instance, shelf: Shelf, subject: str) -> bool:
        """Keep a speaker's voiceprints, and their key, for as long as if they were put now; tell whether there are any.

        A speaker who is unknown, has opted out or has expired gets nothing by it.

        Raises:
            DeferError: say it again.

        """
        policy = shelf.scope.policy
        normal = finding.normal(policy.fields[0].normal, subject)
        for _ in range(_ATTEMPTS):
            found = (await subjectkeys.of(self._engine, shelf, await shelf.blind(), [normal]))[normal]
            now = self._clock.now()
            if found.row is None or found.key is None or (found.row.expires or now.timestamp()) < now.timestamp():
                return False
            rows = await self._engine.under(shelf.scope.shelf, [found.key.key_id], MOST)
            served = [found.row, *(row for row in rows if _is_for_use(shelf, row))]
            changes = [RowChange(row.shelf, row.tag, row.version, self._longer(shelf, row), None) for row in served]
            line = self._trail.changed(
                caller.instance_id,
                "SpeakerAuthenticated",
                dataClass=policy.data_class,
                scope=shelf.scope.name,
                subject=found.row.tag.hex(),
            )
            await self._commits.commit(Commit(lines=(line,)))
            try:
                await self._engine.write(changes)
            except RowConflictError:
                continue
            return True
        raise RecordBusyError("others change the speaker all the time; nothing of this was kept")

    def _longer(self, shelf: Shelf, row: Row) -> Row:
        part = row.part if row.part not in subjectkeys.HIDDEN else SUBJECTS
        expires = expiry(shelf.place, shelf.scope.policy.part(part), None, self._clock.now())
        return replace(row, expires=None if expires is None else int(expires.timestamp()))


def _is_for_use(shelf: Shelf, row: Row) -> bool:
    part = next((part for part in shelf.scope.policy.parts if part.name == row.part), None)
    return part is not None and isinstance(part.retention, Disused)
