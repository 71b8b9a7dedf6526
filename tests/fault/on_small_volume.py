"""What one process does on a volume that really fills up, told as JSON. Run by `test_f09_f10_full_disk`.

A volume of a few MiB is mounted in a user namespace of this process's own; it goes when the process ends.
"""

import contextlib
import errno
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from pipeline.adapters.disk import locked
from pipeline.errors import HaltError, StoreFullError
from pipeline.ids import RecordingId
from pipeline.interim.states import State
from tests.receipts import receipt_of
from tests.store_fixture import Node, World, node, source

MIB = 2**20
BODY = b"body" * 4096


def fill(path: Path) -> None:
    """Take every byte that is left, as another program's log would."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (64 * 1024, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def make_files(folder: Path) -> int:
    """Make files until there is no inode for another; give their number."""
    folder.mkdir()
    number = 0
    try:
        while True:
            (folder / str(number)).touch()
            number += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - this is no test, but what one runs
    return number


async def upload_until_refused(process: Node, begin: int = 0) -> int:
    """Give the number of recordings that were taken."""
    number = begin
    while True:
        try:
            await process.upload(source(f"call-{number}"), BODY)
        except StoreFullError:
            return number - begin
        number += 1


async def deliver_all(process: Node) -> int:
    """Settle all that is sealed, each with its receipt, event and audit record; give their number."""
    waiting = [name for name in process.store.index if name.is_waiting]
    for name in waiting:
        assert await process.media(name) == BODY
        line = process.trail.moved(name, RecordingId(name.artifact_id), "ArtifactDelivered")
        await process.store.settle(name, receipt_of(name), (line,), ())
    return len(waiting)


@contextlib.asynccontextmanager
async def started(world: World) -> AsyncIterator[Node]:
    async with node(world) as process:
        process.store.room.tend()
        yield process


async def bytes_run_out(root: Path) -> dict[str, object]:
    """Fill the volume by intake, then by another writer; deliver all; let the other go; take more."""
    told: dict[str, object] = {}
    world = World(root=root, free_bytes=2 * MIB)
    async with started(world) as process:
        told["ballast"] = (root / "ballast").stat().st_blocks * 512
        told["taken"] = taken = await upload_until_refused(process)
        fill(root / "others.log")
        told["free"] = process.files.free_bytes(str(root))
    async with started(world) as process:  # a start on a full disk
        told["refused"] = await upload_until_refused(process, taken) == 0
        told["delivered"] = await deliver_all(process)
        told["receipts"] = process.store.index.count(State.DELIVERED)
        told["given up"] = process.volume.ballast.missing_bytes
        (root / "others.log").unlink()
        process.store.room.tend()
        told["ballast again"] = (root / "ballast").stat().st_blocks * 512
        told["taken again"] = await upload_until_refused(process, taken) > 0
    return told


async def inodes_run_out(root: Path) -> dict[str, object]:
    """Let intake take all inodes that it may, then another writer most of the rest; deliver all; go on."""
    told: dict[str, object] = {}
    world = World(root=root, free_bytes=2 * MIB)
    async with started(world) as process:
        told["taken"] = taken = await upload_until_refused(process)
        told["free inodes"] = os.statvfs(root).f_favail
        told["delivered"] = await deliver_all(process)
        make_files(root / "others")
        told["refused"] = await upload_until_refused(process, taken) == 0
        for path in (root / "others").iterdir():
            path.unlink()
        told["taken again"] = await upload_until_refused(process, taken) > 0
    return told


async def turned_read_only(root: Path) -> dict[str, object]:
    """Begin a store, let its volume become read-only, and start again."""
    world, told = World(root=root), dict[str, object]()
    async with started(world) as process:
        await process.upload(source("call"), BODY)
    await anyio.run_process(["mount", "-o", "remount,ro", str(root.parent)])
    try:
        with locked(f"{root}/lock"):
            told["lock"] = "taken"
    except HaltError as error:
        told["lock"] = str(error)
    return told


SCENARIOS = {"bytes": bytes_run_out, "inodes": inodes_run_out, "read-only": turned_read_only}

if __name__ == "__main__":
    scenario = SCENARIOS[sys.argv[1]]
    json.dump(anyio.run(scenario, Path(sys.argv[2])), sys.stdout)
