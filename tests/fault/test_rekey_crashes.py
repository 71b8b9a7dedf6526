"""F1 to F4 for `pipeline keys rekey`: killed or without power at any step, it ends with everything held and no old key.

All that a file under a data key may be: open, sealed, poison, an open chat, the journal, a piece in lost+found.
"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from pipeline.audit.records import Actor
from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.ids import KeyId, RecordingId
from pipeline.interim.keyuse import key_uses
from pipeline.interim.poison import requeue
from pipeline.interim.states import State
from pipeline.interim.survey import survey
from pipeline.jobs import JobFailedError
from pipeline.rekey import Rekey, StillInUseError
from pipeline.trail import Trail
from tests.fault.crash_explorer import Left, Recorder, left_by
from tests.fault.crash_journey import AGAIN, RESUMED, SCREEN, WHOLE, announce, made_small, promises, put, say
from tests.simulation.oracle import check_delivered, check_held, check_sealed, check_tidy, drain
from tests.simulation.virtual import WorldClock, run
from tests.simulation.world import ROOT, Node, World, node
from tests.unit.keyring_fakes import A


async def quiet(_done: int, _total: int) -> None:
    pass


def rekey_of(process: Node) -> Rekey:
    world = process.world
    return Rekey(
        store=process.store,
        recorder=process.recorder,
        journal=process.journal,
        replay=process.replay,
        tenants=process.tenants,
        files=world.disk,
        commits=process.commits,
        trail=Trail(ROOT, actor=Actor("Service", "test"), clock=world.clock),
        wait_again=process.dispatcher.add_all,
    )


async def rekey(process: Node, key_id: KeyId, *, drop_lost: bool = False) -> None:
    await rekey_of(process).one(process.tenant(), key_id, quiet, reason="it may be known", drop_lost=drop_lost)


@asynccontextmanager
async def filled() -> AsyncIterator[tuple[Node, KeyId]]:
    """Give a process that holds something in each state, all under one data key."""
    world = World(chance=random.Random(0), promises=promises())
    async with node(world, delivers=False) as process:
        await announce(process, WHOLE)
        for body in (WHOLE, SCREEN, AGAIN):
            await put(process, body)
        (spoiled,) = [name for name in process.store.index if name.kind == "screen"]
        trail = Trail(ROOT, actor=Actor("Service", "test"), clock=WorldClock())
        line = trail.moved(
            spoiled.rejected("destination-conflict"), RecordingId(spoiled.artifact_id), "ArtifactRejected"
        )
        await process.store.reject(spoiled, "destination-conflict", [line])
        await put(process, RESUMED, upto=6_000)
        await say(process, 0, 2)
        lay(
            world,
            f"lost+found/0123abcd.{spoiled}",
            world.disk.tree()[f"{ROOT}/artifacts/{spoiled.rejected('destination-conflict').path}"],
        )
        keys = process.tenant().ring.key_ids()
        assert len(keys) == 1
        yield process, keys[0]


def lay(world: World, path: str, data: bytes) -> None:
    handle = world.disk.create(f"{ROOT}/{path}")
    world.disk.append(handle, [data])
    world.disk.sync(handle)
    world.disk.close(handle)
    world.disk.sync_directory(f"{ROOT}/{path.rpartition('/')[0]}")


def audit(world: World) -> bytes:
    return b"".join(raw for path, raw in world.disk.tree().items() if "/audit/" in path)


def check_gone(world: World, key_id: KeyId) -> None:
    """Find nothing that is sealed under a data key, and no copy of the key."""
    uses = key_uses(ROOT, world.disk, survey(ROOT, world.disk))
    assert (A, key_id) not in uses or not uses[A, key_id].is_needed
    assert not [path for path in world.disk.tree() if key_id.hex in path and not path.endswith(".done")]


async def rekey_at_last(process: Node, key_id: KeyId) -> None:
    """Ask again, as the job does, while something under the key is being delivered."""
    with anyio.fail_after(600):
        while True:
            with suppress(StillInUseError):
                return await rekey(process, key_id)
            await anyio.sleep(1)


async def to_the_end(world: World, key_id: KeyId) -> None:
    check_sealed(world.disk)
    async with node(world) as process:
        await check_held(process)
        await rekey_at_last(process, key_id)
        await check_held(process)
        check_gone(world, key_id)
        for name in list(process.store.index):
            if name.standing is State.POISON:
                process.store.index.put(requeue(ROOT, world.disk, name))
                process.dispatcher.add(name)
        await drain(process)
        check_delivered(process)
    check_tidy(world)


def test_everything_under_a_data_key_is_sealed_again_and_the_key_destroyed() -> None:
    async def story() -> None:
        async with filled() as (process, key_id):
            told: list[tuple[int, int]] = []

            async def tell(done: int, total: int) -> None:
                told.append((done, total))

            done = await rekey_of(process).one(process.tenant(), key_id, tell, reason="it may be known")
            assert (done.artifacts, done.journal, done.lost_and_found, done.damaged) == (5, 1, 1, [])
            assert told[-1] == (7, 7)
            check_gone(process.world, key_id)
            assert not process.tenant().ring.knows(key_id)
            with pytest.raises(SegmentForgedError):
                await process.tenant().ring.opening(key_id)
            assert audit(process.world).count(b'"ArtifactRekeyed"') == 5
            assert audit(process.world).count(b'"DataKeyDestroyed"') == 1
            again = await rekey_of(process).one(process.tenant(), key_id, tell, reason="again")
            assert again.artifacts == 0
            await put(process, RESUMED, at=6_000)  # its source goes on as if nothing had been
            await say(process, 1, 3)
            world = process.world
        check_tidy(world)
        async with node(world) as process:
            await check_held(process)

    with made_small():
        run(story())


async def crashes(chance: random.Random, every: int) -> int:
    async with filled() as (process, key_id):
        with Recorder(process.world) as recorder:
            await rekey(process, key_id)
            recorder.take("the end")
    visited = 0
    seen: set[object] = set()
    for moment in recorder.moments:
        lefts: list[Left] = []
        for left in left_by(moment, chance, samples=1):
            if left.key not in seen:
                seen.add(left.key)
                lefts.append(left)
        for left in lefts[visited % every :: every]:
            visited += 1
            try:
                await to_the_end(left.world.copy(left.world.disk.snapshot()), key_id)
            except BaseException as error:
                error.add_note(left.how)
                raise
    return visited


def test_no_crash_of_it_loses_anything_and_it_goes_on() -> None:
    with made_small():
        assert run(crashes(random.Random(1), every=60)) > 5


@pytest.mark.slow
def test_no_crash_at_any_step_of_it_loses_anything() -> None:
    with made_small():
        assert run(crashes(random.Random(2), every=7)) > 50


def test_what_is_being_received_is_waited_for_and_all_else_is_done() -> None:
    async def story() -> None:
        async with filled() as (process, key_id):
            reception = await process.recorder.resume(process.tenant(), RESUMED.source, 6_000)
            with pytest.raises(StillInUseError, match="1 recordings"):
                await rekey(process, key_id)
            assert process.tenant().ring.knows(key_id)
            left = [name for name in process.store.index if name.key_id == key_id]
            assert left == [reception.name]
            await reception.append(RESUMED.data[6_000:], 0.0)
            process.world.promises.answered(RESUMED, await process.recorder.finish(reception, None))
            await rekey(process, key_id)
            check_gone(process.world, key_id)
            await check_held(process)

    with made_small():
        run(story())


def test_what_is_being_delivered_is_waited_for() -> None:
    async def story() -> None:
        async with filled() as (process, key_id):
            (name,) = [each for each in process.store.index if each.is_waiting][:1]
            async with process.store.claim(name.artifact_id):
                with pytest.raises(StillInUseError):
                    await rekey(process, key_id)
            await rekey(process, key_id)
            check_gone(process.world, key_id)

    with made_small():
        run(story())


def test_a_body_that_begins_while_a_key_is_retired_is_not_sealed_under_it() -> None:
    async def story() -> None:
        async with filled() as (process, key_id):
            ring = process.tenant().ring
            tags = ring.tags

            async def slow(*arguments: object) -> list[str]:
                ring.retire(key_id)  # between the key and the first byte
                return await tags(*arguments)  # type: ignore[arg-type]

            ring.tags = slow  # type: ignore[assignment]
            assert (await ring.active()).key_id == key_id
            reception = await process.recorder.begin(process.tenant(), SCREEN.source)
            assert reception.name.key_id != key_id

    with made_small():
        run(story())


def test_damage_is_named_and_the_key_stays_until_a_person_has_seen_to_it() -> None:
    async def story() -> None:
        async with filled() as (process, key_id):
            world = process.world
            lay(world, f"lost+found/0123abce.{spoil(process)}.tail", b"torn")
            with pytest.raises(JobFailedError, match="2 files") as caught:
                await rekey(process, key_id)
            assert len(caught.value.outcome["damaged"]) == 2
            assert process.tenant().ring.knows(key_id)
            (poison,) = [name for name in process.store.index if name.key_id == key_id]
            await process.store.drop(poison, ())
            with pytest.raises(JobFailedError, match="lost"):
                await rekey(process, key_id)
            await rekey(process, key_id, drop_lost=True)
            check_gone(world, key_id)
            assert b'"LostPieceDropped"' in b"".join(
                raw for path, raw in world.disk.tree().items() if "/audit/" in path
            )

    with made_small():
        run(story())


def spoil(process: Node) -> str:
    """Flip a bit of the poison's media; give its name."""
    disk = process.world.disk
    (name,) = [each for each in process.store.index if each.standing is State.POISON]
    path = process.store.path(name)
    data = bytearray(disk.tree()[path])
    data[400] ^= 1
    disk.unlink(path)
    lay(process.world, path.removeprefix(f"{ROOT}/"), bytes(data))
    return str(name)


def test_a_disk_that_refuses_any_step_delays_and_loses_nothing() -> None:
    async def story(number: int) -> bool:
        async with filled() as (process, key_id):
            disk = process.world.disk
            before = len(disk.done)
            disk.fail(number, StoreIoError("no"))
            with suppress(StoreIoError, StillInUseError):
                await rekey(process, key_id)
            has_failed = len(disk.done) - before > number
            disk.failures.clear()
            await check_held(process)
            await anyio.sleep(1)
            await rekey(process, key_id)
            check_gone(process.world, key_id)
            await check_held(process)
            return has_failed

    with made_small():
        for number in range(3, 400, 29):
            if not run(story(number)):
                break
        assert number > 100
