"""SQS and EventBridge: what arrives, what is sent, and what a partial failure means."""

import json
from datetime import timedelta
from typing import Any

import anyio
import pytest

from pipeline.adapters.aws import open_client
from pipeline.adapters.eventbridge import EventBridgeSink
from pipeline.adapters.sqs import BATCH_BYTES, SqsQueue, SqsSink
from pipeline.errors import DeferError
from pipeline.ports import QueueMessage
from tests.servers import moto
from tests.wire import RESET, http, s3_error, wire


def event(recording: str, sequence: int, padding: int = 0) -> bytes:
    detail = {
        "recordingId": recording,
        "eventDeduplicationId": f"{recording}-{sequence}",
        "sequence": sequence,
        "padding": "x" * padding,
    }
    document = {
        "version": "0",
        "id": f"{recording}/{sequence}",
        "detail-type": "Recording Status Changed",
        "source": "pipeline.recordings",
        "time": "2026-11-23T14:21:40Z",
        "resources": ["arn:aws:connect:eu-central-1:111122223333:instance/a/contact/c"],
        "detail": detail,
    }
    return json.dumps(document).encode()


async def test_a_message_is_received_extended_and_deleted() -> None:
    async with moto() as endpoint, open_client("sqs", endpoint) as client:
        url = (await client.create_queue(QueueName="events", Attributes={"VisibilityTimeout": "1"}))["QueueUrl"]
        await client.send_message(QueueUrl=url, MessageBody='{"a":"ü"}')
        queue = SqsQueue(client, url)
        (message,) = await queue.receive(10, timedelta(seconds=1))
        assert message.body == '{"a":"ü"}'.encode()
        assert "ü" not in repr(message)
        await queue.extend(message, 30)
        await anyio.sleep(1.1)
        assert await queue.receive() == []
        assert await queue.delete([message]) == []
        assert await queue.receive() == []


async def test_many_messages_are_deleted_ten_at_a_time_and_failures_given_back() -> None:
    def answer(request: str) -> bytes:
        return http(200, json.dumps({"Successful": [{"Id": "0"}], "Failed": [{"Id": "1"}]}).encode())

    async with wire(answer) as told, open_client("sqs", told.endpoint) as client:
        queue = SqsQueue(client, f"http://127.0.0.1:{told.port}/1/q")
        messages = [QueueMessage(b"", f"receipt-{number}", str(number)) for number in range(12)]
        failed = await queue.delete(messages)
        assert [message.id for message in failed] == [*map(str, range(1, 10)), "11"]
        assert [len(json.loads(body)["Entries"]) for body in told.bodies] == [10, 2]


@pytest.mark.parametrize("answer", [RESET, http(500), http(200, b"<html>"), s3_error(403, "AccessDenied"), http(404)])
async def test_whatever_goes_wrong_is_tried_again(answer: bytes) -> None:
    async with wire(answer) as told:
        url = f"http://127.0.0.1:{told.port}/1/q"
        async with open_client("sqs", told.endpoint) as sqs, open_client("events", told.endpoint) as events:
            queue, message = SqsQueue(sqs, url), QueueMessage(b"", "receipt", "1")
            if answer != http(200, b"<html>"):
                with pytest.raises(DeferError):
                    await queue.receive()
                with pytest.raises(DeferError):
                    await queue.extend(message, 5)
                with pytest.raises(DeferError):
                    await queue.delete([message])
            for sink in (SqsSink(sqs, url), EventBridgeSink(events, "default")):
                with pytest.raises(DeferError):
                    await sink.send([event("r1", 1)])


async def test_events_reach_a_queue_in_order() -> None:
    sent = [event("r1", 1), event("r2", 1), event("r1", 2), *(event(f"s{number}", 1) for number in range(25))]
    async with moto() as endpoint, open_client("sqs", endpoint) as client:
        url = (await client.create_queue(QueueName="status"))["QueueUrl"]
        await SqsSink(client, url).send(sent)
        received: list[bytes] = []
        while batch := await SqsQueue(client, url).receive():
            received += [message.body for message in batch]
            await SqsQueue(client, url).delete(batch)
        assert sorted(received) == sorted(sent)


async def test_a_fifo_queue_groups_by_recording_and_drops_repeats() -> None:
    async with moto() as endpoint, open_client("sqs", endpoint) as client:
        url = (await client.create_queue(QueueName="status.fifo", Attributes={"FifoQueue": "true"}))["QueueUrl"]
        sink = SqsSink(client, url)
        await sink.send([event("r1", 1), event("r1", 2)])
        await sink.send([event("r1", 2), event("r1", 3)])
        answer = await client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"])
        assert [json.loads(one["Body"])["detail"]["sequence"] for one in answer["Messages"]] == [1, 2, 3]
        attributes = [one["Attributes"] for one in answer["Messages"]]
        assert {one["MessageGroupId"] for one in attributes} == {"r1"}
        assert [one["MessageDeduplicationId"] for one in attributes] == ["r1-1", "r1-2", "r1-3"]


async def test_batches_have_ten_messages_a_mebibyte_and_each_recording_once() -> None:
    """A later event of a recording must not be taken where an earlier one was not."""

    async def batches_of(events: list[bytes]) -> list[list[tuple[str, int]]]:
        def all_taken(request: str) -> bytes:
            entries = json.loads(told.bodies[-1])["Entries"]
            return http(200, json.dumps({"Successful": [{"Id": entry["Id"]} for entry in entries]}).encode())

        async with wire(all_taken) as told, open_client("sqs", told.endpoint) as client:
            await SqsSink(client, f"http://127.0.0.1:{told.port}/1/q").send(events)
            bodies: list[dict[str, Any]] = [json.loads(body) for body in told.bodies]
        details = [[json.loads(entry["MessageBody"])["detail"] for entry in body["Entries"]] for body in bodies]
        return [[(detail["recordingId"], detail["sequence"]) for detail in batch] for batch in details]

    assert await batches_of([event("a", 1), event("b", 1), event("a", 2), event("b", 2)]) == [
        [("a", 1), ("b", 1)],
        [("a", 2), ("b", 2)],
    ]
    assert [len(batch) for batch in await batches_of([event(f"r{n}", 1) for n in range(23)])] == [10, 10, 3]
    half = BATCH_BYTES // 2
    assert [len(batch) for batch in await batches_of([event(f"r{n}", 1, half) for n in range(3)])] == [1, 1, 1]
    assert await batches_of([]) == []


async def test_a_batch_that_was_taken_in_part_is_sent_again() -> None:
    async with wire(http(200, b'{"Successful":[{"Id":"0"}],"Failed":[{"Id":"1"}]}')) as told:
        async with open_client("sqs", told.endpoint) as client:
            with pytest.raises(DeferError):
                await SqsSink(client, f"http://127.0.0.1:{told.port}/1/q").send([event("a", 1), event("b", 1)])
        told.answer = http(200, b'{"FailedEntryCount":1,"Entries":[{"EventId":"1"},{"ErrorCode":"X"}]}')
        async with open_client("events", told.endpoint) as client:
            with pytest.raises(DeferError):
                await EventBridgeSink(client, "default").send([event("a", 1), event("b", 1)])


async def test_events_reach_a_bus_and_from_there_a_queue() -> None:
    sent = [event(f"r{number}", 1) for number in range(12)]
    async with (
        moto() as endpoint,
        open_client("sqs", endpoint) as sqs,
        open_client("events", endpoint) as events,
    ):
        url = (await sqs.create_queue(QueueName="from-bus"))["QueueUrl"]
        arn = (await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"]))["Attributes"]["QueueArn"]
        await events.put_rule(Name="all", EventPattern='{"source":["pipeline.recordings"]}')
        await events.put_targets(Rule="all", Targets=[{"Id": "q", "Arn": arn}])
        await EventBridgeSink(events, "default").send(sent)
        received: list[dict[str, Any]] = []
        while batch := await SqsQueue(sqs, url).receive():
            received += [json.loads(message.body) for message in batch]
            await SqsQueue(sqs, url).delete(batch)
    assert sorted(one["detail"]["recordingId"] for one in received) == sorted(f"r{number}" for number in range(12))
    assert {(one["source"], one["detail-type"], one["time"]) for one in received} == {
        ("pipeline.recordings", "Recording Status Changed", "2026-11-23T14:21:40Z")
    }
