"""Search by words: in memory only, always what is there, gone at once with its key and back with it."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import HoldCode, RecordsDeniedError
from tests.intake_server import CANARY, Server, is_problem, serving, world_at
from tests.records_fixture import KEPT
from tests.unit.keyring_fakes import ARN, A, refusal

MARKER = "Kündigungsfrist"
TEXTS = {
    "k-1": f"Die {MARKER} beträgt drei Monate zum Quartalsende.",
    "k-2": "A refund takes five days after the parcel came back.",
    "k-3": "Refunds of vouchers are not possible.",
}


def path(data_class: str = "ai_content", record_id: str = "", text: str | None = None) -> str:
    base = f"/v1/instances/{A}/records/{data_class}" + (f"/{record_id}" if record_id else "")
    return base + (f"?text={text}" if text is not None else "")


async def filled(server: Server, data_class: str = "ai_content") -> None:
    for record_id, text in TEXTS.items():
        body = json.dumps({"title": record_id, "sections": [{"text": text}]}).encode()
        assert (await server.ask("PUT", path(data_class, record_id), body)).status == 201


async def found(server: Server, text: str, data_class: str = "ai_content") -> list[str]:
    reply = await server.ask("GET", path(data_class, text=text))
    assert reply.status == 200, reply.body
    return [each["id"] for each in reply.json["records"]]


@pytest.mark.parametrize("data_class", ["ai_content", "cases"])
async def test_words_are_found_in_whatever_is_there_now(data_class: str, tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server, data_class)
        assert await found(server, "kundigungsfrist", data_class) == ["k-1"]
        assert await found(server, "five+parcel", data_class) == ["k-2"]
        assert await found(server, "five+vouchers", data_class) == []
        await server.ask("PUT", path(data_class, "k-2"), b'{"text": "nothing more"}')
        await server.ask("DELETE", path(data_class, "k-1"))
        await server.ask("PUT", path(data_class, "k-4"), b"five words in plain", headers={"Content-Type": "text/plain"})
        assert await found(server, "parcel", data_class) == await found(server, "monate", data_class) == []
        assert await found(server, "five", data_class) == ["k-4"]
        assert server.process.world.holds(MARKER.encode()) == server.process.world.holds(b"voucher") == []


async def test_what_is_no_question_is_refused(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server)
        for odd in ("%22", "", "*", "(%29"):
            assert is_problem(await server.ask("GET", path(text=odd)), 400, "refused", "text")
        assert await found(server, "NEAR%28vouchers%29+OR+%22refunds") == []
        for other in set(KEPT) - {"ai_content", "cases"}:
            assert is_problem(await server.ask("GET", path(other, text=CANARY)), 400, "refused", "index")


async def test_a_refused_key_drops_the_index_at_once_and_it_is_back_with_the_key(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        world, search = server.process.world, server.records.search
        await filled(server)
        await filled(server, "cases")
        assert await found(server, "vouchers") == await found(server, "vouchers", "cases") == ["k-3"]
        world.kms.refuses[ARN] = refusal(HoldCode.KEY_DISABLED)
        world.clock.advance(301)
        with pytest.raises(RecordsDeniedError):  # somebody asks for anything, and KMS says so
            await server.records.shelf("ai_content", A).active()
        search.drop_refused()
        (content, cases) = [
            search._indexes[server.records.shelf(each, A).scope.shelf] for each in ("ai_content", "cases")
        ]
        assert content.index is None
        assert cases.index is not None
        reply = await server.ask("GET", path(text="vouchers"))
        assert (reply.status, reply.json["code"]) == (403, "KEY_DISABLED")
        assert await found(server, "vouchers", "cases") == ["k-3"]
        del world.kms.refuses[ARN]
        world.clock.advance(31)
        assert await found(server, "vouchers") == ["k-3"]
        server.records.shelves.adopt([], server.records.service)
        search.drop_refused()
        assert search.is_empty


async def test_a_query_is_told_without_its_words(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server)
        await found(server, "vouchers")
        files = (tmp_path / "audit" / str(A)).glob("*.jsonl")
        lines: list[dict[str, Any]] = [json.loads(each) for file in files for each in file.read_bytes().splitlines()]
        (told,) = [each["requestParameters"] for each in lines if each["eventName"] == "IndexQueried"]
        assert (told["dataClass"], told["found"]) == ("ai_search_index", 1)
        assert "vouchers" not in json.dumps(lines)


async def test_a_flipped_bit_in_what_it_is_built_of_is_refused(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server)
        (row, *_) = await server.records.engine.page(server.records.shelf("ai_content", A).scope.shelf, 0, 9)
        flipped = bytearray(row.sealed)
        flipped[-1] ^= 1
        with sqlite3.connect(f"{tmp_path}/records/records.db") as connection:
            connection.execute("UPDATE record SET sealed = ? WHERE number = ?", (bytes(flipped), row.number))
        reply = await server.ask("GET", path(text="vouchers"))
        assert is_problem(reply, 500, "integrity")
