"""Serve an ASGI application by uvicorn, inside a task of ours: signals, logging and sockets stay with the caller."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import anyio
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http import httptools_impl

from pipeline.errors import HaltError

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_BODY_AHEAD = 512 * 1024
"""Bytes of a body that may be received while those before them are being sealed. uvicorn's own 64 KiB are less than
one read of the socket, so that it paused and went on for each."""
_DRAIN_S = 5
"""How long requests in hand may take to be answered once the server is told to end."""


class _Server(uvicorn.Server):
    """uvicorn, leaving signals to the program and telling when it serves."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen at an address; port 0 takes a free one.

    Raises:
        HaltError: the address can't be used.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise HaltError(f"can't listen at {host}, port {port}: {error.strerror}. Is another server there?") from error
    with listener:
        # Accepted sockets inherit it. asyncio sets it only on sockets made with an explicit protocol number, and
        # without it every answer, sent as head and body, waits 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


def url_of(listener: socket.socket) -> str:
    """Tell the URL of a listener."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    stop: anyio.Event,
    *,
    started: Callable[[], None] = lambda: None,
    connections: int | None = None,
) -> None:
    """Serve until `stop`; then answer what is in hand and return.

    Args:
        app: the application.
        listener: where it is reached.
        stop: set to end.
        started: called when requests are taken.
        connections: how many there may be at a time; others are answered 503.

    """
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    setattr(httptools_impl, "HIGH_WATER_LIMIT", _BODY_AHEAD)  # noqa: B010 - there is no setting for it
    server = _Server(config, started)
    async with anyio.create_task_group() as group:
        group.start_soon(_until, stop, server, name="http stop")
        await server.serve(sockets=[listener])
        group.cancel_scope.cancel()


async def _until(stop: anyio.Event, server: uvicorn.Server) -> None:
    await stop.wait()
    server.should_exit = True
