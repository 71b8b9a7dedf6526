"""The servers around a service: those of others, or the embedded ones, which run as its children.

Part of the composition root.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import anyio
import structlog

from pipeline import embedded
from pipeline.provision import demo_token_file, provision_demo, provision_service_key
from pipeline.settings import Settings

log = structlog.get_logger()

ServersUp = Callable[[], bool]
"""Tell whether the embedded servers are there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a service runs against: the servers of others, or those that it runs itself."""

    settings: Settings
    prepare: Callable[[], Awaitable[None]]
    """Wait until they are there."""
    are_up: ServersUp | None = None


@asynccontextmanager
async def surroundings(settings: Settings) -> AsyncIterator[Surroundings]:
    """Run the embedded servers while the block lasts, if they are configured."""
    if not settings.embedded:
        yield Surroundings(settings=settings, prepare=_nothing)
        return
    with embedded.opened(settings) as known:
        for concern in embedded.concerns(known):
            log.warning("embedded.concern", detail=concern)
        servers = embedded.Servers(known)
        ended = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(servers.run, ended, name="embedded servers")
            try:
                yield Surroundings(
                    settings=known.settings(settings),
                    prepare=partial(_provision, known, servers, settings),
                    are_up=lambda: servers.up,
                )
            finally:
                ended.set()


async def _nothing() -> None:
    """Prepare nothing: the servers are others'."""


async def _provision(known: embedded.Embedded, servers: embedded.Servers, settings: Settings) -> None:
    """Wait for the embedded servers; on the first start make the demo instance."""
    await servers.ready.wait()
    await provision_service_key(known, settings.config_dir)
    instance, token = await provision_demo(known, settings.config_dir)
    if token is not None:
        log.info(
            "embedded.demo_instance",
            instance=str(instance.instance_id),
            token_file=str(demo_token_file(known)),
        )
