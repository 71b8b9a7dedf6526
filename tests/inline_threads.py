"""Threads without threads: what the code under test hands to one runs in its place. For tests only.

Others get their turn before and after it, as if it took a while, and it can be cancelled until it begins: but for the
interleaving within a call, all is as with `anyio.to_thread`, in the same order each time, and many times faster.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

_T = TypeVar("_T")


async def _run_sync(
    function: Callable[..., _T],
    *args: Any,
    abandon_on_cancel: bool = False,
    limiter: anyio.CapacityLimiter | None = None,
) -> _T:
    assert not abandon_on_cancel, "a call that is left behind needs a thread"
    await anyio.lowlevel.checkpoint()
    async with limiter or nullcontext():
        result = function(*args)
        await anyio.lowlevel.cancel_shielded_checkpoint()
    return result


@contextmanager
def inline_threads() -> Iterator[None]:
    """Run what `anyio.to_thread.run_sync` is given on the event loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", _run_sync)
        yield
