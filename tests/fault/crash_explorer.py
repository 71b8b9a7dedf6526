"""Every crash of a journey: after each of its steps, with each legal outcome of what was not synced then.

A journey is lived once, on a modelled disk; a copy of all that outlives a process is taken at every step of the disk
and of the bucket. From each copy come the worlds that a crash there may leave: the process alone killed, and the power
cut with every combination of fates of the last three unsynced steps, each older one alone, and samples by a seed. Equal
worlds are visited once. A visit starts the service over what is left, looks for everything that was acknowledged, lets
sources come back or not, has everything delivered, and compares the bucket with what was sent.

    python -m tests.fault.crash_explorer [--json] [--every N] [--seed N]

For tests only.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from pipeline.interim.logs import whole_lines
from tests.fault.crash_journey import BODIES, FOLDING, RETURNING, STEPS, Step, come_back, lived, made_small, promises
from tests.model_disk import ModelDisk
from tests.model_steps import KEPT, LOST, Fate
from tests.simulation.oracle import check_delivered, check_held, check_sealed, check_tidy, drain
from tests.simulation.promises import DuplicatedError, WrongBytesError
from tests.simulation.virtual import run
from tests.simulation.world import ROOT, World, node

SAMPLES = 6
"""Power cuts by chance, of each moment with more unsynced steps than are tried in every combination."""
DEEPEST = 10
"""Crashes in a row during recovery."""
_HARMLESS = frozenset({"open", "read", "names", "sorted_out", "free_bytes", "close"})
"""Operations before which a crash leaves what one before the next step leaves."""


@dataclass
class Count:
    """What was done."""

    moments: int = 0
    """Steps of a journey or of a recovery at which it was stopped."""
    choices: int = 0
    """Legal outcomes of those."""
    states: Counter[str] = field(default_factory=Counter)
    """Different ones that were recovered from and judged, by kind."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(self.states.items()))
        return f"{self.states.total():,} states visited ({kinds}) of {self.choices:,} at {self.moments:,} moments"


@dataclass(frozen=True)
class Moment:
    """A world just before one step, its disk with whatever is unsynced then."""

    where: str
    world: World
    done: int
    """Operations that the disk was asked for before it."""


class Recorder:
    """Takes a moment of a world at each step, while it is lived in."""

    def __init__(self, world: World, before: str = "") -> None:
        """`before` says what has happened to that world already."""
        self._world = world
        self._before = before
        self.moments: list[Moment] = []

    def __enter__(self) -> Self:
        self._world.disk.before = self._on_disk
        for bucket in self._world.buckets.values():
            bucket.on_step = lambda step: self.take(f"bucket {step}")
        return self

    def __exit__(self, *_: object) -> None:
        self._world.disk.before = lambda _number, _operation, _path: None
        for bucket in self._world.buckets.values():
            bucket.on_step = lambda _step: None

    def take(self, step: str) -> None:
        """Take one."""
        copy = self._world.copy(self._world.disk.snapshot())
        where = f"{self._before}; step {len(self.moments)}, {step}".removeprefix("; ")
        self.moments.append(Moment(where, copy, len(self._world.disk.done)))

    def _on_disk(self, _number: int, operation: str, path: str) -> None:
        if operation not in _HARMLESS:
            self.take(f"{operation} {path.removeprefix(ROOT)}")


# --- moments


async def moments_of(steps: Mapping[str, Step]) -> list[Moment]:
    """Live a journey and give every moment of it."""
    world = World(chance=random.Random(0), promises=promises())
    async with node(world) as process:
        with Recorder(world) as recorder:
            await lived(process, steps)
            recorder.take("the end")
    check_tidy(world)
    return recorder.moments


async def moments_of_the_first_start() -> list[Moment]:
    """Start over an empty disk, and give every moment of that."""
    world = World(chance=random.Random(0), promises=promises())
    with Recorder(world) as recorder:
        async with node(world):
            recorder.take("ready")
    return recorder.moments


@dataclass(frozen=True)
class Left:
    """What a crash leaves; `how` says which crash."""

    kind: str
    how: str
    world: World

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for worlds that a process can't tell apart, whatever was promised in them."""
        disk = self.world.disk
        unsynced = tuple(step.number for step in disk.unsynced())
        buckets = (
            (frozenset(bucket.objects), frozenset((each, len(one.parts)) for each, one in bucket.uploads.items()))
            for bucket in self.world.buckets.values()
        )
        return disk.fingerprint(), unsynced, len(self.world.sink.taken), *buckets


def left_by(moment: Moment, chance: random.Random, samples: int = SAMPLES) -> Iterator[Left]:
    """Give everything that a crash at this moment may leave."""
    disk = moment.world.disk
    yield Left("killed", f"{moment.where}, killed", moment.world.copy(disk.snapshot()))
    for fates in disk.choices(chance, samples):
        how = f"{moment.where}, power cut: {_text(disk, fates)}"
        yield Left("power cut", how, moment.world.copy(disk.crash(fates)))


def any_left_by(moment: Moment, chance: random.Random) -> Left:
    """Give one of these: as often killed, all lost, all kept, or by chance."""
    disk = moment.world.disk
    if chance.random() < 0.25:
        return Left("killed", f"{moment.where}, killed", moment.world.copy(disk.snapshot()))
    fates = chance.choice(({}, {step.number: KEPT for step in disk.unsynced()}, disk.any_choice(chance)))
    return Left("power cut", f"{moment.where}, {_text(disk, fates)}", moment.world.copy(disk.crash(fates)))


def _text(disk: ModelDisk, fates: Mapping[int, Fate]) -> str:
    names = {KEPT: "kept", LOST: "lost"}
    said = (
        f"{type(step).__name__} {step.number} {names.get(fate, fate)}"
        for step in disk.unsynced()
        for fate in [fates.get(step.number, LOST)]
    )
    return ", ".join(said) or "nothing was unsynced"


# --- visits


async def visit(left: Left, returning: bool) -> World:
    """Start over what is left, go on to the end, and judge; give the world that it ends with.

    Where a process was killed, the power is cut at the end: what it had not synced, and the next one has built upon,
    must be durable by then. Raises `BrokenPromiseError`.
    """
    world = left.world.copy(left.world.disk.snapshot())
    try:
        await to_the_end(world, returning)
        if left.kind == "killed":
            for fates in world.disk.choices(random.Random(0), samples=1, window=1):
                await to_the_end(world.copy(world.disk.crash(fates)), returning=False)
    except BaseException as error:
        error.add_note(f"{left.how}; sources {'come back' if returning else 'stay away'}")
        raise
    return world


async def to_the_end(world: World, returning: bool, *, at_once: bool = True) -> None:
    """Find what was acknowledged; let sources come back, if they do; have everything delivered, and compare."""
    check_sealed(world.disk)
    async with node(world) as process:
        await check_held(process)
        if returning:
            await come_back(process)
        await drain(process)
        check_delivered(process)
    check_tidy(world)
    judge(world, returning, at_once=at_once)


def judge(world: World, returning: bool, *, at_once: bool = True) -> None:
    """Check what the oracle of all tests leaves open: one object for each recording, and marks on what broke off.

    A source that does not come back `at_once` may find that what it had sent was sealed, as it was.
    """
    marks = _marks(world)
    for body in BODIES:
        bucket = world.buckets[body.instance_id]
        delivered = [stored for stored in bucket.objects.values() if stored.body.startswith(body.label)]
        is_over = (returning and body in RETURNING) or world.promises.bodies[body.label].answer is not None
        counted = delivered if at_once else [stored for stored in delivered if len(stored.body) == len(body.data)]
        if is_over and len(counted) != 1:
            raise DuplicatedError(f"{body.source_id}: {len(delivered)} objects of one recording")
        for stored in delivered:
            generation = stored.facts.metadata["rid"], int(stored.facts.metadata["gen"])
            if len(stored.body) < len(body.data) and "RECOVERED" not in marks[generation]:
                raise WrongBytesError(f"{body.source_id}: a part was delivered as if it were all")


def _marks(world: World) -> dict[tuple[str, int], list[str]]:
    """Read how each published generation was marked."""
    marks: dict[tuple[str, int], list[str]] = {}
    tree = world.disk.tree()
    for instance_id in world.buckets:
        for line in whole_lines(tree.get(f"{ROOT}/events/{instance_id}.jsonl", b"")):
            detail = json.loads(line)["detail"]
            if detail["recordingStatus"] == "PUBLISHED":
                marks[detail["recordingId"], detail["generation"]] = detail.get("quality", [])
    return marks


def outcome(world: World) -> dict[str, bytes]:
    """Give every object's key and bytes."""
    return {key: stored.body for bucket in world.buckets.values() for key, stored in bucket.objects.items()}


# --- all of them


async def explore(moments: Sequence[Moment], chance: random.Random, count: Count) -> list[Left]:
    """Visit everything that a crash at any of these moments may leave, each once; give what was visited.

    The latest moment first: of equal worlds it is the one in which most was promised.
    """
    visited: dict[tuple[object, ...], Left] = {}
    count.moments += len(moments)
    for moment in reversed(moments):
        for left in left_by(moment, chance):
            count.choices += 1
            if left.key in visited:
                continue
            visited[left.key] = left
            for returning in (False, True):
                count.states[left.kind] += 1
                await visit(left, returning)
    return list(visited.values())


async def explore_recovery(left: Left, chance: random.Random, count: Count) -> None:
    """Crash once more at each step of what follows a crash; then again and again, up to `DEEPEST` times.

    However often recovery is broken off, it must end as if it never was: with the same objects. (Unless the process was
    only killed at first: then a power cut may take what nobody was promised.)
    """
    wanted = outcome(await visit(left, returning=False))
    is_the_same = left.kind == "power cut"
    moments = await _moments_of_recovery(left)
    count.moments += len(moments)
    for moment in moments:
        await _converge(any_left_by(moment, chance), wanted if is_the_same else None, count)
    for _ in range(DEEPEST):
        left = any_left_by(chance.choice(await _moments_of_recovery(left)), chance)
        await _converge(left, wanted if is_the_same else None, count)


async def _converge(left: Left, wanted: dict[str, bytes] | None, count: Count) -> None:
    count.choices += 1
    count.states["crashed in recovery"] += 1
    found = outcome(await visit(left, returning=False))
    if wanted is not None and found != wanted:
        raise WrongBytesError(f"{left.how}: recovery ended otherwise than when it was not broken off")


async def _moments_of_recovery(left: Left) -> list[Moment]:
    world = left.world.copy(left.world.disk.snapshot())
    with Recorder(world, left.how) as recorder:
        await to_the_end(world, returning=False)
    return recorder.moments


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of everything is explored: one moment in `every`, from `part` on."""

    every: int = 1
    part: int = 0
    deep: int = 30
    """States from which recovery is broken off at each of its steps."""


async def explore_all(seed: int, share: Share) -> Count:
    """Explore every journey, and the first start of all."""
    chance, count = random.Random(seed), Count()
    visited: list[Left] = []
    for moments in (await moments_of(STEPS), await moments_of(FOLDING), await moments_of_the_first_start()):
        visited += await explore(moments[share.part :: share.every], chance, count)
    for left in chance.sample(visited, share.deep):
        await explore_recovery(left, chance, count)
    return count


def main(arguments: list[str]) -> None:
    """Explore, and print the number of states visited; what is found wrong ends it with a traceback."""
    parser = argparse.ArgumentParser(description="Visit every state that a crash may leave.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="take one moment in so many")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    with made_small():
        count = run(explore_all(given.seed, Share(every=given.every)))
    facts = {"states": count.states.total(), **count.states, "choices": count.choices, "moments": count.moments}
    text = json.dumps(facts | {"lost": 0, "wrongObjects": 0, "seed": given.seed}) if given.json else str(count)
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
