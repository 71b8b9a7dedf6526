"""The intake behind the real server on loopback, and raw connections to it. For tests only."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from starlette.types import Message, Receive, Scope, Send

from pipeline import listening
from tests.intake_server import TOKENS, Server, serving, world_at
from tests.unit.keyring_fakes import A

CLOSED = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Hostile:
    """The intake behind a real server on loopback, and what reached it."""

    server: Server
    port: int
    requests: list[str] = field(default_factory=list)
    body_bytes: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests.append(f"{scope['method']} {scope['path']}")

        async def counted() -> Message:
            message = await receive()
            self.body_bytes += len(message.get("body", b""))
            return message

        await self.server.app(scope, counted, send)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["Connection"]:
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            yield Connection(stream)

    async def ask(self, head: bytes, *body: bytes) -> Answer | None:
        """Send one request over a connection of its own; None if it gets no answer."""
        async with self.connection() as connection:
            with suppress(*CLOSED):
                for piece in (head, *body):
                    await connection.stream.send(piece)
            return await connection.answer(has_body=not head.startswith(b"HEAD"))

    async def put(self, path: str, body: bytes, **headers: str) -> Answer:
        answer = await self.ask(request("PUT", path, Content_Length=str(len(body)), **headers), body)
        assert answer is not None
        return answer

    async def offset(self, path: str) -> int:
        answer = await self.ask(request("HEAD", path))
        assert answer is not None
        return int(answer.headers["upload-offset"])


@dataclass
class Connection:
    stream: anyio.abc.SocketStream
    left: bytes = b""

    async def answer(self, *, has_body: bool = True) -> Answer | None:
        """Read one answer; None if the server closed instead."""
        try:
            with anyio.fail_after(10):
                head = await self._until(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
                size = int(headers.get("content-length", 0)) if has_body else 0
                while len(self.left) < size:
                    self.left += await self.stream.receive()
        except CLOSED:
            return None
        body, self.left = self.left[:size], self.left[size:]
        return Answer(int(lines[0].split()[1]), headers, body)

    async def is_closed(self) -> bool:
        """Wait for the server to close."""
        with suppress(*CLOSED), anyio.fail_after(10):
            while True:
                await self.stream.receive()
        return True

    async def _until(self, end: bytes) -> bytes:
        while end not in self.left:
            self.left += await self.stream.receive()
        head, _, self.left = self.left.partition(end)
        return head


def request(method: str, path: str | bytes, *lines: bytes, **headers: str) -> bytes:
    target = path.encode() if isinstance(path, str) else path
    given = {"Host": "x", "Authorization": f"Bearer {TOKENS[A]}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    fields = [f"{name}: {value}".encode() for name, value in given.items()]
    return b"\r\n".join([method.encode() + b" " + target + b" HTTP/1.1", *fields, *lines, b"", b""])


@asynccontextmanager
async def hostile(root: Path, *, head_s: float = 30.0, **settings: Any) -> AsyncIterator[Hostile]:
    stop, up = anyio.Event(), anyio.Event()
    with listening.listening("127.0.0.1", 0) as listener:
        async with serving(world_at(root, requests_per_s=10_000, burst=10_000), **settings) as server:
            running = Hostile(server, listener.getsockname()[1])
            async with anyio.create_task_group() as group:
                group.start_soon(
                    lambda: listening.serve(running, listener, stop, started=up.set, head_s=head_s), name="http"
                )
                await up.wait()
                try:
                    yield running
                finally:
                    stop.set()


def held(test: Hostile) -> bool:
    """Tell whether the only open artifact lost its source, and all of it is durable."""
    (reception,) = test.server.process.recorder.receptions()
    return not reception.attached and not reception.writer.is_dirty


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not true():  # noqa: ASYNC110 - the server runs beside it
            await anyio.sleep(0.01)
