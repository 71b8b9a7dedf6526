"""Serve an ASGI application by uvicorn, inside a task of ours: signals, logging and sockets stay with the caller."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self, cast

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
_READ_BYTES = 256 * 1024
"""Most that one read of a socket takes."""
_DRAIN_S = 5
"""How long requests in hand may take to be answered once the server is told to end."""
_HEAD_S = 10.0
"""How long a request's head may take to arrive."""
_HEAD_BYTES = 64 * 1024
"""Of a request's head, and of whatever else comes between two pieces of a body: trailers, for one."""
_HEAD_FIELDS = 200
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Connection(httptools_impl.HttpToolsProtocol):
    """uvicorn's connection, with bounds that it lacks: on the size of a request's head and on the time it takes."""

    def __init__(self, *, head_s: float, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._head_s = head_s
        self._in_head = True
        self._late: asyncio.TimerHandle | None = None
        self._between = 0
        """Bytes since the last piece of a body, or since a head was complete."""
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes | memoryview) -> None:
        if self._refused:
            return
        if self._in_head:
            self._expect_head()
        self._between += len(data)
        super().data_received(data)  # type: ignore[arg-type]  # its parser takes either
        if self._between > _HEAD_BYTES:
            self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        self._in_head = False
        self._between = 0
        size = sum(len(name) + len(value) for name, value in self.headers) + len(self.url)
        if size > _HEAD_BYTES or len(self.headers) > _HEAD_FIELDS:
            self._refuse()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._between = 0
        if self._refused:
            return
        if not self.cycle.body:
            self.cycle.body = _Pieces()  # type: ignore[assignment]  # does what uvicorn does with its bytearray
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        if not self._refused:
            super().on_message_complete()

    # --- inside

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self._head_s, self._head_is_late)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        self._late = None
        if self._answers():
            self._expect_head()  # the head of a request behind one that is not answered yet
        elif not self.transport.is_closing():
            self.transport.close()

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self) -> None:
        self._refused = True
        if self.transport.is_closing():
            return
        if not self._answers():
            self.transport.write(_TOO_LARGE)
        self.transport.close()


class _Pieces:
    """What came of a body since the application last asked. uvicorn's `bytearray` copies every byte of it twice."""

    __slots__ = ("_pieces", "_size_bytes")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size_bytes = 0

    def __iadd__(self, piece: bytes) -> Self:
        self._pieces.append(piece)
        self._size_bytes += len(piece)
        return self

    def __len__(self) -> int:
        return self._size_bytes

    def __bytes__(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


class _Reader(asyncio.BufferedProtocol):
    """Reads for a connection, into memory that all of one server share.

    One reads at a time, since a server has one loop, and none keeps what it is shown.
    """

    def __init__(self, memory: memoryview, **settings: Any) -> None:
        self._memory = memory
        self._connection = _Connection(**settings)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(cast("asyncio.Transport", transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - it is always the same
        return self._memory

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(self._memory[:nbytes])

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


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
    head_s: float = _HEAD_S,
) -> None:
    """Serve until `stop`; then answer what is in hand and return.

    Args:
        app: the application.
        listener: where it is reached.
        stop: set to end.
        started: called when requests are taken.
        connections: how many there may be at a time; others are answered 503.
        head_s: how long a request's head may take, after which its connection is closed.

    """
    config = uvicorn.Config(
        app,
        loop="none",
        http=partial(  # type: ignore[arg-type]  # anything that makes a protocol
            _Reader, memory=memoryview(bytearray(_READ_BYTES)), head_s=head_s
        ),
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
