"""What a store holds, told by names alone: beside a running service, without its lock, opening no artifact.

Read-only: what a crash left half done is told as it will be once the service has started, and left as it is.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId, InstanceId, KeyId
from pipeline.interim.states import SHARDS, ArtifactName, State, parse_name, shard_of
from pipeline.ports import FileSystem

_UNFINISHED = ".tmp"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Survey:
    """All that the names say."""

    names: tuple[ArtifactName, ...]
    """Oldest artifact first."""
    strangers: tuple[str, ...]
    """Files among the artifacts that bear no artifact's name: shard and name."""
    doubles: tuple[ArtifactName, ...] = ()
    """Further files of artifacts that are among `names`, as a crash may leave them."""

    def standing(self, state: State) -> list[ArtifactName]:
        """Every artifact that stands in a state, oldest first."""
        return [name for name in self.names if name.standing is state]

    def undelivered(self, instance: InstanceId) -> list[ArtifactName]:
        """Every artifact of an instance whose media are held here, oldest first."""
        return [name for name in self.names if name.instance_id == instance and name.standing is not State.DELIVERED]

    def all_under(self, instance: InstanceId, key: KeyId) -> list[ArtifactName]:
        """Every file of an instance that holds media under a data key, doubles as well."""
        return [
            name
            for name in (*self.names, *self.doubles)
            if (name.instance_id, name.key_id) == (instance, key) and name.standing is not State.DELIVERED
        ]


def survey(root: str, files: FileSystem) -> Survey:
    """Read all names of the store at `root`.

    Raises:
        StoreIoError: a folder of it can't be read.

    """
    names: list[ArtifactName] = []
    strangers: list[str] = []
    doubles: list[ArtifactName] = []
    for shard in SHARDS:
        found: dict[ArtifactId, ArtifactName] = {}
        for text in files.names(f"{root}/artifacts/{shard}"):
            if text.endswith(_UNFINISHED):
                continue
            try:
                name = parse_name(text)
            except SegmentForgedError:
                strangers.append(f"{shard}/{text}")
                continue
            known = found.setdefault(name.artifact_id, name)
            if known is name:
                continue
            if name.standing is State.DELIVERED:  # a durable receipt outlives its media
                found[name.artifact_id], name = name, known
            doubles.append(name)
        names += found.values()
    return Survey(tuple(sorted(names, key=lambda name: name.artifact_id)), tuple(sorted(strangers)), tuple(doubles))


def is_held(root: str, files: FileSystem, artifact: ArtifactId) -> bool:
    """Tell whether anything is there of an artifact now, under whatever name."""
    return any(text.startswith(artifact.hex) for text in files.names(f"{root}/artifacts/{shard_of(artifact)}"))


def begun(name: ArtifactName) -> datetime:
    """Tell when an artifact was begun: its id is a UUIDv7, whose first 48 bits are Unix milliseconds (RFC 9562)."""
    return _EPOCH + timedelta(milliseconds=name.artifact_id.int >> 80)
