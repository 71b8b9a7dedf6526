"""A strict HTTP intake of one recording and of events, on loopback: it fails as it is told. For tests only."""

import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "rp_token"
_RANGE = re.compile(r"bytes (\d+)-(\d*)/\*")


@dataclass
class Request:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class FakeIntake:
    """Holds what it acknowledged. `answers` are given first, one for each request, whatever was asked."""

    answers: list["Break | web.Response"] = field(default_factory=list)
    held: bytes | None = None
    """Of an unfinished upload."""
    taken: bytes | None = None
    requests: list[Request] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    most_events: int = 1000
    url: str = ""
    told_sha256: str | None = None
    """Answered instead of the truth."""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(Request(request.method, request.raw_path, dict(request.headers)))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return problem(401, "Give the instance's token.")
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Break):
                return await self._break(request, answer)
            await request.read()
            return answer
        if request.path == "/v1/events":
            return await self._events(request)
        return self._head() if request.method == "HEAD" else await self._put(request)

    async def _break(self, request: web.Request, after: "Break") -> web.StreamResponse:
        if after.held > 0:
            at = self._start(request)
            self.held = (self.held or b"")[:at] + await request.content.readexactly(after.held)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _head(self) -> web.Response:
        if self.held is None:
            return web.Response(status=404)
        return web.Response(headers={"Upload-Offset": str(len(self.held))})

    def _start(self, request: web.Request) -> int:
        given = request.headers.get("Content-Range")
        if given is None:
            self.held = b""
            return 0
        match = _RANGE.fullmatch(given)
        assert match is not None, "a Content-Range that can't be read"
        return int(match[1])

    async def _put(self, request: web.Request) -> web.Response:
        at = self._start(request)
        if at != len(self.held or b""):
            return problem(409, "It goes on elsewhere.", headers={"Upload-Offset": str(len(self.held or b""))})
        whole = (self.held or b"")[:at] + await request.read()
        sha256 = hashlib.sha256(whole).hexdigest()
        if request.headers.get("X-Recording-Sha256", sha256) != sha256:
            return problem(400, "Other bytes.", "X-Recording-Sha256")
        self.taken, self.held = whole, None
        return taken(whole, self.told_sha256 or sha256)

    async def _events(self, request: web.Request) -> web.Response:
        events = json.loads(await request.read())
        if len(events) > self.most_events:
            return problem(413, "Too many.")
        for index, event in enumerate(events):
            if "refuse" in event:
                return problem(400, "must be a text", f"[{index}].{event['refuse']}")
            if "hide" in event:
                return problem(400, "something is wrong")
        self.events += events
        return web.json_response({"accepted": len(events)}, status=202)


@dataclass
class Break:
    """Hold so many more bytes of the body, then break the connection."""

    held: int = 0


def taken(whole: bytes, sha256: str) -> web.Response:
    answer = {"recordingId": "r", "artifactId": "a", "generation": 1, "sizeBytes": len(whole), "sha256": sha256}
    return web.json_response(answer, status=201)


def problem(status: int, detail: str, at: str | None = None, headers: dict[str, str] | None = None) -> web.Response:
    document = {"title": "t", "status": status, "detail": detail, **({"field": at} if at else {})}
    return web.json_response(document, status=status, headers=headers, content_type="application/problem+json")


@contextlib.asynccontextmanager
async def running_intake(*answers: Break | web.Response) -> AsyncIterator[FakeIntake]:
    """Serve until the block ends."""
    fake = FakeIntake(list(answers))
    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", fake.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()
