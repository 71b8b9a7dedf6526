"""Measure what a dead bucket costs the others: 500 instances, real HTTP, the service's own schedule and S3 client.

Recordings of all instances arrive at a steady rate, twice: once with every bucket well, once with one that accepts
connections and never answers. What counts is the ratio of the others' 99th percentiles, from arrival to proof.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import anyio
from anyio.abc import SocketAttribute, SocketStream
from awscrt.checksums import crc64nvme

from pipeline.adapters.aws import open_client
from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk
from pipeline.adapters.s3 import S3Destination
from pipeline.audit.records import Actor
from pipeline.checksums import checksum_text
from pipeline.delivery.buffers import BufferPool
from pipeline.delivery.dispatcher import Dispatcher
from pipeline.delivery.holds import Holds
from pipeline.delivery.proof import Subject
from pipeline.delivery.upload import UploadPlan, deliver
from pipeline.errors import RejectError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind, RecordingId
from pipeline.instances import Storage
from pipeline.interim.commit import GroupCommit
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.settings import Credentials, DeliverySettings, Endpoint
from pipeline.trail import Trail

INSTANCES = 500
DEAD = "bucket-0"
ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/bbbb2222-0000-4000-8000-000000000002"
BODY = random.Random(1).randbytes(16 * 1024)
SHA = sha256(BODY).hexdigest()
WARMING_S = 3.0
"""Not measured: connections are made, and models of the API read."""
ANSWER_S = 0.05
"""How long a healthy bucket takes: about what a bucket in the same Region does."""


@dataclass(frozen=True, slots=True)
class Fairness:
    """What the healthy instances waited."""

    recordings: int
    alone_p99_ms: float
    beside_dead_p99_ms: float

    @property
    def ratio(self) -> float:
        """How much longer because of the dead bucket."""
        return self.beside_dead_p99_ms / self.alone_p99_ms


class Buckets:
    """A server that takes every put, and proves it; the dead bucket it leaves without an answer."""

    def __init__(self, *, dead: bool) -> None:
        self._dead = dead

    async def serve(self, stream: SocketStream) -> None:
        """Answer one connection."""
        async with stream:
            try:
                while True:
                    await self._answer(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async def _answer(self, stream: SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive()
        head, _, body = data.partition(b"\r\n\r\n")
        line, *rest = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
        missing = int(headers.get("content-length", "0")) - len(body)
        while missing > 0:
            missing -= len(await stream.receive())
        if self._dead and line.split(" ")[1].startswith(f"/{DEAD}/"):
            await anyio.sleep_forever()
        await anyio.sleep(ANSWER_S)
        proof = {
            "Content-Length": "0",
            "x-amz-checksum-crc64nvme": headers["x-amz-checksum-crc64nvme"],
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": KEY,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in proof.items())
        await stream.send(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode())


class Run:
    """One run of the schedule against the buckets."""

    def __init__(self, directory: Path, client: object) -> None:
        self.clock = SystemClock()
        files = Disk()
        self.commits = GroupCommit(files)
        trail = Trail(str(directory), actor=Actor("Service", "bench"), clock=self.clock)
        self.store = InterimStore(str(directory), files, self.commits, free_bytes=0)
        holds = Holds(f"{directory}/holds", files, self.commits, trail)
        holds.load()
        self.client = client
        self.pool = BufferPool(DeliverySettings().bytes_in_flight)
        self.arrived: dict[ArtifactId, float] = {}
        self.waited: list[float] = []
        self.dispatcher = Dispatcher(
            store=self.store,
            holds=holds,
            deliver=self.deliver,
            reject=self.reject,
            clock=self.clock,
            random=random.random,
            settings=DeliverySettings(),
        )

    def arrive(self, instance: int) -> None:
        """Let a sealed recording arrive."""
        artifact = ArtifactId(UUID(int=len(self.arrived) + 1))
        owner, data_key = InstanceId(UUID(int=instance)), KeyId(UUID(int=1))
        name = ArtifactName(artifact, owner, Kind.VOICE, data_key, "0" * 16, 1, 2, State.SEALED, len(BODY))
        self.store.index.put(name)
        self.arrived[artifact] = self.clock.monotonic()
        self.dispatcher.add(name)

    async def deliver(self, name: ArtifactName) -> None:
        """Put it, as the service does."""
        plan = _plan(name)
        await deliver(
            S3Destination(self.client, plan.storage),  # type: ignore[arg-type]  # clients have no public type
            _Body(),
            plan,
            pool=self.pool,
            clock=self.clock,
            random=random.random,
        )
        self.store.index.put(name.delivered())
        if name.instance_id.int:
            self.waited.append(self.clock.monotonic() - self.arrived[name.artifact_id])

    async def reject(self, name: ArtifactName, error: RejectError) -> None:
        """Never happens here."""
        raise AssertionError(name) from error


class _Body:
    size_bytes = len(BODY)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = BODY[offset : offset + len(buffer)]


def _plan(name: ArtifactName) -> UploadPlan:
    storage = Storage(
        association_id="voice",
        bucket=f"bucket-{name.instance_id.int}",
        prefix="p",
        kms_key_arn=KEY,
        bucket_owner=ACCOUNT,
    )
    subject = Subject(
        recording_id=RecordingId(name.artifact_id),
        artifact_id=name.artifact_id,
        instance_id=name.instance_id,
        kind=name.kind,
        generation=1,
        sha256=SHA,
    )
    return UploadPlan(
        subject=subject,
        storage=storage,
        keys=(f"p/{name.artifact_id}.wav",),
        size_bytes=len(BODY),
        crc64nvme=checksum_text(crc64nvme(BODY)),
        content_type="audio/wav",
    )


@asynccontextmanager
async def buckets(*, dead: bool) -> AsyncIterator[Endpoint]:
    """Serve all buckets on a free loopback port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, Buckets(dead=dead).serve)
        try:
            yield Endpoint(region="us-east-1", url=f"http://127.0.0.1:{port}", credentials=Credentials("key", "secret"))
        finally:
            group.cancel_scope.cancel()


async def once(directory: Path, *, dead: bool, seconds: float, rate: float) -> list[float]:
    """Let recordings arrive for a while; give what those of the healthy instances waited, in order."""
    chance = random.Random(7)
    async with (
        buckets(dead=dead) as endpoint,
        open_client("s3", endpoint) as client,
        anyio.create_task_group() as group,
    ):
        run = Run(directory, client)
        group.start_soon(run.commits.run)
        async with anyio.create_task_group() as stages:
            stages.start_soon(run.dispatcher.run)
            for lasts in (WARMING_S, seconds):
                run.waited.clear()
                # The dead bucket has a backlog, and keeps getting more.
                for _ in range(50):
                    run.arrive(0)
                until = run.clock.monotonic() + lasts
                while run.clock.monotonic() < until:
                    run.arrive(chance.randrange(INSTANCES))
                    await anyio.sleep(chance.expovariate(rate))
                await anyio.sleep(2.0)
            stages.cancel_scope.cancel()
        run.commits.stop()
    return sorted(run.waited)


async def measure(*, rounds: int, seconds: float, rate: float) -> Fairness:
    """Measure both in turn, and put each one's rounds together."""
    found: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds):
            for dead in (False, True):
                place = Path(directory, f"{number}-{dead}")
                found[dead] += await once(place, dead=dead, seconds=seconds, rate=rate)
    alone, beside = (sorted(waited)[len(waited) * 99 // 100] * 1000 for waited in found.values())
    return Fairness(len(found[True]), round(alone, 2), round(beside, 2))


def main() -> int:
    """Print the figures as JSON; fail if the others wait more than a tenth longer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="that each of a round's two runs is measured")
    parser.add_argument("--rate", type=float, default=40.0, help="recordings that arrive in a second")
    chosen = parser.parse_args()
    figures = asyncio.run(measure(rounds=chosen.rounds, seconds=chosen.seconds, rate=chosen.rate))
    answer = {
        "instances": INSTANCES,
        "recordings": figures.recordings,
        "aloneP99Ms": figures.alone_p99_ms,
        "besideDeadP99Ms": figures.beside_dead_p99_ms,
        "ratio": round(figures.ratio, 3),
    }
    print(json.dumps(answer))
    return 0 if figures.ratio <= 1.1 else 1


if __name__ == "__main__":
    sys.exit(main())
