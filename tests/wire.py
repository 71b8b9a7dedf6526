"""A server that answers S3 requests as it is told, to the byte."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import SocketStream

from pipeline.settings import Credentials, Endpoint

HANG = b"hang"
"""An answer that never comes."""
RESET = b""
"""The connection is closed instead of an answer."""


@dataclass
class Wire:
    """What came in, and what goes out."""

    port: int = 0
    answer: bytes | Callable[[str], bytes] = RESET
    read_body: bool = True
    requests: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def endpoint(self) -> Endpoint:
        url = f"http://127.0.0.1:{self.port}"
        return Endpoint(region="us-east-1", url=url, credentials=Credentials("key", "secret"))

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while await self._one(stream):
                    pass

    async def _one(self, stream: SocketStream) -> bool:
        head, _, body = (await _until(stream, b"\r\n\r\n")).partition(b"\r\n\r\n")
        request, *headers = head.decode().split("\r\n")
        length = next((int(line.split(":")[1]) for line in headers if line.lower().startswith("content-length:")), 0)
        self.requests.append(request)
        if self.read_body:
            while len(body) < length:
                body += await stream.receive()
            self.bodies.append(body)
        answer = self.answer(request) if callable(self.answer) else self.answer
        if answer == HANG:
            await anyio.sleep_forever()
        if answer == RESET:
            return False
        await stream.send(answer)
        return True


async def _until(stream: SocketStream, end: bytes) -> bytes:
    data = b""
    while end not in data:
        data += await stream.receive()
    return data


@contextlib.asynccontextmanager
async def wire(answer: bytes | Callable[[str], bytes] = RESET) -> AsyncIterator[Wire]:
    """Listen on a free loopback port."""
    told = Wire(answer=answer)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    told.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, told.serve)
        try:
            yield told
        finally:
            tg.cancel_scope.cancel()


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Write an answer; underscores of header names become hyphens."""
    lines = [f"HTTP/1.1 {status} Any", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def s3_error(status: int, code: str, **more: str) -> bytes:
    fields = "".join(f"<{name}>{value}</{name}>" for name, value in more.items())
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>{fields}</Error>"
    return http(status, body.encode(), Content_Type="application/xml")
