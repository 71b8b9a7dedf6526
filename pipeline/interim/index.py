"""What the store holds, in memory: built from names at start, kept by every move after it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from pipeline.ids import ArtifactId, InstanceId
from pipeline.interim.states import ArtifactName, State


class Index:
    """Names by artifact, and artifacts by source."""

    def __init__(self) -> None:
        self._names: dict[ArtifactId, ArtifactName] = {}
        self._open: dict[ArtifactId, ArtifactName] = {}
        self._sources: dict[tuple[InstanceId, str], list[ArtifactId]] = defaultdict(list)
        self._standing: Counter[State] = Counter()

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[ArtifactName]:
        return iter(list(self._names.values()))

    def get(self, artifact: ArtifactId) -> ArtifactName | None:
        """Name of an artifact now."""
        return self._names.get(artifact)

    def open(self) -> list[ArtifactName]:
        """Every artifact that is being received, or was when something broke."""
        return list(self._open.values())

    def put(self, name: ArtifactName) -> None:
        """Set or replace an artifact's name."""
        before = self._names.get(name.artifact_id)
        if before is None:
            self._sources[name.instance_id, name.tag].append(name.artifact_id)
        else:
            self._standing[before.standing] -= 1
        self._names[name.artifact_id] = name
        self._standing[name.standing] += 1
        if name.standing is State.OPEN:
            self._open[name.artifact_id] = name
        else:
            self._open.pop(name.artifact_id, None)

    def remove(self, artifact: ArtifactId) -> None:
        """Forget an artifact."""
        name = self._names.pop(artifact, None)
        if name is None:
            return
        self._open.pop(artifact, None)
        self._standing[name.standing] -= 1
        siblings = self._sources[name.instance_id, name.tag]
        siblings.remove(artifact)
        if not siblings:
            del self._sources[name.instance_id, name.tag]

    def generations(self, instance: InstanceId, tags: Iterable[str]) -> list[ArtifactName]:
        """Everything held of one source, oldest artifact first."""
        found = [self._names[artifact] for tag in tags for artifact in self._sources.get((instance, tag), ())]
        return sorted(found, key=lambda name: name.artifact_id)

    def count(self, standing: State) -> int:
        """How many artifacts stand in a state."""
        return self._standing[standing]
