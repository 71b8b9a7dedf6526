"""F11: the volume turns read-only, is gone, or comes back as another.

Nothing is written in its place; intake says so, deliveries wait, and all goes on when the volume is back. A start on
one that is not known is refused: see also `test_store`.
"""

from pathlib import Path

import pytest

from pipeline.adapters.disk import locked
from pipeline.errors import DeferError, HaltError, StoreBusyError, StoreIoError, VolumeFailedError
from pipeline.interim.commit import Commit
from pipeline.interim.logs import LogLine
from pipeline.interim.states import State
from tests.fault.test_f09_f10_full_disk import on_small_volume
from tests.receipts import receipt_of
from tests.store_fixture import Node, World, node, source
from tests.unit.test_store import sealed


def trouble(process: Node) -> str | None:
    return process.store.room.trouble


def look(process: Node, times: int = 1) -> None:
    for _ in range(times):
        process.world.clock.advance(5)
        process.store.room.tend()


@pytest.mark.parametrize("comes_back_as", ["nothing", "empty", "another store", "a damaged marker"])
async def test_a_volume_that_is_gone_stops_intake_until_it_is_back(tmp_path: Path, comes_back_as: str) -> None:
    root, away = tmp_path / "state", tmp_path / "away"
    async with node(World(root=root)) as process:
        name = await sealed(process)
        root.rename(away)
        if comes_back_as != "nothing":
            root.mkdir()
        if comes_back_as == "another store":
            (root / "store.json").write_bytes(b'{"storeId":"another","formatVersion":1}')
        if comes_back_as == "a damaged marker":
            (root / "store.json").write_bytes(b'{"storeId":')
        there = sorted(tmp_path.rglob("*"))
        look(process)
        assert trouble(process) is not None
        assert process.store.room.refusal == "volume-failed"
        with pytest.raises(VolumeFailedError):
            await process.recorder.begin(process.a, source("call-2"))
        with pytest.raises(VolumeFailedError):
            await process.events.take(process.a, b"[]")
        with pytest.raises(DeferError):
            await process.store.settle(name, receipt_of(name), (), ())
        look(process, 20)
        assert trouble(process) is not None
        assert sorted(tmp_path.rglob("*")) == there
        for path in (root / "store.json", root):
            if path.exists():
                path.rmdir() if path.is_dir() else path.unlink()
        away.rename(root)
        look(process, 20)
        assert trouble(process) is None
        target = await process.store.settle(name, receipt_of(name), (), ())
        assert target.standing is State.DELIVERED
        await sealed(process, "call-2")


async def test_no_folder_is_made_where_the_volume_was_even_before_anybody_has_looked(tmp_path: Path) -> None:
    root = tmp_path / "state"
    async with node(World(root=root)) as process:
        root.rename(tmp_path / "away")
        root.mkdir()
        with pytest.raises(StoreIoError):
            process.volume.files.make_directory(f"{root}/journal/somebody/2026-11-23")
        with pytest.raises(StoreIoError):
            await process.commits.commit(Commit(lines=(LogLine(f"{root}/events/somebody.jsonl", b"{}"),)))
        assert list(root.iterdir()) == []
        assert trouble(process) is not None


async def test_a_volume_that_turned_read_only_stops_intake_until_it_can_be_written(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        name = await sealed(process)
        for operation in ("create", "append", "rename", "unlink", "truncate", "make_directory"):
            process.files.refuse(operation, "", error=StoreIoError("EROFS"), times=10**9)
        for number in range(3):
            with pytest.raises(DeferError):
                await sealed(process, f"call-{number}")
        with pytest.raises(DeferError):
            await process.store.settle(name, receipt_of(name), (), ())
        look(process, 50)
        assert trouble(process) is not None
        assert await process.media(name) == b"body"
        process.files.refusals.clear()
        look(process, 50)
        await process.store.settle(name, receipt_of(name), (), ())
        await sealed(process, "call-2")


async def test_one_that_can_not_be_read_now_for_lack_of_descriptors_is_not_taken_for_gone(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        process.files.refuse("open", "store.json", error=StoreBusyError("EMFILE"), times=5)
        look(process, 5)
        assert trouble(process) is None


def test_a_start_on_a_read_only_volume_is_refused_with_a_reason(tmp_path: Path) -> None:
    told = on_small_volume("read-only", "size=6m", tmp_path)
    assert "EROFS" in told["lock"]


def test_a_state_directory_that_is_not_there_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(HaltError, match="ENOENT"), locked(str(tmp_path / "gone" / "lock")):
        raise AssertionError
