"""Bodies over real sockets: every byte once and in order, however it is cut, and none of another connection."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from anyio.abc import SocketStream
from starlette.types import Receive, Scope, Send

from pipeline import listening

MIB = 1024 * 1024


@dataclass
class Taker:
    """An application that takes bodies, once it may, and answers each."""

    port: int
    may: anyio.Event = field(default_factory=anyio.Event)
    bodies: dict[str, list[bytes]] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = self.bodies.setdefault(scope["path"], [])
        await self.may.wait()
        more = True
        while more:
            message = await receive()
            pieces.append(message["body"])
            more = message["more_body"]
            await anyio.lowlevel.checkpoint()
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def body(self, path: str) -> bytes:
        return b"".join(self.bodies[path])


@asynccontextmanager
async def taking() -> AsyncIterator[Taker]:
    stop, up = anyio.Event(), anyio.Event()
    with listening.listening("127.0.0.1", 0) as listener:
        taker = Taker(listener.getsockname()[1])
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: listening.serve(taker, listener, stop, started=up.set), name="http")
            await up.wait()
            try:
                with anyio.fail_after(30):
                    yield taker
            finally:
                stop.set()


async def send_body(stream: SocketStream, path: str, body: bytes, *, piece: int, chunked: bool) -> None:
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    await stream.send(b"PUT " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
    for at in range(0, len(body), piece):
        part = body[at : at + piece]
        await stream.send(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        await anyio.lowlevel.checkpoint()
    if chunked:
        await stream.send(b"0\r\n\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += await stream.receive()
    assert answer.startswith(b"HTTP/1.1 201")


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_sent_side_by_side_arrive_each_as_it_was_sent(chunked: bool) -> None:
    sent = {piece: os.urandom(MIB + piece) for piece in (700, 65_536, MIB)}
    async with taking() as taker, anyio.create_task_group() as group:
        taker.may.set()

        async def work(piece: int) -> None:
            async with await anyio.connect_tcp("127.0.0.1", taker.port) as stream:
                await send_body(stream, f"/{piece}", sent[piece], piece=piece, chunked=chunked)

        for piece in sent:
            group.start_soon(work, piece, name=f"pieces of {piece}")
    assert {piece: taker.body(f"/{piece}") for piece in sent} == sent


async def test_what_comes_while_nobody_asks_is_kept_in_order_and_no_more_of_it_than_a_little() -> None:
    body = os.urandom(12 * MIB)
    async with (
        taking() as taker,
        await anyio.connect_tcp("127.0.0.1", taker.port) as stream,
        anyio.create_task_group() as group,
    ):
        group.start_soon(lambda: send_body(stream, "/late", body, piece=MIB, chunked=False), name="sender")
        while "/late" not in taker.bodies:
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        taker.may.set()
    assert taker.body("/late") == body
    assert max(map(len, taker.bodies["/late"])) <= MIB
