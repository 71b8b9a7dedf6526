import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.adapters.disk import Disk
from pipeline.errors import StoreFullError, StoreIoError
from pipeline.ports import FileSystem
from tests.model_disk import ModelDisk
from tests.model_steps import KEPT, LOST, PAGE, SECTOR, Fate, Write

DISKS = [pytest.param(Disk, id="disk"), pytest.param(ModelDisk, id="model")]
Made = Callable[[], FileSystem]


def written(disk: ModelDisk, path: str, *pieces: bytes) -> int:
    handle = disk.create(path)
    for piece in pieces:
        disk.append(handle, [piece])
    return handle


def a_disk() -> ModelDisk:
    """Make one with an empty, durable folder `/d` and another `/e`."""
    disk = ModelDisk()
    disk.make_directory("/d")
    disk.make_directory("/e")
    return disk


# --- what any disk does


@pytest.mark.parametrize("made", DISKS)
def test_a_file_is_read_as_it_was_written_and_cut(made: Made, tmp_path: Path) -> None:
    disk, folder = made(), f"{tmp_path}/a/b"
    disk.make_directory(folder)
    disk.make_directory(folder)
    handle = disk.create(f"{folder}/file")
    disk.append(handle, [b"one", bytearray(b"two"), memoryview(b"three")])
    assert disk.size(handle) == 11
    assert disk.read(handle, 3, 3) == b"two"
    assert disk.read(handle, 9, 100) == b"ee"
    assert disk.read(handle, 99, 1) == b""
    room = bytearray(5)
    assert disk.read_into(handle, 8, memoryview(room)) == 3
    assert room == b"ree\0\0"
    disk.truncate(handle, 4)
    disk.append(handle, [b"!"])
    disk.allocate(handle, 7)
    disk.sync(handle)
    disk.close(handle)
    again = disk.open(f"{folder}/file")
    assert disk.read(again, 0, 100) == b"onet!\0\0"
    disk.close(again)
    disk.sync_directory(folder)
    disk.sync_volume(folder)


@pytest.mark.parametrize("made", DISKS)
def test_names_are_taken_moved_replaced_and_removed(made: Made, tmp_path: Path) -> None:
    disk, folder = made(), f"{tmp_path}/d"
    disk.make_directory(folder)
    for name in ("one", "two"):
        handle = disk.create(f"{folder}/{name}")
        disk.append(handle, [name.encode()])
        disk.close(handle)
    with pytest.raises(FileExistsError):
        disk.create(f"{folder}/one")
    disk.rename(f"{folder}/one", f"{folder}/two")
    assert disk.names(folder) == ["two"]
    handle = disk.open(f"{folder}/two")
    assert disk.read(handle, 0, 9) == b"one"
    disk.unlink(f"{folder}/two")
    assert disk.read(handle, 0, 9) == b"one"
    disk.close(handle)
    disk.unlink(f"{folder}/two")
    disk.make_directory(f"{folder}/inner")
    assert disk.names(folder) == ["inner"]
    assert disk.sorted_out(folder) == ([], ["inner"])
    assert disk.names(f"{folder}/none") == []
    assert disk.sorted_out(f"{folder}/none") == ([], [])
    assert disk.free_bytes(folder) > 0


@pytest.mark.parametrize("made", DISKS)
def test_what_is_missing_or_not_allowed_is_told_as_the_port_says(made: Made, tmp_path: Path) -> None:
    disk, folder = made(), f"{tmp_path}/d"
    disk.make_directory(folder)
    for missing in (
        lambda: disk.open(f"{folder}/x"),
        lambda: disk.open(f"{folder}/x", write=True),
        lambda: disk.create(f"{folder}/none/x"),
        lambda: disk.rename(f"{folder}/x", f"{folder}/y"),
        lambda: disk.sync_directory(f"{folder}/none"),
    ):
        with pytest.raises(FileNotFoundError):
            missing()
    disk.close(disk.create(f"{folder}/x"))
    with pytest.raises(FileNotFoundError):
        disk.rename(f"{folder}/x", f"{folder}/none/x")
    with pytest.raises(StoreIoError):
        disk.unlink(folder)
    handle = disk.open(f"{folder}/x")
    with pytest.raises(StoreIoError):
        disk.append(handle, [b"!"])
    with pytest.raises(StoreIoError):
        disk.truncate(handle, 0)
    disk.close(handle)


# --- what a power cut leaves


def test_neither_name_nor_bytes_survive_without_a_sync() -> None:
    disk = a_disk()
    written(disk, "/d/file", b"bytes")
    assert disk.crash().tree() == {}
    assert disk.crash(default=KEPT).tree() == {"/d/file": b"bytes"}


def test_a_synced_file_is_lost_with_its_name() -> None:
    disk = a_disk()
    disk.sync(written(disk, "/d/file", b"bytes"))
    assert disk.crash().tree() == {}


def test_a_synced_name_may_name_an_empty_file() -> None:
    disk = a_disk()
    written(disk, "/d/file", b"bytes")
    disk.sync_directory("/d")
    assert disk.crash().tree() == {"/d/file": b""}


def test_file_and_directory_synced_is_durable_whatever_else_happens() -> None:
    disk = a_disk()
    handle = written(disk, "/d/file", b"bytes")
    disk.sync(handle)
    disk.sync_directory("/d")
    disk.append(handle, [b" and more"])
    disk.truncate(handle, 2)
    disk.rename("/d/file", "/d/other")
    disk.unlink("/d/other")
    assert disk.crash().tree() == {"/d/file": b"bytes"}
    chance = random.Random(1)
    for _ in range(200):
        for content in disk.crash(disk.any_choice(chance)).tree().values():
            assert content[:2] == b"by"


def test_a_directory_that_was_only_made_is_lost_with_all_that_it_holds() -> None:
    made, left = a_disk(), []
    made.before = lambda _number, operation, _path: (
        left.append(made.snapshot()) if operation == "sync_directory" else None
    )
    made.make_directory("/d/inner")
    (disk,) = left
    disk.make_directory("/d/inner")  # it is there: nothing is done
    disk.sync(written(disk, "/d/inner/file", b"bytes"))
    disk.sync_directory("/d/inner")
    assert disk.crash().tree() == {}
    assert disk.crash().names("/d") == []
    disk.sync_volume("/d")
    assert disk.crash().tree() == {"/d/inner/file": b"bytes"}


def test_a_directory_that_could_not_be_made_durable_is_not_there() -> None:
    disk = a_disk()
    disk.refuse("sync_directory", "/d", error=StoreIoError("no"))
    with pytest.raises(StoreIoError):
        disk.make_directory("/d/inner")
    assert disk.names("/d") == []
    assert disk.crash(default=KEPT).names("/d") == []
    disk.make_directory("/d/inner")
    assert disk.crash().names("/d") == ["inner"]


def test_a_rename_in_one_directory_is_whole_or_not_at_all() -> None:
    disk = a_disk()
    disk.sync(written(disk, "/d/old", b"bytes"))
    disk.sync_directory("/d")
    disk.rename("/d/old", "/d/new")
    found = {frozenset(disk.crash(fates).tree()) for fates in disk.choices(random.Random(1), 10)}
    assert found == {frozenset({"/d/old"}), frozenset({"/d/new"})}


def test_a_rename_across_directories_may_leave_both_names_or_none() -> None:
    disk = a_disk()
    disk.sync(written(disk, "/d/old", b"bytes"))
    disk.sync_directory("/d")
    disk.rename("/d/old", "/e/new")
    found = {frozenset(disk.crash(fates).tree()) for fates in disk.choices(random.Random(1), 10)}
    assert found == {frozenset(names) for names in (["/d/old"], ["/e/new"], ["/d/old", "/e/new"], [])}


def test_a_replacing_rename_may_outrun_the_bytes() -> None:
    disk = a_disk()
    disk.sync(written(disk, "/d/file", b"old"))
    disk.sync_directory("/d")
    written(disk, "/d/aside", b"new")
    disk.rename("/d/aside", "/d/file")
    disk.sync_directory("/d")
    assert disk.crash().tree() == {"/d/file": b""}


def test_writes_are_torn_at_sectors_and_pages_reordered_and_filled_with_zeros() -> None:
    write = Write(1, 100, bytes([1]) * (2 * PAGE))
    ends = {write.onto(b"x" * 100, fate)[100:] for fate in write.fates()}
    ones, zeros, page = bytes([1]), bytes(1), 2 * PAGE - 100
    assert ends == {
        ones * 2 * PAGE,
        b"",
        zeros * 2 * PAGE,
        ones * (SECTOR - 100),
        ones * page,
        ones * page + zeros * 100,
        zeros * page + ones * 100,
    }
    chance = random.Random(7)
    torn = {len(write.onto(b"x" * 100, write.any_fate(chance)).rstrip(zeros)) for _ in range(500)}
    assert {100 + 2 * PAGE, 100, 3 * SECTOR, PAGE} <= torn


def test_a_later_write_may_be_there_without_an_earlier_one() -> None:
    disk = a_disk()
    handle = disk.create("/d/file")
    disk.sync_directory("/d")
    disk.append(handle, [b"first"])
    disk.append(handle, [b"second"])
    first, second = disk.unsynced()
    left = disk.crash({first.number: LOST, second.number: KEPT}).tree()
    assert left == {"/d/file": bytes(5) + b"second"}


@pytest.mark.parametrize("error", [StoreIoError("no"), StoreFullError("full")])
def test_what_a_failed_sync_covered_is_lost_although_a_later_one_succeeds(error: Exception) -> None:
    disk = a_disk()
    handle = written(disk, "/d/file", b"first")
    disk.sync(handle)
    disk.sync_directory("/d")
    disk.append(handle, [b"second"])
    disk.refuse("sync", error=error)
    with pytest.raises(type(error)):
        disk.sync(handle)
    disk.append(handle, [b"third"])
    disk.sync(handle)
    assert disk.read(handle, 0, 99) == b"firstsecondthird"
    found = {disk.crash(fates).tree()["/d/file"] for fates in disk.choices(random.Random(1), 10)}
    assert found == {b"first" + bytes(6) + b"third", b"firstsecondthird"}


def test_a_failed_directory_sync_leaves_its_names_in_doubt() -> None:
    disk = a_disk()
    disk.sync(written(disk, "/d/file", b""))
    disk.refuse("sync_directory", error=StoreIoError("no"))
    with pytest.raises(StoreIoError):
        disk.sync_directory("/d")
    disk.sync_directory("/d")
    found = {tuple(disk.crash(fates).tree()) for fates in disk.choices(random.Random(1), 10)}
    assert found == {(), ("/d/file",)}


def test_the_volume_is_synced_as_a_whole() -> None:
    disk = a_disk()
    written(disk, "/d/file", b"bytes")
    disk.sync_volume("/d")
    assert disk.unsynced() == []
    assert disk.crash().tree() == {"/d/file": b"bytes"}


def test_all_combinations_of_the_last_three_steps_are_tried_and_each_older_one_alone() -> None:
    disk = a_disk()
    for name in "abcde":
        disk.create(f"/d/{name}")
    found = {frozenset(disk.crash(fates).tree()) for fates in disk.choices(random.Random(1), 0)}
    older = {"/d/a", "/d/b"}
    latest = ({*left} for left in ((), "c", "d", "e", "cd", "ce", "de", "cde"))
    assert {frozenset(older | {f"/d/{name}" for name in left}) for left in latest} <= found
    assert {frozenset(), frozenset({"/d/a"}), frozenset({"/d/b"})} <= found
    assert frozenset({"/d/a", "/d/c", "/d/d", "/d/e"}) in found
    assert len(found) == 8 + 1 + 2 * 2


def test_fates_by_chance_are_the_same_for_the_same_seed() -> None:
    disk = a_disk()
    written(disk, "/d/file", bytes([5]) * 10_000, bytes([6]) * 10_000)
    disk.sync_directory("/d")
    first, again = ([disk.any_choice(chance) for _ in range(50)] for chance in (random.Random(3), random.Random(3)))
    assert first == again
    assert len({disk.crash(fates).fingerprint() for fates in first}) > 20


# --- copies and refusals


def test_a_copy_and_its_original_know_nothing_of_each_other() -> None:
    disk = a_disk()
    handle = written(disk, "/d/file", b"one")
    copy = disk.snapshot()
    disk.append(handle, [b"two"])
    disk.rename("/d/file", "/d/other")
    written(copy, "/d/more", b"three")
    assert disk.tree() == {"/d/other": b"onetwo"}
    assert copy.tree() == {"/d/file": b"one", "/d/more": b"three"}
    assert [type(step).__name__ for step in copy.unsynced()] == ["Entries", "Write", "Entries", "Write"]
    assert disk.fingerprint() != copy.fingerprint() == copy.crash(default=KEPT).fingerprint()


def test_an_operation_fails_once_or_with_all_after_it_and_changes_nothing() -> None:
    disk = a_disk()
    handle = disk.create("/d/file")
    disk.fail(1, StoreIoError("once"))
    disk.fail(3, StoreFullError("from now on"), times=None)
    disk.append(handle, [b"0"])
    with pytest.raises(StoreIoError):
        disk.append(handle, [b"1"])
    disk.append(handle, [b"2"])
    with pytest.raises(StoreFullError):
        disk.append(handle, [b"3"])
    with pytest.raises(StoreFullError):
        disk.create("/d/other")
    disk.failures.clear()
    assert disk.tree() == {"/d/file": b"02"}


def test_a_full_disk_takes_no_more_until_something_goes() -> None:
    disk = a_disk()
    disk.capacity_bytes = 10
    handle = written(disk, "/d/file", b"12345678")
    assert disk.free_bytes("/d") == 2
    with pytest.raises(StoreFullError):
        disk.append(handle, [b"123"])
    disk.append(handle, [b"12"])
    disk.unlink("/d/file")
    assert disk.free_bytes("/d") == 10
    disk.inodes = 4
    written(disk, "/d/file")
    assert disk.free_inodes("/d") == 0
    with pytest.raises(StoreFullError):
        disk.create("/d/other")


def test_a_closed_handle_is_not_used_again() -> None:
    disk = a_disk()
    handle = disk.create("/d/file")
    disk.close(handle)
    with pytest.raises(KeyError):
        disk.append(handle, [b"!"])
    with pytest.raises(KeyError):
        disk.close(handle)
    assert disk.open("/d/file") != handle
    disk.close_all()
    assert disk.handles == {}


def test_a_fate_says_which_bytes_of_a_write_are_kept() -> None:
    write = Write(1, 0, b"x" * 5000)
    assert write.onto(b"", Fate(0, PAGE, 5000)) == b"x" * PAGE + bytes(5000 - PAGE)
    assert write.onto(b"", KEPT) == b"x" * 5000
    assert write.onto(b"y", LOST) == b"y"
