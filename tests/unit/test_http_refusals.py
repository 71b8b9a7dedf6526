from base64 import b64encode
from itertools import product
from pathlib import Path

from pipeline.errors import HoldCode, KeyUnavailableError, StoreFullError, StoreIoError
from pipeline.interim.states import State
from tests.intake_server import BODY, CANARY, TOKENS, is_problem, serving, url, world_at
from tests.store_fixture import HOUR_S
from tests.unit.keyring_fakes import ARN, A, B

# --- who may

NO_TOKENS = [
    None,
    f"Bearer {CANARY}",
    "Bearer ",
    TOKENS[A],
    f"Digest {TOKENS[A]}",
    f"Basic {CANARY}",
    "Basic " + b64encode(f"{TOKENS[A]}:{CANARY}".encode()).decode(),
    "Basic " + b64encode(b"\xff\xff").decode(),
]


async def test_who_shows_no_token_learns_nothing(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for given in NO_TOKENS:
            headers = {} if given is None else {"Authorization": given}
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


CLAIMS: list[tuple[dict[str, str], int, str, str | None]] = [
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
]


async def test_a_claim_that_can_not_be_is_refused_by_its_header(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for headers, status, reason, problem_field in CLAIMS:
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


async def test_trouble_with_the_disk_is_told_and_the_same_body_again_is_taken(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await server.process.a.ring.active()
        answers = [(StoreFullError("no room"), 507, "store-full"), (StoreIoError("EIO"), 503, "store-io")]
        for operation, (error, status, reason) in product(("append", "sync", "rename"), answers):
            server.process.world.clock.advance(HOUR_S)
            path = url(name=f"/{operation}-{reason}")
            server.process.files.refuse(operation, "/artifacts/", error=error)
            reply = await server.ask("PUT", path, BODY)
            assert is_problem(reply, status, reason)
            assert int(reply.headers["retry-after"]) > 0
            assert (await server.ask("PUT", path, BODY)).json["generation"] == 1
        assert {name.state for name in server.process.store.index} == {State.SEALED}
        assert len(server.process.store.index) == 6
