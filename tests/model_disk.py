"""A disk in memory that knows what a power cut would leave of it. For tests only.

What is written is seen at once by whoever reads, as on any disk; it is durable only by a sync. Whatever was not synced
is a list of steps, and a power cut keeps any of them: a file's bytes without its name and its name without its bytes,
a later write without an earlier one, the first blocks of a write or its last, a length with zeros for its bytes. Two
things are certain: names changed within one directory change together, and what a sync covered is there.

A failed sync leaves what it covered in doubt for ever: later syncs succeed and don't cover it (its pages were marked
clean). All that is held is immutable, so that a copy of the disk costs a copy of two tables. No symbolic links, no
owners, no access rights. A handle that was closed is never given again; its use is a bug, and an `AssertionError`.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import DeferError, StoreFullError, StoreIoError
from pipeline.ports import Buffer
from tests.model_steps import KEPT, LOST, Cut, Directory, Entries, Fate, Fates, File, Standing, Step, Write

WINDOW: Final = 3
"""Latest unsynced steps of which every combination of fates is tried."""
_DIRECTORY: Final = -1
"""Stands in a directory for another one."""
_COLLECTED_EVERY: Final = 4096


@dataclass(slots=True)
class Failure:
    """What the disk refuses: the operation of that number, or any on a path that holds `part`, `times` in all."""

    error: BaseException
    number: int = 0
    """The first that may fail."""
    operation: str | None = None
    part: str = ""
    times: int | None = 1
    """`None`: for ever."""


class ModelDisk:
    """`FileSystem` in memory. `done` has each operation and its path, in order."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.failures: list[Failure] = []
        self.before: Callable[[int, str, str], None] = lambda _number, _operation, _path: None
        """Called before each operation with its number (from 0); may raise."""
        self.capacity_bytes: int | None = None
        self.inodes: int | None = None
        """Files and directories that there may be."""
        self.handles: dict[int, tuple[str, int, bool]] = {}
        """Path, file and whether it may be written, of each open handle."""
        self.locked: set[int] = set()
        self._files: dict[int, File] = {}
        self._directories: dict[str, Directory] = {"": Directory()}
        self._last = 0
        """Numbers handles, files and steps."""
        self._since_collected = 0

    # --- the test's side

    def fail(self, number: int, error: BaseException, *, times: int | None = 1) -> None:
        """Let operation `number` fail, counted from now; with `times=None` all after it, too."""
        self.failures.append(Failure(error, len(self.done) + number, times=times))

    def refuse(self, operation: str, part: str = "", *, error: BaseException, times: int | None = 1) -> None:
        """Let operations of that name fail on paths that hold `part`."""
        self.failures.append(Failure(error, 0, operation, part, times))

    def close_all(self) -> None:
        """Do what the system does with a process that died."""
        self.handles.clear()
        self.locked.clear()

    def snapshot(self) -> "ModelDisk":
        """Give a copy as the next process would find it: nothing open, nothing refused, unsynced steps unsynced."""
        copy = ModelDisk()
        copy.capacity_bytes, copy.inodes = self.capacity_bytes, self.inodes
        copy._files, copy._directories = dict(self._files), dict(self._directories)
        copy._last = self._last
        return copy

    def unsynced(self) -> list[Step]:
        """Every step that a power cut may undo, in the order in which they were done."""
        steps: list[Step] = [step for each in self._directories.values() if each.steps for step in each.steps]
        steps += [step for each in self._files.values() if each.steps for step in each.steps]
        return sorted((step for step in steps if step.standing is not Standing.SURE), key=lambda step: step.number)

    def choices(self, chance: random.Random, samples: int, window: int = WINDOW) -> Iterator[dict[int, Fate]]:
        """Give fates for a power cut now: all of the last `window` steps, those before them kept; then samples.

        And of the steps before those: all lost, each one alone lost, each one alone kept.
        """
        steps = self.unsynced()
        latest, older = steps[-window:], steps[:-window]
        kept = {step.number: KEPT for step in older}
        for fates in itertools.product(*(step.fates() for step in latest)):
            yield kept | {step.number: fate for step, fate in zip(latest, fates, strict=True)}
        if not older:
            return
        yield {}
        for one in older:
            yield {step.number: KEPT for step in steps if step is not one}
            yield {one.number: KEPT}
        for _ in range(samples):
            yield {step.number: step.any_fate(chance) for step in steps}

    def any_choice(self, chance: random.Random) -> dict[int, Fate]:
        """Give fates for a power cut now, by chance."""
        return {step.number: step.any_fate(chance) for step in self.unsynced()}

    def crash(self, fates: Fates | None = None, default: Fate = LOST) -> "ModelDisk":
        """Give the disk after a power cut. Steps without a fate have the default one: all unsynced is lost."""
        chosen = {} if fates is None else fates
        left = ModelDisk()
        left.capacity_bytes, left.inodes, left._last = self.capacity_bytes, self.inodes, self._last
        waiting = [""]
        for path in waiting:
            directory = left._directories[path] = self._directories.get(path, Directory()).settled(chosen, default)
            for name, what in directory.now.items():
                if what == _DIRECTORY:
                    waiting.append(f"{path}/{name}")
                else:
                    left._files[what] = self._files[what].settled(chosen, default)
        return left

    def tree(self) -> dict[str, bytes]:
        """Every file's bytes, as a process sees them."""
        return {
            f"{path}/{name}": self._files[what].now
            for path, directory in self._directories.items()
            for name, what in directory.now.items()
            if what != _DIRECTORY
        }

    def fingerprint(self) -> int:
        """Give a number for what a process sees: equal for equal disks."""
        return hash((frozenset(self.tree().items()), frozenset(self._directories)))

    @property
    def used_bytes(self) -> int:
        """Bytes of all files."""
        return sum(len(data) for data in self.tree().values())

    # --- the port

    def create(self, path: str) -> int:
        self._do("create", path)
        directory, name = _split(path)
        if name in self._names(directory):
            raise FileExistsError(path)
        if self.free_inodes(path) == 0:
            raise StoreFullError("no room to create a file; what is held is safe")
        self._collect()
        file = self._next()
        self._files[file] = File()
        self._change(directory, added=(name, file))
        return self._handle(path, file, is_writable=True)

    def open(self, path: str, *, write: bool = False) -> int:
        self._do("open", path)
        return self._handle(path, self._found(path), is_writable=write)

    def append(self, handle: int, buffers: Sequence[Buffer]) -> None:
        path, number, is_writable = self.handles[handle]
        self._do("append", path)
        data = b"".join(buffers)
        if not is_writable:
            raise StoreIoError("could not write: EBADF")
        self._write(number, data)

    def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        return self._opened("read", handle).now[offset : offset + size_bytes]

    def read_into(self, handle: int, offset: int, buffer: memoryview) -> int:
        data = self._opened("read", handle).now[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    def size(self, handle: int) -> int:
        return len(self._files[self.handles[handle][1]].now)

    def allocate(self, handle: int, size_bytes: int) -> None:
        path, number, _ = self.handles[handle]
        self._do("allocate", path)
        self._cut(number, size_bytes)
        self._write(number, bytes(size_bytes - len(self._files[number].now)))

    def truncate(self, handle: int, size_bytes: int) -> None:
        path, number, is_writable = self.handles[handle]
        self._do("truncate", path)
        if not is_writable:
            raise StoreIoError("could not cut a file: EBADF")
        self._cut(number, size_bytes)

    def sync(self, handle: int) -> None:
        path, number, _ = self.handles[handle]
        try:
            self._do("sync", path)
        except DeferError:
            self._files[number] = self._files[number].doubted()
            raise
        self._files[number] = self._files[number].synced()

    def close(self, handle: int) -> None:
        self.done.append(("close", self.handles.pop(handle)[0]))
        self.locked.discard(handle)

    def rename(self, source: str, target: str) -> None:
        self._do("rename", target)
        (old_directory, old), (new_directory, new) = _split(source), _split(target)
        file = self._found(source)
        self._names(new_directory)
        if source == target:
            return
        if old_directory == new_directory:
            self._change(new_directory, removed=old, added=(new, file))
        else:
            self._change(new_directory, added=(new, file))
            self._change(old_directory, removed=old)

    def unlink(self, path: str) -> None:
        self._do("unlink", path)
        directory, name = _split(path)
        if name in self._directories.get(directory, Directory()).now:
            self._found(path)
            self._change(directory, removed=name)

    def make_directory(self, path: str) -> None:
        if path in self._directories:
            return
        parent, name = _split(path)
        self.make_directory(parent)
        self._do("make_directory", path)
        is_new = name not in self._names(parent)
        if is_new:
            self._directories[path] = Directory()
            self._change(parent, added=(name, _DIRECTORY))
        try:
            self.sync_directory(parent)
        except BaseException:
            if is_new:
                self._change(parent, removed=name)
                del self._directories[path]
            raise

    def lock(self, handle: int) -> None:
        assert handle in self.handles
        assert handle not in self.locked, "a lock that is held is waited for: nobody else is here to let it go"
        self.locked.add(handle)

    def unlock(self, handle: int) -> None:
        self.locked.discard(handle)

    def is_at(self, handle: int, path: str) -> bool:
        directory, name = _split(path)
        return self._directories.get(directory, Directory()).now.get(name) == self.handles[handle][1]

    def sync_directory(self, path: str) -> None:
        self._names(path)
        try:
            self._do("sync_directory", path)
        except DeferError:
            self._directories[path] = self._directories[path].doubted()
            raise
        self._directories[path] = self._directories[path].synced()

    def sync_volume(self, path: str) -> None:
        self._do("sync_volume", path)
        self._files = {number: file.synced() if file.steps else file for number, file in self._files.items()}
        self._directories = {
            each: known.synced() if known.steps else known for each, known in self._directories.items()
        }

    def names(self, path: str) -> list[str]:
        self._do("names", path)
        return list(self._directories.get(path, Directory()).now)

    def sorted_out(self, path: str) -> tuple[list[str], list[str]]:
        self._do("sorted_out", path)
        names = self._directories.get(path, Directory()).now
        others = [name for name, what in names.items() if what == _DIRECTORY]
        return [name for name in names if name not in others], others

    def free_inodes(self, path: str) -> int | None:
        self._names(path.rpartition("/")[0])
        return None if self.inodes is None else max(0, self.inodes - len(self._directories) - len(self.tree()))

    def free_bytes(self, path: str) -> int:
        self._do("free_bytes", path)
        self._names(path)
        return 1 << 40 if self.capacity_bytes is None else max(0, self.capacity_bytes - self.used_bytes)

    # --- inside

    def _do(self, operation: str, path: str) -> None:
        number = len(self.done)
        self.done.append((operation, path))
        self.before(number, operation, path)
        for failure in self.failures:
            is_meant = failure.operation in {None, operation} and failure.part in path and number >= failure.number
            if is_meant and failure.times != 0:
                failure.times = failure.times and failure.times - 1
                raise failure.error

    def _write(self, number: int, data: bytes) -> None:
        if not data:
            return
        if self.capacity_bytes is not None and self.used_bytes + len(data) > self.capacity_bytes:
            raise StoreFullError("no room to write; what is held is safe")
        file = self._files[number]
        step = Write(self._next(), len(file.now), data)
        self._files[number] = File(file.now + data, file.kept, (*file.steps, step))

    def _cut(self, number: int, size_bytes: int) -> None:
        file = self._files[number]
        if size_bytes < len(file.now):
            step = Cut(self._next(), size_bytes)
            self._files[number] = File(file.now[:size_bytes], file.kept, (*file.steps, step))

    def _opened(self, operation: str, handle: int) -> File:
        path, number, _ = self.handles[handle]
        self._do(operation, path)
        return self._files[number]

    def _handle(self, path: str, file: int, *, is_writable: bool) -> int:
        handle = self._next()
        self.handles[handle] = path, file, is_writable
        return handle

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _names(self, directory: str) -> Mapping[str, int]:
        if directory not in self._directories:
            raise FileNotFoundError(directory)
        return self._directories[directory].now

    def _found(self, path: str) -> int:
        directory, name = _split(path)
        names = self._names(directory)
        if name not in names:
            raise FileNotFoundError(path)
        if names[name] == _DIRECTORY:
            raise StoreIoError("could not open a file: EISDIR")
        return names[name]

    def _change(self, directory: str, *, removed: str | None = None, added: tuple[str, int] | None = None) -> None:
        before = self._directories[directory]
        step = Entries(self._next(), removed, added)
        self._directories[directory] = Directory(step.onto(before.now, KEPT), before.kept, (*before.steps, step))

    def _collect(self) -> None:
        """Forget files that nothing can name any more, now and then."""
        self._since_collected += 1
        if self._since_collected < _COLLECTED_EVERY:
            return
        self._since_collected = 0
        named = {number for _, number, _ in self.handles.values()}
        for directory in self._directories.values():
            named |= {*directory.now.values(), *directory.kept.values()}
            named |= {step.added[1] for step in directory.steps if step.added is not None}
        self._files = {number: file for number, file in self._files.items() if number in named}


def _split(path: str) -> tuple[str, str]:
    directory, _, name = path.rpartition("/")
    return directory, name
