"""What the store holds, in memory: built from names at start, kept by every move after it."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from pipeline.ids import ArtifactId, InstanceId, KeyId
from pipeline.interim.states import ArtifactName, State

_STALE = 1_000
"""Entries of the heap that are left in it though they wait no longer."""


class Index:
    """Names by artifact, and artifacts by source.

    Inside, an id is its number: a `UUID` compares and hashes itself in Python, a hundred thousand times at each start.
    """

    def __init__(self) -> None:
        self._names: dict[int, ArtifactName] = {}
        self._open: dict[ArtifactId, ArtifactName] = {}
        self._sources: defaultdict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
        """Artifacts by instance and source tag."""
        self._standing: Counter[State] = Counter()
        self._held: Counter[int] = Counter()
        """Bytes by instance."""
        self._waiting: list[int] = []
        """A heap of those that wait for delivery; some of them no longer do."""
        self._grown: dict[ArtifactId, int] = {}
        """Media of open artifacts, as far as this process took or found them: their names don't say."""

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[ArtifactName]:
        return iter(list(self._names.values()))

    def get(self, artifact: ArtifactId) -> ArtifactName | None:
        """Name of an artifact now."""
        return self._names.get(artifact.int)

    def open(self) -> list[ArtifactName]:
        """Every artifact that is being received, or was when something broke."""
        return list(self._open.values())

    def put(self, name: ArtifactName) -> None:
        """Set or replace an artifact's name."""
        number, standing = name.artifact_id.int, name.standing
        before = self._names.get(number)
        if before is None:
            sources = self._sources[name.instance_id.int]
            sources[name.tag] = (*sources.get(name.tag, ()), number)
        else:
            self._forget_size(before)
            self._open.pop(name.artifact_id, None)
        self._names[number] = name
        self._standing[standing] += 1
        if standing is not State.DELIVERED and name.size_bytes:
            self._held[name.instance_id.int] += name.size_bytes
        if standing is State.SEALED:
            self._wait(number)
        if standing is State.OPEN:
            self._open[name.artifact_id] = name

    def load(self, names: Iterable[ArtifactName]) -> None:
        """Set many at once, as at a start: most are sealed, and unknown."""
        sealed: list[ArtifactName] = []
        for name in names:
            if name.standing is State.SEALED and name.artifact_id.int not in self._names:
                sealed.append(name)
                self._names[name.artifact_id.int] = name
            else:
                self.put(name)
        for name in sealed:
            number, sources = name.artifact_id.int, self._sources[name.instance_id.int]
            sources[name.tag] = (*sources[name.tag], number) if name.tag in sources else (number,)
            self._held[name.instance_id.int] += name.size_bytes or 0
        self._standing[State.SEALED] += len(sealed)
        self._waiting = sorted([*self._waiting, *(name.artifact_id.int for name in sealed)])  # sorted is a heap

    def remove(self, artifact: ArtifactId) -> None:
        """Forget an artifact."""
        name = self._names.pop(artifact.int, None)
        if name is None:
            return
        self._open.pop(artifact, None)
        self._forget_size(name)
        sources = self._sources[name.instance_id.int]
        siblings = tuple(number for number in sources.pop(name.tag) if number != artifact.int)
        if siblings:
            sources[name.tag] = siblings

    def generations(self, instance: InstanceId, tags: Iterable[str]) -> list[ArtifactName]:
        """Everything held of one source, the first generation first. Ids alone don't tell: a clock may be set back."""
        sources = self._sources.get(instance.int, {})
        found = [self._names[number] for tag in tags for number in sources.get(tag, ())]
        return sorted(found, key=lambda name: (name.generation, name.artifact_id.int))

    def count(self, standing: State) -> int:
        """How many artifacts stand in a state."""
        return self._standing[standing]

    def by_data_key(self) -> dict[tuple[InstanceId, KeyId], tuple[int, int]]:
        """Count what is sealed or was delivered under each data key: artifacts, and bytes as far as names tell them."""
        counts: dict[tuple[InstanceId, KeyId], tuple[int, int]] = {}
        for name in self._names.values():
            key = name.instance_id, name.key_id
            artifacts, size_bytes = counts.get(key, (0, 0))
            counts[key] = artifacts + 1, size_bytes + (name.size_bytes or 0)
        return counts

    def oldest_waiting(self) -> ArtifactId | None:
        """Find what has waited longest for delivery: ids sort by time."""
        while self._waiting and not self._waits(self._waiting[0]):
            heapq.heappop(self._waiting)
        return self._names[self._waiting[0]].artifact_id if self._waiting else None

    def held_bytes(self, instance: InstanceId) -> int:
        """Bytes of an instance that are not delivered; of open artifacts what was taken or found since the start."""
        return self._held[instance.int]

    def grow(self, artifact: ArtifactId, size_bytes: int) -> None:
        """Count media that an open artifact took."""
        name = self._open[artifact]
        self._grown[artifact] = self._grown.get(artifact, 0) + size_bytes
        self._held[name.instance_id.int] += size_bytes

    def found(self, artifact: ArtifactId, size_bytes: int) -> None:
        """Set how many media bytes an open artifact has."""
        self.grow(artifact, size_bytes - self._grown.get(artifact, 0))

    def _forget_size(self, name: ArtifactName) -> None:
        self._standing[name.standing] -= 1
        held = self._grown.pop(name.artifact_id, 0)
        if name.standing is not State.DELIVERED:
            held += name.size_bytes or 0
        self._held[name.instance_id.int] -= held

    def _wait(self, number: int) -> None:
        heapq.heappush(self._waiting, number)
        if len(self._waiting) > 2 * self._standing[State.SEALED] + _STALE:
            self._waiting = [each for each in self._waiting if self._waits(each)]
            heapq.heapify(self._waiting)

    def _waits(self, number: int) -> bool:
        name = self._names.get(number)
        return name is not None and name.is_waiting
