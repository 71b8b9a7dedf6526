"""Contact events give contact metadata: sealed, found by number, durable before they are acknowledged."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from pipeline.errors import HoldCode, StoreIoError
from pipeline.intake.contacts import object_contact
from pipeline.intake.recordevents import RecordEvents
from pipeline.records.merging import Merging
from pipeline.records.rows import Row, RowChange, RowConflictError
from pipeline.records.shelves import ServiceKey, Shelf
from tests.intake_server import TOKENS, Server, is_problem, serving, world_at
from tests.unit.keyring_fakes import OLD_ARN, A, B, refusal

NUMBER, SYSTEM, NAME = "+49 30 901820", "+4930111222", "Erika-Mustermann-0815"
MONTHS_24_S = 730 * 86_400


def event(event_type: str = "INITIATED", contact: str = "call-1", minute: int = 1, **detail: Any) -> dict[str, Any]:
    return {
        "id": f"e-{contact}-{event_type}-{minute}",
        "time": f"2026-11-23T14:{minute:02}:00Z",
        "detail-type": "Amazon Connect Contact Event",
        "source": "aws.connect",
        "detail": {
            "eventType": event_type,
            "contactId": contact,
            "channel": "VOICE",
            "initiationTimestamp": "2026-11-23T14:01:00Z",
            "customerEndpoint": {"type": "TELEPHONE_NUMBER", "address": NUMBER},
            "tags": {"aws:connect:systemEndpoint": SYSTEM},
            "attributes": {"name": NAME},
            **detail,
        },
    }


async def post(server: Server, *events: dict[str, Any], token: str = TOKENS[A]) -> Any:
    return await server.ask("POST", "/v1/events", json.dumps(list(events)).encode(), token=token)


async def found(server: Server, index: str, value: str, instance: Any = A) -> list[Any]:
    path = f"/v1/instances/{instance}/records/contact_metadata?{index}={value}"
    reply = await server.ask("GET", path, token=TOKENS[instance])
    return [(each["id"], each["version"]) for each in reply.json["records"]]


async def record(server: Server, contact: str = "call-1") -> Any:
    return await server.ask("GET", f"/v1/instances/{A}/records/contact_metadata/{contact}")


def shelf_of(server: Server) -> Shelf:
    return server.records.shelf("contact_metadata", A)


async def test_a_contacts_events_are_one_record_that_is_found_by_either_number_and_by_its_contacts(
    tmp_path: Path,
) -> None:
    async with serving(world_at(tmp_path)) as server:
        events = [event("COMPLETED", minute=9, initialContactId="call-0"), event(), event("QUEUED", minute=5)]
        for _ in range(2):
            for each in events:
                assert (await post(server, each)).status == 202
        for index, value in (
            ("number", "%2B4930901820"), ("number", "%2B49(30)901820"), ("number", "%2B4930111222"),
            ("contact", "call-1"), ("contact", "call-0"),
        ):  # fmt: skip
            assert await found(server, index, value) == [("call-1", 2)], (
                value
            )  # the first two told all there was to tell
        given = (await record(server)).json
        assert (given["EventType"], given["Attributes"], given["ContactId"]) == ("COMPLETED", {"name": NAME}, "call-1")
        for secret in (NAME, "901820", "0111222", "call-1"):
            assert server.process.world.holds(secret.encode()) == [], secret


async def test_the_same_number_in_two_instances_has_two_hashes_and_is_found_in_its_own(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await post(server, event())
        assert await found(server, "number", "%2B4930901820", B) == []
        await post(server, event(contact="c-9"), token=TOKENS[B])
        assert await found(server, "number", "%2B4930901820", B) == [("c-9", 1)]
        assert await found(server, "number", "%2B4930901820", A) == [("call-1", 1)]
        digests = {
            key.digest("index/number", "+4930901820")
            for each in (A, B)
            for key in await server.records.shelf("contact_metadata", each).blind()
        }
        assert len(digests) == 2
        assert (await record(server, "c-9")).status == 404


async def test_an_event_for_which_the_service_has_no_key_is_taken_and_no_metadata_kept(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        server.records.service = ServiceKey(None)
        server.records.configure()
        assert (await post(server, event())).status == 202
        assert await server.records.engine.count(shelf_of(server).scope.shelf) == 0


async def test_while_the_services_key_is_away_an_event_is_refused_and_then_taken_once(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await post(server, event())
        kms = server.process.world.kms
        kms.refuses[OLD_ARN] = refusal(HoldCode.KEY_DISABLED)
        server.process.world.clock.advance(301)
        assert is_problem(await post(server, event("COMPLETED", minute=9)), 503, "KEY_DISABLED")
        assert (await record(server)).status == 503
        del kms.refuses[OLD_ARN]
        server.process.world.clock.advance(31)
        assert (await post(server, event("COMPLETED", minute=9))).status == 202
        assert (await record(server)).json["EventType"] == "COMPLETED"


async def test_metadata_goes_24_months_after_the_contact_began_however_late_an_event_is(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        clock, records = server.process.world.clock, server.records
        clock.advance(100 * 86_400)
        await post(server, event(), event("COMPLETED", minute=9))
        (row,) = await records.engine.page(shelf_of(server).scope.shelf, 0, 9)
        assert row.expires is not None
        began = 1_795_442_460  # 2026-11-23T14:01:00Z
        assert 0 <= row.expires - began - MONTHS_24_S <= 2 * 86_400
        clock.advance(row.expires - clock.now().timestamp() - 10)
        await records.sweeper.sweep()
        assert (await record(server)).status == 200
        clock.advance(11)
        await records.sweeper.sweep()
        assert (await record(server)).status == 404
        assert await found(server, "number", "%2B4930901820") == []


async def test_a_persons_metadata_is_given_out_and_erased_and_does_not_come_back_at_the_next_start(
    tmp_path: Path,
) -> None:
    world = world_at(tmp_path)
    who = json.dumps({"number": [NUMBER]}).encode()
    async with serving(world) as server:
        await post(server, event(), event(contact="call-2", customerEndpoint={"address": "+4940123456"}))
        given = await server.ask("POST", f"/v1/instances/{A}/subject/export", who)
        assert [each["id"] for each in given.json["records"]] == ["call-1"]
        erased = await server.ask("POST", f"/v1/instances/{A}/subject/erase", who)
        assert erased.status == 200
        assert (await record(server)).status == 404
    async with serving(world) as server:
        assert (await post(server, event("QUEUED", "call-2", 5, customerEndpoint=None))).status == 202
        assert await found(server, "number", "%2B4930901820") == []
        assert await found(server, "contact", "call-2") == [("call-2", 2)]


async def test_a_contact_id_that_object_keys_may_not_carry_gives_its_stand_in(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await post(server, event(contact="4930901820@sip"))
        stand_in = object_contact("4930901820@sip", A)[0]
        assert (await record(server, stand_in)).json["ContactId"] == "4930901820@sip"
        assert await found(server, "contact", "4930901820@sip") == [(stand_in, 1)]


async def test_a_record_that_does_not_open_or_is_no_object_stays_and_its_events_are_taken(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        path = f"/v1/instances/{A}/records/contact_metadata/call-1"
        await server.ask("PUT", path, b"a note", headers={"Content-Type": "text/plain"})
        assert (await post(server, event())).status == 202
        assert (await record(server)).body == b"a note"
        engine, shelf = server.records.engine, shelf_of(server)
        (row,) = await engine.page(shelf.scope.shelf, 0, 9)
        forged = Row(row.shelf, row.tag, row.version + 1, row.key_id, row.sealed, row.expires, row.part)
        await engine.write([RowChange(row.shelf, row.tag, row.version, forged)])
        assert (await post(server, event("QUEUED", minute=5), event(contact="call-2"))).status == 202
        (kept, _) = await engine.page(shelf.scope.shelf, 0, 9)
        assert (kept.version, kept.sealed) == (forged.version, row.sealed)
        assert await found(server, "contact", "call-2") == [("call-2", 1)]


# --- crashes and others who write at the same time


@dataclass
class Weak:
    """An engine, or a journal, that fails on demand."""

    inner: Any
    fails: Exception | None = None
    times: int = 1_000

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def _maybe(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.fails is not None and self.times > 0:
            self.times -= 1
            raise self.fails

    async def write(self, changes: Sequence[RowChange]) -> None:
        await self._maybe()
        await self.inner.write(changes)

    async def append(self, *given: Any) -> None:
        await self._maybe()
        await self.inner.append(*given)


@pytest.mark.parametrize("broken", ["records", "journal"])
async def test_an_event_that_is_not_in_both_places_is_not_acknowledged_and_a_repeat_after_the_crash_mends_it(
    broken: str, tmp_path: Path
) -> None:
    world = world_at(tmp_path)
    async with serving(world) as server:
        records, events = server.records, server.process.events
        if broken == "records":
            engine = Weak(records.engine, StoreIoError("gone"))
            events._records = RecordEvents(
                records.shelves, records.store, Merging(engine, world.clock), records.speakers
            )
        else:
            events._journal = Weak(server.process.journal, StoreIoError("gone"))  # type: ignore[assignment]
        assert (await post(server, event(), event("COMPLETED", minute=9))).status == 503
    async with serving(world) as server:  # what was in memory is gone
        assert (await record(server)).status == (404 if broken == "records" else 200)
        for _ in range(2):
            assert (await post(server, event(), event("COMPLETED", minute=9))).status == 202
        assert await found(server, "contact", "call-1") == [("call-1", 1)]
    async with serving(world) as server:
        assert (await record(server)).json["EventType"] == "COMPLETED"
        assert server.process.contacts.get(A, "call-1") is None
        await server.process.replay.done(server.process.tenants.get(A))  # type: ignore[arg-type]
        known = server.process.contacts.get(A, "call-1")
        assert known is not None
        assert known.completed


async def test_an_acknowledged_event_is_there_after_the_process_was_dropped_without_closing(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    first = serving(world)
    server = await first.__aenter__()
    assert (await post(server, event())).status == 202
    async with serving(world) as again:  # the first one never closed its files
        assert (await record(again)).json["Attributes"] == {"name": NAME}
    await first.__aexit__(None, None, None)


async def test_events_of_one_contact_at_the_same_time_are_all_merged(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(post, server, event("QUEUED", minute=number, attributes={f"n{number}": "x"}))
        assert set((await record(server)).json["Attributes"]) == {f"n{number}" for number in range(5)}


async def test_what_others_change_meanwhile_is_merged_with_and_never_overwritten(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        records, clock = server.records, server.process.world.clock
        busy = Weak(records.engine, RowConflictError(), times=3)
        server.process.events._records = RecordEvents(
            records.shelves, records.store, Merging(busy, clock), records.speakers
        )
        assert (await post(server, event())).status == 202
        busy.times = 1_000
        assert is_problem(await post(server, event("QUEUED", minute=5, customerId="x")), 503, "record-busy")
        assert "CustomerId" not in (await record(server)).json
