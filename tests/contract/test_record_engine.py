"""What `RecordEngine` promises, on SQLite: atomic, conditional, durable, and nothing left of what was removed."""

import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import anyio
import pytest

from pipeline.adapters.sqlite import VERSION, SqliteEngine
from pipeline.errors import HaltError, StoreFullError, StoreIoError
from pipeline.ids import KeyId
from pipeline.records.rows import Row, RowChange, RowConflictError

SHELF, OTHER = b"s" * 16, b"o" * 16
KEY = KeyId(UUID(int=7))


def tag(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def row(name: str, version: int = 1, sealed: bytes = b"sealed", shelf: bytes = SHELF) -> Row:
    return Row(shelf, tag(name), version, KEY, sealed, expires=99)


def put(
    name: str, expected: int = 0, sealed: bytes = b"sealed", shelf: bytes = SHELF, blinds: tuple[str, ...] = ()
) -> RowChange:
    entries = [each.encode().ljust(16) for each in blinds]
    return RowChange(shelf, tag(name), expected, row(name, expected + 1, sealed, shelf), entries)


def number(value: str) -> list[bytes]:
    return [value.encode().ljust(16)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"{tmp_path}/records/records.db"


async def test_a_row_is_there_until_it_is_removed(path: str) -> None:
    engine = SqliteEngine(path)
    await engine.write([put("a", blinds=("1", "2")), put("b", blinds=("1",)), put("a", shelf=OTHER)])
    assert [each.sealed for each in await engine.rows(SHELF, [tag("a"), tag("x")])] == [b"sealed"]
    assert [each.tag for each in await engine.found(SHELF, number("1"), 10)] == [tag("a"), tag("b")]
    assert len(await engine.found(SHELF, number("1") + number("2"), 10)) == 2
    assert await engine.found(OTHER, number("1"), 10) == await engine.found(SHELF, [], 10) == []
    await engine.write([put("a", 1, b"again", blinds=("3",))])
    assert [each.version for each in await engine.found(SHELF, number("3"), 10)] == [2]
    assert [each.tag for each in await engine.found(SHELF, number("1"), 10)] == [tag("b")]
    page = await engine.page(SHELF, 0, 1)
    assert [each.tag for each in page] == [tag("a")]
    assert [each.tag for each in await engine.page(SHELF, page[0].number, 9)] == [tag("b")]
    await engine.write([RowChange(SHELF, tag("a"), 2, None)])
    assert await engine.rows(SHELF, [tag("a")]) == await engine.found(SHELF, number("3"), 10) == []
    assert len(await engine.rows(OTHER, [tag("a")])) == 1
    engine.close()


async def test_index_entries_stay_if_none_are_given(path: str) -> None:
    engine = SqliteEngine(path)
    await engine.write([put("a", blinds=("1",))])
    await engine.write([replace(put("a", 1, b"again"), blinds=None)])
    assert [each.sealed for each in await engine.found(SHELF, number("1"), 10)] == [b"again"]
    await engine.write([put("a", 2)])
    assert await engine.found(SHELF, number("1"), 10) == []
    engine.close()


async def test_numbers_follow_the_order_of_changes_and_are_never_used_again(path: str) -> None:
    engine = SqliteEngine(path)
    await engine.write([put("b"), put("a"), put("b", 1), put("c")])
    assert [each.tag for each in await engine.page(SHELF, 0, 9)] == [tag("b"), tag("a"), tag("c")]
    await engine.write([RowChange(SHELF, tag("c"), 1, None)])
    await engine.write([put("d", blinds=("1",))])
    assert [each.number for each in await engine.page(SHELF, 0, 9)] == [1, 2, 4]
    assert [each.tag for each in await engine.found(SHELF, number("1"), 9)] == [tag("d")]
    engine.close()


async def test_what_is_found_is_looked_up_and_not_searched_for(path: str) -> None:
    """The cost of a question doesn't grow with the records: SQLite says that it goes by keys alone."""
    engine = SqliteEngine(path)
    await engine.write([put(f"{each}", blinds=(f"{each % 7}",)) for each in range(300)])
    engine._writer.execute("ANALYZE")
    asked: list[str] = []
    engine._reader.set_trace_callback(asked.append)
    assert len(await engine.found(SHELF, number("1"), 9)) == len(await engine.rows(SHELF, [tag("1"), tag("2")])) + 7
    engine._reader.set_trace_callback(None)
    for each in asked:
        plan = [detail for *_, detail in engine._reader.execute(f"EXPLAIN QUERY PLAN {each}")]
        searches = [detail for detail in plan if not detail.startswith("USE TEMP B-TREE")]
        assert all(detail.startswith("SEARCH") and "record_order" not in detail for detail in searches), plan
    assert len(asked) == 2
    engine.close()


@pytest.mark.parametrize("wrong", [put("a"), put("a", 2), put("new", 1), RowChange(SHELF, tag("a"), 7, None)])
async def test_who_expects_another_version_changes_nothing(wrong: RowChange, path: str) -> None:
    engine = SqliteEngine(path)
    await engine.write([put("a")])
    with pytest.raises(RowConflictError):
        await engine.write([put("b"), wrong])
    assert [each.tag for each in await engine.page(SHELF, 0, 9)] == [tag("a")]
    engine.close()


async def test_who_conflicts_takes_no_other_with_it_and_many_share_a_commit(path: str) -> None:
    engine = SqliteEngine(path)
    commits: list[str] = []
    engine._writer.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
    failed: list[int] = []

    async def write(each: int) -> None:
        try:
            await engine.write([put(f"{each % 40}")])
        except RowConflictError:
            failed.append(each)

    async with anyio.create_task_group() as group:
        for each in range(80):
            group.start_soon(write, each)
    assert len(await engine.page(SHELF, 0, 99)) == len(failed) == 40
    assert len(commits) <= 4
    engine.close()


async def test_a_writer_that_goes_away_leaves_nothing_half_done(path: str) -> None:
    engine = SqliteEngine(path)
    async with anyio.create_task_group() as group:
        group.start_soon(engine.write, [put("a")])
        group.start_soon(engine.write, [put("b")])
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert engine._queue == []
    await engine.write([put("c")])
    assert tag("c") in {each.tag for each in await engine.page(SHELF, 0, 9)}
    engine.close()


async def test_what_is_removed_or_replaced_leaves_no_trace(path: str) -> None:
    engine = SqliteEngine(path)
    gone = [os.urandom(24).hex().encode() for _ in range(2)]
    await engine.write([put("a", sealed=gone[0] * 200, blinds=("1",)), put("b", sealed=gone[1] * 200)])
    await engine.write([put("a", 1), RowChange(SHELF, tag("b"), 1, None)])
    engine.close()
    left = b"".join(each.read_bytes() for each in Path(path).parent.iterdir())
    assert [each for each in gone if each in left] == []


async def test_once_settled_nothing_is_left_of_it_beside_a_running_engine_either(path: str) -> None:
    engine = SqliteEngine(path)
    assert await engine.settled()
    gone = os.urandom(24).hex().encode()
    await engine.write([put("a", sealed=gone * 200)])
    await engine.write([RowChange(SHELF, tag("a"), 1, None)])
    with sqlite3.connect(path) as reading:
        reading.execute("BEGIN")
        reading.execute("SELECT * FROM record").fetchall()
        assert not await engine.settled()  # somebody reads: later
    reading.close()
    assert await engine.settled()
    assert [each.name for each in Path(path).parent.iterdir() if gone in each.read_bytes()] == []
    engine.close()


async def test_a_file_of_the_version_before_is_brought_up_with_its_index(path: str) -> None:
    engine = SqliteEngine(path)
    await engine.write([put("a", blinds=("1", "2")), put("b", blinds=("1",))])
    engine.close()
    with sqlite3.connect(path) as before:
        before.executescript(VERSION_1)
    engine = SqliteEngine(path)
    assert [each.tag for each in await engine.found(SHELF, number("1"), 10)] == [tag("a"), tag("b")]
    await engine.write([RowChange(SHELF, tag("a"), 1, None)])
    assert await engine.found(SHELF, number("2"), 10) == []
    engine.close()
    with sqlite3.connect(path) as now:
        assert now.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert [name for (name,) in now.execute("SELECT name FROM sqlite_master") if name == "blind_1"] == []
    now.close()
    before.close()


async def test_files_are_their_owners_only(path: str) -> None:
    engine = SqliteEngine(path)
    await engine.write([put("a")])
    folder = Path(path).parent
    assert {each.name for each in folder.iterdir()} >= {"records.db", "records.db-wal"}
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    engine.close()


def test_another_version_or_another_file_stops_the_start_and_nothing_is_changed(path: str) -> None:
    SqliteEngine(path).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 9")
    with pytest.raises(HaltError, match="version 9"):
        SqliteEngine(path)
    Path(path).write_bytes(b"no database at all" * 1000)
    with pytest.raises(HaltError):
        SqliteEngine(path)
    assert Path(path).read_bytes() == b"no database at all" * 1000


async def test_a_full_or_damaged_file_is_told_as_ours(path: str) -> None:
    engine = SqliteEngine(path)
    await engine.write([put("a")])
    engine._writer.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreFullError):
        await engine.write([put(f"{each}", sealed=os.urandom(4096)) for each in range(50)])
    assert [each.tag for each in await engine.page(SHELF, 0, 99)] == [tag("a")]
    engine.close()
    content = bytearray(Path(path).read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    Path(path).write_bytes(content)
    engine = SqliteEngine(path)
    with pytest.raises(StoreIoError):
        await engine.page(SHELF, 0, 99)
    engine.close()


VERSION_1 = """
CREATE TABLE other (
    shelf BLOB NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    record INTEGER NOT NULL REFERENCES record (number) ON DELETE CASCADE,
    PRIMARY KEY (shelf, name, digest, record)
) STRICT, WITHOUT ROWID;
INSERT INTO other SELECT shelf, 'number', digest, record FROM blind JOIN record ON record.number = blind.record;
DROP TABLE blind;
ALTER TABLE other RENAME TO blind;
CREATE INDEX blind_record ON blind (record);
PRAGMA user_version = 1;
"""
WRITER = """
import sys, anyio
sys.path.insert(0, ".")
from tests.contract.test_record_engine import put
from pipeline.adapters.sqlite import SqliteEngine
async def main():
    engine = SqliteEngine(sys.argv[1])
    for number in range(100_000):
        await engine.write([put(f"r{number}", sealed=b"x" * 2000), put(f"twin{number}")])
        print(number, flush=True)
anyio.run(main)
"""


async def test_a_killed_process_has_lost_nothing_that_it_acknowledged(path: str) -> None:
    """What was printed is there; of what was not, both halves or neither."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert child.stdout is not None
    acknowledged = 0
    for line in child.stdout:
        acknowledged = int(line) + 1
        if acknowledged == 60:
            child.kill()
            break
    acknowledged += len(re.findall(rb"[0-9]+\n", child.stdout.read()))
    child.wait()
    child.stdout.close()
    engine = SqliteEngine(path)
    names = {each.tag.rstrip(b".").decode() for each in await engine.page(SHELF, 0, 100_000)}
    assert {f"r{number}" for number in range(acknowledged)} <= names
    assert {name.replace("r", "twin", 1) for name in names if name.startswith("r")} == {
        name for name in names if name.startswith("twin")
    }
    engine.close()
