"""S-24, S-40: every route, with what is another's, what does not exist, and a token where none may be."""

from pathlib import Path
from uuid import UUID

import pytest
import structlog

from pipeline.records.classes import POLICIES
from tests.intake_server import BODY, CANARY, TOKENS, Server, is_problem, serving, url, world_at
from tests.records_fixture import KEPT
from tests.unit.keyring_fakes import A, B

NOBODY = UUID("00000000-0000-4000-8000-000000000000")


def record(instance: object, data_class: str, last: str = "/r-1") -> str:
    query = "?part=voiceprint" if POLICIES[data_class].parts else ""
    return f"/v1/instances/{instance}/records/{data_class}{last}{query}"


def routes(instance: object) -> dict[str, tuple[str, ...]]:
    """Give every path that names an instance, and the methods that it takes."""
    found: dict[str, tuple[str, ...]] = {
        url(kind, name, instance_id=instance): ("PUT", "HEAD")
        for kind in ("voice", "screen", "chat")
        for name in ("", ".wav", "/leg-1.wav")
    }
    for data_class in KEPT:
        found[record(instance, data_class)] = ("GET", "PUT", "DELETE")
        found[record(instance, data_class, "")] = ("GET", "POST")
    return found


async def fill(server: Server) -> None:
    """Let the other instance have something at every path."""
    for path in routes(B):
        body = BODY if "/contacts/" in path else b'{"name": "x"}'
        if "/records/" not in path or "/r-1" in path:
            reply = await server.ask("PUT", path, body, token=TOKENS[B])
            assert reply.status in {200, 201}, (path, reply.body)


async def test_the_matrix_has_every_method_of_every_route(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for path, methods in routes(A).items():
            reply = await server.ask("OPTIONS", path, b"")
            assert is_problem(reply, 405, "method"), path
            assert set(reply.headers["allow"].split(", ")) == set(methods), path


async def test_what_is_anothers_is_absent_on_every_route_and_by_every_method(tmp_path: Path) -> None:
    """S-40. The answer is the same, byte for byte, whether it exists, the instance exists, or nothing does."""
    async with serving(world_at(tmp_path, requests_per_s=100_000)) as server:
        await fill(server)
        held = len(server.process.store.index)
        for path, methods in routes(B).items():
            for method in (*methods, "PATCH", "OPTIONS"):
                theirs = await server.ask(method, path, BODY)
                assert is_problem(theirs, 404, "not-found"), (method, path)
                for other in (NOBODY, CANARY):
                    none = await server.ask(method, path.replace(str(B), str(other)), BODY)
                    assert (none.status, none.body) == (theirs.status, theirs.body), (method, path)
        for path in routes(B):  # and nothing has come, changed or gone
            if "/r-1" in path:
                reply = await server.ask("GET", path, token=TOKENS[B])
                assert (reply.status, reply.headers["etag"]) == (200, '"1"')
        assert len(server.process.store.index) == held


async def test_an_event_of_anothers_contact_is_absent(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for instance in (B, NOBODY):
            arn = f"arn:aws:connect:eu-central-1:111122223333:instance/{instance}"
            event = (
                '{"detail-type":"Amazon Connect Contact Event","source":"aws.connect","time":"2026-11-23T14:05:13Z",'
                f'"detail":{{"instanceArn":"{arn}","contactId":"c","eventType":"INITIATED","channel":"VOICE"}}}}'
            )
            reply = await server.ask("POST", "/v1/events", event.encode())
            assert is_problem(reply, 404, "not-found", "[0].detail.instanceArn")


@pytest.mark.parametrize("name", ["token", "access_token", "authorization", "Authorization", "api_key"])
async def test_a_token_in_a_query_opens_nothing_on_any_route(tmp_path: Path, name: str) -> None:
    """S-24."""
    async with serving(world_at(tmp_path)) as server:
        for path, methods in {**routes(A), "/v1/events": ("POST",)}.items():
            mark = "&" if "?" in path else "?"
            for method in methods:
                reply = await server.ask(method, f"{path}{mark}{name}={TOKENS[A]}", BODY, token=None)
                assert is_problem(reply, 401, "unauthorized"), (method, path)


async def test_the_log_has_a_routes_template_and_nothing_of_a_request(tmp_path: Path) -> None:
    """S-24. Whatever is asked, and however it ends."""
    async with serving(world_at(tmp_path)) as server:
        with structlog.testing.capture_logs() as said:
            for token in (TOKENS[A], None, CANARY):
                for data_class in KEPT:
                    path = record(A, data_class, f"/{CANARY}")
                    for method in ("PUT", "GET", "DELETE", "PATCH"):
                        await server.ask(method, path, b'{"name": "x"}', token=token)
                await server.ask("PUT", url(contact=CANARY), BODY, token=token)
                await server.ask("HEAD", url(contact=CANARY, name=f"/{CANARY}.wav"), token=token)
        text = repr(said)
        assert CANARY not in text
        assert not any(token in text for token in TOKENS.values())
        assert {each["route"] for each in said if "route" in each} == {"/v1/instances/{instance}/records/{class}/{id}"}
