"""A TCP proxy between the service and a server: slow, closed, or deaf to answers, as a test wants it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketStream

from pipeline.settings import Endpoint

_PIECE = 64 * 1024


@dataclass
class Proxy:
    """What passes, and how."""

    host: str
    port: int
    endpoint: Endpoint
    """The server, seen through the proxy."""
    closed: bool = False
    """Connections are dropped as soon as they are made or used."""
    keeps_answers: bool = False
    """What is asked arrives, what is answered does not."""
    bytes_per_s: float | None = None
    """How fast a connection may ask."""
    answers: list[bytes] = field(default_factory=list)
    """Everything that the server said."""

    async def serve(self, client: SocketStream) -> None:
        with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with client:
                if self.closed:
                    return
                async with await anyio.connect_tcp(self.host, self.port) as server, anyio.create_task_group() as group:
                    group.start_soon(self._pass, client, server, group.cancel_scope)
                    await self._answer(server, client)
                    group.cancel_scope.cancel()

    async def _pass(self, client: SocketStream, server: SocketStream, scope: anyio.CancelScope) -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while not self.closed:
                piece = await client.receive(_PIECE)
                if self.bytes_per_s is not None:
                    await anyio.sleep(len(piece) / self.bytes_per_s)
                await server.send(piece)
        scope.cancel()

    async def _answer(self, server: SocketStream, client: SocketStream) -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                piece = await server.receive(_PIECE)
                self.answers.append(piece)
                if not self.keeps_answers:
                    await client.send(piece)


@contextlib.asynccontextmanager
async def proxied(endpoint: Endpoint) -> AsyncIterator[Proxy]:
    """Stand before a server until the block ends."""
    at = urlsplit(endpoint.url or "")
    assert at.hostname is not None
    assert at.port is not None
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    proxy = Proxy(at.hostname, at.port, replace(endpoint, url=f"http://127.0.0.1:{port}"))
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, proxy.serve)
        try:
            yield proxy
        finally:
            group.cancel_scope.cancel()
