from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from pipeline.delivery.lanes import Backoff
from pipeline.delivery.publisher import Publisher
from pipeline.errors import DeferError, StoreIoError
from pipeline.interim.commit import Commit
from pipeline.interim.logs import LogLine
from tests.store_fixture import Node, World, node

BACKOFF = Backoff(timedelta(seconds=0.001), timedelta(seconds=0.001), lambda: 1.0)


@dataclass
class Sink:
    """Takes events, unless they hold what it refuses."""

    taken: list[bytes] = field(default_factory=list)
    refuses: bytes | None = None
    refused: anyio.Event = field(default_factory=anyio.Event)
    took: anyio.Event = field(default_factory=anyio.Event)

    async def send(self, events: Sequence[bytes]) -> None:
        if self.refuses is not None and any(self.refuses in event for event in events):
            self.refused.set()
            raise DeferError("not now")
        self.taken += events
        self.took.set()


def publisher(process: Node, sink: Sink, name: str = "sqs") -> Publisher:
    return Publisher(name, sink, f"{process.world.root}/events", process.files, process.commits, BACKOFF)


async def tell(process: Node, *lines: str, log: str = "a") -> None:
    path = f"{process.world.root}/events/{log}.jsonl"
    await process.commits.commit(Commit(lines=tuple(LogLine(path, line.encode()) for line in lines)))


async def test_every_event_goes_out_once_and_in_order(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        sink = Sink()
        sender = publisher(process, sink)
        assert await sender.once() == 0
        await tell(process, "1", "2")
        assert await sender.once() == 2
        assert await sender.once() == 0
        await tell(process, *(str(number) for number in range(3, 250)))
        while await sender.once():
            pass
        assert sink.taken == [str(number).encode() for number in range(1, 250)]


async def test_a_restart_goes_on_behind_what_was_sent_and_sinks_have_cursors_of_their_own(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    sink, other = Sink(), Sink()
    async with node(world) as process:
        await tell(process, "1", "2")
        await publisher(process, sink).once()
    async with node(world) as process:
        await tell(process, "3")
        await publisher(process, sink).once()
        await publisher(process, other, "bus").once()
    assert sink.taken == [b"1", b"2", b"3"]
    assert other.taken == [b"1", b"2", b"3"]


async def test_what_a_sink_does_not_take_is_sent_again_and_does_not_stop_other_instances(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        sink = Sink(refuses=b"a-2")
        sender = publisher(process, sink)
        await tell(process, "a-1", "a-2", log="a")
        await tell(process, "b-1", log="b")
        for _ in range(2):
            with pytest.raises(DeferError):
                await sender.once()
        assert sink.taken == [b"b-1"]
        sink.refuses = None
        assert await sender.once() == 2
        assert sink.taken == [b"b-1", b"a-1", b"a-2"]


async def test_a_cursor_that_was_not_durable_means_sending_again(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        sink = Sink()
        sender = publisher(process, sink)
        await tell(process, "1")
        process.files.refuse("sync", ".cursor")
        with pytest.raises(StoreIoError):
            await sender.once()
        assert await sender.once() == 1
        assert sink.taken == [b"1", b"1"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"offset":1000000}'])
async def test_a_damaged_cursor_means_sending_all_again(tmp_path: Path, damage: bytes) -> None:
    world = World(root=tmp_path)
    async with node(world) as process:
        await tell(process, "1")
        await publisher(process, Sink()).once()
    next(tmp_path.rglob("*.cursor")).write_bytes(damage)
    async with node(world) as process:
        sink = Sink()
        sender = publisher(process, sink)
        await sender.once()
        await tell(process, "2")
        await sender.once()
        assert sink.taken == [b"1", b"2"]


async def test_a_torn_line_is_not_sent(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        await tell(process, "1")
        log = tmp_path / "events" / "b.jsonl"
        log.write_bytes(b"whole\ntorn")
        sink = Sink()
        sender = publisher(process, sink)
        await sender.once()
        await tell(process, "2", log="b")
        await sender.once()
        assert sink.taken == [b"1", b"whole", b"2"]


async def test_lines_whose_sync_fails_are_not_sent_and_those_that_follow_are(tmp_path: Path) -> None:
    """They can be read for a moment; then they are cut off, and others stand in their place."""
    async with node(World(root=tmp_path)) as process:
        await tell(process, "1")
        sink = Sink()
        sender = publisher(process, sink)
        await sender.once()
        log = tmp_path / "events" / "a.jsonl"
        durable = log.read_bytes()
        log.write_bytes(durable + b"lost\n")
        looks = 0

        def cut_before_the_second_look(_number: int, operation: str, path: str) -> None:
            nonlocal looks
            if (operation, path) == ("read", str(log)):
                looks += 1
                if looks == 2:
                    log.write_bytes(durable)

        process.files.before = cut_before_the_second_look
        assert await sender.once() == 0
        assert looks == 2
        await tell(process, "2")
        await sender.once()
        assert sink.taken == [b"1", b"2"]


async def test_a_sink_that_comes_back_is_noticed(tmp_path: Path) -> None:
    async with node(World(root=tmp_path)) as process:
        sink = Sink(refuses=b"1")
        await tell(process, "1")
        async with anyio.create_task_group() as group:
            group.start_soon(publisher(process, sink).run)
            with anyio.fail_after(5):
                await sink.refused.wait()
                sink.refuses = None
                await sink.took.wait()
            group.cancel_scope.cancel()
        assert sink.taken == [b"1"]
