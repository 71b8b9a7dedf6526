"""Where torture happens: the service as a process, and the key server and SeaweedFS that outlive it.

Both servers are this process's children, as the service would run them, so that a killed service is back in a second.
"""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import anyio
import pytest

from pipeline.adapters import children
from pipeline.adapters.children import Child
from tests.node import ProcessNode, process_node
from tests.sites import Site, embedded_site

IDLE_S = 2.0
"""After which a body that nobody goes on with is sealed as it is."""
SERVERS_S = 60.0
"""For a server that was killed to be there again."""
Server = Literal["bucket", "keys"]


class TortureError(Exception):
    """A run showed something wrong that no count of its report stands for."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The service and its servers."""

    site: Site
    node: ProcessNode

    def child(self, server: Server) -> Child:
        """Give one of the servers."""
        assert self.site.servers is not None
        return self.site.servers.bucket if server == "bucket" else self.site.servers.keys

    def signal(self, server: Server, number: signal.Signals) -> None:
        """Send a signal to a server, unless it is down just now."""
        pid = self.child(server).pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def servers_up(self) -> None:
        """Wait until both servers are ready. Raises `TimeoutError`."""
        assert self.site.servers is not None
        with anyio.fail_after(SERVERS_S):
            while not self.site.servers.up:  # noqa: ASYNC110 - other processes are watched
                await anyio.sleep(0.05)


@contextlib.asynccontextmanager
async def prepared(folder: Path) -> AsyncIterator[Site]:
    """Run the servers, with limits that suit a run of minutes."""
    with _at_once():
        async with embedded_site(folder) as site:
            idle = timedelta(seconds=IDLE_S)
            store = replace(site.settings.store, media_idle=idle, chat_idle=timedelta(hours=1))
            http = replace(site.settings.http, body_idle=idle)
            site.settings = replace(site.settings, store=store, http=http, drain=timedelta(seconds=2))
            # Nothing is asked of these; a process's settings name them all the same.
            site.settings = replace(site.settings, sqs=site.settings.s3, events=site.settings.s3)
            yield site


@contextlib.asynccontextmanager
async def ground(folder: Path) -> AsyncIterator[Ground]:
    """Run all of it."""
    async with prepared(folder) as site, process_node(site) as node:
        yield Ground(site, node)


@contextlib.contextmanager
def _at_once() -> Iterator[None]:
    """Start a server again soon, however often it was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "RETRY_MOST_S", 0.5)
        yield
