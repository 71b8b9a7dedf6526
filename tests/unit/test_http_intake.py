import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from starlette.types import Message

from pipeline.errors import HoldCode, KeyUnavailableError, StoreFullError, StoreIoError
from pipeline.instances import Limits
from pipeline.intake.access import RateLimit
from pipeline.intake.http import HttpIntake
from pipeline.interim.states import State
from pipeline.settings import HttpSettings
from tests.store_fixture import MARKER, Node, World, instance, node, settled
from tests.unit.keyring_fakes import ARN, A, B

TOKENS = {A: "token-of-a", B: "token-of-b"}
CANARY = "canary-4930123456789"
"""Stands in everything that a caller may get wrong; no answer may repeat it."""
BODY = MARKER * 100


@dataclass
class Server:
    """Calls the application as a server would, without one."""

    process: Node
    app: HttpIntake
    ready: list[bool]

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
        await self.app(self.scope(method, path, headers or {}, token), _from(messages), reply.take)
        return reply

    def scope(self, method: str, path: str, headers: dict[str, str], token: str | None) -> dict[str, Any]:
        given = dict(headers)
        if token is not None:
            given.setdefault("Authorization", f"Bearer {token}")
        return {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
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


def _from(messages: list[Message]) -> Any:
    waiting = list(messages)

    async def receive() -> Message:
        await anyio.sleep(0)
        if not waiting:
            await anyio.sleep_forever()
        return waiting.pop(0)

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
    async with node(world) as process:
        ready = [True]
        app = HttpIntake(
            settings=HttpSettings(**settings),
            tenants=process.tenants,
            recorder=process.recorder,
            events=process.events,
            limits=RateLimit(world.clock),
            clock=world.clock,
            is_ready=lambda: ready[0],
        )
        yield Server(process, app, ready)


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


# --- recordings


async def test_a_body_is_answered_when_it_is_sealed(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        for _ in range(2):
            reply = await server.ask("PUT", url(), BODY[:100], BODY[100:])
            assert reply.status == 201
            assert reply.headers["content-type"] == "application/json"
            assert reply.json == {
                "recordingId": str(server.process.sealed[0].artifact_id),
                "artifactId": str(server.process.sealed[0].artifact_id),
                "generation": 1,
                "sizeBytes": len(BODY),
                "sha256": sha256(BODY).hexdigest(),
            }
        assert (await server.ask("PUT", url(), b"other")).json["generation"] == 2
        assert await server.process.media(server.process.sealed[0]) == BODY
    assert world.holds(MARKER) == []


async def test_two_legs_of_a_contact_have_two_names_and_a_key_outranks_the_path(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for path in (url(), url(name=".wav"), url(name="/leg-1"), url(name="/leg-2.wav"), url("screen"), url("chat")):
            assert (await server.ask("PUT", path, BODY)).json["generation"] == 1
        key = {"Idempotency-Key": "the source"}
        assert (await server.ask("PUT", url(name="/leg-3"), b"1", headers=key)).json["generation"] == 1
        assert (await server.ask("PUT", url(name="/leg-4"), b"2", headers=key)).json["generation"] == 2


async def test_what_its_source_says_of_a_recording_is_kept_sealed(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    headers = {
        "X-Recording-Start": "2026-11-23T14:05:12Z",
        "X-Recording-End": "1795443660.5",
        "X-Recording-Completion-Cause": CANARY,
        "X-Recording-Sha256": sha256(BODY).hexdigest().upper(),
        "Content-Type": "audio/wav",
    }
    async with serving(world) as server:
        assert (await server.ask("PUT", url(), BODY, headers=headers)).status == 201
        name = server.process.sealed[0]
        key = await server.process.a.ring.opening(name.key_id)
        with server.process.store.reading(name, key) as reader:
            assert reader.head().metadata["x-recording-completion-cause"] == CANARY
            manifest = reader.manifest()
        assert manifest.started is not None
        assert manifest.ended is not None
        assert (manifest.ended - manifest.started).total_seconds() == 1795443660.5 - 1795442712
    assert world.holds(CANARY.encode()) == []


async def test_a_body_that_breaks_off_gets_no_answer_and_goes_on_where_head_says(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        assert (await server.ask("HEAD", url())).status == 404
        reply = await server.ask("PUT", url(), BODY[:100], broken=True, headers={"Content-Length": str(len(BODY))})
        assert reply.messages == []
        head = await server.ask("HEAD", url())
        assert (head.status, head.headers["upload-offset"], head.headers["cache-control"]) == (200, "100", "no-store")
        assert head.body == b""
        for wrong in ("bytes 99-199/*", "bytes 101-199/*", "bytes 0-99/*"):
            reply = await server.ask("PUT", url(), b"x", headers={"Content-Range": wrong})
            assert is_problem(reply, 409, "wrong-offset", "Content-Range")
            assert reply.headers["upload-offset"] == "100"
        reply = await server.ask("PUT", url(), BODY[100:], headers={"Content-Range": f"bytes 100-{len(BODY) - 1}/*"})
        assert reply.status == 201
        assert reply.json["sha256"] == sha256(BODY).hexdigest()
        assert (await server.ask("HEAD", url())).status == 404
    assert world.holds(MARKER) == []


async def test_a_resumed_body_of_which_nothing_is_held_begins_anew(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        reply = await server.ask("PUT", url(), BODY, headers={"Content-Range": "bytes 5-9/*"})
        assert is_problem(reply, 409, "wrong-offset", "Content-Range")
        assert reply.headers["upload-offset"] == "0"
        reply = await server.ask("PUT", url(), BODY, headers={"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"})
        assert reply.status == 201


async def test_a_piece_from_the_middle_is_not_sealed_as_the_whole(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        reply = await server.ask("PUT", url(), BODY[:100], headers={"Content-Range": f"bytes 0-99/{len(BODY)}"})
        assert is_problem(reply, 400, "refused", "Content-Range")
        assert server.process.world.paths() == []


async def test_a_body_that_breaks_off_before_its_first_byte_leaves_nothing(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        assert (await server.ask("PUT", url(), broken=True)).messages == []
        assert server.process.world.paths() == []


async def test_a_half_open_connection_is_told_to_ask_for_the_offset(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        stuck = Reply()

        async def hang() -> None:
            messages = [{"type": "http.request", "body": BODY[:100], "more_body": True}]
            await server.app(server.scope("PUT", url(), {}, TOKENS[A]), _from(messages), stuck.take)

        async with anyio.create_task_group() as group:
            group.start_soon(hang)
            await settled()
            await server.process.sweep.once()
            reply = await server.ask("PUT", url(), BODY[100:], headers={"Content-Range": "bytes 100-/*"})
            assert reply.status == 201
        assert is_problem(stuck, 503, "writer-closed")
        assert await server.process.media(server.process.sealed[0]) == BODY


# --- who may


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        f"Bearer {CANARY}",
        "Bearer ",
        TOKENS[A],
        f"Digest {TOKENS[A]}",
        f"Basic {CANARY}",
        "Basic " + b64encode(f"{TOKENS[A]}:{CANARY}".encode()).decode(),
        "Basic " + b64encode(b"\xff\xff").decode(),
    ],
)
async def test_who_shows_no_token_learns_nothing(tmp_path: Path, authorization: str | None) -> None:
    async with serving(world_at(tmp_path)) as server:
        headers = {} if authorization is None else {"Authorization": authorization}
        for method, path in (("PUT", url()), ("HEAD", url()), ("POST", "/v1/events"), ("GET", f"/{CANARY}")):
            reply = await server.ask(method, path, BODY, headers=headers, token=None)
            assert is_problem(reply, 401, "unauthorized")
            assert "Basic" in reply.headers["www-authenticate"]
            assert "Bearer" in reply.headers["www-authenticate"]
        assert server.process.world.paths() == []


async def test_the_token_may_be_the_password_of_basic(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        given = "Basic " + b64encode(f"freeswitch:{TOKENS[A]}".encode()).decode()
        assert (await server.ask("PUT", url(), BODY, headers={"Authorization": given}, token=None)).status == 201


async def test_everything_that_is_not_the_callers_own_is_absent(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await server.ask("PUT", url(instance_id=B), BODY, token=TOKENS[B])
        for method in ("PUT", "HEAD", "DELETE"):
            for path in (
                url(instance_id=B),
                url(instance_id=CANARY),
                url(instance_id="00000000-0000-4000-8000-000000000000"),
                url(kind="fax"),
                url(kind="journal"),
                url(kind="voice", name="/a/b"),
                f"/{CANARY}",
                "/v1/events",
                "/",
                url(contact=""),
                url(contact="%00"),
                url(contact="%ff"),
                url(contact="x" * 257),
            ):
                reply = await server.ask(method, path, BODY)
                assert is_problem(reply, 404, "not-found")
        assert len(server.process.store.index) == 1


async def test_a_kind_that_the_instance_does_not_store_is_absent(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    storage = world.instances[A].storage
    assert isinstance(storage, dict)
    del storage[next(iter(storage))]
    async with serving(world) as server:
        assert is_problem(await server.ask("PUT", url(), BODY), 404, "not-found")


async def test_other_methods_are_named(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for method in ("GET", "POST", "DELETE", "PATCH"):
            reply = await server.ask(method, url(), BODY)
            assert is_problem(reply, 405, "method")
            assert reply.headers["allow"] == "PUT, HEAD"


# --- what is refused


@pytest.mark.parametrize(
    ("headers", "status", "reason", "problem_field"),
    [
        ({"Content-Type": f"multipart/form-data; boundary={CANARY}"}, 415, "unsupported-media-type", None),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported-media-type", None),
        ({"Content-Encoding": "gzip"}, 415, "unsupported-media-type", None),
        ({"X-Recording-Sha256": CANARY}, 400, "refused", "X-Recording-Sha256"),
        ({"X-Recording-Start": CANARY}, 400, "refused", "X-Recording-Start"),
        ({"X-Recording-End": "9" * 30}, 400, "refused", "X-Recording-End"),
        ({"X-Recording-End": "0001-01-01T00:00:00+14:00"}, 400, "refused", "X-Recording-End"),
        ({"Content-Range": CANARY}, 400, "refused", "Content-Range"),
        ({"Content-Range": "bytes -5/*"}, 400, "refused", "Content-Range"),
        ({"Idempotency-Key": ""}, 400, "refused", "Idempotency-Key"),
        ({"Idempotency-Key": CANARY * 100}, 400, "refused", "Idempotency-Key"),
        ({"Idempotency-Key": f"{CANARY}\x00"}, 400, "refused", "Idempotency-Key"),
        ({"X-Recording-Metadata": CANARY * 100}, 400, "refused", "X-Recording-*"),
        ({f"X-Recording-{number}": "x" for number in range(65)}, 400, "refused", "X-Recording-*"),
        ({"Content-Length": CANARY}, 400, "refused", "Content-Length"),
        ({"Content-Length": "-1"}, 400, "refused", "Content-Length"),
        ({"Content-Length": "1000000000000000"}, 413, "too-large", None),
    ],
)
async def test_a_claim_that_can_not_be_is_refused_by_its_header(
    tmp_path: Path, headers: dict[str, str], status: int, reason: str, problem_field: str | None
) -> None:
    async with serving(world_at(tmp_path)) as server:
        reply = await server.ask("PUT", url(), BODY, headers=headers)
        assert is_problem(reply, status, reason, problem_field)
        assert server.process.world.paths() == []


async def test_bytes_that_are_not_what_was_claimed_are_refused(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        reply = await server.ask("PUT", url(), BODY, headers={"X-Recording-Sha256": "a" * 64})
        assert is_problem(reply, 400, "refused", "X-Recording-Sha256")
        assert server.process.world.paths() == []


async def test_any_other_type_is_taken(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for number, content_type in enumerate(("application/octet-stream", "text/html", "nonsense", "")):
            headers = {"Content-Type": content_type, "Content-Encoding": "identity"}
            assert (await server.ask("PUT", url(name=f"/{number}"), BODY, headers=headers)).status == 201


async def test_a_body_over_the_limit_is_refused_when_it_is_declared_and_when_it_grows(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path, recording_bytes=1000)) as server:
        reply = await server.ask("PUT", url(), BODY, headers={"Content-Length": "1001"})
        assert is_problem(reply, 413, "too-large")
        assert server.process.world.events() == b""
        reply = await server.ask("PUT", url(), bytes(600), bytes(600))
        assert is_problem(reply, 413, "too-large")
        assert b"SOURCE_REJECTED" in server.process.world.events()
        await server.ask("PUT", url("screen"), bytes(600), broken=True)
        reply = await server.ask("PUT", url("screen"), bytes(600), headers={"Content-Range": "bytes 600-1199/*"})
        assert is_problem(reply, 413, "too-large")
        assert server.process.world.paths() == []
        assert (await server.ask("PUT", url(), bytes(1000))).status == 201


# --- come back later


async def test_too_many_requests_are_told_when_to_come_back(tmp_path: Path) -> None:
    world = world_at(tmp_path, requests_per_s=0.5, burst=3)
    async with serving(world) as server:
        for _ in range(3):
            assert (await server.ask("HEAD", url())).status == 404
        reply = await server.ask("PUT", url(), BODY)
        assert is_problem(reply, 429, "rate-limit")
        assert reply.headers["retry-after"] == "2"
        assert (await server.ask("HEAD", url(instance_id=B), token=TOKENS[B])).status == 404
        world.clock.advance(2)
        assert (await server.ask("HEAD", url())).status == 404
        assert (await server.ask("HEAD", url())).status == 429


async def test_a_service_that_starts_or_stops_says_so(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        assert (await server.ask("GET", "/readyz", token=None)).status == 200
        for switch in ("starting", "stopping"):
            server.ready[0] = switch != "starting"
            server.app.stopping = switch == "stopping"
            reply = await server.ask("PUT", url(), BODY)
            assert is_problem(reply, 503, "stopping")
            assert reply.headers["retry-after"] == "5"
            assert (await server.ask("GET", "/livez", token=None)).status == 200
            assert (await server.ask("GET", "/readyz", token=None)).status == 503


async def test_a_key_that_is_refused_has_its_own_answer_and_another_instance_none(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        await server.process.b.ring.active()
        world.kms.refuses[ARN] = KeyUnavailableError(HoldCode.KEY_DISABLED, "the key is disabled")
        for method, path, body in (("PUT", url(), BODY), ("HEAD", url(), b""), ("POST", "/v1/events", b"[]")):
            reply = await server.ask(method, path, body)
            if path == "/v1/events":
                assert reply.status in {202, 503}
                continue
            assert is_problem(reply, 503, "KEY_DISABLED")
            assert reply.headers["retry-after"] == "30"
        assert (await server.ask("PUT", url(instance_id=B), BODY, token=TOKENS[B])).status == 201


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(StoreFullError("no room"), 507, "store-full"), (StoreIoError("EIO"), 503, "store-io")],
)
@pytest.mark.parametrize("operation", ["append", "sync", "rename"])
async def test_trouble_with_the_disk_is_told_and_the_same_body_again_is_taken(
    tmp_path: Path, operation: str, error: StoreIoError, status: int, reason: str
) -> None:
    async with serving(world_at(tmp_path)) as server:
        await server.process.a.ring.active()
        server.process.files.refuse(operation, "/artifacts/", error=error)
        reply = await server.ask("PUT", url(), BODY)
        assert is_problem(reply, status, reason)
        assert int(reply.headers["retry-after"]) > 0
        assert (await server.ask("PUT", url(), BODY)).status == 201
        assert [name.state for name in server.process.store.index] == [State.SEALED]


# --- events


def envelope(**changes: Any) -> dict[str, Any]:
    return {
        "detail-type": "Recording Started",
        "source": "pipeline",
        "detail": {"instanceArn": instance(A).arn, "contactId": CANARY, "recordingKind": "voice", "sourceId": "x"},
    } | changes


async def test_events_are_answered_when_they_are_durable(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        whole = json.dumps([envelope(), envelope()]).encode()
        reply = await server.ask("POST", "/v1/events", whole[:50], whole[50:])
        assert (reply.status, reply.json) == (202, {"accepted": 2})
        assert server.process.files.done[-1][0] == "sync"
        assert (await server.ask("POST", "/v1/events", json.dumps(envelope()).encode())).json == {"accepted": 1}
    assert [path.parent.name for path in world.holds(b"canary-4930123456789")] == ["events"]


@pytest.mark.parametrize(
    ("body", "problem_field"),
    [
        (CANARY.encode(), None),
        (b'{"detail-type":"Recording Started","detail":{}}', "detail.recordingKind"),
        (json.dumps([envelope(), envelope(detail=CANARY)]).encode(), "[1].detail"),
        (json.dumps(envelope(time=CANARY)).encode(), "time"),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
async def test_a_malformed_event_is_refused_by_its_field(
    tmp_path: Path, body: bytes, problem_field: str | None
) -> None:
    async with serving(world_at(tmp_path)) as server:
        assert is_problem(await server.ask("POST", "/v1/events", body), 400, "refused", problem_field)


async def test_an_event_of_another_instance_is_absent(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        detail = envelope()["detail"] | {"instanceArn": instance(B).arn}
        reply = await server.ask("POST", "/v1/events", json.dumps(envelope(detail=detail)).encode())
        assert is_problem(reply, 404, "not-found", "[0].detail.instanceArn")


async def test_events_over_the_limit_are_refused_when_declared_and_when_they_grow(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path), event_bytes=2000) as server:
        for headers in ({"Content-Length": "2001"}, {}):
            reply = await server.ask("POST", "/v1/events", b" " * 1500, b" " * 1500, headers=headers)
            assert is_problem(reply, 413, "too-large")
        reply = await server.ask("POST", "/v1/events", b"", headers={"Content-Length": CANARY})
        assert is_problem(reply, 400, "refused", "Content-Length")


async def test_events_that_break_off_get_no_answer_and_none_is_taken(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        whole = json.dumps(envelope()).encode()
        assert (await server.ask("POST", "/v1/events", whole, broken=True)).messages == []
        assert server.process.contacts.get(A, CANARY) is None


async def test_a_contact_that_a_key_must_not_carry_stays_sealed(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        outside = f"sip:{CANARY}@example.org"
        assert (await server.ask("PUT", url(contact=quote(outside, safe="")), BODY)).status == 201
        name = server.process.sealed[0]
        key = await server.process.a.ring.opening(name.key_id)
        with server.process.store.reading(name, key) as reader:
            assert reader.head().original_contact == outside
            assert CANARY not in " ".join(reader.manifest().keys)
    assert world.holds(CANARY.encode()) == []
