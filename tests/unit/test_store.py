import os
from itertools import product
from pathlib import Path

import pytest

from pipeline.errors import HaltError, SegmentForgedError, StoreFullError, StoreIoError
from pipeline.ids import Kind
from pipeline.interim.room import needed_bytes
from pipeline.interim.states import ArtifactName, State, parse_name
from tests.receipts import receipt_of
from tests.store_fixture import HOUR_S, Node, WatchedDisk, World, node, source


async def sealed(process: Node, source_id: str = "call-1", body: bytes = b"body") -> ArtifactName:
    await process.upload(source(source_id), body)
    return process.sealed[-1]


# --- opening


async def test_a_store_is_known_by_its_id(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        store_id = process.store_id
    async with node(world, store_id=store_id) as process:
        assert process.store_id == store_id
    with pytest.raises(HaltError, match="not the one"):
        async with node(world, store_id="another"):
            raise AssertionError


async def test_a_volume_that_came_back_empty_is_noticed_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(HaltError, match="mounted"):
        async with node(World(root=tmp_path), store_id="known"):
            raise AssertionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("marker", [b'{"storeId":"x","formatVersion":3}', b"", b"{", b"\xff\xfe"])
async def test_another_format_or_a_damaged_marker_is_refused(tmp_path: Path, marker: bytes) -> None:
    (tmp_path / "store.json").write_bytes(marker)
    with pytest.raises(HaltError):
        async with node(World(root=tmp_path)):
            raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]
    assert (tmp_path / "store.json").read_bytes() == marker


async def test_folders_of_a_process_that_died_are_made_durable(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world):
        pass
    async with node(world) as process:
        assert ("sync_volume", str(tmp_path)) in process.files.done


# --- the scan


async def test_foreign_files_are_moved_aside_and_kept(tmp_path: Path) -> None:
    """F13."""
    world = World(root=tmp_path)
    async with node(world) as process:
        name = await sealed(process)
    shard = tmp_path / "artifacts" / "0"
    good = Path(world.paths(".sealed")[0])
    (shard / "README").write_bytes(b"kept 1")
    (shard / ("é" * 120)).write_bytes(b"kept 2")
    os.write(handle := os.open(os.fsencode(shard) + b"/\xff\xfe\n", os.O_CREAT | os.O_WRONLY), b"kept 3")
    os.close(handle)
    (shard / "mine.tmp").write_bytes(b"kept 4")
    (shard / "folder").mkdir()
    (shard / "folder.tmp").mkdir()
    (shard / "link").symlink_to("/etc/passwd")
    wrong = "1" if name.shard == "0" else "0"
    (tmp_path / "artifacts" / wrong / str(name)).write_bytes(b"in another's place")
    (tmp_path / "artifacts" / "stranger").write_bytes(b"not looked at")
    async with node(world) as process:
        assert list(process.store.index) == [name]
        assert await process.media(name) == b"body"
    kept = [path.read_bytes() for path in world.lost() if path.is_file() and not path.is_symlink()]
    assert sorted(kept) == [b"in another's place", b"kept 1", b"kept 2", b"kept 3", b"kept 4"]
    assert len(world.lost()) == 8
    assert world.paths() == [good, tmp_path / "artifacts" / "stranger"]
    assert Path("/etc/passwd").exists()


async def test_what_was_being_written_aside_is_removed(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        name = await sealed(process)
    half = Path(f"{process.store.path(name.delivered())}.tmp")
    half.write_bytes(b"{")
    async with node(world) as process:
        assert not half.exists()
        assert list(process.store.index) == [name]
        assert world.lost() == []


async def test_media_whose_receipt_is_durable_are_let_go(tmp_path: Path) -> None:
    """F2: died between the rename and the unlink."""
    world = World(root=tmp_path)
    async with node(world) as process:
        name = await sealed(process)
    Path(process.store.path(name.delivered())).write_bytes(receipt_of(name))
    async with node(world) as process:
        assert list(process.store.index) == [name.delivered()]
        assert process.store.index.count(State.DELIVERED) == 1
        assert len(world.paths()) == 1


STRANGE_RECEIPTS: list[dict[str, object] | bytes | None] = [
    {"artifactId": "00000000-0000-7000-8000-000000000000"},
    {"artifactId": "no id"},
    {"generation": 2},
    {"sizeBytes": 5},
    b"",
    b"{",
    b"\xff",
    b'{"artifactId":"\xff"}',
    None,
]


async def test_media_stay_if_the_receipt_beside_them_is_not_theirs(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        names = [await sealed(process, f"call-{number}") for number in range(len(STRANGE_RECEIPTS))]
    for name, receipt in zip(names, STRANGE_RECEIPTS, strict=True):
        path = Path(process.store.path(name.delivered()))
        if receipt is None:
            path.symlink_to("/etc/passwd")
        else:
            path.write_bytes(receipt if isinstance(receipt, bytes) else receipt_of(name, **receipt))
    async with node(world) as process:
        assert set(process.store.index) == set(names)
        for name in names:
            assert await process.media(name) == b"body"
        assert len(world.lost()) == len(names)


async def test_a_poisoned_artifact_is_neither_delivered_nor_removed(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        name = await process.store.reject(await sealed(process), "integrity", ())
    Path(process.store.path(parse_name(str(name).partition(".poison")[0]).delivered())).write_bytes(b"{}")
    async with node(world) as process:
        assert process.store.index.count(State.SEALED) == 0
        assert len(world.paths(".poison.integrity")) == 1


async def test_the_scan_opens_no_artifact(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        for number in range(20):
            await sealed(process, f"call-{number}")
    async with node(world) as process:
        opened = [path for operation, path in process.files.done if operation == "open" and "/artifacts/" in path]
        assert opened == []
        assert process.store.index.count(State.SEALED) == 20


# --- moves


async def test_media_are_removed_only_once_their_receipt_is_durable(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        process.files.done.clear()
        target = await process.store.settle(name, receipt_of(name), (), ("/volume",))
        done = [each for each in process.files.done if each[0] not in {"append", "close", "create"}]
        receipt = process.store.path(target)
        shard = str(Path(receipt).parent)
        assert done == [
            ("unlink", f"{receipt}.tmp"),
            ("sync_volume", "/volume"),
            ("sync", f"{receipt}.tmp"),
            ("rename", receipt),
            ("sync_directory", shard),
            ("unlink", process.store.path(name)),
        ]
        assert process.store.receipt(target) == receipt_of(name)


async def test_a_receipt_that_is_not_durable_keeps_the_media(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        operations = ("create", "append", "sync", "sync_volume", "rename", "sync_directory")
        for operation, error in product(operations, (StoreIoError("EIO"), StoreFullError("ENOSPC"))):
            process.world.clock.advance(HOUR_S)
            name = await sealed(process, f"{operation} {error}")
            process.files.refuse(operation, error=error)
            with pytest.raises(type(error)):
                await process.store.settle(name, receipt_of(name), (), ("/volume",))
            assert process.store.index.get(name.artifact_id) == name
            assert await process.media(name) == b"body"
            target = await process.store.settle(name, receipt_of(name), (), ("/volume",))
            assert process.store.receipt(target) == receipt_of(name)
            assert not Path(process.store.path(name)).exists()


async def test_folded_receipts_stand_in_the_log_before_they_leave_the_store(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        name = await sealed(process)
        target = await process.store.settle(name, receipt_of(name), (), ())
        log = tmp_path / "receipts" / "a.jsonl"
        process.files.refuse("sync", str(log))
        with pytest.raises(StoreIoError):
            await process.store.fold({target: receipt_of(name)}, str(log))
        assert world.names() == [target]
        await process.store.fold({target: receipt_of(name)}, str(log))
        assert world.names() == []
        assert log.read_bytes() == receipt_of(name) + b"\n"
        assert len(process.store.index) == 0


async def test_nothing_is_begun_on_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    files = WatchedDisk()
    world = World(root=tmp_path, free_bytes=1_000_000)
    async with node(world, files=files) as process:
        floor = needed_bytes(world.free_bytes, undelivered=1)
        files.free = floor - 1
        for _ in range(3):
            with pytest.raises(StoreFullError):
                await process.recorder.begin(process.a, source())
        assert world.paths() == []
        files.free = floor
        held = await sealed(process)
        assert world.names() == [held]


async def test_an_artifact_that_can_not_be_begun_leaves_nothing(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await sealed(process)
        handles = len(process.files.handles)
        refusals: list[tuple[str, Exception]] = [
            ("create", StoreIoError("EIO")),
            ("create", StoreFullError("ENOSPC")),
            ("create", FileNotFoundError("the folder is gone")),
            ("append", StoreIoError("EIO")),
            ("append", StoreFullError("ENOSPC")),
        ]
        for operation, error in refusals:
            world.clock.advance(HOUR_S)
            process.files.refuse(operation, "/artifacts/", error=error)
            with pytest.raises((StoreIoError, StoreFullError)):
                await process.recorder.begin(process.a, source("call-2"))
            assert len(world.paths()) == len(process.store.index) == 1
            assert len(process.files.handles) == handles
            assert process.recorder.receptions() == []


async def test_swapped_files_give_refusals_and_never_plaintext(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        mine = await sealed(process, body=b"of A")
        await process.upload(source("call-2"), b"of B", tenant=process.b)
        theirs = process.sealed[-1]
        one, two = Path(process.store.path(mine)), Path(process.store.path(theirs))
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        for name in (mine, theirs):
            with pytest.raises(SegmentForgedError):
                await process.media(name)
        answer = await process.upload(source("call-2", Kind.VOICE), b"of B", tenant=process.b)
        assert answer.generation == 2
