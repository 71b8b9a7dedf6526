"""What this process may leave behind: no core dump, and no memory that others of the same user can read.

Also the allocator: without its thresholds set, glibc gives large buffers back to the system and fetches them again,
which costs more than sealing what is in them. And the garbage collector: it
would look at all modules again and again.
"""

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_DUMPABLE = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = 64 * 1024 * 1024
_LARGEST_ON_HEAP = 32 * 1024 * 1024
_ARENAS = 2


_YOUNG, _MIDDLE, _OLD = 20_000, 20, 50
_SWITCH_S = 0.0005
"""How long the event loop may keep the interpreter from the thread that syncs, which asks for it after each call."""


def settle() -> None:
    """Set the interpreter up for serving, at a start's end: garbage collection and the switching of threads."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    sys.setswitchinterval(_SWITCH_S)


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage while a hundred thousand things are made that stay: it would look at all of them, in vain."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def harden() -> None:
    """Forbid core dumps and reading of this process's memory; new files are their owner's alone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
