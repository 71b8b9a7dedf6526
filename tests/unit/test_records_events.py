"""Records by events, each class from its envelope, none into the journal; case events go on, or are poison."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest

from pipeline.errors import DeferError, HoldCode, KeyUnavailableError
from pipeline.records.events import DETAIL_TYPES
from pipeline.records.publishing import POISON
from tests import markers
from tests.intake_server import CANARY, Server, is_problem, serving, world_at
from tests.records_fixture import arn_of
from tests.unit.keyring_fakes import OLD_ARN, A, B, refusal

SECRET = f"{markers.PERSON}-0815"


def envelope(detail_type: str, **detail: Any) -> dict[str, Any]:
    return {"version": "0", "id": "e-1", "source": "acme.crm", "detail-type": detail_type, "detail": detail}


def case_event(number: int = 1, domain: str | None = None) -> dict[str, Any]:
    arn = domain or arn_of("cases", A)
    return {
        "version": "0",
        "id": f"event-{number}",
        "detail-type": "Amazon Connect Cases Change",
        "source": "aws.cases",
        "account": "111122223333",
        "time": "2026-11-23T14:05:12Z",
        "region": "eu-central-1",
        "resources": [arn, f"{arn}/case/c-{number}"],
        "detail": {
            "version": "0",
            "eventType": "CASE.CREATED",
            "timestamp": "2026-11-23T14:05:11Z",
            "case": {"caseId": f"c-{number}", "fields": [{"id": "title", "value": {"stringValue": SECRET}}]},
        },
    }


async def post(server: Server, *events: dict[str, Any]) -> Any:
    return await server.ask("POST", "/v1/events", json.dumps(list(events)).encode())


def path(data_class: str, record_id: str) -> str:
    return f"/v1/instances/{A}/records/{data_class}/{record_id}"


class Sink:
    """Remembers what was sent; refuses on demand."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.refuses = False

    async def send(self, events: Sequence[bytes]) -> None:
        await anyio.lowlevel.checkpoint()
        if self.refuses:
            raise DeferError("not now")
        self.sent += events


@pytest.mark.parametrize("detail_type", DETAIL_TYPES)
async def test_a_record_comes_and_goes_by_events_and_stays_out_of_the_journal(detail_type: str, tmp_path: Path) -> None:
    data_class = DETAIL_TYPES[detail_type]
    part = {"part": "voiceprint"} if data_class == "voiceid" else {}
    async with serving(world_at(tmp_path)) as server:
        event = envelope(detail_type.title(), id="r-1", data={"name": SECRET}, **part)
        for _ in range(2):
            reply = await post(server, event)
            assert (reply.status, reply.json) == (202, {"accepted": 1})
        given = await server.ask("GET", path(data_class, "r-1"))
        assert given.json == {"name": SECRET}
        assert not (tmp_path / "journal" / str(A)).exists()
        assert (await post(server, envelope(detail_type, id="r-1", deleted=True))).status == 202
        assert (await server.ask("GET", path(data_class, "r-1"))).status == 404
        assert server.process.world.holds(SECRET.encode()) == []


async def test_records_and_other_events_may_come_together(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        other = envelope("Something Else", note="kept")
        started = envelope("Recording Started", contactId="c-1", recordingKind="voice", sourceId="s-1")
        reply = await post(server, other, envelope("Case", id="r-1", data={}), started, case_event())
        assert (reply.status, reply.json) == (202, {"accepted": 4})
        assert (await server.ask("GET", path("cases", "r-1"))).status == 200
        assert (tmp_path / "journal" / str(A)).exists()


@pytest.mark.parametrize(
    "event",
    [
        envelope("Case", data={"x": CANARY}),
        envelope("Case", id="r-1", data=[CANARY]),
        envelope("Profile", id="", data={}),
        envelope("Speaker Enrolment", id="r-1", data={}),
    ],
)
async def test_what_can_not_be_a_record_is_refused_and_nothing_taken(event: dict[str, Any], tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        reply = await post(server, event)
        assert reply.status == 400
        assert CANARY.encode() not in reply.body
        assert not (tmp_path / "journal" / str(A)).exists()


async def test_an_event_of_a_class_or_domain_that_is_not_the_callers_is_absent(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        records = server.records
        assert (await post(server, envelope("Case", id="r", data={}, scope="another"))).status == 404
        mine = records.caller(A).records
        second = replace(
            next(each for each in mine if each.data_class == "cases"), name="second", arn=arn_of("cases", A) + "-2"
        )
        records.configure(a=replace(records.caller(A), records=(*mine, second)))
        assert is_problem(await post(server, case_event(1, arn_of("cases", B))), 404, "not-found", "[0].resources")
        assert (await post(server, case_event(1, str(second.arn)))).status == 202
        shelf = records.shelves.get(A, "case_events", "second")
        assert await records.engine.count(shelf.scope.shelf) == 1


async def test_case_events_go_out_in_order_as_they_came_and_are_gone_then(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        sink, records = Sink(), server.records
        for number in range(3):
            await post(server, case_event(number))
        assert server.process.world.holds(SECRET.encode()) == []
        publisher = records.publisher(sink)
        sink.refuses = True
        with pytest.raises(DeferError):
            await publisher.once()
        sink.refuses = False
        assert await publisher.once() == 3
        assert [json.loads(each) for each in sink.sent] == [case_event(number) for number in range(3)]
        assert await publisher.once() == 0
        assert await records.engine.count(records.shelf("case_events", A).scope.shelf) == 0


async def test_a_case_event_that_nobody_took_for_a_day_is_poison_and_kept_sealed(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        sink, records = Sink(), server.records
        await post(server, case_event(1))
        server.process.world.clock.advance(86_400 + 60)
        await records.sweeper.sweep()
        await post(server, case_event(2))
        sink.refuses = True
        with pytest.raises(DeferError):
            await records.publisher(sink).once()
        sink.refuses = False
        assert await records.publisher(sink).once() == 1
        assert [json.loads(each)["id"] for each in sink.sent] == ["event-2"]
        (kept,) = await records.engine.page(records.shelf("case_events", A).scope.shelf, 0, 9)
        assert (kept.part, kept.expires) == (POISON, None)
        given = await server.ask("GET", path("case_events", "event-1"))
        assert given.json == case_event(1)
        assert server.process.world.holds(SECRET.encode()) == []
        assert (await server.ask("DELETE", path("case_events", "event-1"))).status == 204


async def test_while_the_services_key_is_away_case_events_wait(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        sink, records = Sink(), server.records
        await post(server, case_event(1))
        kms = server.process.world.kms
        kms.refuses[OLD_ARN] = refusal(HoldCode.KEY_DISABLED)
        server.process.world.clock.advance(301)
        with pytest.raises(KeyUnavailableError):
            await records.publisher(sink).once()
        assert is_problem(await post(server, case_event(2)), 503, "KEY_DISABLED")
        del kms.refuses[OLD_ARN]
        server.process.world.clock.advance(31)
        assert await records.publisher(sink).once() == 1
