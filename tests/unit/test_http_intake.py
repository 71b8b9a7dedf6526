import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from starlette.types import Message

from tests.intake_server import BODY, CANARY, TOKENS, Reply, coming, is_problem, serving, url, world_at
from tests.store_fixture import MARKER, instance
from tests.unit.keyring_fakes import A, B

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
        stuck, waiting = Reply(), anyio.Event()

        async def hang() -> None:
            messages: list[Message] = [{"type": "http.request", "body": BODY[:100], "more_body": True}]
            await server.app(server.scope("PUT", url(), {}, TOKENS[A]), coming(messages, waiting), stuck.take)

        async with anyio.create_task_group() as group:
            group.start_soon(hang)
            await waiting.wait()
            await server.process.sweep.once()
            reply = await server.ask("PUT", url(), BODY[100:], headers={"Content-Range": "bytes 100-/*"})
            assert reply.status == 201
        assert is_problem(stuck, 503, "writer-closed")
        assert await server.process.media(server.process.sealed[0]) == BODY


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


MALFORMED: list[tuple[bytes, str | None]] = [
    (CANARY.encode(), None),
    (b'{"detail-type":"Recording Started","detail":{}}', "detail.recordingKind"),
    (json.dumps([envelope(), envelope(detail=CANARY)]).encode(), "[1].detail"),
    (json.dumps(envelope(time=CANARY)).encode(), "time"),
    (b"\xff\xfe", None),
    (b"", None),
]


async def test_a_malformed_event_is_refused_by_its_field(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for body, problem_field in MALFORMED:
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
