"""Lanes: what waits for one destination, oldest first, and when it may be tried again. No I/O.

A destination is one kind of recording of one instance. Attempts *start* oldest first; a deferred or rejected artifact
does not stop those behind it. The lane with the fewest attempts under way is next, so that neither a million artifacts
nor a slow bucket delays the others; how many may be under way is learnt from the bucket's answers. A lane that is held,
or whose bucket fails again and again, sends one probe at a time, and only few lanes may probe at once.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from pipeline.ids import ArtifactId, InstanceId, Kind

LaneKey = tuple[InstanceId, Kind]

MOST = 16
"""Attempts of one lane that may be under way, unless the settings say otherwise."""
_BEGIN = 2.0
_BREAKS_AFTER = 3
"""Failures in a row after which a bucket is left alone for a while."""
_LEAST_PAUSE_S = 1.0
SILENT_S = 1.0
"""An attempt that takes longer gives its place to another; most buckets answer within a tenth of that."""


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
class Window:
    """How many attempts of a lane may be under way: TCP's congestion window (RFC 5681), counted in attempts.

    It doubles until the first failure, then grows by one for each round of attempts that went well; it is halved once
    for all the failures of one round. It grows only where it was what held the lane back, so that a bucket that is
    little used and then dies takes little with it (RFC 7661).
    """

    most: int = MOST
    size: float = _BEGIN
    threshold: float = float(MOST)
    """Below it the window doubles, above it grows by one."""
    cut_at: float = float("-inf")

    def succeeded(self, under_way: int) -> None:
        """Grow, if as many were under way as may be."""
        if under_way >= int(self.size):
            self.size = min(float(self.most), self.size + (1.0 if self.size < self.threshold else 1.0 / self.size))

    def failed(self, began: float, now: float) -> None:
        """Halve, unless the attempt began before the last time: it tells of the same trouble."""
        if began > self.cut_at:
            self.size = self.threshold = max(1.0, self.size / 2)
            self.cut_at = now

    def shut(self) -> None:
        """Begin again with one."""
        self.size = 1.0


@dataclass(slots=True)
class Lane:
    """What waits for one destination."""

    key: LaneKey
    waiting: list[ArtifactId] = field(default_factory=list)
    deferred: list[tuple[float, ArtifactId]] = field(default_factory=list)
    attempts: dict[ArtifactId, int] = field(default_factory=dict)
    in_hand: dict[ArtifactId, float] = field(default_factory=dict)
    """What is being tried, and since when."""
    window: Window = field(default_factory=Window)
    failures: int = 0
    """How many attempts in a row found the bucket busy."""
    held_until: float | None = None
    """While the lane is held: when one artifact may be tried as a probe."""
    held_since: float = float("-inf")
    """When it was last held, or last probed in vain."""
    probes: int = 0
    turn: int = 0
    """Its place in line; 0 if it stands in none."""
    alarm: float | None = None
    """When it is looked at again by time alone."""

    def add(self, artifact: ArtifactId) -> None:
        """Let an artifact wait for its turn."""
        heapq.heappush(self.waiting, artifact)

    def may_start(self, now: float) -> bool:
        """Tell whether something of it may be tried now."""
        while self.deferred and self.deferred[0][0] <= now:
            heapq.heappush(self.waiting, heapq.heappop(self.deferred)[1])
        if not self.waiting:
            return False
        if self.held_until is not None:
            return now >= self.held_until and not self.in_hand
        return len(self.in_hand) < int(self.window.size)

    def take(self, now: float) -> ArtifactId | None:
        """Take what is to be tried next; None if nothing may be."""
        if not self.may_start(now):
            return None
        artifact = heapq.heappop(self.waiting)
        self.in_hand[artifact] = now
        return artifact

    def settled(self, artifact: ArtifactId) -> None:
        """Forget it: delivered or rejected. Its bucket answered."""
        self.failures = 0
        self.window.succeeded(len(self.in_hand))
        self.forget(artifact)

    def forget(self, artifact: ArtifactId) -> None:
        """Let it go: it waits no more."""
        self.in_hand.pop(artifact, None)
        self.attempts.pop(artifact, None)

    def put_back(self, artifact: ArtifactId) -> None:
        """Let it wait again: it could not be tried, and attempts don't count."""
        self.in_hand.pop(artifact, None)
        heapq.heappush(self.waiting, artifact)

    def defer(self, artifact: ArtifactId, now: float, backoff: Backoff, least_s: float = 0.0) -> float:
        """Try again after a while, not before `least_s`; give the seconds."""
        self.in_hand.pop(artifact, None)
        self.attempts[artifact] = self.attempts.get(artifact, 0) + 1
        delay_s = least_s + backoff.delay_s(self.attempts[artifact])
        heapq.heappush(self.deferred, (now + delay_s, artifact))
        return delay_s

    def park(self, artifact: ArtifactId, until: float) -> None:
        """Leave it alone for a long while."""
        self.in_hand.pop(artifact, None)
        heapq.heappush(self.deferred, (until, artifact))

    def strained(self, began: float, now: float, backoff: Backoff, asked_s: float) -> bool:
        """Take note that an attempt which began then found the bucket busy; True if it is now left alone for a while.

        That is after some failures in a row, or if it asked for so many seconds itself.
        """
        self.failures += 1
        if self.held_until is None:
            self.window.failed(began, now)
            if self.failures < _BREAKS_AFTER and not asked_s:
                return False
            self.window.shut()
        return self.hold(began, now, backoff, asked_s)

    def hold(self, began: float, now: float, backoff: Backoff, least_s: float = 0.0) -> bool:
        """Stop; let one artifact probe after a while. False if an attempt that began then tells nothing new."""
        if self.held_until is not None and began <= self.held_since:
            return False
        self.probes += 1
        pause_s = max(min(_LEAST_PAUSE_S, backoff.first.total_seconds()), least_s + backoff.delay_s(self.probes))
        self.held_until, self.held_since = now + pause_s, now
        return True

    def look_again(self, now: float) -> None:
        """Let all that waits for a later time be tried now."""
        self.deferred = [(now, artifact) for artifact in sorted(artifact for _, artifact in self.deferred)]
        if self.held_until is not None:
            self.held_until = now

    def release(self) -> None:
        """Go on."""
        self.held_until, self.probes, self.failures = None, 0, 0

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


class Places:
    """The attempts under way. One that has been silent for a while gives its place to another, and goes on beside it.

    A bucket that stops answering keeps its attempts for as long as a request may take; it must not keep the places.
    """

    def __init__(self, most: int) -> None:
        self._most_silent = 3 * most
        self._fresh: dict[ArtifactId, float] = {}
        """Those that have a place, and since when; oldest first."""
        self._silent: set[ArtifactId] = set()

    def begin(self, artifact: ArtifactId, now: float) -> None:
        """Take a place."""
        self._fresh[artifact] = now

    def end(self, artifact: ArtifactId) -> None:
        """Leave it."""
        self._fresh.pop(artifact, None)
        self._silent.discard(artifact)

    def taken(self, now: float) -> int:
        """Count the places that are taken."""
        while self._fresh and len(self._silent) < self._most_silent:
            artifact, began = next(iter(self._fresh.items()))
            if began + SILENT_S > now:
                break
            del self._fresh[artifact]
            self._silent.add(artifact)
        return len(self._fresh)

    def next_due(self) -> float | None:
        """When a place may become free by time alone."""
        if not self._fresh or len(self._silent) >= self._most_silent:
            return None
        return next(iter(self._fresh.values())) + SILENT_S


class Lanes:
    """All lanes, in line. Whoever changes a lane calls `look` on it; nothing ever goes through all of them."""

    def __init__(self, most: int = MOST) -> None:
        """`most` places there are; see `take` for some more that are kept for lanes that have nothing under way."""
        self._most = most
        self._spare = max(1, most // 2)
        self._most_probing = max(1, most // 4)
        self._lanes: dict[LaneKey, Lane] = {}
        self._line: list[tuple[int, int, Lane]] = []
        """By attempts under way, then by turn; an entry counts while its lane still has that turn."""
        self._probes: list[tuple[int, int, Lane]] = []
        """The same, of lanes that are held."""
        self._alarms: list[tuple[float, int, Lane]] = []
        self._turns = 0
        self._probing: set[LaneKey] = set()

    def __getitem__(self, key: LaneKey) -> Lane:
        if key not in self._lanes:
            self._lanes[key] = Lane(key, window=Window(self._most, min(_BEGIN, self._most), float(self._most)))
        return self._lanes[key]

    def all(self) -> list[Lane]:
        """Every lane."""
        return list(self._lanes.values())

    def of(self, instance: InstanceId) -> list[Lane]:
        """Every lane of one instance."""
        return [lane for key, lane in self._lanes.items() if key[0] == instance]

    def look(self, lane: Lane, now: float) -> None:
        """Put a lane in line if something of it may be tried now; else note when time alone will let it."""
        lane.turn = 0
        if lane.held_until is not None and lane.in_hand:
            self._probing.add(lane.key)
        else:
            self._probing.discard(lane.key)
        if lane.may_start(now):
            self._turns += 1
            lane.turn = self._turns
            line = self._line if lane.held_until is None else self._probes
            heapq.heappush(line, (len(lane.in_hand), lane.turn, lane))
            return
        due = lane.next_due()
        if due is not None and (lane.alarm is None or due < lane.alarm):
            lane.alarm = due
            self._turns += 1
            heapq.heappush(self._alarms, (due, self._turns, lane))

    def take(self, now: float, places_taken: int = 0) -> tuple[Lane, ArtifactId] | None:
        """Take the next artifact of the lane that is next, if so many places are taken.

        Beyond `most` some are left to lanes that have nothing under way: one lane can't have all.
        """
        while self._alarms and self._alarms[0][0] <= now:
            due, _, lane = heapq.heappop(self._alarms)
            if lane.alarm == due:
                lane.alarm = None
                self.look(lane, now)
        if places_taken >= self._most + self._spare:
            return None
        may_probe = places_taken < self._most and len(self._probing) < self._most_probing
        if may_probe and (found := self._first(self._probes)) is not None:
            return self._taken(found, self._probes, now)
        found = self._first(self._line)
        if found is None or (places_taken >= self._most and found.in_hand):
            return None
        return self._taken(found, self._line, now)

    def next_due(self) -> float | None:
        """When something may become ready by time alone."""
        return self._alarms[0][0] if self._alarms else None

    @property
    def in_line(self) -> bool:
        """Whether something may be ready that has no place."""
        return bool(self._line or self._probes)

    # --- inside

    @staticmethod
    def _first(line: list[tuple[int, int, Lane]]) -> Lane | None:
        while line and line[0][2].turn != line[0][1]:
            heapq.heappop(line)
        return line[0][2] if line else None

    def _taken(self, lane: Lane, line: list[tuple[int, int, Lane]], now: float) -> tuple[Lane, ArtifactId]:
        heapq.heappop(line)
        artifact = lane.take(now)
        assert artifact is not None, "a lane stands in line only while something of it may be tried"
        self.look(lane, now)
        return lane, artifact
