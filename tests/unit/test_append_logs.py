from pathlib import Path

import pytest

from pipeline.errors import StoreFullError
from pipeline.interim.logs import AppendLogs
from tests.store_fixture import WatchedDisk


@pytest.fixture
def files() -> WatchedDisk:
    return WatchedDisk()


@pytest.mark.parametrize("torn", [b"", b"{", b'{"a":1', b"\0" * 5000, b"x" * 200_000])
def test_a_torn_last_line_is_cut_when_the_log_is_opened_again(tmp_path: Path, files: WatchedDisk, torn: bytes) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\n" + torn)
    logs = AppendLogs(files)
    logs.append(str(log), [b"three"])
    assert log.read_bytes() == b"one\ntwo\nthree\n"
    logs.close()


def test_a_log_without_a_whole_line_begins_anew(tmp_path: Path, files: WatchedDisk) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"torn" * 40_000)
    logs = AppendLogs(files)
    logs.append(str(log), [b"one"])
    assert log.read_bytes() == b"one\n"
    logs.close()


def test_a_new_log_and_its_folders_are_durable_before_its_lines_count(tmp_path: Path, files: WatchedDisk) -> None:
    logs = AppendLogs(files)
    logs.append(f"{tmp_path}/a/b/log", [b"one"])
    assert files.operations("sync_directory", "sync") == [
        ("sync_directory", f"{tmp_path}/a/b"),
        ("sync", f"{tmp_path}/a/b/log"),
    ]
    logs.close()


def test_a_log_of_an_earlier_process_is_made_durable_by_name_too(tmp_path: Path, files: WatchedDisk) -> None:
    (tmp_path / "log").write_bytes(b"one\n")
    logs = AppendLogs(files)
    logs.append(f"{tmp_path}/log", [b"two"])
    assert ("sync_directory", str(tmp_path)) in files.done
    logs.close()


def test_only_so_many_logs_are_kept_open(tmp_path: Path, files: WatchedDisk) -> None:
    logs = AppendLogs(files)
    for _ in range(2):
        for number in range(150):
            logs.append(f"{tmp_path}/{number}", [b"line"])
    assert len(files.handles) == 128
    assert all((tmp_path / str(number)).read_bytes() == b"line\nline\n" for number in range(150))
    logs.close()
    assert not files.handles


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, files: WatchedDisk) -> None:
    logs = AppendLogs(files)
    logs.append(f"{tmp_path}/log", [b"one"])
    files.refuse("append", error=StoreFullError("full"))
    with pytest.raises(StoreFullError):
        logs.append(f"{tmp_path}/log", [b"two"])
    logs.append(f"{tmp_path}/log", [b"three"])
    assert (tmp_path / "log").read_bytes() == b"one\nthree\n"
    logs.close()
