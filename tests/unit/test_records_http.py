"""Records by HTTP: each class alike, conditional by version, absent for everybody else."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.errors import HoldCode
from pipeline.ids import InstanceId
from pipeline.records.classes import POLICIES
from pipeline.records.sealing import BODY_LIMIT
from tests.intake_server import CANARY, TOKENS, Server, is_problem, serving, world_at
from tests.records_fixture import KEPT
from tests.unit.keyring_fakes import ARN, OLD_ARN, A, B, refusal

SECRET = "Erika-Mustermann-0815"
NUMBERS: dict[str, dict[str, object]] = {
    "contact_metadata": {"CustomerEndpoint": {"Address": "+49 30 901820"}},
    "profiles_domain": {"PhoneNumber": "+4930901820"},
    "profiles_object_type": {"Keys": {"_phone": ["+49 (30) 901820", "+1 202 555 0100"]}},
    "campaigns": {"channelSubtypeParameters": {"telephony": {"destinationPhoneNumber": "tel:+49-30-901820"}}},
}
INDEX = {"contact_metadata": "number", "campaigns": "number"}


def path(data_class: str, record_id: str | None = None, *, instance: InstanceId = A, query: str = "") -> str:
    base = f"/v1/instances/{instance}/records/{data_class}"
    return base + (f"/{quote(record_id, safe='')}" if record_id else "") + (f"?{query}" if query else "")


def part(data_class: str, name: str = "voiceprint") -> str:
    return f"part={name}" if POLICIES[data_class].parts else ""


def body(data_class: str = "cases") -> bytes:
    return json.dumps({"name": SECRET, **NUMBERS.get(data_class, {})}).encode()


async def put(server: Server, data_class: str, record_id: str = "r-1", **more: str) -> int | None:
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    reply = await server.ask(
        "PUT", path(data_class, record_id, query=part(data_class)), body(data_class), headers=headers
    )
    return reply.status


@pytest.mark.parametrize("data_class", KEPT)
async def test_a_record_of_every_class_comes_back_and_goes(data_class: str, tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        there = path(data_class, "r-1", query=part(data_class))
        made = await server.ask("PUT", there, body(data_class))
        assert (made.status, made.json, made.headers["etag"]) == (201, {"version": 1}, '"1"')
        again = await server.ask("PUT", there, body(data_class))
        assert (again.status, again.json) == (200, {"version": 2})
        given = await server.ask("GET", path(data_class, "r-1"))
        assert (given.status, given.body, given.headers["etag"]) == (200, body(data_class), '"2"')
        assert given.headers["cache-control"] == "no-store"
        assert given.headers["content-type"] == "application/json"
        (listed,) = (await server.ask("GET", path(data_class))).json["records"]
        assert (listed["id"], listed["version"]) == ("r-1", 2)
        assert (await server.ask("DELETE", path(data_class, "r-1"))).status == 204
        assert is_problem(await server.ask("GET", path(data_class, "r-1")), 404, "not-found")
        assert is_problem(await server.ask("DELETE", path(data_class, "r-1")), 404, "not-found")
        assert (await server.ask("GET", path(data_class))).json == {"records": []}
        world = server.process.world
        assert world.holds(SECRET.encode()) == world.holds(b"30901820") == world.holds(b'r-1"') == []


async def test_conditions_are_by_version(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        assert is_problem(await server.ask("PUT", path("cases", "c"), body(), headers={"If-Match": "*"}), 412,
                          "version-conflict")  # fmt: skip
        assert await put(server, "cases", "c", If_None_Match="*") == 201
        for headers in ({"If-None-Match": "*"}, {"If-Match": '"2"'}, {"If-Match": '"0"'}):
            for method in ("PUT", "DELETE"):
                reply = await server.ask(method, path("cases", "c"), body(), headers=headers)
                assert is_problem(reply, 412, "version-conflict"), (method, headers)
        assert (await server.ask("PUT", path("cases", "c"), body(), headers={"If-Match": '"1"'})).json == {"version": 2}
        assert (await server.ask("GET", path("cases", "c"), headers={"If-None-Match": '"2"'})).status == 304
        assert (await server.ask("DELETE", path("cases", "c"), headers={"If-Match": '"2"'})).status == 204


@pytest.mark.parametrize("headers", [
    {"If-Match": CANARY}, {"If-Match": "1"}, {"If-Match": '"1", "2"'}, {"If-None-Match": f'"{CANARY}"'},
    {"If-Match": '"1"', "If-None-Match": "*"},
])  # fmt: skip
async def test_a_condition_that_can_not_be_read_changes_nothing(headers: dict[str, str], tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        reply = await server.ask("PUT", path("cases", "c"), body(), headers=headers)
        assert is_problem(reply, 400, "refused", list(headers)[-1])
        assert (await server.ask("GET", path("cases", "c"))).status == 404


@pytest.mark.parametrize("data_class", NUMBERS)
async def test_a_number_is_found_however_it_is_written(data_class: str, tmp_path: Path) -> None:
    index = INDEX.get(data_class, "phone")
    async with serving(world_at(tmp_path)) as server:
        await put(server, data_class)
        for written in ("+4930901820", "+49 30 901820", "tel:+49-30-90.18.20"):
            reply = await server.ask("GET", path(data_class, query=f"{index}={quote(written)}"))
            (found,) = reply.json["records"]
            assert (found["id"], found["data"]) == ("r-1", json.loads(body(data_class)))
        for other in ("+4930901821", "30901820", ""):
            reply = await server.ask("GET", path(data_class, query=f"{index}={quote(other)}"))
            assert reply.json == {"records": []}
        reply = await server.ask("GET", path(data_class, query=f"{CANARY}=1"))
        assert is_problem(reply, 400, "refused", "index")
        await server.ask("PUT", path(data_class, "r-1", query=part(data_class)), b"{}")
        reply = await server.ask("GET", path(data_class, query=f"{index}=%2B4930901820"))
        assert reply.json == {"records": []}


async def test_the_same_number_has_another_hash_in_another_instance(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        there = path("contact_metadata", "c", instance=A)
        await server.ask("PUT", there, body("contact_metadata"))
        question = "number=%2B4930901820"
        assert (
            await server.ask("GET", path("contact_metadata", instance=B, query=question), token=TOKENS[B])
        ).json == {"records": []}
        await server.ask("PUT", path("contact_metadata", "c", instance=B), body("contact_metadata"), token=TOKENS[B])
        digests = server.records.engine._reader.execute("SELECT digest FROM blind").fetchall()
        assert len(digests) == len(set(digests)) == 2
        tags = server.records.engine._reader.execute("SELECT tag FROM record").fetchall()
        assert len(set(tags)) == 2


async def test_everything_that_is_not_the_callers_own_is_absent(tmp_path: Path) -> None:
    """The matrix of foreign ids: every class, every method, every way to name what is another's."""
    async with serving(world_at(tmp_path)) as server:
        for data_class in KEPT:
            await server.ask(
                "PUT", path(data_class, "r", instance=B, query=part(data_class)), body(data_class), token=TOKENS[B]
            )
            for method in ("GET", "PUT", "DELETE", "POST", "HEAD", "PATCH"):
                for foreign in (
                    path(data_class, "r", instance=B),
                    path(data_class, instance=B),
                    path(CANARY, "r"),
                    path(CANARY),
                    path(data_class, "r", query=f"scope={CANARY}"),
                    path("recordings_interim", "r"),
                    path("ai_search_index", "r"),
                ):
                    reply = await server.ask(method, foreign, body(data_class))
                    assert reply.status == 404, (method, foreign)
                    assert CANARY.encode() not in reply.body
            assert is_problem(await server.ask("GET", path(data_class, "r")), 404, "not-found")
            mine = await server.ask("GET", path(data_class, "r", instance=B), token=TOKENS[B])
            assert mine.body == body(data_class)


async def test_an_account_is_shared_and_its_records_are_not(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        one, other = (server.records.shelf("appintegrations_config", each) for each in (A, B))
        assert one.scope.owner == other.scope.owner
        assert one.scope.shelf != other.scope.shelf
        assert one.ring is other.ring


async def test_a_batch_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        lines = [json.dumps({"id": f"p-{number}", "data": {"name": SECRET}}).encode() for number in range(20)]
        reply = await server.ask("POST", path("profiles_domain"), b"\n".join([*lines, b"", lines[0]]))
        assert (reply.status, reply.json) == (200, {"taken": 21, "new": 20})
        assert (await server.ask("GET", path("profiles_domain", "p-0"))).headers["etag"] == '"2"'
        for bad in (b"[]", b"{", f'{{"id":"{CANARY}"}}'.encode(), b'{"id":"x","data":[]}', b'{"id":"","data":{}}'):
            reply = await server.ask("POST", path("profiles_domain"), b"\n".join([lines[0], bad]))
            assert reply.status == 400
            assert CANARY.encode() not in reply.body
        assert (await server.ask("GET", path("profiles_domain", "p-0"))).headers["etag"] == '"2"'
        page = (await server.ask("GET", path("profiles_domain", query="limit=15"))).json
        assert [each["id"] for each in page["records"]] == [f"p-{number}" for number in range(15)]
        rest = (await server.ask("GET", path("profiles_domain", query=f"limit=15&after={page['next']}"))).json
        assert len(rest["records"]) == 5
        assert "next" not in rest


async def test_what_can_not_be_a_record_is_refused(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        there = path("cases", "c")
        assert is_problem(await server.ask("PUT", there, b"x" * (BODY_LIMIT + 1)), 413, "too-large")
        for bad in (b"", b"[]", b"{", b"\xff"):
            assert is_problem(await server.ask("PUT", there, bad), 400, "refused", "data")
        assert is_problem(await server.ask("PUT", path("cases", "c", query="part=x"), b"{}"), 400, "refused", "part")
        assert is_problem(await server.ask("PUT", path("voiceid", "c"), b"{}"), 400, "refused", "part")
        assert is_problem(await server.ask("PATCH", there), 405, "method")
        assert is_problem(await server.ask("GET", path("cases", query="limit=x")), 400, "refused", "limit")
        assert is_problem(await server.ask("GET", path("cases", query="a=1&b=2")), 400, "refused", "query")
        assert (await server.ask("PUT", there, b"{}", broken=True)).messages == []
        assert (await server.ask("GET", there)).status == 404
        raw = await server.ask("PUT", path("voiceid", "s", query="part=audio"), b"RIFF\0",
                               headers={"Content-Type": "audio/wav"})  # fmt: skip
        assert raw.status == 201
        given = await server.ask("GET", path("voiceid", "s"))
        assert (given.body, given.headers["content-type"], given.headers["x-record-part"]) == (
            b"RIFF\0", "audio/wav", "audio")  # fmt: skip


async def test_ids_may_hold_anything_printable(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for odd in ("a/b", "ä b", "+49 30", "..", "%2e"):
            assert (await server.ask("PUT", path("cases", odd), b"{}")).status == 201
            assert (await server.ask("GET", path("cases", odd))).status == 200
        assert len((await server.ask("GET", path("cases"))).json["records"]) == 5


async def test_a_customers_key_that_is_refused_denies_its_class_alone(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        kms = server.process.world.kms
        for data_class in KEPT:
            await put(server, data_class)
        kms.refuses[ARN] = refusal(HoldCode.KEY_DISABLED)
        server.process.world.clock.advance(301)
        for data_class in KEPT:
            reply = await server.ask("GET", path(data_class, "r-1"))
            if POLICIES[data_class].takes_customer_key:
                assert reply.status == 403
                assert (reply.json["reason"], reply.json["code"]) == ("AccessDeniedException", "KEY_DISABLED")
                for method in ("PUT", "DELETE"):
                    again = await server.ask(method, path(data_class, "r-1", query=part(data_class)), b"{}")
                    assert again.status == 403
            else:
                assert reply.status == 200
        del kms.refuses[ARN]
        server.process.world.clock.advance(31)
        for data_class in KEPT:
            assert (await server.ask("GET", path(data_class, "r-1"))).body == body(data_class)


async def test_the_services_key_refused_is_503(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await put(server, "cases")
        server.process.world.kms.refuses[OLD_ARN] = refusal(HoldCode.KEY_DISABLED)
        server.process.world.clock.advance(301)
        assert is_problem(await server.ask("GET", path("cases", "r-1")), 503, "KEY_DISABLED")
        assert await put(server, "profiles_domain") == 201
