"""What still refers to each data key, told by names alone: artifacts, the journal, and what lies in `lost+found/`."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from pipeline.errors import SegmentForgedError
from pipeline.ids import InstanceId, KeyId
from pipeline.interim.states import ArtifactName, State, parse_name
from pipeline.interim.survey import Survey
from pipeline.ports import FileSystem

_JOURNAL = re.compile(r"[0-9a-f]{32}\.([0-9a-f]{32})\.journal")
_LOST = re.compile(r"[0-9a-f]{8}\.(.+?)(?:\.tail)?")


@dataclass(slots=True)
class KeyUse:
    """What was sealed under one data key, as far as it can be seen."""

    artifacts: int = 0
    """With those that were delivered lately."""
    size_bytes: int = 0
    held: int = 0
    """Artifacts whose bytes are here: open, sealed or poison."""
    journal: int = 0
    """Files of the journal."""
    lost: int = 0
    """Files in `lost+found/`."""

    @property
    def is_needed(self) -> bool:
        """Tell whether anything here could not be opened without it."""
        return bool(self.held or self.journal or self.lost)


def key_uses(root: str, files: FileSystem, found: Survey) -> dict[tuple[InstanceId, KeyId], KeyUse]:
    """Count what refers to each data key.

    Raises:
        StoreIoError: a folder can't be read.

    """
    uses: defaultdict[tuple[InstanceId, KeyId], KeyUse] = defaultdict(KeyUse)
    for name in found.names:
        use = uses[name.instance_id, name.key_id]
        use.artifacts += 1
        use.size_bytes += name.size_bytes or 0
        use.held += name.standing is not State.DELIVERED
    for name in found.doubles:
        uses[name.instance_id, name.key_id].held += name.standing is not State.DELIVERED
    for instance, key in _journal(f"{root}/journal", files):
        uses[instance, key].journal += 1
    for _, name in lost_pieces(root, files):
        uses[name.instance_id, name.key_id].lost += 1
    return dict(uses)


def _journal(root: str, files: FileSystem) -> Iterator[tuple[InstanceId, KeyId]]:
    for folder in files.names(root):
        try:
            instance = InstanceId(UUID(folder))
        except ValueError:
            continue
        for day in files.names(f"{root}/{folder}"):
            for name in files.names(f"{root}/{folder}/{day}"):
                match = _JOURNAL.fullmatch(name)
                if match is not None:
                    yield instance, KeyId(UUID(hex=match[1]))


def lost_pieces(root: str, files: FileSystem) -> Iterator[tuple[str, ArtifactName]]:
    """Give what lies in `lost+found/` and bears an artifact's name: its own name there, and the artifact's.

    Raises:
        StoreIoError: the folder can't be read.

    """
    for text in files.names(f"{root}/lost+found"):
        match = _LOST.fullmatch(text)
        try:
            name = None if match is None else parse_name(match[1])
        except SegmentForgedError:
            continue
        if name is not None:
            yield text, name
