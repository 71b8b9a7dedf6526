"""Events that come through a queue, and status events that go out through one; moto is the queue and the bus."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from pipeline.adapters.aws import open_client
from pipeline.ids import InstanceId, Kind
from pipeline.settings import EventsOut, QueueSource
from tests.e2e.journey import STAMP, check_no_plaintext, contact_event, message, wav
from tests.node import node, until
from tests.proxy import proxied
from tests.sites import Site, moto_site

pytestmark = pytest.mark.aws

VISIBILITY_S = 2
"""As the queue has it. The service asks for more while it works."""


@dataclass(frozen=True)
class Queues:
    """The queue that events come through, where it puts what nobody can read, and the one that status events go to."""

    sqs: Any
    incoming: str
    dead: str
    outgoing: str

    async def put(self, *events: Any) -> None:
        for event in events:
            body = event if isinstance(event, str) else json.dumps(event)
            await self.sqs.send_message(QueueUrl=self.incoming, MessageBody=body)

    async def waiting(self, url: str) -> int:
        """Count the messages of a queue, those that somebody works on among them."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)
        return sum(int(value) for value in answer["Attributes"].values())

    async def taken(self, url: str) -> list[str]:
        """Take everything out of a queue, in order."""
        bodies: list[str] = []
        while True:
            answer = await self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)
            if not answer.get("Messages"):
                return bodies
            for each in answer["Messages"]:
                bodies.append(each["Body"])
                await self.sqs.delete_message(QueueUrl=url, ReceiptHandle=each["ReceiptHandle"])

    async def empty(self) -> None:
        """Wait until everything that came in was deleted, or put aside."""
        with anyio.fail_after(20):
            while await self.waiting(self.incoming):  # noqa: ASYNC110 - a server is asked
                await anyio.sleep(0.1)


@asynccontextmanager
async def queued(directory: Path) -> AsyncIterator[tuple[Site, Queues]]:
    """Make queues on moto, with a redrive policy of two attempts, and point the service's settings at them."""
    async with moto_site(directory) as site, open_client("sqs", site.settings.sqs) as sqs:
        dead = (await sqs.create_queue(QueueName="dead"))["QueueUrl"]
        attributes = await sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
        redrive = {"deadLetterTargetArn": attributes["Attributes"]["QueueArn"], "maxReceiveCount": 2}
        incoming = await sqs.create_queue(
            QueueName="events",
            Attributes={"RedrivePolicy": json.dumps(redrive), "VisibilityTimeout": str(VISIBILITY_S)},
        )
        outgoing = (await sqs.create_queue(QueueName="status.fifo", Attributes={"FifoQueue": "true"}))["QueueUrl"]
        queues = Queues(sqs, incoming["QueueUrl"], dead, outgoing)
        source = QueueSource(queue_url=queues.incoming, wait=timedelta(seconds=1), visibility=timedelta(seconds=5))
        site.settings = replace(site.settings, queues=(source,), events_out=EventsOut(queue_url=outgoing))
        yield site, queues


@pytest.mark.slow
async def test_events_of_a_bus_reach_recordings_through_a_queue(tmp_path: Path) -> None:
    """A rule of EventBridge sends contact events on; the start that they tell is in the object's key."""
    async with queued(tmp_path) as (site, queues), open_client("events", site.settings.events) as bus:
        arn = await queues.sqs.get_queue_attributes(QueueUrl=queues.incoming, AttributeNames=["QueueArn"])
        pattern = {"detail-type": ["Amazon Connect Contact Event", "Chat Message"]}
        await bus.put_rule(Name="contacts", EventPattern=json.dumps(pattern))
        await bus.put_targets(Rule="contacts", Targets=[{"Id": "1", "Arn": arn["Attributes"]["QueueArn"]}])
        async with node(site) as caller:
            for party in site.parties:
                await _put_on_bus(bus, contact_event(party, "c-1"))
                await _put_on_bus(bus, message(party, "c-2", "i-1", "My parcel has not come."))
            await queues.empty()
            for party in site.parties:
                assert (await caller.put(party, "c-1", "voice.wav", wav(5000))).status == 201
            await until(lambda: all(site.published(party) for party in site.parties))
            for party in site.parties:
                assert f"/c-1_{STAMP}_UTC.wav" in site.published(party)[0]
        assert len(site.artifacts("chat.*open")) == 2
        assert await queues.waiting(queues.dead) == 0


async def _put_on_bus(bus: Any, event: dict[str, Any]) -> None:
    entry = {"Source": event["source"], "DetailType": event["detail-type"], "Detail": json.dumps(event["detail"])}
    assert (await bus.put_events(Entries=[entry]))["FailedEntryCount"] == 0


@pytest.mark.slow
async def test_what_can_not_be_read_is_left_to_the_redrive_policy(tmp_path: Path) -> None:
    """Neither a malformed message nor one for nobody here stops the others, and none of them is lost."""
    async with queued(tmp_path) as (site, queues):
        nobody = replace(site.acme, instance=replace(site.acme.instance, instance_id=InstanceId(uuid4())))
        both = [contact_event(site.acme, "c-1"), contact_event(site.borealis, "c-1")]
        bad = [
            "{",
            '{"detail-type":"Chat Message","detail":{}}',
            json.dumps(both),
            json.dumps(contact_event(nobody, "c-1")),
        ]
        good = [contact_event(site.acme, "c-1"), message(site.acme, "c-2", "i-1", "hello", final=True)]
        await queues.put(bad[0], good[0], *bad[1:], good[1])
        async with node(site):
            await until(lambda: site.published(site.acme))
            with anyio.fail_after(20):
                while await queues.waiting(queues.dead) < len(bad):  # noqa: ASYNC110 - a server is asked
                    await anyio.sleep(0.1)
            assert await queues.waiting(queues.incoming) == 0
        assert sorted(await queues.taken(queues.dead)) == sorted(bad)
        check_no_plaintext(site.state)


async def test_a_message_is_deleted_only_when_its_event_is_durable(tmp_path: Path) -> None:
    """While KMS does not answer, nothing can be sealed: the message stays, and is taken in the end."""
    async with queued(tmp_path) as (site, queues), proxied(site.settings.kms) as proxy:
        site.settings = replace(site.settings, kms=proxy.endpoint)
        proxy.closed = True
        await queues.put(message(site.acme, "c-1", "i-1", "hello", final=True))
        async with node(site):
            await anyio.sleep(1.5)
            assert await queues.waiting(queues.incoming) == 1
            assert not site.artifacts("")
            proxy.closed = False
            await until(lambda: site.published(site.acme))
            await queues.empty()
        assert await queues.waiting(queues.dead) == 0


@pytest.mark.slow
async def test_work_that_takes_longer_keeps_its_message_from_others(tmp_path: Path) -> None:
    """KMS takes its time, longer than a message stays hidden: it is hidden again and again, and taken once."""
    async with queued(tmp_path) as (site, queues), proxied(site.settings.kms) as proxy:
        site.settings = replace(site.settings, kms=proxy.endpoint)
        proxy.keeps_answers = True
        await queues.put(message(site.acme, "c-1", "i-1", "hello", final=True))
        async with node(site):
            await anyio.sleep(VISIBILITY_S + 2)
            answer = await queues.sqs.receive_message(QueueUrl=queues.incoming, MaxNumberOfMessages=1)
            assert answer.get("Messages", []) == []
            assert await queues.waiting(queues.incoming) == 1


async def test_status_events_go_out_in_order_and_once(tmp_path: Path) -> None:
    async with queued(tmp_path) as (site, queues):
        async with node(site) as caller:
            for party in site.parties:
                for number in range(4):
                    assert (await caller.put(party, f"c-{number}", "voice.wav", wav(4000))).status == 201
            with anyio.fail_after(20):
                while await queues.waiting(queues.outgoing) < 24:  # noqa: ASYNC110 - a server is asked
                    await anyio.sleep(0.1)
        async with node(site):  # another start sends nothing again
            await anyio.sleep(1)
        told = [json.loads(body) for body in await queues.taken(queues.outgoing)]
        assert len(told) == 24
        written = [event for party in site.parties for event in site.events(party)]
        assert sorted(map(json.dumps, told)) == sorted(map(json.dumps, written))
        by_recording: dict[str, list[int]] = {}
        for event in told:
            by_recording.setdefault(event["detail"]["recordingId"], []).append(event["detail"]["sequence"])
        assert set(map(tuple, by_recording.values())) == {(1, 2, 3)}
        assert {event["detail"]["recordingKind"] for event in told} == {Kind.VOICE}
