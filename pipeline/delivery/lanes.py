"""Lanes: what waits for one destination, oldest first, and when it may be tried again. No I/O.

A destination is one kind of recording of one instance. Attempts *start* oldest first; a deferred or rejected artifact
does not stop those behind it. Lanes take turns, so that one with a million artifacts does not delay the others.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from pipeline.ids import ArtifactId, InstanceId, Kind

LaneKey = tuple[InstanceId, Kind]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: any time between nothing and a limit that doubles."""

    first: timedelta
    most: timedelta
    random: Callable[[], float]

    def delay_s(self, attempts: int) -> float:
        """Seconds to wait after that many attempts failed in a row."""
        limit = min(self.most.total_seconds(), self.first.total_seconds() * 2.0 ** min(attempts - 1, 30))
        return limit * self.random()


@dataclass(slots=True)
class Lane:
    """What waits for one destination."""

    key: LaneKey
    waiting: list[ArtifactId] = field(default_factory=list)
    deferred: list[tuple[float, ArtifactId]] = field(default_factory=list)
    attempts: dict[ArtifactId, int] = field(default_factory=dict)
    in_hand: set[ArtifactId] = field(default_factory=set)
    held_until: float | None = None
    """While the lane is held: when one artifact may be tried as a probe."""
    probes: int = 0

    def add(self, artifact: ArtifactId) -> None:
        """Let an artifact wait for its turn."""
        heapq.heappush(self.waiting, artifact)

    def take(self, now: float) -> ArtifactId | None:
        """Take what is to be tried next; None if nothing may be."""
        while self.deferred and self.deferred[0][0] <= now:
            heapq.heappush(self.waiting, heapq.heappop(self.deferred)[1])
        if not self.waiting:
            return None
        if self.held_until is not None and (now < self.held_until or self.in_hand):
            return None
        artifact = heapq.heappop(self.waiting)
        self.in_hand.add(artifact)
        return artifact

    def settled(self, artifact: ArtifactId) -> None:
        """Forget it: delivered or rejected."""
        self.in_hand.discard(artifact)
        self.attempts.pop(artifact, None)

    def put_back(self, artifact: ArtifactId) -> None:
        """Let it wait again: it could not be tried, and attempts don't count."""
        self.in_hand.discard(artifact)
        heapq.heappush(self.waiting, artifact)

    def defer(self, artifact: ArtifactId, now: float, backoff: Backoff) -> float:
        """Try again after a while; give the seconds."""
        self.in_hand.discard(artifact)
        self.attempts[artifact] = self.attempts.get(artifact, 0) + 1
        delay_s = backoff.delay_s(self.attempts[artifact])
        heapq.heappush(self.deferred, (now + delay_s, artifact))
        return delay_s

    def park(self, artifact: ArtifactId, until: float) -> None:
        """Leave it alone for a long while."""
        self.in_hand.discard(artifact)
        heapq.heappush(self.deferred, (until, artifact))

    def hold(self, now: float, backoff: Backoff) -> None:
        """Stop; let one artifact probe after a while. Others that were in hand and end so, too, make it no longer."""
        if self.held_until is not None and now < self.held_until:
            return
        self.probes += 1
        self.held_until = now + max(1.0, backoff.delay_s(self.probes))

    def look_again(self, now: float) -> None:
        """Let all that waits for a later time be tried now."""
        self.deferred = [(now, artifact) for artifact in sorted(artifact for _, artifact in self.deferred)]
        if self.held_until is not None:
            self.held_until = now

    def release(self) -> None:
        """Go on."""
        self.held_until, self.probes = None, 0

    def next_due(self) -> float | None:
        """When something may become ready by time alone."""
        times = [self.deferred[0][0]] if self.deferred else []
        if self.held_until is not None and self.waiting and not self.in_hand:
            times.append(self.held_until)
        return min(times, default=None)

    @property
    def size(self) -> int:
        """How many artifacts are on their way."""
        return len(self.waiting) + len(self.deferred) + len(self.in_hand)


class Lanes:
    """All lanes, in rotation."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, Lane] = {}
        self._turn: deque[LaneKey] = deque()

    def __getitem__(self, key: LaneKey) -> Lane:
        if key not in self._lanes:
            self._lanes[key] = Lane(key)
            self._turn.append(key)
        return self._lanes[key]

    def all(self) -> list[Lane]:
        """Every lane."""
        return list(self._lanes.values())

    def of(self, instance: InstanceId) -> list[Lane]:
        """Every lane of one instance."""
        return [lane for key, lane in self._lanes.items() if key[0] == instance]

    def take(self, now: float) -> tuple[Lane, ArtifactId] | None:
        """Take the next artifact of the next lane that has one ready."""
        for _ in range(len(self._turn)):
            lane = self._lanes[self._turn[0]]
            self._turn.rotate(-1)
            artifact = lane.take(now)
            if artifact is not None:
                return lane, artifact
        return None

    def next_due(self) -> float | None:
        """When something may become ready by time alone."""
        times = [due for lane in self._lanes.values() if (due := lane.next_due()) is not None]
        return min(times, default=None)
