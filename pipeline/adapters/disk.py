"""The disk: `FileSystem` by system calls.

Refuses to follow symbolic links and to reuse a handle whose sync failed. Directories are 0700, files 0600.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pipeline.errors import HaltError, StoreBlockedError, StoreBusyError, StoreFullError, StoreIoError
from pipeline.ports import Buffer

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_BUSY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_BLOCKED = frozenset({errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
_IOV_MAX = 512
_LOCK_PATIENCE_S = 1.75
"""For a lock that others let go after a write and a sync; what needs it is refused before 2 s are over."""
_STORE_PATIENCE_S = 1.0
_LOCK_FIRST_S, _LOCK_MOST_S = 0.0005, 0.02
_TURN_AT = 2**62
"""Between two looks whether a lock is free."""
_LARGE = 512 * 1024
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE (sync_file_range(2))."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


@contextlib.contextmanager
def _translated(action: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(f"no room to {action}; what is held is safe") from error
        if error.errno in _BUSY:
            raise StoreBusyError(f"too much is open to {action} now; ask again in a moment") from error
        kind = StoreBlockedError if error.errno in _BLOCKED else StoreIoError
        raise kind(f"could not {action}: {errno.errorcode.get(error.errno or 0, 'unknown error')}") from error


class Disk:
    """`FileSystem` over the operating system's own files."""

    def create(self, path: str) -> int:
        with _translated("create a file"):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def open(self, path: str, *, write: bool = False) -> int:
        mode = os.O_RDWR | os.O_APPEND if write else os.O_RDONLY
        with _translated("open a file"):
            # Non-blocking: a pipe under a file's name would keep its opener waiting. Plain files don't mind.
            return os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    def append(self, handle: int, buffers: Sequence[Buffer]) -> None:
        with _translated("write"):
            start = os.fstat(handle).st_size
            views = [memoryview(buffer).cast("B") for buffer in buffers]
            try:
                _write_all(handle, list(views))
            except OSError:
                # Half of a record must not stand before the next one.
                os.ftruncate(handle, start)
                raise
            written = sum(len(view) for view in views)
            if written >= _LARGE:
                # Begin to write now what a sync will wait for later. Makes nothing durable, so its outcome is nothing.
                _libc.sync_file_range(handle, start, written, _WRITE)

    def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        with _translated("read"):
            first = os.pread(handle, size_bytes, offset)
            if len(first) == size_bytes or not first:
                return first
            pieces, got = [first], len(first)
            while got < size_bytes and (piece := os.pread(handle, size_bytes - got, offset + got)):
                pieces.append(piece)
                got += len(piece)
            return b"".join(pieces)

    def read_into(self, handle: int, offset: int, buffer: memoryview) -> int:
        with _translated("read"):
            got = 0
            while got < len(buffer) and (more := os.preadv(handle, [buffer[got:]], offset + got)):
                got += more
            return got

    def size(self, handle: int) -> int:
        with _translated("ask for a file's length"):
            return os.fstat(handle).st_size

    def allocate(self, handle: int, size_bytes: int) -> None:
        with _translated("reserve room"):
            os.ftruncate(handle, min(size_bytes, os.fstat(handle).st_size))
            os.posix_fallocate(handle, 0, size_bytes)

    def truncate(self, handle: int, size_bytes: int) -> None:
        with _translated("cut a file"):
            os.ftruncate(handle, size_bytes)

    def sync(self, handle: int) -> None:
        with _translated("sync a file"):
            os.fsync(handle)

    def close(self, handle: int) -> None:
        with contextlib.suppress(OSError):
            os.close(handle)

    def rename(self, source: str, target: str) -> None:
        with _translated("rename a file"):
            os.rename(source, target)

    def unlink(self, path: str) -> None:
        with _translated("remove a file"), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def make_directory(self, path: str) -> None:
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        if parent and not os.path.isdir(parent):
            self.make_directory(parent)
        with _translated("make a directory"), contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        try:
            self.sync_directory(parent or ".")
        except BaseException:
            # It is not durable, and whoever asks again would find it there.
            with contextlib.suppress(OSError):
                os.rmdir(path)
            raise

    def lock(self, handle: int) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        # Whoever waits keeps the next turn: one who lets go and asks again at once can't be before it for ever.
        _patiently(deadline, partial(_turn, handle, fcntl.F_WRLCK))
        try:
            _patiently(deadline, partial(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB))
        finally:
            _turn(handle, fcntl.F_UNLCK)

    def unlock(self, handle: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)

    def is_at(self, handle: int, path: str) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.lstat(path))
        except OSError:
            return False

    def sync_directory(self, path: str) -> None:
        with _translated("sync a directory"):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def sync_volume(self, path: str) -> None:
        with _translated("sync a volume"):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.syncfs(handle) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            finally:
                os.close(handle)

    def names(self, path: str) -> list[str]:
        with _translated("list a directory"), _directory(path) as handle:
            return [] if handle is None else os.listdir(handle)

    def sorted_out(self, path: str) -> tuple[list[str], list[str]]:
        plain: list[str] = []
        others: list[str] = []
        with _translated("list a directory"), _directory(path) as handle:
            if handle is not None:
                with os.scandir(handle) as entries:
                    for entry in entries:
                        (plain if entry.is_file(follow_symlinks=False) else others).append(entry.name)
        return plain, others

    def free_bytes(self, path: str) -> int:
        with _translated("ask for free room"):
            facts = os.statvfs(path)
            return facts.f_bavail * facts.f_frsize

    def free_inodes(self, path: str) -> int | None:
        with _translated("ask for free room"):
            facts = os.statvfs(path)
            # Btrfs and others make inodes as they need them, and count none.
            return facts.f_favail if facts.f_files else None


def _patiently(deadline: float, take: Callable[[], None]) -> None:
    """Take what others have, as soon as they let it go. Raises `StoreBusyError` at the deadline, `StoreIoError`."""
    wait_s = _LOCK_FIRST_S
    while True:
        try:
            take()
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StoreBusyError("another process keeps a file locked; ask again in a moment") from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LOCK_MOST_S)
        except OSError as error:
            raise StoreIoError("could not lock a file") from error
        else:
            return


def _turn(handle: int, wanted: int) -> None:
    """Take, or give back, the turn to lock a file: a lock on one byte far behind its end (fcntl(2), F_OFD_SETLK)."""
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", wanted, os.SEEK_SET, _TURN_AT, 1, 0))
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            raise BlockingIOError(error.errno, "taken") from error
        # A file system without such locks: whoever asks first when it is free gets it.


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int | None]:
    """Open a directory for listing; None if it is not there."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _write_all(handle: int, views: list[memoryview]) -> None:
    while views:
        written = os.writev(handle, views[:_IOV_MAX])
        while views and written >= len(views[0]):
            written -= len(views[0])
            views.pop(0)
        if written:
            views[0] = views[0][written:]


@contextlib.contextmanager
def locked(path: str) -> Iterator[int]:
    """Hold `path` as this process's alone (flock) and write our process id into it.

    Raises:
        HaltError: another process holds it, or it can't be made or opened.

    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "unknown error")
        raise HaltError(f"the state directory can't be written ({reason}); mend its volume and start again") from error
    try:
        _take(handle)
        mark = f"{os.getpid()}\n".encode()
        with contextlib.suppress(OSError):  # on a full disk: the lock holds without it
            os.pwrite(handle, mark, 0)
            os.ftruncate(handle, len(mark))
        yield handle
    finally:
        os.close(handle)


def _take(handle: int) -> None:
    """Lock a file. Whoever only looks (`holder`) has it for a moment, hence the patience."""
    deadline = time.monotonic() + _STORE_PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > deadline:
                message = "another process serves this store; stop it first, or give this one its own"
                raise HaltError(message) from error
            time.sleep(0.02)
        else:
            return


def holder(path: str) -> int | None:
    """Process id that holds `path` by `locked`; None if nobody does."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(handle, 32, 0).strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(handle)
