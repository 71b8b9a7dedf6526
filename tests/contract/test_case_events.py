"""Case events on their way to a real queue and a real bus: sealed while they wait, handed on at least once."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.aws import open_client
from pipeline.adapters.eventbridge import EventBridgeSink
from pipeline.adapters.sqs import SqsQueue, SqsSink
from pipeline.errors import DeferError, HoldCode, KeyUnavailableError, StoreIoError
from pipeline.ports import EventSink
from pipeline.records.publishing import POISON
from pipeline.settings import Endpoint
from tests.intake_server import Server, serving, world_at
from tests.records_fixture import arn_of
from tests.servers import localstack, moto
from tests.unit.keyring_fakes import OLD_ARN, A, refusal

SECRET = "Erika-Mustermann-case"
DAY_S = 86_400


@asynccontextmanager
async def at_moto(_directory: Path) -> AsyncIterator[Endpoint]:
    async with moto() as endpoint:
        yield endpoint


Opener = Callable[[Path], AbstractAsyncContextManager[Endpoint]]
OPENERS = [
    pytest.param(at_moto, id="moto"),
    pytest.param(localstack, id="localstack", marks=[pytest.mark.aws, pytest.mark.slow]),
]


def case_event(number: int, case: str = "c-1") -> dict[str, Any]:
    arn = arn_of("cases", A)
    return {
        "version": "0",
        "id": f"event-{number}",
        "detail-type": "Amazon Connect Cases Change",
        "source": "aws.cases",
        "account": "111122223333",
        "time": "2026-11-23T14:05:12Z",
        "region": "eu-central-1",
        "resources": [arn, f"{arn}/case/{case}"],
        "detail": {"version": "0", "eventType": "CASE.UPDATED", "case": {"caseId": case, "title": SECRET}},
    }


async def post(server: Server, *events: dict[str, Any]) -> None:
    reply = await server.ask("POST", "/v1/events", json.dumps(list(events)).encode())
    assert reply.status == 202, reply.body


@dataclass
class Outside:
    """A FIFO queue, and a bus whose events go to a queue."""

    sqs: Any
    queue: str
    behind_bus: str
    sinks: tuple[EventSink, ...]

    async def taken(self, url: str, number: int) -> list[dict[str, Any]]:
        """Receive so many messages, and see that there are no more."""
        queue, found = SqsQueue(self.sqs, url), list[dict[str, Any]]()
        for _ in range(200):
            batch = await queue.receive()
            found += [json.loads(message.body) for message in batch]
            await queue.delete(batch)
            if not batch and len(found) >= number:
                break
        assert len(found) == number
        return found


@asynccontextmanager
async def outside(endpoint: Endpoint) -> AsyncIterator[Outside]:
    async with open_client("sqs", endpoint) as sqs, open_client("events", endpoint) as events:
        fifo = (await sqs.create_queue(QueueName="cases.fifo", Attributes={"FifoQueue": "true"}))["QueueUrl"]
        behind = (await sqs.create_queue(QueueName="behind-the-bus"))["QueueUrl"]
        arn = (await sqs.get_queue_attributes(QueueUrl=behind, AttributeNames=["QueueArn"]))["Attributes"]["QueueArn"]
        await events.create_event_bus(Name="cases")
        pattern = json.dumps({"detail-type": ["Amazon Connect Cases Change"]})
        await events.put_rule(Name="cases", EventBusName="cases", EventPattern=pattern)
        await events.put_targets(Rule="cases", EventBusName="cases", Targets=[{"Id": "q", "Arn": arn}])
        yield Outside(sqs, fifo, behind, (SqsSink(sqs, fifo), EventBridgeSink(events, "cases")))


async def waiting(server: Server) -> int:
    """Count the events that wait, and see that none of them can be read where they lie."""
    assert server.process.world.holds(SECRET.encode()) == []
    return await server.records.engine.count(server.records.shelf("case_events", A).scope.shelf)


@pytest.mark.parametrize("opener", OPENERS)
async def test_they_arrive_as_they_came_in_the_order_of_each_case(opener: Opener, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    async with opener(tmp_path / "outside") as endpoint, outside(endpoint) as out:
        async with serving(world_at(tmp_path / "node")) as server:
            sent = [case_event(number, f"c-{number % 2}") for number in range(6)]
            await post(server, *sent)
            assert await waiting(server) == 6
            assert await server.records.publisher(*out.sinks).once() == 6
            assert await waiting(server) == 0
        came = await out.taken(out.queue, 6)
        for case in ("c-0", "c-1"):
            assert [one for one in came if one["detail"]["case"]["caseId"] == case] == [
                one for one in sent if one["detail"]["case"]["caseId"] == case
            ]
        by_bus = await out.taken(out.behind_bus, 6)
        assert {one["source"] for one in by_bus} == {"pipeline.recordings"}  # AWS keeps its own names for itself
        assert sorted(one["detail"].pop("eventDeduplicationId") for one in by_bus) == [one["id"] for one in sent]
        assert sorted(json.dumps(one["detail"]) for one in by_bus) == sorted(json.dumps(one["detail"]) for one in sent)


async def test_what_was_handed_on_before_a_crash_goes_out_again_with_the_same_id(tmp_path: Path) -> None:
    """The queue drops the repeat by it, and who listens to the bus can."""
    async with moto() as endpoint, outside(endpoint) as out, serving(world_at(tmp_path)) as server:
        await post(server, case_event(1))
        server.process.files.refuse("sync", "audit/")  # between the sending and the removal
        with pytest.raises(StoreIoError):
            await server.records.publisher(*out.sinks).once()
        assert await waiting(server) == 1
        assert await server.records.publisher(*out.sinks).once() == 1
        assert [one["id"] for one in await out.taken(out.queue, 1)] == ["event-1"]
        by_bus = await out.taken(out.behind_bus, 2)
        assert [one["detail"]["eventDeduplicationId"] for one in by_bus] == ["event-1"] * 2
        assert len({one["id"] for one in by_bus}) == 2


async def test_a_queue_that_is_gone_is_waited_for_a_day_and_then_they_are_poison(tmp_path: Path) -> None:
    async with moto() as endpoint, outside(endpoint) as out, serving(world_at(tmp_path)) as server:
        await out.sqs.delete_queue(QueueUrl=out.queue)
        publisher, clock = server.records.publisher(*out.sinks), server.process.world.clock
        await post(server, case_event(1))
        for _ in range(3):
            with pytest.raises(DeferError):
                await publisher.once()
        clock.advance(DAY_S - 60)
        with pytest.raises(DeferError):
            await publisher.once()
        clock.advance(120)
        assert await publisher.once() == 0
        (kept,) = await server.records.engine.page(server.records.shelf("case_events", A).scope.shelf, 0, 9)
        assert kept.part == POISON
        assert await waiting(server) == 1
        await post(server, case_event(2))
        await out.sqs.create_queue(QueueName="cases.fifo", Attributes={"FifoQueue": "true"})
        assert await publisher.once() == 1
        assert [one["id"] for one in await out.taken(out.queue, 1)] == ["event-2"]


async def test_a_refused_key_stops_them_and_they_go_on_when_it_is_back(tmp_path: Path) -> None:
    async with moto() as endpoint, outside(endpoint) as out, serving(world_at(tmp_path)) as server:
        kms, clock = server.process.world.kms, server.process.world.clock
        publisher = server.records.publisher(*out.sinks)
        await post(server, case_event(1), case_event(2))
        kms.refuses[OLD_ARN] = refusal(HoldCode.KEY_DISABLED)
        clock.advance(301)
        with pytest.raises(KeyUnavailableError):
            await publisher.once()
        assert await waiting(server) == 2
        assert await out.taken(out.queue, 0) == await out.taken(out.behind_bus, 0) == []
        del kms.refuses[OLD_ARN]
        clock.advance(31)
        assert await publisher.once() == 2
        assert [one["id"] for one in await out.taken(out.queue, 2)] == ["event-1", "event-2"]
