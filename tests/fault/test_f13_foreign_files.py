"""F13: what somebody else put among the artifacts, under whatever name: kept, out of the way, and never followed.

More in `test_store`: foreign names of every sort, and artifacts in another's place.
"""

import os
from pathlib import Path

import pytest

from pipeline.errors import HaltError, StoreIoError
from pipeline.interim.states import ArtifactName
from tests.receipts import receipt_of
from tests.store_fixture import WatchedDisk, World, node
from tests.unit.test_store import sealed

SECRET = b"not for the store"


async def one_held(world: World) -> ArtifactName:
    async with node(world) as process:
        return await sealed(process)


def good_name(name: ArtifactName, ending: str) -> str:
    """Give an artifact's name that nothing bears, in the same folder."""
    return str(name).replace(name.artifact_id.hex, "0" * 31 + name.shard).replace(".sealed", ending)


@pytest.mark.parametrize("ending", [".sealed", ".done", ".sealed.poison.integrity", ".sealed.tmp"])
@pytest.mark.parametrize("sort", ["link", "broken link", "folder", "full folder", "pipe"])
async def test_nothing_but_a_plain_file_is_an_artifact_whatever_its_name(
    tmp_path: Path, sort: str, ending: str
) -> None:
    world, outside = World(root=tmp_path / "state"), tmp_path / "outside"
    outside.write_bytes(SECRET)
    name = await one_held(world)
    stranger = tmp_path / "state" / "artifacts" / name.shard / good_name(name, ending)
    match sort:
        case "link":
            stranger.symlink_to(outside)
        case "broken link":
            stranger.symlink_to(tmp_path / "nowhere")
        case "pipe":
            os.mkfifo(stranger)
        case _:
            stranger.mkdir()
            if sort == "full folder":
                (stranger / "inside").write_bytes(SECRET)
    async with node(world) as process:
        assert list(process.store.index) == [name]
        assert await process.media(name) == b"body"
        opened = [path for operation, path in process.files.done if operation in {"open", "read"}]
        assert not [path for path in opened if stranger.name in path]
    assert not os.path.lexists(stranger)
    [kept] = world.lost()
    assert kept.name.endswith(stranger.name)
    assert outside.read_bytes() == SECRET
    if sort == "full folder":
        assert (kept / "inside").read_bytes() == SECRET


async def test_a_pipe_that_was_put_there_later_keeps_nobody_waiting(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    name = await one_held(world)
    async with node(world) as process:
        path = Path(process.store.path(name))
        path.unlink()
        os.mkfifo(path)
        key = await process.a.ring.opening(name.key_id)
        with pytest.raises(Exception, match=r".") as caught, process.store.reading(name, key) as reader:
            reader.manifest()
        assert type(caught.value).__name__ in {"SegmentForgedError", "StoreIoError"}
        path.unlink()
        path.symlink_to("/etc/passwd")
        with pytest.raises(StoreIoError, match="ELOOP"), process.store.reading(name, key):
            raise AssertionError


async def test_a_shard_that_is_a_link_is_not_followed_and_the_start_is_refused(tmp_path: Path) -> None:
    world, outside = World(root=tmp_path / "state"), tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(SECRET)
    name = await one_held(world)
    shard = tmp_path / "state" / "artifacts" / ("0" if name.shard != "0" else "1")
    shard.rmdir()
    shard.symlink_to(outside)
    with pytest.raises(HaltError, match=f"artifacts/{shard.name}"):
        async with node(world):
            raise AssertionError
    assert (outside / "mine").read_bytes() == SECRET
    assert world.lost() == []


async def test_what_can_not_be_moved_or_removed_stops_no_start(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        name = await sealed(process)
        receipt = await process.store.settle(name, receipt_of(name), (), ())
        kept = await sealed(process, "call-2")
    shard = tmp_path / "artifacts" / name.shard
    (shard / "mount point").mkdir()
    (shard / str(name)).write_bytes(b"media whose receipt is durable")
    (shard / f"{name}.tmp").write_bytes(b"unfinished")
    files = WatchedDisk()
    files.refuse("rename", "lost+found", error=StoreIoError("EBUSY"), times=9)
    files.refuse("unlink", str(name), error=StoreIoError("EPERM"), times=9)
    async with node(world, files=files) as process:
        assert sorted(process.store.index, key=str) == sorted([receipt, kept], key=str)
    async with node(world) as process:
        assert sorted(process.store.index, key=str) == sorted([receipt, kept], key=str)
    assert [path.name.partition(".")[2] for path in world.lost()] == ["mount_point"]
    assert not (shard / str(name)).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
async def test_whose_a_file_is_makes_no_difference_to_what_its_bytes_prove(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    name = await one_held(world)
    path = tmp_path / "artifacts" / name.path
    os.chown(path, 12345, 12345)
    stranger = path.with_name("stranger")
    stranger.write_bytes(SECRET)
    os.chown(stranger, 12345, 12345)
    async with node(world) as process:
        assert list(process.store.index) == [name]
        assert await process.media(name) == b"body"
    [kept] = world.lost()
    assert (kept.read_bytes(), kept.stat().st_uid) == (SECRET, 12345)


async def test_the_longest_names_there_are_are_kept_too(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    name = await one_held(world)
    shard = tmp_path / "artifacts" / name.shard
    long = [f"{number}".ljust(255, "x") for number in range(3)] + ["é" * 127, "." * 255, "-rf", " ", "a\nb"]
    for each in long:
        (shard / each).write_bytes(each.encode())
    async with node(world) as process:
        assert list(process.store.index) == [name]
    assert sorted(path.read_bytes() for path in world.lost()) == sorted(each.encode() for each in long)


async def test_a_scan_repeated_finds_nothing_more_to_do(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    name = await one_held(world)
    (tmp_path / "artifacts" / name.shard / "stranger").write_bytes(SECRET)
    moved = []
    for _ in range(3):
        async with node(world) as process:
            moved.append(process.store.scan().moved_aside)
            opened = [path for operation, path in process.files.done if operation == "open" and "/artifacts/" in path]
            assert opened == []
            assert list(process.store.index) == [name]
    assert moved == [0, 0, 0]  # the first start moved it
    assert len(world.lost()) == 1
