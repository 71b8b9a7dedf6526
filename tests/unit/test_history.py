"""What is already held of a source, while it moves on."""

import threading
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from pipeline.intake.reception import Answer
from tests.store_fixture import WatchedDisk, World, node, source

BODY = b"RIFF\0\0\0\0WAVEfmt " + bytes(1000)


class HesitantDisk(WatchedDisk):
    """Stays for a while where the media of a recording is gone and nobody was told."""

    def __init__(self) -> None:
        super().__init__()
        self.unlinked, self.go_on = threading.Event(), threading.Event()

    def unlink(self, path: str) -> None:
        super().unlink(path)
        if path.endswith(".sealed"):
            self.unlinked.set()
            self.go_on.wait(10)


async def test_a_repeat_is_known_while_its_original_is_being_delivered(tmp_path: Path) -> None:
    """The media has just gone, the index still names it: the receipt is read instead, and nothing is refused."""
    files, answers = HesitantDisk(), list[Answer]()
    async with node(World(root=tmp_path), files=files) as running:
        first = await running.upload(source(), BODY)

        async def again() -> None:
            answers.append(await running.upload(source(), BODY))

        async with anyio.create_task_group() as group:
            group.start_soon(running.store.settle, running.sealed[0], msgspec.json.encode(first), (), ())
            await anyio.to_thread.run_sync(files.unlinked.wait)
            group.start_soon(again)
            await anyio.sleep(0.05)
            assert answers == []
            files.go_on.set()
        assert answers == [first]
