"""F1 to F4 for `pipeline erase`: killed or without power at any step, it ends with nothing left and a receipt."""

import json
import random
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from pipeline.audit.records import Actor
from pipeline.erasure.bench import BackupUnderWayError, LeftError, Workbench
from pipeline.erasure.instance import InstanceErasure
from pipeline.erasure.letgo import Hands
from pipeline.erasure.receipt import receipt_path
from pipeline.erasure.recording import RecordingErasure
from pipeline.erasure.records import RecordsErasure
from pipeline.errors import HaltError, RefuseError, SegmentForgedError, StoreIoError
from pipeline.ids import KeyId
from pipeline.interim.reader import read_head
from pipeline.interim.states import ArtifactName
from pipeline.interim.survey import survey
from pipeline.jobs import Ask, Progress, new_ask
from pipeline.legalholds import LegalHold, place, release
from pipeline.records.rows import RecordEngine
from pipeline.records.shelves import Shelves
from pipeline.rekey import Rekey
from pipeline.tenants import Tenant
from pipeline.trail import Trail
from tests.fault.crash_explorer import Left, Recorder, left_by
from tests.fault.crash_journey import made_small
from tests.fault.test_rekey_crashes import filled
from tests.simulation.virtual import run
from tests.simulation.world import ROOT, Node, World, node
from tests.unit.keyring_fakes import A

KEPT = ("audit", "receipts", "events", "erased", "discards", "ballast", "store.json")


class NoRows:
    """`RecordEngine` in which nothing is."""

    async def page(self, *_: object) -> list[object]:
        return []

    async def settled(self) -> bool:
        return True


class NoShelves:
    """`Shelves` of nobody."""

    def of(self, _instance: object) -> dict[object, object]:
        return {}

    def __iter__(self) -> Any:
        return iter(())


class Nothing:
    """`MissingWatch` of nothing."""

    def forget(self, _instance: object) -> None:
        pass


async def quiet(_done: int, _total: int | None) -> None:
    pass


def bench(process: Node, config: Path) -> Workbench:
    world = process.world
    trail = Trail(ROOT, actor=Actor("Service", "test"), clock=world.clock)

    async def configure() -> None:
        process.tenants.adopt({})

    hands = Hands(
        store=process.store,
        recorder=process.recorder,
        journal=process.journal,
        contacts=process.contacts,
        replay=process.replay,
        missing=cast("Any", Nothing()),
        holds=process.holds,
        dispatcher=process.dispatcher,
    )
    return Workbench(
        root=ROOT,
        config_dir=config,
        files=world.disk,
        commits=process.commits,
        trail=trail,
        clock=world.clock,
        tenants=process.tenants,
        hands=hands,
        configure=configure,
        keys=cast("Any", None),  # there is no grant
        alone=nullcontext,
        shelves=cast("Shelves", NoShelves()),
        records=RecordsErasure(ROOT, world.disk, cast("RecordEngine", NoRows())),
        sign=lambda _instance, text: f"{text}\n-- signed\n",
    )


def progress(world: World) -> Progress:
    return Progress(quiet, world.clock)


def ask(world: World, verb: str, **details: Any) -> Ask:
    return new_ask(verb, A, details, asked_by="ann", reason="contract ended", now=world.clock.now())


async def erase_instance(process: Node, config: Path, asked: Ask) -> Mapping[str, Any]:
    return await InstanceErasure(bench(process, config))(asked, progress(process.world))


async def erase_recording(process: Node, config: Path, asked: Ask) -> Mapping[str, Any]:
    at = bench(process, config)
    rekeying = Rekey(
        store=process.store,
        recorder=process.recorder,
        journal=process.journal,
        replay=process.replay,
        tenants=process.tenants,
        files=process.world.disk,
        commits=process.commits,
        trail=at.trail,
        wait_again=process.dispatcher.add_all,
    )

    async def rekey(tenant: Tenant, key_id: KeyId, told: Progress, reason: str) -> None:
        await rekeying.one(tenant, key_id, told, reason=reason)

    return await RecordingErasure(at, rekey, 7)(asked, progress(process.world))


def left_of(world: World) -> list[str]:
    """Name what is there of the instance, but for what stays."""
    paths = [path.removeprefix(f"{ROOT}/") for path in world.disk.tree() if path.startswith(f"{ROOT}/")]
    return [path for path in paths if path.split("/")[0] not in KEPT]


def events(world: World, name: str) -> int:
    return b"".join(raw for path, raw in world.disk.tree().items() if "/audit/" in path).count(f'"{name}"'.encode())


def receipt(world: World, job_id: UUID) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.disk.tree()[receipt_path(ROOT, A, job_id)])
    return found


# --- an instance


async def check_instance_gone(world: World, config: Path, asked: Ask, keys: list[KeyId]) -> None:
    assert left_of(world) == []
    said = receipt(world, asked.job_id)
    assert [each["keyId"] for each in said["dataKeys"]] == [str(key) for key in keys]
    assert said["undelivered"] == 5
    assert (said["method"], said["guideline"], said["reason"]) == (
        "cryptographic erase",
        "NIST SP 800-88r2",
        "contract ended",
    )
    assert said["counts"]["journal"] == 1
    assert said["counts"]["lost+found"] == 1
    assert said["keysDestroyedAt"]
    assert events(world, "InstanceErased") >= 1
    async with node(world, delivers=False, sweeps=False) as process:
        for key in keys:
            with pytest.raises(SegmentForgedError):
                await process.tenant().ring.opening(key)
        again = await erase_instance(process, config, asked)  # it has ended: the same answer, and nothing is done
        assert again["receiptId"] == str(asked.job_id)
        assert again["counts"] == said["counts"]


def test_an_erased_instance_leaves_nothing_that_opens(tmp_path: Path) -> None:
    async def story() -> None:
        async with filled() as (process, key_id):
            world = process.world
            asked = ask(world, "erase-instance", force=True)
            outcome = await erase_instance(process, tmp_path, asked)
            assert outcome["receiptId"] == str(asked.job_id)
            assert process.recorder.receptions() == []
            assert list(process.store.index) == []
        await check_instance_gone(world, tmp_path, asked, [key_id])

    with made_small():
        run(story())


def test_undelivered_recordings_are_not_erased_unless_that_is_meant(tmp_path: Path) -> None:
    async def story() -> None:
        async with filled() as (process, _):
            before = dict(process.world.disk.tree())
            with pytest.raises(RefuseError, match="5 undelivered"):
                await erase_instance(process, tmp_path, ask(process.world, "erase-instance", force=False))
            assert process.world.disk.tree() == before

    with made_small():
        run(story())


async def instance_crashes(config: Path, chance: random.Random, every: int) -> int:
    async with filled() as (process, key_id):
        asked = ask(process.world, "erase-instance", force=True)
        with Recorder(process.world) as recorder:
            await erase_instance(process, config, asked)
            recorder.take("the end")
    visited = 0
    for left in some(recorder, chance, every):
        visited += 1
        try:
            world = left.world.copy(left.world.disk.snapshot())
            async with node(world, delivers=False, sweeps=False) as process:
                await until_done(lambda process=process: erase_instance(process, config, asked))
            await check_instance_gone(world, config, asked, [key_id])
        except BaseException as error:
            error.add_note(left.how)
            raise
    return visited


async def until_done(erase: Any) -> None:
    for _ in range(3):
        try:
            await erase()
        except LeftError:
            continue
        return
    raise AssertionError("it does not come to an end")


def some(recorder: Recorder, chance: random.Random, every: int) -> list[Left]:
    seen: set[object] = set()
    lefts: list[Left] = []
    for moment in recorder.moments:
        for left in left_by(moment, chance, samples=1):
            if left.key not in seen:
                seen.add(left.key)
                lefts.append(left)
    return lefts[::every]


def test_no_crash_of_an_instances_erasure_leaves_half_of_it(tmp_path: Path) -> None:
    with made_small():
        assert run(instance_crashes(tmp_path, random.Random(1), every=20)) > 5


@pytest.mark.slow
def test_no_crash_at_any_step_of_an_instances_erasure_leaves_half_of_it(tmp_path: Path) -> None:
    with made_small():
        assert run(instance_crashes(tmp_path, random.Random(2), every=2)) > 50


# --- a recording


def of_kind(process: Node, kind: str) -> ArtifactName:
    return next(name for name in process.store.index if name.kind == kind)


def others(world: World, gone: ArtifactName) -> set[str]:
    names = survey(ROOT, world.disk).names
    return {str(name.artifact_id) for name in names if name.tag != gone.tag}


async def check_recording_gone(world: World, gone: ArtifactName, asked: Ask, rest: set[str], *, shred: bool) -> None:
    assert [path for path in world.disk.tree() if gone.artifact_id.hex in path] == []
    assert others(world, gone) == rest
    said = receipt(world, asked.job_id)
    assert str(gone.artifact_id) in {each["artifactId"] for each in said["artifacts"]}
    openable = [each for each in said["copies"] if "--shred" in each["until"]]
    assert (said["dataKeysDestroyed"], bool(openable)) == (([str(gone.key_id)], False) if shred else ([], True))
    if shred:
        assert not [path for path in world.disk.tree() if gone.key_id.hex in path and "/receipts/" not in path]


@pytest.mark.parametrize("shred", [False, True])
@pytest.mark.parametrize("kind", ["voice", "screen", "chat"])
def test_an_erased_recording_is_gone_and_all_else_is_there(tmp_path: Path, kind: str, *, shred: bool) -> None:
    async def story() -> None:
        async with filled() as (process, _):
            world, gone = process.world, of_kind(process, kind)
            rest = others(world, gone)
            asked = ask(world, "erase-recording", id=str(gone.artifact_id), generation=None, shred=shred)
            await erase_recording(process, tmp_path, asked)
            await check_recording_gone(world, gone, asked, rest, shred=shred)
            assert b'"ERASED"' in world.disk.tree()[f"{ROOT}/events/{A}.jsonl"]
        async with node(world, delivers=False, sweeps=False) as process:
            await process.replay.done(process.tenant())
            assert {str(name.artifact_id) for name in process.store.index} == rest

    with made_small():
        run(story())


async def recording_crashes(config: Path, chance: random.Random, kind: str, every: int, *, shred: bool) -> int:
    async with filled() as (process, _):
        gone = of_kind(process, kind)
        rest = others(process.world, gone)
        asked = ask(process.world, "erase-recording", id=str(gone.artifact_id), generation=None, shred=shred)
        with Recorder(process.world) as recorder:
            await erase_recording(process, config, asked)
            recorder.take("the end")
    visited = 0
    for left in some(recorder, chance, every):
        visited += 1
        try:
            world = left.world.copy(left.world.disk.snapshot())
            async with node(world, delivers=False, sweeps=False) as process:
                await until_done(lambda process=process: erase_recording(process, config, asked))
            await check_recording_gone(world, gone, asked, rest, shred=shred)
        except BaseException as error:
            error.add_note(left.how)
            raise
    return visited


@pytest.mark.parametrize(("kind", "shred"), [("chat", False), ("voice", True)])
def test_no_crash_of_a_recordings_erasure_leaves_half_of_it(tmp_path: Path, kind: str, *, shred: bool) -> None:
    with made_small():
        assert run(recording_crashes(tmp_path, random.Random(3), kind, 60 if shred else 10, shred=shred)) > 3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shred"), [("chat", False), ("chat", True), ("screen", False)])
def test_no_crash_at_any_step_of_a_recordings_erasure_leaves_half_of_it(
    tmp_path: Path, kind: str, *, shred: bool
) -> None:
    with made_small():
        assert run(recording_crashes(tmp_path, random.Random(4), kind, 10 if shred else 2, shred=shred)) > 10


# --- what stands against it


@pytest.mark.parametrize("contact", [None, "c-9"])
def test_no_instance_of_which_anything_is_under_a_legal_hold_is_erased(tmp_path: Path, contact: str | None) -> None:
    async def story() -> None:
        async with filled() as (process, _):
            place(tmp_path, held(contact=contact))
            before = dict(process.world.disk.tree())
            with pytest.raises(RefuseError, match="legal hold"):
                await erase_instance(process, tmp_path, ask(process.world, "erase-instance", force=True))
            assert process.world.disk.tree() == before

    with made_small():
        run(story())


def test_a_legal_hold_that_comes_before_the_keys_are_destroyed_still_counts(tmp_path: Path) -> None:
    """It was begun, and a delivery kept it waiting."""

    async def story() -> None:
        async with filled() as (process, key_id):
            asked = ask(process.world, "erase-instance", force=True)
            process.world.disk.refuse("unlink", f"/keys/{A}", error=StoreIoError("not now"))
            with pytest.raises(StoreIoError):
                await erase_instance(process, tmp_path, asked)
            hold = held()
            place(tmp_path, hold)
            with pytest.raises(RefuseError, match="legal hold"):
                await erase_instance(process, tmp_path, asked)
            assert [path for path in process.world.disk.tree() if key_id.hex in path and "/keys/" in path]
            release(tmp_path, hold)
            await erase_instance(process, tmp_path, asked)
            assert left_of(process.world) == []

    with made_small():
        run(story())


@pytest.mark.parametrize("of", ["contact", "recording", "instance", "another"])
def test_a_recording_under_a_legal_hold_is_not_erased(tmp_path: Path, of: str) -> None:
    async def story() -> None:
        async with filled() as (process, _):
            world, name = process.world, of_kind(process, "voice")
            key = await process.tenant().ring.opening(name.key_id)
            head = read_head(world.disk, process.store.path(name), name, key)
            hold = {
                "contact": held(contact=head.contact),
                "recording": held(recording=head.recording_id),
                "instance": held(),
                "another": held(contact="c-other"),
            }[of]
            place(tmp_path, hold)
            asked = ask(world, "erase-recording", id=str(name.artifact_id), generation=None, shred=False)
            if of == "another":
                await erase_recording(process, tmp_path, asked)
                return
            before = dict(world.disk.tree())
            with pytest.raises(RefuseError, match="legal hold"):
                await erase_recording(process, tmp_path, asked)
            assert world.disk.tree() == before

    with made_small():
        run(story())


def test_nothing_is_erased_while_a_backup_is_made(tmp_path: Path) -> None:
    async def story() -> None:
        async with filled() as (process, _):
            before = dict(process.world.disk.tree())

            def busy() -> Any:
                raise HaltError("another process has it")

            at = replace(bench(process, tmp_path), alone=busy)
            with pytest.raises(BackupUnderWayError):
                await InstanceErasure(at)(ask(process.world, "erase-instance", force=True), progress(process.world))
            assert process.world.disk.tree() == before

    with made_small():
        run(story())


def held(*, contact: str | None = None, recording: UUID | None = None) -> LegalHold:
    return LegalHold(
        hold_id=UUID(int=1),
        instance_id=A,
        contact=contact,
        recording_id=recording,
        reason="case 7",
        placed_by="ann",
        placed_at=datetime(2026, 11, 23, tzinfo=UTC),
    )
