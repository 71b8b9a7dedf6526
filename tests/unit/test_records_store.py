"""The record store: what is sealed for one place opens nowhere else, and the audit trail knows first."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipeline.crypt import segments
from pipeline.errors import (
    HoldCode,
    RecordChangedError,
    RecordsUnservedError,
    SegmentForgedError,
    StoreIoError,
)
from pipeline.records.classes import POLICIES
from pipeline.records.drafts import Condition, Draft
from pipeline.records.policy import Audit, KeyChange
from pipeline.records.sealing import Record, context
from pipeline.records.shelves import ServiceKey
from pipeline.records.upkeep import Upkeep
from tests.records_fixture import KEPT, SERVICE_ARN, Records, records_over, with_records
from tests.store_fixture import World, instance, node
from tests.unit.keyring_fakes import ARN, A, B, refusal

BODY = b'{"PhoneNumber": "+4930901820", "secret": "Erika"}'


@asynccontextmanager
async def opened(root: Path, world: World | None = None) -> AsyncIterator[Records]:
    async with node(world or World(root=root)) as process, records_over(process) as records:
        yield records


def draft(data_class: str, record_id: str = "r-1", body: bytes = BODY) -> Draft:
    return Draft(id=record_id, body=body, part="voiceprint" if POLICIES[data_class].parts else None)


async def put(records: Records, data_class: str, record_id: str = "r-1", body: bytes = BODY) -> int:
    shelf = records.shelf(data_class, A)
    return await records.store.put(records.caller(A), shelf, draft(data_class, record_id, body))


async def get(records: Records, data_class: str, record_id: str = "r-1") -> Record | None:
    return await records.store.get(records.caller(A), records.shelf(data_class, A), record_id)


def audit(records: Records) -> list[dict[str, Any]]:
    files = (records.process.world.root / "audit" / str(A)).glob("*.jsonl")
    return [json.loads(line) for file in sorted(files) for line in file.read_bytes().splitlines()]


def told(records: Records, verb: str) -> list[dict[str, Any]]:
    return [each["requestParameters"] for each in audit(records) if each["eventName"] == verb]


def raw(records: Records, statement: str, *values: object) -> None:
    """Change the file as who can write to the store could."""
    with sqlite3.connect(f"{records.process.world.root}/records/records.db") as connection:
        connection.execute(statement, values)


async def test_records_outlive_a_restart(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with opened(tmp_path, world) as records:
        for data_class in KEPT:
            assert await put(records, data_class) == 1
    async with opened(tmp_path, world) as records:
        for data_class in KEPT:
            found = await get(records, data_class)
            assert found is not None
            assert (found.body, found.version, found.id) == (BODY, 1, "r-1")


FORGERIES = {
    "another version": "UPDATE record SET version = version + 1 WHERE number = 1",
    "another's bytes": "UPDATE record SET sealed = (SELECT sealed FROM record WHERE number = 2) WHERE number = 1",
    "another part": "UPDATE record SET part = 'x' WHERE number = 1",
    "an unknown data key": "UPDATE record SET key_id = x'00000000000040008000000000000001' WHERE number = 1",
    "cut": "UPDATE record SET sealed = substr(sealed, 1, 60) WHERE number = 1",
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_row_that_was_tampered_with_does_not_open(forgery: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        await put(records, "cases", "r-1")
        await put(records, "cases", "r-2")
        raw(records, FORGERIES[forgery])
        with pytest.raises(SegmentForgedError):
            await get(records, "cases", "r-1")
        assert await get(records, "cases", "r-2") is not None
        assert len(told(records, "RecordOpened")) == 1


async def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        await put(records, "cases")
        (row,) = await records.engine.page(records.shelf("cases", A).scope.shelf, 0, 9)
        for at in range(0, len(row.sealed), 11):
            flipped = bytearray(row.sealed)
            flipped[at] ^= 1 << at % 8
            raw(records, "UPDATE record SET sealed = ?", bytes(flipped))
            with pytest.raises(SegmentForgedError):
                await get(records, "cases")
        raw(records, "UPDATE record SET sealed = ?", row.sealed)
        assert await get(records, "cases") is not None


async def test_a_row_in_another_rows_place_does_not_open(tmp_path: Path) -> None:
    """Neither in its own class, nor in another, nor in another instance's."""
    async with opened(tmp_path) as records:
        for data_class in KEPT:
            await put(records, data_class, "r-1")
            await records.store.put(records.caller(B), records.shelf(data_class, B), draft(data_class))
        with sqlite3.connect(f"{tmp_path}/records/records.db") as connection:
            rows = connection.execute("SELECT number, shelf, tag, key_id, sealed FROM record").fetchall()
        for number, *_ in rows:
            _, _, _, key_id, sealed = rows[number % len(rows)]
            raw(records, "UPDATE record SET key_id = ?, sealed = ? WHERE number = ?", key_id, sealed, number)
        for data_class in KEPT:
            with pytest.raises(SegmentForgedError):
                await get(records, data_class)


async def test_an_index_entry_of_anothers_gives_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        shelf = records.shelf("profiles_domain", A)
        await put(records, "profiles_domain", "r-1")
        await put(records, "profiles_domain", "r-2", b'{"PhoneNumber": "+12025550100"}')
        raw(records, "UPDATE blind SET record = 2")
        assert await records.store.find(records.caller(A), shelf, "phone", "+4930901820") == []


async def test_the_context_of_a_record_is_as_documented(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        shelf = records.shelf("cases", A)
        await put(records, "cases")
        (row,) = await records.engine.page(shelf.scope.shelf, 0, 9)
        place = b"recording-pipeline/record/1\0cases\0" + shelf.scope.name.encode() + b"\0" + row.tag.hex().encode()
        assert context(shelf.scope, row.tag, 1) == place + (1).to_bytes(8, "big")
        plaintext = segments.open_segment(await shelf.opening(row.key_id), place + (1).to_bytes(8, "big"), row.sealed)
        assert plaintext.endswith(BODY)
        assert (tmp_path / shelf.scope.directory / f"{row.key_id.hex}.json").exists()


@pytest.mark.parametrize("data_class", KEPT)
async def test_the_trail_tells_what_the_row_says_and_nothing_personal(data_class: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        await put(records, data_class)
        await get(records, data_class)
        await records.store.delete(records.caller(A), records.shelf(data_class, A), "r-1")
        wanted = POLICIES[data_class].audit
        assert len(told(records, "RecordPut")) == len(told(records, "RecordDeleted")) == (Audit.CHANGES in wanted)
        assert len(told(records, "RecordOpened")) == (Audit.OPENINGS in wanted)
        assert [each["count"] for each in told(records, "RecordPuts")] == [1] * (Audit.COUNTS in wanted)
        everything = json.dumps(audit(records))
        assert not any(each in everything for each in ("r-1", "Erika", "4930901820"))


async def test_many_records_share_an_audit_record_that_names_each(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        shelf = records.shelf("profiles_domain", A)
        drafts = [draft("profiles_domain", f"r-{each}") for each in range(1002)]
        await records.store.put_all(records.caller(A), shelf, [*drafts, drafts[-1]])
        await records.store.page(records.caller(A), shelf, limit=3)
        first, rest = told(records, "RecordPut")
        assert (first["count"], rest["count"]) == (1000, 3)
        named = [*first["records"], *rest["records"]]
        assert len({each.partition(":")[0] for each in named}) == 1002
        assert [each.partition(":")[2] for each in named] == ["1"] * 1002 + ["2"]
        (opening,) = told(records, "RecordOpened")
        assert opening["records"] == named[:3]


async def test_nothing_is_opened_or_changed_that_can_not_be_told(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        await put(records, "cases")
        for act in (get(records, "cases"), put(records, "cases", body=b"{}")):
            records.process.files.refuse("sync", "audit/")
            with pytest.raises(StoreIoError):
                await act
        found = await get(records, "cases")
        assert found is not None
        assert (found.body, found.version) == (BODY, 1)


async def test_two_who_put_at_once_are_put_one_after_the_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        versions: list[int] = []

        async def one() -> None:
            versions.append(await put(records, "cases"))

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(one)
        assert sorted(versions) == [1, 2, 3, 4]
        with pytest.raises(RecordChangedError):
            await records.store.put(records.caller(A), records.shelf("cases", A), draft("cases"), Condition(version=3))


async def test_a_data_key_serves_thirty_days_and_its_search_key_goes_on(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with opened(tmp_path, world) as records:
        await put(records, "profiles_domain", "r-1")
        world.clock.advance(29 * 86_400)
        await put(records, "profiles_domain", "r-2")
        world.clock.advance(2 * 86_400)
        await put(records, "profiles_domain", "r-3")
        shelf = records.shelf("profiles_domain", A)
        rows = await records.engine.page(shelf.scope.shelf, 0, 9)
        assert rows[0].key_id == rows[1].key_id != rows[2].key_id
        assert len(await records.store.find(records.caller(A), shelf, "phone", "+4930901820")) == 3


async def test_a_key_of_a_class_that_never_changes_keys_can_not_be_exchanged(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        for data_class in ("ai_content", "appintegrations_data"):
            assert POLICIES[data_class].key_change is KeyChange.IMMUTABLE
            await put(records, data_class)
        other = tuple(
            replace(each, kms_key_arn=SERVICE_ARN if each.kms_key_arn else None) for each in records.caller(A).records
        )
        records.configure(a=replace(records.caller(A), records=other))
        for data_class in ("ai_content", "appintegrations_data"):
            with pytest.raises(RecordsUnservedError, match="no change of key"):
                await put(records, data_class)
        records.configure(a=with_records(instance(A)))
        for data_class in ("ai_content", "appintegrations_data"):
            assert await get(records, data_class) is not None


async def test_without_a_key_of_the_services_its_classes_are_not_served(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        records.shelves.adopt(records.process.world.instances.values(), ServiceKey())
        for data_class in KEPT:
            if POLICIES[data_class].takes_customer_key:
                assert await put(records, data_class) == 1
            else:
                with pytest.raises(RecordsUnservedError, match="service_key_arn"):
                    await put(records, data_class)


async def test_two_instances_that_disagree_about_a_domains_key_are_both_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        shared = records.caller(A).records
        mine = [replace(each, kms_key_arn=SERVICE_ARN if each.kms_key_arn else None) for each in shared]
        records.configure(b=replace(records.caller(B), records=shared))
        assert records.shelf("profiles_domain", A) is records.shelf("profiles_domain", B)
        await put(records, "profiles_domain")
        other = records.shelf("profiles_domain", B)
        assert await records.store.get(records.caller(B), other, "r-1") is not None
        records.configure(b=replace(records.caller(B), records=tuple(mine)))
        with pytest.raises(RecordsUnservedError, match="different KMS keys"):
            await put(records, "profiles_domain")
        assert await put(records, "cases") == 1


async def test_keys_are_dropped_when_a_scope_goes_and_kept_when_it_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        await put(records, "cases")
        ring = records.shelf("cases", A).ring
        assert ring is not None
        records.configure()
        assert records.shelf("cases", A).ring is ring
        assert list(ring._copies)
        records.shelves.adopt([records.caller(B)], ServiceKey(SERVICE_ARN))
        assert list(ring._copies) == []


async def test_silence_of_a_customers_key_is_no_denial(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        await put(records, "profiles_domain")
        kms = records.process.world.kms
        kms.refuses[ARN] = refusal(HoldCode.KEY_UNREACHABLE)
        assert await get(records, "profiles_domain") is not None


@pytest.mark.parametrize(
    ("data_class", "body", "wanted"),
    [
        ("contact_metadata", b'{"initiationTimestamp": "2026-02-28T10:00:00Z"}', datetime(2028, 2, 28, 10, tzinfo=UTC)),
        ("contact_metadata", b'{"InitiationTimestamp": "2024-02-29T10:00:00Z"}', datetime(2026, 2, 28, 10, tzinfo=UTC)),
        ("contact_metadata", b'{"InitiationTimestamp": "soon"}', None),
        ("cases", b"{}", "never"),
    ],
)
async def test_a_records_time_is_counted_from_what_it_says(
    data_class: str, body: bytes, wanted: datetime | str | None, tmp_path: Path
) -> None:
    async with opened(tmp_path) as records:
        await put(records, data_class, body=body)
        (row,) = await records.engine.page(records.shelf(data_class, A).scope.shelf, 0, 9)
        now = records.process.world.clock.now()
        if wanted == "never":
            assert row.expires is None
            return
        if wanted is None:
            wanted = now.replace(year=now.year + 2)
        assert isinstance(wanted, datetime)
        assert row.expires is not None
        assert abs(datetime.fromtimestamp(row.expires, UTC) - wanted) < timedelta(seconds=1)


async def test_the_services_own_key_rotates_by_itself_and_the_former_is_needed_no_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as records:
        kms, clock = records.process.world.kms, records.process.world.clock
        owned = [each for each in KEPT if not POLICIES[each].takes_customer_key]
        for data_class in KEPT:
            await put(records, data_class)
        new = ARN[:-4] + "003f"
        kms.arns.add(new)
        records.service = ServiceKey(new, SERVICE_ARN)
        records.configure()
        upkeep = Upkeep(records.shelves, records.search, records.engine, clock)
        kms.refuses[new] = refusal(HoldCode.KEY_DISABLED)
        await upkeep.once()  # the new one can't be used yet: nothing is lost, and it is tried again
        del kms.refuses[new]
        clock.advance(61)
        await upkeep.once()
        records.service = ServiceKey(new)
        records.configure()
        kms.refuses[SERVICE_ARN] = refusal()
        clock.advance(301)
        for data_class in owned:
            assert await get(records, data_class) is not None
            ring = await records.shelf(data_class, A).opened()
            assert {wrapped.kms_key_arn for file in ring.files for wrapped in file.wrapped} == {new}
        before = len(kms.calls)
        clock.advance(61)
        await upkeep.once()
        assert len(kms.calls) == before
