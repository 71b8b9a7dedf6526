"""Audit logs as they are written: one order for all who write, and nothing mended in silence."""

import random
from pathlib import Path

import pytest

from pipeline.adapters import disk as disks
from pipeline.adapters.disk import Disk
from pipeline.audit.appender import ChainedLogs
from pipeline.audit.chain import file_names
from pipeline.errors import AuditBrokenError, StoreBlockedError, StoreBusyError, StoreFullError, StoreIoError
from pipeline.interim.watched import WatchedFiles
from tests.audit_logs import HOUR, NEXT_HOUR, chained, files_of, names, record
from tests.model_disk import ModelDisk
from tests.model_steps import Write

LOG = "/audit/acme"
EIO = StoreIoError("EIO")


def a_log(count: int = 2) -> tuple[ModelDisk, ChainedLogs]:
    disk = ModelDisk()
    logs = ChainedLogs(disk)
    for number in range(count):
        logs.append(LOG, [record(number)], HOUR)
    return disk, logs


def read(directory: Path) -> list[str]:
    tree = {str(path): path.read_bytes() for path in directory.iterdir()}
    return [each["eventName"] for each in chained(files_of(tree, str(directory)))]


def the_file(disk: ModelDisk) -> str:
    return f"{LOG}/{file_names(disk.names(LOG))[-1]}"


# --- one order


def test_who_else_writes_to_a_log_is_read_first(tmp_path: Path) -> None:
    one, other = ChainedLogs(Disk()), ChainedLogs(Disk())
    log = str(tmp_path / "acme")
    for number in range(0, 8, 2):
        one.append(log, [record(number)], HOUR if number < 4 else NEXT_HOUR)
        other.append(log, [record(number + 1)], HOUR if number < 4 else NEXT_HOUR)
    assert read(tmp_path / "acme") == [f"Event{number}" for number in range(8)]
    assert [name.first for name in file_names(path.name for path in (tmp_path / "acme").iterdir())] == [0, 4]


def test_a_clock_that_jumps_never_leads_back_to_an_earlier_file() -> None:
    disk, logs = a_log(0)
    for number, hour in enumerate((HOUR, NEXT_HOUR, HOUR, "2036-01-01T00", HOUR)):
        logs.append(LOG, [record(number)], hour)
    assert [name.first for name in file_names(disk.names(LOG))] == [0, 1, 2, 3, 4]
    assert len(names(disk, LOG)) == 5


def test_a_long_file_is_followed_by_a_new_one_in_the_same_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.audit.appender._LONGEST_BYTES", 500)
    disk, _ = a_log(5)
    assert len(file_names(disk.names(LOG))) > 1
    assert len(names(disk, LOG)) == 5


def test_a_log_that_another_process_keeps_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disks._LOCK_PATIENCE_S < 2
    monkeypatch.setattr(disks, "_LOCK_PATIENCE_S", 0.0)
    logs, log = ChainedLogs(Disk()), str(tmp_path / "acme")
    logs.append(log, [record(0)], HOUR)
    other = Disk()
    handle = other.open(f"{log}/lock", write=True)
    other.lock(handle)
    with pytest.raises(StoreBusyError):
        logs.append(log, [record(1)], HOUR)
    assert set(logs.troubles) == {"acme"}
    other.unlock(handle)
    logs.append(log, [record(1)], HOUR)
    assert logs.troubles == {}
    assert read(tmp_path / "acme") == ["Event0", "Event1"]


def test_logs_from_before_are_kept_and_named_by_their_digest(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    earlier = tmp_path / "acme" / "2026-11-27.service.jsonl"
    earlier.write_bytes(b"{}\n")
    ChainedLogs(Disk()).append(str(tmp_path / "acme"), [record(0)], HOUR)
    tree = {str(path): path.read_bytes() for path in (tmp_path / "acme").iterdir()}
    adopted, _ = chained(files_of(tree, str(tmp_path / "acme")))
    digest = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert (adopted["eventName"], adopted["requestParameters"]) == (
        "EarlierLogsAdopted",
        {"files": [{"file": earlier.name, "sha256": digest}]},
    )
    assert earlier.read_bytes() == b"{}\n"


# --- crashes


@pytest.mark.parametrize("torn", [b'{"logIndex":2,"prev', b'{"logIndex":2' + bytes(40) + b'"}\n{"logIndex":3}\n'])
def test_what_a_crash_left_behind_the_last_good_line_is_cut_kept_and_told(torn: bytes) -> None:
    disk, _ = a_log()
    disk.append(disk.open(the_file(disk), write=True), [torn])
    left = disk.snapshot()
    ChainedLogs(left).append(LOG, [record(2)], HOUR)
    after = left.crash().tree()
    *_, cut, last = chained(files_of(after, LOG))
    assert (cut["eventName"], last["eventName"]) == ("LogTailCut", "Event2")
    [name] = cut["requestParameters"]["files"]
    assert after[f"{LOG}/{name}"] == torn


def test_a_crash_while_a_tail_is_cut_changes_nothing() -> None:
    """However often it is broken off, the tail is kept, told of once, and the log goes on."""
    disk, _ = a_log()
    disk.append(disk.open(the_file(disk), write=True), [b"torn"])
    whole = disk.snapshot()
    ChainedLogs(whole).append(LOG, [record(2)], HOUR)
    steps = len(whole.done)
    for step in range(steps):
        broken = disk.snapshot()
        broken.fail(step, EIO, times=None)
        with pytest.raises((StoreIoError, FileNotFoundError)):
            ChainedLogs(broken).append(LOG, [record(2)], HOUR)
        for fates in ({}, {each.number: each.fates()[-1] for each in broken.unsynced()}):
            left = broken.crash(fates)
            ChainedLogs(left).append(LOG, [record(2)], HOUR)
            told = names(left, LOG)
            assert told[:2] == ["Event0", "Event1"]
            assert told.count("LogTailCut") <= 1
            kept = [name for name in left.names(LOG) if name.endswith(".cut")]
            assert "LogTailCut" in told or not kept


def test_every_power_cut_while_writing_leaves_what_was_acknowledged_in_a_log_that_goes_on() -> None:
    disk, logs = a_log(1)
    states = 0
    for step in range(20):
        world = disk.snapshot()
        acknowledged = 1
        world.fail(step, EIO, times=None)
        writer = ChainedLogs(world)
        try:
            for number, hour in ((1, HOUR), (2, NEXT_HOUR)):
                writer.append(LOG, [record(number), record(100 + number, filler="x" * 6000)], hour)
                acknowledged += 2
        except StoreIoError:
            pass
        for fates in world.choices(random.Random(step), samples=5):
            left = world.crash(fates)
            ChainedLogs(left).append(LOG, [record(9)], NEXT_HOUR)
            told = [each for each in names(left, LOG) if each != "LogTailCut"]
            assert told[:acknowledged] == ["Event0", "Event1", "Event101", "Event2", "Event102"][:acknowledged]
            states += 1
    assert states > 30
    logs.close()


def test_lines_that_could_not_be_synced_nor_cut_off_are_cut_before_the_log_goes_on() -> None:
    disk, logs = a_log(1)
    disk.refuse("sync", ".jsonl", error=EIO)
    disk.refuse("truncate", error=EIO, times=2)
    for _ in range(2):
        with pytest.raises(StoreIoError):
            logs.append(LOG, [record(7)], HOUR)
    logs.append(LOG, [record(1)], HOUR)
    assert names(disk.crash(), LOG) == ["Event0", "Event1"]


@pytest.mark.parametrize("refused", [1, 2])
def test_a_file_whose_name_could_not_be_synced_is_made_anew(refused: int) -> None:
    disk, logs = a_log(1)
    disk.refuse("sync_directory", LOG, error=EIO)
    disk.refuse("unlink", error=EIO, times=2 * (refused - 1))
    for _ in range(refused):
        with pytest.raises(StoreIoError):
            logs.append(LOG, [record(7)], NEXT_HOUR)
    logs.append(LOG, [record(1)], NEXT_HOUR)
    assert names(disk.crash(), LOG) == ["Event0", "Event1"]


def test_a_hole_in_a_write_of_several_pages_takes_no_other_line_with_it() -> None:
    disk, logs = a_log(1)
    disk.refuse("sync", ".jsonl", error=EIO)
    disk.refuse("truncate", error=EIO)
    with pytest.raises(StoreIoError):
        logs.append(LOG, [record(1, filler="x" * 9000), record(2)], HOUR)
    [step] = [each for each in disk.unsynced() if isinstance(each, Write)]
    for fate in step.fates():
        left = disk.crash({step.number: fate})
        ChainedLogs(left).append(LOG, [record(3)], HOUR)
        told = [each for each in names(left, LOG) if each != "LogTailCut"]
        assert told in (["Event0", "Event3"], ["Event0", "Event1", "Event2", "Event3"])


# --- what no crash explains


@pytest.mark.parametrize("change", ["flipped", "dropped", "lost-file", "lost-end"])
def test_a_log_that_no_power_cut_explains_refuses_and_is_left_as_it_is(tmp_path: Path, change: str) -> None:
    log = tmp_path / "acme"
    logs = ChainedLogs(Disk())
    for number in range(6):
        logs.append(str(log), [record(number)], HOUR if number < 3 else NEXT_HOUR)
    first, second = sorted(log.glob("*.jsonl"))
    lines = second.read_bytes().splitlines(keepends=True)
    if change == "flipped":
        second.write_bytes(lines[0].replace(b"Event3", b"Event8") + b"".join(lines[1:]))
    elif change == "dropped":
        second.write_bytes(lines[0] + lines[2])
    elif change == "lost-file":
        first.unlink()
    else:
        first.write_bytes(b"".join(first.read_bytes().splitlines(keepends=True)[:-1]))
    before = {path.name: path.read_bytes() for path in log.iterdir()}
    fresh = ChainedLogs(Disk())
    for _ in range(2):
        with pytest.raises(AuditBrokenError):
            fresh.append(str(log), [record(9)], NEXT_HOUR)
    assert set(fresh.troubles) == {"acme"}
    assert {path.name: path.read_bytes() for path in log.iterdir()} == before


def test_a_log_shorter_than_a_checkpoint_kept_elsewhere_refuses(tmp_path: Path) -> None:
    log = tmp_path / "acme"
    ChainedLogs(Disk()).append(str(log), [record(0), record(1)], HOUR)
    [file] = log.glob("*.jsonl")
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(AuditBrokenError):
        ChainedLogs(Disk(), lambda name: {"acme": 2}[name]).append(str(log), [record(2)], HOUR)
    for path in log.iterdir():
        path.unlink()
    log.rmdir()
    with pytest.raises(AuditBrokenError):
        ChainedLogs(Disk(), lambda name: {"acme": 2}[name]).append(str(log), [record(2)], HOUR)
    assert not log.exists()


# --- sinks that are blocked


def test_a_folder_that_is_deleted_under_a_writer_refuses_until_it_is_back(tmp_path: Path) -> None:
    logs, log = ChainedLogs(Disk()), tmp_path / "acme"
    logs.append(str(log), [record(0)], HOUR)
    assert logs.stands(str(log))
    log.rename(tmp_path / "away")
    assert not logs.stands(str(log))
    for _ in range(2):
        with pytest.raises((AuditBrokenError, StoreIoError)):
            logs.append(str(log), [record(1)], HOUR)
        assert not log.exists()
    (tmp_path / "away").rename(log)
    logs.append(str(log), [record(1)], HOUR)
    assert (read(log), logs.stands(str(log)), logs.troubles) == (["Event0", "Event1"], True, {})


def test_what_stands_in_a_logs_place_is_its_own_trouble_and_not_the_volumes(tmp_path: Path) -> None:
    (tmp_path / "acme").write_bytes(b"")
    failures: list[StoreIoError] = []
    logs = ChainedLogs(WatchedFiles(Disk(), failures.append, lambda: None))
    for _ in range(3):
        with pytest.raises(StoreBlockedError):
            logs.append(str(tmp_path / "acme"), [record(0)], HOUR)
    logs.append(str(tmp_path / "borealis"), [record(0)], HOUR)
    assert (failures, set(logs.troubles)) == ([], {"acme"})


def test_a_full_log_has_all_of_a_group_or_none(tmp_path: Path) -> None:
    disk, logs = a_log(1)
    disk.refuse("append", ".jsonl", error=StoreFullError("full"))
    with pytest.raises(StoreFullError):
        logs.append(LOG, [record(1), record(2)], HOUR)
    logs.append(LOG, [record(3)], HOUR)
    assert names(disk.crash(), LOG) == ["Event0", "Event3"]
    assert tmp_path.exists()
