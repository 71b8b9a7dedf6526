import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from pipeline.adapters import disk as disk_module
from pipeline.adapters.disk import Disk, holder, locked
from pipeline.errors import HaltError, StoreBusyError, StoreFullError, StoreIoError

DISK = Disk()


def test_files_and_folders_are_nobody_elses(tmp_path: Path) -> None:
    DISK.make_directory(f"{tmp_path}/a/b")
    DISK.close(DISK.create(f"{tmp_path}/a/b/file"))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a/b/file").stat().st_mode) == 0o600


def test_what_was_written_in_pieces_reads_as_one(tmp_path: Path) -> None:
    handle = DISK.create(f"{tmp_path}/file")
    pieces = [bytes([number % 256]) * (number % 7) for number in range(2000)]
    DISK.append(handle, pieces)
    DISK.append(handle, [bytearray(b"tail"), memoryview(b"-end")])
    whole = b"".join(pieces) + b"tail-end"
    assert DISK.size(handle) == len(whole)
    assert DISK.read(handle, 0, len(whole) + 100) == whole
    assert DISK.read(handle, len(whole) - 3, 10) == b"end"
    assert DISK.read(handle, len(whole), 10) == b""
    room = bytearray(10)
    assert DISK.read_into(handle, len(whole) - 3, memoryview(room)) == 3
    assert room[:3] == b"end"
    DISK.truncate(handle, 5)
    assert DISK.read(handle, 0, 99) == whole[:5]
    DISK.append(handle, [b"!"])
    assert DISK.read(handle, 0, 99) == whole[:5] + b"!"
    DISK.close(handle)


def test_a_taken_name_is_not_taken_again(tmp_path: Path) -> None:
    DISK.close(DISK.create(f"{tmp_path}/file"))
    with pytest.raises(FileExistsError):
        DISK.create(f"{tmp_path}/file")


def test_no_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreIoError):
        DISK.open(f"{tmp_path}/link")
    with pytest.raises(StoreIoError):
        DISK.open(f"{tmp_path}/link", write=True)
    with pytest.raises(FileExistsError):
        DISK.create(f"{tmp_path}/link")


def test_what_is_missing_is_told_as_the_port_says(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DISK.open(f"{tmp_path}/none")
    with pytest.raises(FileNotFoundError):
        DISK.rename(f"{tmp_path}/none", f"{tmp_path}/other")
    DISK.unlink(f"{tmp_path}/none")
    assert DISK.names(f"{tmp_path}/none") == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["writev", "fsync", "rename", "mkdir"])
def test_a_full_disk_has_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    handle = DISK.create(f"{tmp_path}/file")
    calls = {
        "writev": lambda: DISK.append(handle, [b"x"]),
        "fsync": lambda: DISK.sync(handle),
        "rename": lambda: DISK.rename(f"{tmp_path}/file", f"{tmp_path}/other"),
        "mkdir": lambda: DISK.make_directory(f"{tmp_path}/new"),
    }

    def refuse(*_args: object, **_named: object) -> None:
        raise OSError(code, "no room")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StoreFullError):
        calls[call]()
    monkeypatch.undo()
    DISK.close(handle)


def test_half_a_write_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = DISK.create(f"{tmp_path}/file")
    DISK.append(handle, [b"before"])
    real = os.writev

    def half(descriptor: int, views: list[memoryview]) -> int:
        monkeypatch.setattr(os, "writev", full)
        return real(descriptor, [views[0][:3]])

    def full(_descriptor: int, _views: list[memoryview]) -> int:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "writev", half)
    with pytest.raises(StoreFullError):
        DISK.append(handle, [b"half of this"])
    monkeypatch.undo()
    assert DISK.read(handle, 0, 99) == b"before"
    DISK.close(handle)


def test_an_error_of_the_disk_never_comes_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = DISK.create(f"{tmp_path}/file")
    DISK.close(handle)
    DISK.close(handle)
    for call in (DISK.sync, DISK.size):
        with pytest.raises(StoreIoError):
            call(handle)
    with pytest.raises(StoreIoError):
        DISK.append(handle, [b"x"])
    with pytest.raises(StoreIoError):
        DISK.names(f"{tmp_path}/file")
    with pytest.raises(StoreIoError):
        DISK.unlink(str(tmp_path))


def test_volumes_and_free_room_are_known(tmp_path: Path) -> None:
    DISK.sync_volume(str(tmp_path))
    DISK.sync_directory(str(tmp_path))
    facts = os.statvfs(tmp_path)
    assert abs(DISK.free_bytes(str(tmp_path)) - facts.f_bavail * facts.f_frsize) < 2**30


def test_a_store_has_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F14."""
    monkeypatch.setattr(disk_module, "_LOCK_PATIENCE_S", 0.05)
    path = f"{tmp_path}/lock"
    assert holder(path) is None
    with locked(path):
        assert holder(path) == os.getpid()
        with pytest.raises(HaltError, match="another process"), locked(path):
            raise AssertionError
        assert holder(path) == os.getpid()
    assert holder(path) is None
    with locked(path):
        pass


def test_allocated_bytes_are_really_there_and_what_the_file_holds_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    handle = DISK.create(str(path))
    DISK.append(handle, [b"held"])
    for size in (2**20, 2**18):
        DISK.allocate(handle, size)
        assert (path.stat().st_size, path.stat().st_blocks * 512 >= size) == (size, True)
        assert path.read_bytes()[:5] == b"held\0"
    DISK.close(handle)


def test_plain_files_are_told_from_all_else(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("plain")
    os.mkfifo(tmp_path / "pipe")
    plain, others = DISK.sorted_out(str(tmp_path))
    assert (plain, sorted(others)) == (["plain"], ["folder", "link", "pipe"])
    assert DISK.sorted_out(str(tmp_path / "missing")) == ([], [])


def test_a_folder_that_is_a_link_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    for listing in (DISK.names, DISK.sorted_out):
        with pytest.raises(StoreIoError):
            listing(str(tmp_path / "link"))


def test_free_inodes_are_as_the_system_counts_them(tmp_path: Path) -> None:
    free, facts = DISK.free_inodes(str(tmp_path)), os.statvfs(tmp_path)
    assert (free is None) == (facts.f_files == 0)
    assert free is None or abs(free - facts.f_favail) < 100_000


def test_whoever_waits_for_a_lock_gets_it_before_one_who_lets_go_and_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that appends without a pause must not keep the others out."""
    disk, waits, greedy_done = Disk(), threading.Event(), threading.Event()
    disk.close(disk.create(f"{tmp_path}/lock"))
    mine, other = (disk.open(f"{tmp_path}/lock", write=True) for _ in range(2))
    got: list[str] = []

    def sleep(_seconds: float) -> None:
        waits.set()
        assert greedy_done.wait(10)

    def wait() -> None:
        disk.lock(other)
        got.append("who waited")
        disk.unlock(other)

    disk.lock(mine)
    monkeypatch.setattr("pipeline.adapters.disk.time.sleep", sleep)
    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(10)
    disk.unlock(mine)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.adapters.disk._LOCK_PATIENCE_S", -1.0)
        with pytest.raises(StoreBusyError):
            disk.lock(mine)
    greedy_done.set()
    thread.join(10)
    assert got == ["who waited"]
    disk.lock(mine)  # its turn was given back
    disk.close(mine)
    disk.lock(other)
