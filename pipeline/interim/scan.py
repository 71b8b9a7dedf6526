"""The scan at start: every name into the index, and the end of what a crash left half done.

Opens no artifact, follows no link, and removes only what is held elsewhere: unfinished copies, and media whose receipt
is durable. What does not bear an artifact's name, or is no plain file, goes to `lost+found/` and is kept; what can't be
moved there is left where it is, and is no artifact either. Idempotent: a scan that broke off is repeated from its
beginning. Whose a file is makes no difference: its bytes authenticate, or they don't.
"""

import secrets
from collections import defaultdict
from dataclasses import dataclass
from uuid import UUID

import msgspec
import structlog

from pipeline.errors import HaltError, PipelineError, SegmentForgedError, StoreIoError
from pipeline.ids import ArtifactId
from pipeline.interim.index import Index
from pipeline.interim.states import SHARDS, ArtifactName, State, parse_name
from pipeline.ports import FileSystem

log = structlog.get_logger()

_UNFINISHED = ".tmp"
_LONGEST = 200
"""Characters that are kept of a stranger's name; file names end at 255."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """What the scan found besides good names."""

    moved_aside: int
    finished: int
    """Media whose receipt was durable already, or that were sealed again under another data key, removed now."""


class _ReceiptClaim(msgspec.Struct, frozen=True, rename="camel"):
    """As much of a receipt as the scan needs."""

    artifact_id: UUID
    generation: int
    size_bytes: int


class Scan:
    """One scan of the store at `root` into `index`."""

    def __init__(self, root: str, files: FileSystem, index: Index) -> None:
        self._root = root
        self._files = files
        self._index = index
        self._moved = 0
        self._finished = 0

    def run(self) -> Scanned:
        """Read all names.

        Raises:
            HaltError: a folder can't be listed, or is a link: nobody can tell what is held.

        """
        # All at once: with each load what waits is put in order anew.
        self._index.load(name for shard in SHARDS for name in self._shard(shard))
        return Scanned(self._moved, self._finished)

    # --- inside

    def _shard(self, shard: str) -> list[ArtifactName]:
        names = self._listed(shard)
        receipts = {name.artifact_id: name for name in names if name.standing is State.DELIVERED}
        if receipts:
            names = self._settled(shard, names, receipts)
        if len({name.artifact_id for name in names}) < len(names):
            names = self._single(shard, names)
        return names

    def _settled(
        self, shard: str, names: list[ArtifactName], receipts: dict[ArtifactId, ArtifactName]
    ) -> list[ArtifactName]:
        """End the deliveries whose receipt is durable; give what is left."""
        for name in names:
            receipt = receipts.get(name.artifact_id)
            if name.standing is not State.SEALED or receipt is None:
                continue
            if self._agrees(receipt, name):
                self._finished += self._removed(name.path)
            else:
                self._aside(shard, str(receipts.pop(name.artifact_id)))
        stays = {State.SEALED: False, State.DELIVERED: True}
        return [name for name in names if stays.get(name.standing) in (None, name.artifact_id in receipts)]

    def _single(self, shard: str, names: list[ArtifactName]) -> list[ArtifactName]:
        """End what was sealed again under another data key: both files are whole, one stays, and durably so.

        One whose data key is in the ring, if they differ in that. What differs in more is not ours, and kept.
        """
        by_artifact: defaultdict[ArtifactId, list[ArtifactName]] = defaultdict(list)
        for name in names:
            by_artifact[name.artifact_id].append(name)
        stay = []
        for twins in by_artifact.values():
            best = min(twins, key=self._place)
            stay.append(best)
            for other in twins:
                if other is best:
                    continue
                if str(other).replace(other.key_id.hex, best.key_id.hex) == str(best):
                    self._finished += self._removed(other.path)
                else:
                    self._aside(shard, str(other))
        try:
            self._files.sync_directory(f"{self._root}/artifacts/{shard}")
        except PipelineError as error:
            raise HaltError(f"the folder artifacts/{shard} can't be made durable: {error}. Start again") from error
        return stay

    def _place(self, name: ArtifactName) -> tuple[bool, bool, int]:
        """Order twins: a receipt that stands beside poison is none."""
        return name.standing is State.DELIVERED, not self._has_ring_file(name), name.key_id.int

    def _has_ring_file(self, name: ArtifactName) -> bool:
        return f"{name.key_id.hex}.json" in self._files.names(f"{self._root}/keys/{name.instance_id}")

    def _listed(self, shard: str) -> list[ArtifactName]:
        """Give the artifacts of a shard; what is not ours is moved away, what was being written aside is removed."""
        folder = f"{self._root}/artifacts/{shard}"
        try:
            texts, others = self._files.sorted_out(folder)
        except StoreIoError as error:
            raise HaltError(
                f"the folder artifacts/{shard} can't be listed, or is not a folder: {error}. Nothing was changed; "
                "mend it and start again"
            ) from error
        for text in others:
            self._aside(shard, text)
        names: list[ArtifactName] = []
        for text in texts:
            name = _name_in(shard, text.removesuffix(_UNFINISHED))
            if name is None:
                self._aside(shard, text)
            elif text.endswith(_UNFINISHED):
                self._removed(f"{shard}/{text}")
            else:
                names.append(name)
        return names

    def _removed(self, path: str) -> bool:
        try:
            self._files.unlink(f"{self._root}/artifacts/{path}")
        except PipelineError as error:
            log.warning("store.not_removed", reason=error.reason, detail=str(error))
            return False
        return True

    def _aside(self, shard: str, text: str) -> None:
        """Keep what is not ours, out of the way."""
        safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in text)
        lost = f"{secrets.token_hex(4)}.{safe[:_LONGEST]}"
        try:
            self._files.rename(f"{self._root}/artifacts/{shard}/{text}", f"{self._root}/lost+found/{lost}")
        except (PipelineError, FileNotFoundError) as error:
            log.warning("store.stranger_left", name=safe[:_LONGEST], detail=str(error))
            return
        log.warning("store.stranger_moved", lost=lost)
        self._moved += 1

    def _agrees(self, receipt: ArtifactName, sealed: ArtifactName) -> bool:
        """Tell whether a receipt found beside media is that media's."""
        try:
            handle = self._files.open(f"{self._root}/artifacts/{receipt.path}")
            try:
                said = msgspec.json.decode(self._files.read(handle, 0, self._files.size(handle)), type=_ReceiptClaim)
            finally:
                self._files.close(handle)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, StoreIoError):
            return False
        return (said.artifact_id, said.generation, said.size_bytes) == (
            sealed.artifact_id,
            sealed.generation,
            sealed.size_bytes,
        )


def _name_in(shard: str, text: str) -> ArtifactName | None:
    if text[31:32] != shard:  # cheaper than `ArtifactName.shard`: the id stands first, and has 32 digits
        return None
    try:
        return parse_name(text)
    except SegmentForgedError:
        return None
