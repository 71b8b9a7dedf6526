"""A recording to deliver, for the tests of uploads."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from uuid import UUID

import anyio.lowlevel
from awscrt.checksums import crc64nvme

from pipeline.checksums import checksum_text
from pipeline.delivery.buffers import MIB, BufferPool
from pipeline.delivery.proof import Receipt, Subject
from pipeline.delivery.upload import UploadPlan, deliver
from pipeline.ids import ArtifactId, InstanceId, Kind, RecordingId
from pipeline.ports import Destination
from tests.s3_strict import STORAGE

RECORDING = UUID("01a208b9-9dc0-7e08-9d5a-3f1c8e2b6a90")
BARE = "connect/acme/CallRecordings/2026/11/23/cccc3333_20261123T14:05_UTC.wav"
SECOND = f"connect/acme/CallRecordings/2026/11/23/cccc3333_20261123T14:05_UTC_{RECORDING}.wav"


class FixedClock:
    """`Clock` that stands still."""

    def now(self) -> datetime:
        return datetime(2026, 11, 23, 14, 21, 39, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0


clock = FixedClock()


@dataclass
class Source:
    """`ObjectSource` over bytes; it insists on one read at a time."""

    body: bytes
    offsets: list[int] = field(default_factory=list)
    reading: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.body)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        assert not self.reading
        self.reading = True
        try:
            await anyio.lowlevel.checkpoint()
            self.offsets.append(offset)
            assert offset + len(buffer) <= len(self.body)
            buffer[:] = self.body[offset : offset + len(buffer)]
        finally:
            self.reading = False


def body_of(size: int) -> bytes:
    """Make bytes: the same every time, with no two parts alike."""
    return random.Random(size).randbytes(size)


def pool() -> BufferPool:
    return BufferPool(16 * MIB)


def plan_for(body: bytes, keys: tuple[str, ...] = (BARE, SECOND)) -> UploadPlan:
    subject = Subject(
        recording_id=RecordingId(RECORDING),
        artifact_id=ArtifactId(RECORDING),
        instance_id=InstanceId(UUID(int=3)),
        kind=Kind.VOICE,
        generation=1,
        sha256=sha256(body).hexdigest(),
    )
    return UploadPlan(
        subject=subject,
        storage=STORAGE,
        keys=keys,
        size_bytes=len(body),
        crc64nvme=checksum_text(crc64nvme(body)),
        content_type="audio/wav",
    )


async def run(
    destination: Destination,
    body: bytes,
    plan: UploadPlan | None = None,
    *,
    source: Source | None = None,
    buffers: BufferPool | None = None,
    head_allowed: bool = True,
) -> Receipt:
    """Deliver it."""
    return await deliver(
        destination,
        source or Source(body),
        plan or plan_for(body),
        pool=buffers or pool(),
        clock=clock,
        random=lambda: 0.0,
        head_allowed=head_allowed,
    )
