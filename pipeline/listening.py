"""Serve an ASGI application by uvicorn, inside a task of ours: signals, logging and sockets stay with the caller."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import anyio
import uvicorn
from starlette.types import ASGIApp

from pipeline.errors import HaltError


class Server(uvicorn.Server):
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
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise HaltError(f"can't listen at {host} port {port}; is another service there?") from error
        listener.listen(2048)
        yield listener
    finally:
        listener.close()


async def serve(app: ASGIApp, listener: socket.socket, stop: anyio.Event, started: Callable[[], None]) -> None:
    """Serve until `stop`; then answer what is in hand and return."""
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
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    server = Server(config, started)
    async with anyio.create_task_group() as group:
        group.start_soon(_until, stop, server, name="http stop")
        await server.serve(sockets=[listener])
        group.cancel_scope.cancel()


async def _until(stop: anyio.Event, server: uvicorn.Server) -> None:
    await stop.wait()
    server.should_exit = True
