"""The HTTP intake without a server: requests by hand, answers as they were sent. For tests only."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from starlette.types import Message

from pipeline.health import Line, Mark, Report
from pipeline.instances import Limits
from pipeline.intake.access import RateLimit
from pipeline.intake.http import HttpIntake
from pipeline.intake.recordevents import RecordEvents
from pipeline.intake.records import RecordRoutes
from pipeline.intake.subjects import SubjectRoutes
from pipeline.intake.unrepeated import Unrepeated
from pipeline.records.merging import Merging
from pipeline.settings import HttpSettings
from tests import markers
from tests.records_fixture import Records, records_over
from tests.store_fixture import MARKER, Node, World, instance, node
from tests.unit.keyring_fakes import A, B

TOKENS = {A: "token-of-a", B: "token-of-b"}
CANARY = markers.REJECTED
"""Stands in everything that a caller may get wrong; no answer may repeat it."""
BODY = MARKER * 100


@dataclass
class Server:
    """Calls the application as a server would, without one."""

    process: Node
    app: HttpIntake
    ready: list[bool]
    records: Records

    async def ask(
        self,
        method: str,
        path: str,
        *body: bytes,
        headers: dict[str, str] | None = None,
        token: str | None = TOKENS[A],
        broken: bool = False,
    ) -> "Reply":
        messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in body]
        if broken:
            messages.append({"type": "http.disconnect"})
        else:
            messages.append({"type": "http.request", "body": b"", "more_body": False})
        reply = Reply()
        await self.app(self.scope(method, path, headers or {}, token), coming(messages), reply.take)
        return reply

    def scope(self, method: str, path: str, headers: dict[str, str], token: str | None) -> dict[str, Any]:
        given = dict(headers)
        if token is not None:
            given.setdefault("Authorization", f"Bearer {token}")
        return {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "raw_path": path.partition("?")[0].encode(),
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
        }


@dataclass
class Reply:
    """What came back."""

    messages: list[Message] = field(default_factory=list)

    async def take(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def coming(messages: list[Message], ended: anyio.Event | None = None) -> Callable[[], Awaitable[Message]]:
    """Give `receive` of a connection that sends these, and then nothing more; `ended` is set when it is asked for."""
    left = list(messages)

    async def receive() -> Message:
        await anyio.lowlevel.checkpoint()
        if not left:
            if ended is not None:
                ended.set()
            await anyio.sleep_forever()
        return left.pop(0)

    return receive


def url(kind: str = "voice", name: str = "", contact: str = "contact-1", instance_id: object = A) -> str:
    return f"/v1/instances/{instance_id}/contacts/{contact}/{kind}{name}"


def world_at(root: Path, **limits: Any) -> World:
    return World(
        root=root,
        instances={
            each: instance(each, limits=Limits(**limits), token_sha256=(sha256(token.encode()).hexdigest(),))
            for each, token in TOKENS.items()
        },
    )


@asynccontextmanager
async def serving(world: World, **settings: Any) -> AsyncIterator[Server]:
    async with node(world) as process, records_over(process) as records:
        ready = [True]
        process.events._records = RecordEvents(
            records.shelves, records.store, Merging(records.engine, world.clock), records.speakers
        )
        app = HttpIntake(
            unrepeated=Unrepeated(),
            settings=HttpSettings(**settings),
            tenants=process.tenants,
            recorder=process.recorder,
            events=process.events,
            records=RecordRoutes(HttpSettings(**settings), records.shelves, records.store, records.search),
            subjects=SubjectRoutes(HttpSettings(**settings), records.subjects, lambda: ["backup-1"]),
            limits=RateLimit(world.clock),
            clock=world.clock,
            is_ready=lambda: ready[0],
            report=lambda: Report(
                oldest_undelivered_s=None,
                lines=(Line("service", Mark.OK if ready[0] and not app.stopping else Mark.FAILS, "told"),),
                numbers={},
            ),
        )
        yield Server(process, app, ready, records)


def is_problem(reply: Reply, status: int, reason: str, problem_field: str | None = None) -> bool:
    """Check the whole shape of a problem document (RFC 9457), and that it repeats nothing."""
    assert reply.status == status, (reply.status, reply.body)
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["connection"] == "close"
    document = reply.json
    assert document["status"] == status
    assert set(document) - {"field"} == {"type", "title", "status", "reason", "detail"}
    assert document["detail"]
    assert document.get("field") == problem_field
    assert CANARY not in reply.body.decode() + str(reply.headers)
    assert document["reason"] == reason
    return True
