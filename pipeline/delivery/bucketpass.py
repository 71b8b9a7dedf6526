"""One pass over all that an instance's buckets hold: counted by KMS key, and encrypted anew where that is wanted.

Nothing is remembered between passes: what was done is found done by asking the bucket. So it can be broken off, and
begun again, at any time.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio

from pipeline.delivery.reencrypt import RECORDED, Seen, Standing, Ways, find_way, is_under, look, rewrite
from pipeline.errors import DestinationBusyError, PipelineError, RefuseError
from pipeline.instances import Storage
from pipeline.ports import Clock, ObjectExistsError, ObjectVersion, Rewritable

AT_A_TIME = 4
TRIES = 4
_FIRST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket as one storage configuration names it, and the prefix whose objects are its."""

    destination: Rewritable
    storage: Storage
    prefix: str
    marks: frozenset[str] = RECORDED
    """Metadata that tell our objects there from others'."""


@dataclass(slots=True)
class Counts:
    """What was found, and what became of it."""

    seen: Counter[Standing] = field(default_factory=Counter)
    """By what it was when it was looked at."""
    rewritten: int = 0
    left: int = 0
    """Latest versions that are still under another key."""
    bytes: int = 0
    """Of what was rewritten."""
    keys: Counter[str] = field(default_factory=Counter)
    """By KMS key, of what is under another one now, older versions too."""

    @property
    def under_other_key(self) -> int:
        """Objects and older versions of ours that another KMS key is still needed for."""
        return self.left + self.seen[Standing.OLDER]


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Who is told of what."""

    before: Callable[[Place, Seen, Ways], Awaitable[None]]
    """Of each object that is about to be encrypted anew; it is left alone if this raises."""
    after: Callable[[Place, Seen, Ways], Awaitable[None]]
    """Of each one that was, and is proven."""
    left: Callable[[Place, Seen, str], None]
    """Of each that is under another key and stays so, and why."""
    progress: Callable[[int], None]
    """How many versions were looked at."""


class Pace:
    """So many a second, and no more."""

    def __init__(self, per_s: float, clock: Clock) -> None:
        self._gap_s = 1 / per_s
        self._clock = clock
        self._next = clock.monotonic()

    async def turn(self) -> None:
        """Wait for one's turn."""
        now = self._clock.monotonic()
        at = max(self._next, now)
        self._next = at + self._gap_s
        if at > now:
            await anyio.sleep(at - now)


class BucketPass:
    """Goes over places; one object's trouble stops no other, a bucket's stops the pass."""

    def __init__(self, places: Sequence[Place], watch: Watch, pace: Pace, *, rewrites: bool) -> None:
        self._places = places
        self._watch = watch
        self._pace = pace
        self._rewrites = rewrites
        self._ways: dict[int, Ways] = {}
        self._finding = anyio.Lock()
        self._looked = 0
        self.counts = Counts()
        self.used: Mapping[int, Ways] = self._ways

    async def run(self) -> Counts:
        """Look at everything once.

        Raises:
            DestinationHeldError: a bucket can't be used now; what was done is done.
            DestinationBusyError: a listing failed; likewise.
            RefuseError: a store replaces nothing safely.

        """
        for number, place in enumerate(self._places):
            async for page in _paged(place):
                await self._page(number, place, [each for each in page if self._is_of(place, each)])
        return self.counts

    # --- inside

    def _is_of(self, place: Place, version: ObjectVersion) -> bool:
        """Tell whether this is the place with the longest prefix that an object is below."""
        others = (
            other
            for other in self._places
            if other.storage.bucket == place.storage.bucket and len(other.prefix) > len(place.prefix)
        )
        return not any(version.key.startswith(other.prefix) for other in others)

    async def _page(self, number: int, place: Place, page: Sequence[ObjectVersion]) -> None:
        failures: list[PipelineError] = []
        waiting = list(reversed(page))

        async def work(scope: anyio.CancelScope) -> None:
            while waiting:
                try:
                    await self._one(number, place, waiting.pop())
                except PipelineError as error:
                    failures.append(error)
                    scope.cancel()

        async with anyio.create_task_group() as group:
            for worker in range(AT_A_TIME):
                group.start_soon(work, group.cancel_scope, name=f"bucket pass {worker}")
        if failures:
            raise failures[0]

    async def _one(self, number: int, place: Place, version: ObjectVersion) -> None:
        await self._pace.turn()
        seen = await _patiently(lambda: look(place.destination, place.storage, version, place.marks))
        if seen is None:
            return
        self.counts.seen[seen.standing] += 1
        if seen.standing is Standing.OLDER:
            self._under_other(seen)
            self._watch.left(place, seen, "an older version: it goes when its bucket lets it go")
        elif seen.standing is Standing.OTHER and not self._rewrites:
            self._stays(place, seen, "not asked to")
        elif seen.standing is Standing.OTHER:
            await self._rewritten(number, place, seen)
        self._looked += 1
        self._watch.progress(self._looked)

    def _stays(self, place: Place, seen: Seen, why: str) -> None:
        self.counts.left += 1
        self._under_other(seen)
        self._watch.left(place, seen, why)

    def _under_other(self, seen: Seen) -> None:
        assert seen.facts is not None
        self.counts.keys[seen.facts.kms_key_arn or "none"] += 1

    async def _rewritten(self, number: int, place: Place, seen: Seen) -> None:
        ways = await self._ways_of(number, place)
        why = "the bucket was busy"
        for attempt in range(TRIES):
            if attempt:
                await anyio.sleep(_FIRST_PAUSE_S * 2**attempt)
            facts = await place.destination.head(seen.version.key)
            if facts is None:
                return  # removed meanwhile
            if is_under(facts, place.storage):
                self.counts.rewritten += 1  # the answer to an attempt was lost, or somebody else did it
                return
            now = Seen(seen.version, Standing.OTHER, facts)
            await self._watch.before(place, now, ways)
            try:
                after = await rewrite(place.destination, place.storage, facts, ways)
            except RefuseError as error:
                why = str(error)
                break
            except (ObjectExistsError, DestinationBusyError) as error:
                why = str(error)
                continue
            self.counts.rewritten += 1
            self.counts.bytes += after.size_bytes or 0
            if after.version_id != facts.version_id:  # what it was is an older version now
                self.counts.seen[Standing.OLDER] += 1
                self._under_other(now)
            await self._watch.after(place, now, ways)
            return
        self._stays(place, seen, why)

    async def _ways_of(self, number: int, place: Place) -> Ways:
        async with self._finding:
            if number not in self._ways:
                self._ways[number] = await find_way(place.destination, place.storage)
            return self._ways[number]


async def _paged(place: Place) -> AsyncIterator[Sequence[ObjectVersion]]:
    async for page in place.destination.versions(place.prefix):
        yield page


async def _patiently(ask: Callable[[], Awaitable[Seen | None]]) -> Seen | None:
    """Ask a few times."""
    for attempt in range(TRIES - 1):
        try:
            return await ask()
        except DestinationBusyError:
            await anyio.sleep(_FIRST_PAUSE_S * 2**attempt)
    return await ask()
