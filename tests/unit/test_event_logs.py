"""Event logs that go on in new files, whoever follows them, and what of them is kept."""

from pathlib import Path

import pytest

from pipeline.delivery.eventlogs import EventLogs
from pipeline.delivery.publisher import Publisher
from pipeline.errors import StoreIoError
from pipeline.interim.logs import AppendLogs, Rotation, logs_in
from tests.store_fixture import WatchedDisk, World, node
from tests.unit.test_publisher import BACKOFF, Sink

LONG = 100


def rotating(root: Path, files: WatchedDisk) -> AppendLogs:
    return AppendLogs(files, Rotation(str(root), LONG))


def fill(root: Path, files: WatchedDisk, lines: int, *, first: int = 0) -> None:
    logs = rotating(root, files)
    for number in range(first, first + lines):
        logs.append(f"{root}/a.jsonl", [b"%049d" % number])  # two to a file
    logs.close()


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("*.jsonl"))


def test_a_long_log_goes_on_in_a_new_file_and_loses_no_line(tmp_path: Path) -> None:
    files = WatchedDisk()
    fill(tmp_path, files, 5)
    fill(tmp_path, files, 2, first=5)
    assert names(tmp_path) == ["a.00000001.jsonl", "a.00000002.jsonl", "a.00000003.jsonl", "a.jsonl"]
    lines = [line for name in names(tmp_path) for line in (tmp_path / name).read_bytes().splitlines()]
    assert lines == [b"%049d" % number for number in range(7)]
    assert logs_in(names(tmp_path)) == {"a": [1, 2, 3]}


def test_logs_of_other_folders_and_short_ones_stay_one_file(tmp_path: Path) -> None:
    logs = AppendLogs(WatchedDisk(), Rotation(f"{tmp_path}/events", LONG))
    for _ in range(5):
        logs.append(f"{tmp_path}/audit/a.jsonl", [b"x" * 90])
    logs.append(f"{tmp_path}/events/a.jsonl", [b"x" * 90])
    logs.append(f"{tmp_path}/events/a.jsonl", [b"x" * 90])
    logs.close()
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2


def test_the_number_is_durable_before_the_new_file_is_there(tmp_path: Path) -> None:
    files = WatchedDisk()
    fill(tmp_path, files, 2)
    files.done.clear()
    fill(tmp_path, files, 1, first=2)
    steps = files.operations("rename", "sync_directory", "create", "sync")
    assert steps[-5:] == [
        ("rename", f"{tmp_path}/a.00000001.jsonl"),
        ("sync_directory", str(tmp_path)),
        ("create", f"{tmp_path}/a.jsonl"),
        ("sync_directory", str(tmp_path)),
        ("sync", f"{tmp_path}/a.jsonl"),
    ]


@pytest.mark.parametrize("step", ["rename", "sync_directory", "create"])
def test_a_step_that_fails_acknowledges_nothing_and_loses_nothing(tmp_path: Path, step: str) -> None:
    files = WatchedDisk()
    fill(tmp_path, files, 2)
    logs = rotating(tmp_path, files)
    files.refuse(step, "", times=1) if step != "sync_directory" else None
    if step == "sync_directory":
        logs._handle(f"{tmp_path}/a.jsonl")
        files.refuse(step)
    with pytest.raises(StoreIoError):
        logs.append(f"{tmp_path}/a.jsonl", [b"%049d" % 2])
    logs.append(f"{tmp_path}/a.jsonl", [b"%049d" % 3])
    logs.close()
    lines = [line for name in names(tmp_path) for line in (tmp_path / name).read_bytes().splitlines()]
    assert lines == [b"%049d" % number for number in (0, 1, 3)]


async def test_a_publisher_follows_through_all_files_and_restarts(tmp_path: Path) -> None:
    world, events = World(root=tmp_path), tmp_path / "events"
    sink, sent = Sink(), 0
    async with node(world) as process:
        for turn in range(6):
            fill(events, process.files, 7, first=7 * turn)
            sender = Publisher("sqs", sink, str(events), process.files, process.commits, BACKOFF)
            for _ in range(turn % 3 + 1):
                sent += await sender.once()
        while (more := await sender.once()) > 0:
            sent += more
    assert sink.taken == [b"%049d" % number for number in range(42)]
    assert sent == 42


async def test_a_publisher_goes_on_though_files_were_removed_or_hold_nothing_whole(tmp_path: Path) -> None:
    world, events = World(root=tmp_path), tmp_path / "events"
    sink = Sink()
    async with node(world) as process:
        fill(events, process.files, 9)
        (events / "a.00000001.jsonl").unlink()
        (events / "a.00000003.jsonl").write_bytes(b"a hole\0\n")
        (events / "a.00000004.jsonl").write_bytes(b"")
        sender = Publisher("sqs", sink, str(events), process.files, process.commits, BACKOFF)
        while await sender.once():
            pass
        assert [int(event) for event in sink.taken] == [2, 3, 8]
        for path in events.glob("a.*jsonl"):
            path.unlink()
        fill(events, process.files, 1, first=100)
        while await sender.once():
            pass
    assert int(sink.taken[-1]) == 100


async def test_old_files_leave_when_there_is_too_much_and_every_sink_has_them(tmp_path: Path) -> None:
    world, events = World(root=tmp_path), tmp_path / "events"
    async with node(world) as process:
        fill(events, process.files, 9)  # four earlier files of 100 bytes
        quick, slow = (
            Publisher(name, Sink(), str(events), process.files, process.commits, BACKOFF) for name in ("quick", "slow")
        )
        while await quick.once():
            pass
        both = EventLogs(str(events), process.files, [quick, slow], kept_bytes=200)
        assert both.once() == 0
        await slow.once()  # the first file
        await slow.once()
        assert both.once() == 1
        while await slow.once():
            pass
        assert both.once() == 1
        assert both.once() == 0
        assert names(events) == ["a.00000003.jsonl", "a.00000004.jsonl", "a.jsonl"]


async def test_without_a_sink_size_alone_decides_and_the_newest_number_stays(tmp_path: Path) -> None:
    world, events = World(root=tmp_path), tmp_path / "events"
    async with node(world) as process:
        fill(events, process.files, 9)
        assert EventLogs(str(events), process.files, [], kept_bytes=0).once() == 3
        fill(events, process.files, 2, first=9)
        assert names(events) == ["a.00000004.jsonl", "a.00000005.jsonl", "a.jsonl"]
