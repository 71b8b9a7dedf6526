"""Wait until everything is published, then look at it from outside the service.

The bucket is asked by a second S3 client under the operator's credentials, receipts are read from disk as plain JSON,
and what was published is told by the status events, as a contact centre would hear of it.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.adapters.aws import open_client
from pipeline.audit.hourly import OBJECTS
from pipeline.demo.fixture import Sample, Tenant, chat_items
from pipeline.demo.judge import Returned, chat_doubts, media_doubts, proof_doubts
from pipeline.demo.running import Running, Tenancy
from pipeline.errors import PipelineError
from pipeline.instances import Storage

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

PUBLISHED_S = 60.0
_ASK_S = 0.1
_BROKEN = (BotoCoreError, ClientError, aiohttp.ClientError, OSError, LookupError)


class NotPublishedError(PipelineError):
    """A recording was not brought to its bucket, or not in time."""

    reason = "not-published"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the PUBLISHED event of a recording says."""

    recording_id: str
    location: str
    """`s3://bucket/key`."""

    @property
    def key(self) -> str:
        """Object key."""
        return self.location.removeprefix("s3://").partition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was found out about one recording."""

    sample: Sample
    alias: str
    storage: Storage
    key: str
    size_bytes: int
    unproven: tuple[str, ...]
    """What speaks against its proof."""
    unequal: tuple[str, ...]
    """How it differs from what was sent."""


async def published(
    running: Running, samples: Sequence[Sample], recording_ids: Mapping[Sample, str], tell: Callable[[int], None]
) -> dict[Sample, Published]:
    """Follow the status events until every recording is published; `tell` how many are.

    Raises:
        NotPublishedError: one failed, or the time is over.

    """
    found: dict[Sample, Published] = {}
    with anyio.move_on_after(PUBLISHED_S):
        while True:
            events = [event for each in {each.instance_id for each in samples} for event in _events(running, str(each))]
            found = {each: event for each in samples if (event := _found(each, recording_ids.get(each), events))}
            tell(len(found))
            if len(found) == len(samples):
                return found
            await anyio.sleep(_ASK_S)
    missing = ", ".join(f"{each.kind} of {each.contact}" for each in samples if each not in found)
    raise NotPublishedError(f"not published within {PUBLISHED_S:.0f} s: {missing}")


@asynccontextmanager
async def operator(running: Running) -> AsyncIterator["S3Client"]:
    """Open an S3 client of one's own, with other credentials than the service's."""
    servers = running.servers
    async with open_client("s3", servers.s3(servers.secrets.s3_operator)) as client:
        yield client


async def judge(
    client: "S3Client", running: Running, tenant: Tenant, tenancy: Tenancy, sample: Sample, told: Published
) -> Verdict:
    """Compare one object with its receipt, the configuration and what was sent."""
    storage = tenancy.instance.storage[sample.kind]
    unproven: list[str] = []
    unequal: list[str] = []
    try:
        returned = await _returned(client, storage.bucket, told.key)
    except _BROKEN as error:
        unproven = unequal = [f"it can't be read back from the bucket ({type(error).__name__})"]
        returned = Returned(head={}, body=b"")
    else:
        unproven = proof_doubts(_receipt(running, told.recording_id), storage, told.location, returned)
        unequal = _unequal(tenant, tenancy, sample, returned.body)
    return Verdict(
        sample=sample,
        alias=tenant.alias,
        storage=storage,
        key=told.key,
        size_bytes=len(returned.body),
        unproven=tuple(unproven),
        unequal=tuple(unequal),
    )


async def extra_objects(client: "S3Client", tenancies: Sequence[Tenancy], known: Sequence[Verdict]) -> list[str]:
    """Say which objects lie in the buckets besides the recordings: there is to be exactly one for each."""
    doubts = []
    expected = {(verdict.storage.bucket, verdict.key) for verdict in known}
    if len(expected) != len(known):
        doubts.append("two recordings were published under one key")
    for bucket in sorted({storage.bucket for each in tenancies for storage in each.instance.storage.values()}):
        answer = await client.list_objects_v2(Bucket=bucket)
        keys = {(bucket, each["Key"]) for each in answer.get("Contents", []) if not each["Key"].startswith(OBJECTS)}
        doubts += [f"s3://{bucket}/{key} is none of the recordings" for bucket, key in sorted(keys - expected)]
    return doubts


# --- inside


def _events(running: Running, instance_id: str) -> list[dict[str, Any]]:
    """Read the whole lines of an instance's status events."""
    path = Path(running.directory, "events", f"{instance_id}.jsonl")
    raw = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in raw.split(b"\n")[:-1]]


def _found(sample: Sample, recording_id: str | None, events: Sequence[Mapping[str, Any]]) -> Published | None:
    """Find the PUBLISHED event of a recording: of media by its id, of a chat, which has none yet, by its contact.

    Raises:
        NotPublishedError: it failed.

    """
    for event in events:
        detail = event["detail"]
        is_chat = sample.is_chat and event["resources"][0].endswith(f"/contact/{sample.contact}")
        if detail["recordingKind"] != sample.kind or not (is_chat or detail["recordingId"] == recording_id):
            continue
        if detail["recordingStatus"] == "FAILED":
            raise NotPublishedError(f"{sample.kind} of {sample.contact} failed: {detail['failureInfo']['message']}")
        if detail["recordingStatus"] == "PUBLISHED":
            return Published(recording_id=detail["recordingId"], location=detail["recordingInfo"]["location"])
    return None


def _receipt(running: Running, recording_id: str) -> Mapping[str, Any] | None:
    """Find a recording's receipt in the interim store."""
    for path in Path(running.directory, "artifacts").glob("*/*.done"):
        receipt: dict[str, Any] = json.loads(path.read_bytes())
        if receipt["recordingId"] == recording_id:
            return receipt
    return None


async def _returned(client: "S3Client", bucket: str, key: str) -> Returned:
    head = await client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    answer = await client.get_object(Bucket=bucket, Key=key)
    async with answer["Body"] as body:
        return Returned(head=dict(head), body=await body.read())


def _unequal(tenant: Tenant, tenancy: Tenancy, sample: Sample, body: bytes) -> list[str]:
    if not sample.is_chat:
        return media_doubts(sample.file.read_bytes(), body)
    expected = json.loads(sample.file.read_text(encoding="utf-8"))
    return chat_doubts(chat_items(tenant.chat_events, sample.contact), expected, tenancy.instance.account_id, body)
