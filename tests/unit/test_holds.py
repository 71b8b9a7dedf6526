from pathlib import Path

import anyio
import pytest

from pipeline.delivery.holds import KEYS, Holds, read_holds
from pipeline.errors import DestinationHeldError, HoldCode, KeyUnavailableError, StoreIoError
from pipeline.ids import Kind
from tests.store_fixture import Node, WatchedDisk, World, node
from tests.unit.keyring_fakes import A, B

DISABLED = KeyUnavailableError(HoldCode.KEY_DISABLED, "the key is disabled")
DENIED = DestinationHeldError(HoldCode.DESTINATION_ACCESS_DENIED, "the bucket refuses")


def holds_of(process: Node) -> Holds:
    holds = Holds(f"{process.world.root}/holds", process.files, process.commits, process.trail)
    holds.load()
    return holds


def on_disk(world: World) -> list[str]:
    return sorted(path.name for path in (world.root / "holds").iterdir())


async def test_a_hold_survives_a_restart_and_tells_since_when(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        holds = holds_of(process)
        began = world.clock.now()
        assert await holds.begin(A, KEYS, DISABLED, began)
        world.clock.advance(60)
        assert not await holds.begin(A, KEYS, DISABLED, world.clock.now())
        assert await holds.begin(B, Kind.VOICE, DENIED, world.clock.now())
    async with node(world) as process:
        holds = holds_of(process)
        assert len(holds.all()) == 2
        for kind in (Kind.VOICE, Kind.CHAT):
            found = holds.get(A, kind)
            assert found is not None
            assert (found.code, found.inaccessible_since) == (HoldCode.KEY_DISABLED, began)
        assert holds.get(B, Kind.VOICE) is not None
        assert holds.get(B, Kind.CHAT) is None
        assert await holds.end(A, KEYS)
        assert not await holds.end(A, KEYS)
        assert holds.get(A, Kind.VOICE) is None
    async with node(world) as process:
        assert [hold.instance_id for hold in holds_of(process).all()] == [B]


async def test_another_reason_keeps_the_time_of_the_first(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        holds = holds_of(process)
        began = process.world.clock.now()
        await holds.begin(A, KEYS, DISABLED, began)
        process.world.clock.advance(60)
        pending = KeyUnavailableError(HoldCode.KEY_PENDING_DELETION, "going")
        assert await holds.begin(A, KEYS, pending, process.world.clock.now())
        [found] = read_holds(f"{tmp_path}/holds", process.files)
        assert (found.code, found.inaccessible_since) == (HoldCode.KEY_PENDING_DELETION, began)


async def test_many_attempts_that_find_the_same_hold_write_it_once_and_none_fails(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        holds = holds_of(process)
        new: list[bool] = []

        async def find() -> None:
            new.append(await holds.begin(A, KEYS, DISABLED, process.world.clock.now()))

        async with anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(find)
        assert sorted(new) == [False] * 15 + [True]
        assert on_disk(process.world) == [f"{A}.keys.json"]


async def test_a_hold_that_could_not_be_written_or_lifted_is_tried_again(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        holds = holds_of(process)
        process.files.refuse("sync", ".tmp")
        with pytest.raises(StoreIoError):
            await holds.begin(A, KEYS, DISABLED, process.world.clock.now())
        assert holds.all() == []
        assert await holds.begin(A, KEYS, DISABLED, process.world.clock.now())
        process.files.refuse("sync", "/audit/")
        with pytest.raises(StoreIoError):
            await holds.end(A, KEYS)
        assert len(holds.all()) == len(on_disk(process.world)) == 1
        assert await holds.end(A, KEYS)
        assert on_disk(process.world) == []


async def test_what_is_no_hold_is_passed_over(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        holds = holds_of(process)
        await holds.begin(A, KEYS, DISABLED, process.world.clock.now())
        folder = tmp_path / "holds"
        for number, content in enumerate((b"", b"{", b"\xff", b'{"code":"A_CODE_OF_TOMORROW"}')):
            (folder / f"{number}.json").write_bytes(content)
        (folder / "folder.json").mkdir()
        (folder / "link.json").symlink_to("/etc/passwd")
        (folder / "half.json.tmp").write_bytes(b"{")
        assert [hold.instance_id for hold in read_holds(str(folder), WatchedDisk())] == [A]
    assert read_holds(str(tmp_path / "none"), WatchedDisk()) == []


async def test_the_audit_trail_has_both_ends(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        holds = holds_of(process)
        await holds.begin(A, KEYS, DISABLED, world.clock.now())
        await holds.end(A, KEYS)
    trail = b"".join(path.read_bytes() for path in (tmp_path / "audit").rglob("*.jsonl"))
    assert trail.index(b"HoldBegun") < trail.index(b"HoldEnded")


async def test_holds_of_an_instance_that_is_gone_go_with_their_files_however_often_it_takes(tmp_path: Path) -> None:
    """A file that the disk would not remove is found by the next start."""
    async with node(World(root=tmp_path)) as process:
        holds = holds_of(process)
        for instance, scope in ((A, KEYS), (A, Kind.VOICE), (B, KEYS)):
            await holds.begin(instance, scope, DISABLED, process.world.clock.now())
        assert isinstance(process.files, WatchedDisk)
        process.files.refuse("unlink", f"{A}.{KEYS}.json", times=100)
        await holds.drop_gone(lambda instance: instance == A)
        assert f"{A}.{KEYS}.json" in on_disk(process.world)
        process.files.refusals.clear()
        holds = holds_of(process)
        await holds.drop_gone(lambda instance: instance == A)
        await holds.drop_gone(lambda instance: instance == A)
        assert [hold.instance_id for hold in holds.all()] == [B]
        assert on_disk(process.world) == [f"{B}.{KEYS}.json"]
