"""Search by words: sealed on disk, always what is there, gone at once with its key and back with it."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipeline.crypt.segments import SEGMENT_LIMIT, DataKey
from pipeline.errors import HoldCode, RecordsDeniedError, SegmentForgedError
from pipeline.ids import KeyId
from pipeline.records.indexcopies import key_id_of, opened_copy, sealed_copy
from tests import markers
from tests.intake_server import CANARY, Server, is_problem, serving, world_at
from tests.records_fixture import KEPT, SERVICE_ARN, with_records
from tests.store_fixture import instance
from tests.unit.keyring_fakes import ARN, A, refusal

MARKER = markers.WORD
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


def told(root: Path, verb: str) -> list[dict[str, Any]]:
    files = (root / "audit" / str(A)).glob("*.jsonl")
    lines = [json.loads(each) for file in files for each in file.read_bytes().splitlines()]
    return [each["requestParameters"] for each in lines if each["eventName"] == verb]


def in_memory(server: Server) -> bool:
    return not server.records.search.is_empty


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
        await search.tend()
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
        await search.tend()
        assert search.is_empty


async def test_a_query_is_told_without_its_words(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server)
        await found(server, "vouchers")
        (query,) = told(tmp_path, "IndexQueried")
        assert (query["dataClass"], query["found"]) == ("ai_search_index", 1)
        assert not any(b"vouchers" in file.read_bytes() for file in (tmp_path / "audit").rglob("*") if file.is_file())


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


# --- the copy on the disk


def copies(server: Server) -> list[Path]:
    return sorted((server.process.world.root / "records" / "indexes").glob("*"))


async def kept(server: Server) -> list[Path]:
    """Have copies written of what changed."""
    server.process.world.clock.advance(61)
    await server.records.search.tend()
    return copies(server)


def opened_afresh(server: Server) -> set[str]:
    """Count the records that are opened to build an index from now on."""
    search, read = server.records.search, set[str]()
    before = search._opened

    async def opened(shelf: Any, rows: Any) -> Any:
        documents = await before(shelf, rows)
        read.update(tag.hex() for tag, *_ in documents)
        return documents

    search._opened = opened  # type: ignore[method-assign]
    return read


async def test_a_restart_opens_the_sealed_copy_and_follows_only_what_changed(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        await filled(server)
        await filled(server, "cases")
        assert await found(server, "vouchers") == await found(server, "vouchers", "cases") == ["k-3"]
        assert len(await kept(server)) == 2
        await server.ask("DELETE", path(record_id="k-1"))
        await server.ask("PUT", path(record_id="k-2"), b'{"text": "nothing more"}')
    async with serving(world) as server:
        read = opened_afresh(server)
        assert await found(server, "vouchers") == await found(server, "vouchers", "cases") == ["k-3"]
        assert await found(server, "kundigungsfrist") == await found(server, "parcel") == []
        assert await found(server, "nothing") == ["k-2"]
        assert len(read) == 1


async def test_a_record_that_came_back_under_its_old_id_and_version_is_indexed_anew(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server)
        assert await found(server, "vouchers") == ["k-3"]
        await server.ask("DELETE", path(record_id="k-3"))
        await server.ask("PUT", path(record_id="k-3"), b'{"text": "something else"}')
        assert await found(server, "vouchers") == []
        assert await found(server, "else") == ["k-3"]


async def test_a_copy_has_a_data_key_of_the_indexs_own_class_and_nothing_readable(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server)
        await found(server, "vouchers")
        (copy,) = await kept(server)
        own = server.records.shelves.of(A)["ai_search_index", "default"]
        assert own.keys is not None
        assert (own.keys.current, own.keys.is_customers) == (SERVICE_ARN, False)
        assert (tmp_path / own.scope.directory / f"{key_id_of(copy.read_bytes()).hex}.json").exists()
        assert copy.stat().st_mode & 0o777 == 0o600
        everything = b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())
        for word in (b"voucher", b"parcel", MARKER.encode(), b"kundigungsfrist"):
            assert word not in everything
            assert word not in everything.lower()


@pytest.mark.parametrize("harm", ["a flipped bit", "cut", "another's", "no copy at all", "longer"])
async def test_a_copy_that_is_not_what_was_written_is_refused_told_and_built_anew(harm: str, tmp_path: Path) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        await filled(server)
        await filled(server, "cases")
        await found(server, "vouchers")
        await found(server, "vouchers", "cases")
        await kept(server)
        shelves = [server.records.shelf(each, A).scope.shelf.hex() for each in ("ai_content", "cases")]
        mine, other = (tmp_path / "records" / "indexes" / f"{each}.index" for each in shelves)
        content = mine.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        harmed = {
            "a flipped bit": bytes(flipped),
            "cut": content[:-1],
            "another's": other.read_bytes(),
            "no copy at all": b"x" * 10,
            "longer": content + b"\0\0\0\1x",
        }[harm]
        mine.write_bytes(harmed)
    async with serving(world) as server:
        read = opened_afresh(server)
        assert await found(server, "vouchers") == ["k-3"]
        assert len(read) == len(TEXTS)
        assert [each["dataClass"] for each in told(tmp_path, "IndexRefused")] == ["ai_search_index"]
        await kept(server)
        assert mine.read_bytes() not in {harmed, content}


async def test_a_refused_key_removes_the_copy_also_where_nobody_asks(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        await filled(server)
        await filled(server, "cases")
        await found(server, "vouchers")
        await found(server, "vouchers", "cases")
        assert len(await kept(server)) == 2
        world.kms.refuses[ARN] = refusal(HoldCode.KEY_DISABLED)
        world.clock.advance(301)
        await server.records.search.tend()
        (cases,) = copies(server)
        assert cases.stem == server.records.shelf("cases", A).scope.shelf.hex()
        del world.kms.refuses[ARN]
        world.clock.advance(31)
        assert await found(server, "vouchers") == ["k-3"]
        assert len(await kept(server)) == 2
    world.kms.refuses[ARN] = refusal(HoldCode.KEY_DISABLED)
    async with serving(world) as server:  # it was refused while nothing ran
        await server.records.search.tend()
        assert copies(server) == [cases]
        server.records.shelves.adopt([], server.records.service)
        await server.records.search.tend()
        assert copies(server) == []


async def test_an_index_that_nobody_asks_leaves_memory_and_its_copy_serves_the_next_question(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server)
        await found(server, "vouchers")
        await kept(server)
        assert in_memory(server)
        server.process.world.clock.advance(901)
        await server.records.search.tend()
        assert not in_memory(server)
        read = opened_afresh(server)
        assert await found(server, "vouchers") == ["k-3"]
        assert read == set()


async def test_what_a_crash_left_of_a_copy_is_removed_and_a_full_disk_stops_no_question(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await filled(server)
        (tmp_path / "records" / "indexes").mkdir()
        left = tmp_path / "records" / "indexes" / ("0" * 32 + ".index.tmp")
        left.write_bytes(b"half")
        server.process.files.refuse("append", "indexes/")
        assert await found(server, "vouchers") == ["k-3"]
        assert await kept(server) == []
        assert await found(server, "vouchers") == ["k-3"]
        assert len(await kept(server)) == 1


@pytest.mark.parametrize("size", [0, 1, SEGMENT_LIMIT, SEGMENT_LIMIT + 1])
def test_a_copy_of_any_length_opens_for_its_own_scope_alone(size: int) -> None:
    places = with_records(instance(A)).places
    scope, other = places["ai_search_index", "default"].scope, places["cases", "default"].scope
    key, content = DataKey(KeyId(UUID(int=1)), b"k" * 32), os.urandom(size)
    pieces = list(sealed_copy(key, scope, content))
    assert opened_copy(key, scope, b"".join(pieces)) == content
    with pytest.raises(SegmentForgedError):
        opened_copy(key, other, b"".join(pieces))
    for wrong in (pieces[:-1], [*pieces, pieces[-1]], [pieces[0], *reversed(pieces[1:]), pieces[1]]):
        with pytest.raises(SegmentForgedError):
            opened_copy(key, scope, b"".join(wrong))
