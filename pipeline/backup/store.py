"""Copy a store while it is served: every byte that was acknowledged before the beginning is in the copy.

Moves change names meanwhile. The order makes up for that: an artifact is looked for until none is missing that was
seen, receipts' logs come after the receipts that are folded into them, logs after the moves they tell of, and the key
ring both before and after the artifacts, so that each artifact's data key is there, whatever was made or destroyed.
"""

from collections.abc import Callable

from pipeline.backup.copies import Copies
from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId
from pipeline.interim.ballast import NAME as BALLAST
from pipeline.interim.states import SHARDS, ArtifactName, State, parse_name

PREFIX = "store"
KEYS, ARTIFACTS, RECORDS = "keys", "artifacts", "records"
RECORDS_FILE = "records.db"
LOCK = "backup.lock"
"""Held by whoever makes a backup, or destroys what it would keep."""
LEFT_OUT = frozenset({BALLAST, "lock", LOCK, "embedded"})
"""Of the state directory: what is no data, and the servers that only run beside the store."""
_UNFINISHED = ".tmp"
_ENOUGH_PASSES = 5
"""After so many, what is new was begun after the copying was."""


Snapshot = Callable[[str], str | None]
"""Given the path of a file that changes in place; gives that of a copy of one moment, or None if there is no such."""


def no_snapshot(_path: str) -> str | None:
    """Have no file of records."""
    return None


def copy_store(
    copies: Copies, root: str, without: frozenset[str] = frozenset(), snapshot: Snapshot = no_snapshot
) -> None:
    """Copy the store at `root`, without some more names at its top.

    Raises:
        StoreFullError, StoreIoError: a folder can't be read, or the copy can't be written.

    """
    copies.folder(f"{root}/{KEYS}", f"{PREFIX}/{KEYS}")
    _Artifacts(copies, root).copy()
    copies.folder(root, PREFIX, {*LEFT_OUT, *without, KEYS, ARTIFACTS, RECORDS})
    beside = {f"{RECORDS_FILE}{ending}" for ending in ("", "-wal", "-shm")}
    copies.folder(f"{root}/{RECORDS}", f"{PREFIX}/{RECORDS}", beside)
    moment = snapshot(f"{root}/{RECORDS}/{RECORDS_FILE}")
    if moment is not None:
        copies.file(moment, f"{PREFIX}/{RECORDS}/{RECORDS_FILE}")
    copies.folder(f"{root}/{KEYS}", f"{PREFIX}/{KEYS}")


class _Artifacts:
    """The artifacts of a store, one copy of each."""

    def __init__(self, copies: Copies, root: str) -> None:
        self._copies = copies
        self._root = root
        self._done: dict[ArtifactId, ArtifactName] = {}

    def copy(self) -> None:
        """Copy all that are there, and those that hold what was there and is gone.

        A body that takes an unfinished one's place may lie in a folder that was listed before it was begun, and the
        other go before its folder is listed: so all are listed again, until there is nothing new, or for some times
        where there always is.
        """
        passes = 0
        while True:
            passes += 1
            new, gone = self._pass()
            if not gone and (not new or passes >= _ENOUGH_PASSES):
                return

    def _pass(self) -> tuple[bool, bool]:
        """Copy what is not copied yet, and anew what is complete by now. Tell whether there was such.

        And whether something went away meanwhile: it may be found under another name now, or what it held in another.
        """
        new, gone, there = False, False, set[ArtifactId]()
        for shard in SHARDS:
            for name in self._listed(shard):
                there.add(name.artifact_id)
                known = self._done.get(name.artifact_id)
                if known is not None and (known.state is not State.OPEN or name.state is State.OPEN):
                    continue
                if self._copies.file(f"{self._root}/{ARTIFACTS}/{name.path}", _path(name)):
                    self._take_back(known)
                    self._done[name.artifact_id] = name
                    new = True
                else:
                    gone = True
        return new, self._forget_absorbed(there) or gone

    def _take_back(self, name: ArtifactName | None) -> None:
        if name is not None and _path(name) in self._copies.copied:
            self._copies.drop(_path(name))

    def _forget_absorbed(self, there: set[ArtifactId]) -> bool:
        """Take back open artifacts that are no more: what they held is in another, which was there before they went."""
        absorbed = [name for name in self._done.values() if name.state is State.OPEN and name.artifact_id not in there]
        for name in absorbed:
            self._take_back(name)
            del self._done[name.artifact_id]
        return bool(absorbed)

    def _listed(self, shard: str) -> list[ArtifactName]:
        """Give the artifacts of a shard, the oldest first; a receipt instead of the media that it lets go."""
        found: dict[ArtifactId, ArtifactName] = {}
        for text in self._copies.files.sorted_out(f"{self._root}/{ARTIFACTS}/{shard}")[0]:
            try:
                name = parse_name(text)
            except SegmentForgedError:
                if not text.endswith(_UNFINISHED):
                    self._stranger(f"{shard}/{text}")
                continue
            if name.artifact_id not in found or name.standing is State.DELIVERED:
                found[name.artifact_id] = name
        return sorted(found.values(), key=lambda name: name.artifact_id)

    def _stranger(self, path: str) -> None:
        """Keep what is not ours, too: the next start sets it aside."""
        if f"{PREFIX}/{ARTIFACTS}/{path}" not in self._copies.copied:
            self._copies.file(f"{self._root}/{ARTIFACTS}/{path}", f"{PREFIX}/{ARTIFACTS}/{path}")


def _path(name: ArtifactName) -> str:
    return f"{PREFIX}/{ARTIFACTS}/{name.path}"
