"""What every `Destination` does, on each server that speaks S3."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from awscrt.checksums import combine_crc64nvme, crc64nvme

from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.checksums import checksum_text
from pipeline.delivery.probe import probe
from pipeline.delivery.proof import Receipt, Subject, Verdict, compare, verify
from pipeline.errors import DestinationBusyError, DestinationHeldError, HoldCode, RefuseError
from pipeline.ids import ArtifactId, InstanceId, Kind, RecordingId
from pipeline.instances import Storage
from pipeline.ports import Buffer, Destination, ObjectExistsError, PutRequest, UploadLostError
from tests.s3_strict import STORAGE, StrictDestination
from tests.servers import Bucket, localstack_bucket, moto_bucket, seaweedfs_bucket

NOW = datetime(2026, 11, 23, 14, 21, 40, tzinfo=UTC)
MIB = 2**20


@dataclass(frozen=True)
class Bench:
    destination: Destination
    storage: Storage
    thorough: bool = True
    """moto is not: it takes wrong checksums, and fails on an upload that is gone."""


@contextlib.asynccontextmanager
async def strict(tmp_path: Path) -> AsyncIterator[Bench]:
    yield Bench(StrictDestination(), STORAGE)


@contextlib.asynccontextmanager
async def _over(bucket: Bucket, *, thorough: bool = True) -> AsyncIterator[Bench]:
    async with open_client("s3", bucket.s3) as client:
        yield Bench(S3Destination(client, bucket.storage), bucket.storage, thorough)


@contextlib.asynccontextmanager
async def moto(tmp_path: Path) -> AsyncIterator[Bench]:
    async with moto_bucket() as bucket, _over(bucket, thorough=False) as bench:
        yield bench


@contextlib.asynccontextmanager
async def seaweedfs(tmp_path: Path) -> AsyncIterator[Bench]:
    async with seaweedfs_bucket(tmp_path) as (bucket, _), _over(bucket) as bench:
        yield bench


@contextlib.asynccontextmanager
async def localstack(tmp_path: Path) -> AsyncIterator[Bench]:
    async with localstack_bucket(tmp_path) as bucket, _over(bucket) as bench:
        yield bench


def new_request(storage: Storage, body: bytes, crc64nvme_text: str | None = None) -> PutRequest:
    metadata = {"rid": str(uuid4()), "gen": "1", "sha256": "0" * 64}
    crc = crc64nvme_text or checksum_text(crc64nvme(body))
    key = f"{storage.prefix}/2026/11/23/{uuid4()}_20261123T14:05_UTC.wav"
    return PutRequest(key, len(body), crc, "audio/wav", metadata)


def _subject(request: PutRequest) -> Subject:
    return Subject(
        recording_id=RecordingId(uuid4()),
        artifact_id=ArtifactId(uuid4()),
        instance_id=InstanceId(uuid4()),
        kind=Kind.VOICE,
        generation=1,
        sha256=request.metadata["sha256"],
    )


async def a_written_object_is_proven_and_read_back(bench: Bench) -> None:
    body = bytearray(b"recorded speech" * 5000)
    request = new_request(bench.storage, bytes(body))
    written = await bench.destination.put(request, body)
    assert written.crc64nvme == request.crc64nvme
    head = await bench.destination.head(request.key)
    assert head is not None
    assert compare(request, bench.storage, head) is Verdict.MINE
    assert dict(head.metadata) == dict(request.metadata)
    assert isinstance(verify(_subject(request), request, bench.storage, head, NOW), Receipt)
    assert await bench.destination.read(request.key, 10, 20) == body[10:30]
    assert await bench.destination.read(request.key, len(body) - 3, 20) == body[-3:]


async def an_empty_object_is_an_object(bench: Bench) -> None:
    request = new_request(bench.storage, b"")
    await bench.destination.put(request, b"")
    head = await bench.destination.head(request.key)
    assert head is not None
    assert head.size_bytes == 0
    assert await bench.destination.read(request.key, 0, 0) == b""


async def a_taken_key_is_not_written_again(bench: Bench) -> None:
    request = new_request(bench.storage, b"first")
    await bench.destination.put(request, b"first")
    other = replace(new_request(bench.storage, b"other"), key=request.key)
    with pytest.raises(ObjectExistsError):
        await bench.destination.put(other, b"other")
    assert await bench.destination.read(request.key, 0, 5) == b"first"


async def bytes_with_another_checksum_are_not_taken(bench: Bench) -> None:
    if not bench.thorough:
        return
    request = new_request(bench.storage, b"sent", checksum_text(crc64nvme(b"meant")))
    with pytest.raises(DestinationBusyError):
        await bench.destination.put(request, b"sent")
    assert await bench.destination.head(request.key) is None


async def what_is_not_there_is_none(bench: Bench) -> None:
    assert await bench.destination.head(f"{bench.storage.prefix}/nothing") is None
    await bench.destination.delete(f"{bench.storage.prefix}/nothing")


async def a_multipart_upload_becomes_one_proven_object(bench: Bench) -> None:
    first, second = memoryview(bytearray(b"x" * 5 * MIB)), b"and the rest"
    whole = combine_crc64nvme(crc64nvme(first), crc64nvme(second), len(second))
    request = replace(
        new_request(bench.storage, b""), size_bytes=len(first) + len(second), crc64nvme=checksum_text(whole)
    )
    upload_id = await bench.destination.create_multipart(request)
    bodies: list[Buffer] = [first, second]
    parts = [
        await bench.destination.upload_part(request.key, upload_id, number, body, checksum_text(crc64nvme(body)))
        for number, body in enumerate(bodies, start=1)
    ]
    await bench.destination.complete_multipart(request, upload_id, parts)
    head = await bench.destination.head(request.key)
    assert head is not None
    assert head.size_bytes == request.size_bytes
    assert compare(request, bench.storage, head) is Verdict.MINE
    assert await bench.destination.read(request.key, 5 * MIB - 1, 4) == b"xand"
    assert await bench.destination.read(request.key, 1, 5 * MIB) == first[1:].tobytes() + second[:1]
    assert await bench.destination.unfinished(request.key) == []


async def a_multipart_upload_is_create_only(bench: Bench) -> None:
    request = new_request(bench.storage, b"tiny")
    await bench.destination.put(request, b"tiny")
    upload_id = await bench.destination.create_multipart(request)
    part = await bench.destination.upload_part(request.key, upload_id, 1, b"tiny", request.crc64nvme)
    with pytest.raises(ObjectExistsError):
        await bench.destination.complete_multipart(request, upload_id, [part])
    await bench.destination.abort_multipart(request.key, upload_id)


async def parts_that_are_not_the_object_are_not_completed(bench: Bench) -> None:
    if not bench.thorough:
        return
    request = new_request(bench.storage, b"right")
    upload_id = await bench.destination.create_multipart(request)
    crc = checksum_text(crc64nvme(b"wrong"))
    part = await bench.destination.upload_part(request.key, upload_id, 1, b"wrong", crc)
    with pytest.raises(DestinationBusyError):
        await bench.destination.complete_multipart(request, upload_id, [part])
    assert await bench.destination.head(request.key) is None
    await bench.destination.abort_multipart(request.key, upload_id)


async def unfinished_uploads_are_listed_and_given_up(bench: Bench) -> None:
    request = new_request(bench.storage, b"")
    uploads = {await bench.destination.create_multipart(request) for _ in range(2)}
    other = await bench.destination.create_multipart(new_request(bench.storage, b""))
    found = await bench.destination.unfinished(request.key)
    assert {one.upload_id for one in found} == uploads
    assert {one.key for one in found} == {request.key}
    for upload_id in uploads:
        await bench.destination.abort_multipart(request.key, upload_id)
        await bench.destination.abort_multipart(request.key, upload_id)
    assert await bench.destination.unfinished(request.key) == []
    assert other not in uploads


async def an_upload_that_is_gone_is_lost(bench: Bench) -> None:
    request = new_request(bench.storage, b"tiny")
    upload_id = await bench.destination.create_multipart(request)
    part = await bench.destination.upload_part(request.key, upload_id, 1, b"tiny", request.crc64nvme)
    await bench.destination.abort_multipart(request.key, upload_id)
    lost = UploadLostError if bench.thorough else DestinationBusyError
    with pytest.raises(lost):
        await bench.destination.upload_part(request.key, upload_id, 1, b"tiny", request.crc64nvme)
    with pytest.raises(lost):
        await bench.destination.complete_multipart(request, upload_id, [part])


async def the_probe_finds_it_usable_and_leaves_nothing(bench: Bench) -> None:
    answer = await probe(bench.destination, bench.storage, now=NOW)
    assert answer.head
    assert answer.cleaned
    assert answer.checksums == ("checked" if bench.thorough else "unchecked")
    assert await bench.destination.unfinished(f"{bench.storage.prefix}/pipeline-probe") == []


CONTRACT: list[Callable[[Bench], Awaitable[None]]] = [
    a_written_object_is_proven_and_read_back,
    an_empty_object_is_an_object,
    a_taken_key_is_not_written_again,
    bytes_with_another_checksum_are_not_taken,
    what_is_not_there_is_none,
    a_multipart_upload_becomes_one_proven_object,
    a_multipart_upload_is_create_only,
    parts_that_are_not_the_object_are_not_completed,
    unfinished_uploads_are_listed_and_given_up,
    an_upload_that_is_gone_is_lost,
    the_probe_finds_it_usable_and_leaves_nothing,
]
OPENERS = [
    pytest.param(strict, id="strict"),
    pytest.param(moto, id="moto"),
    pytest.param(seaweedfs, id="seaweedfs", marks=[pytest.mark.aws, pytest.mark.slow]),
    pytest.param(localstack, id="localstack", marks=[pytest.mark.aws, pytest.mark.slow]),
]
Opener = Callable[[Path], contextlib.AbstractAsyncContextManager[Bench]]


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_destination_keeps_its_contract(opener: Opener, tmp_path: Path) -> None:
    """All of it on one server: some take seconds to start."""
    async with opener(tmp_path) as bench:
        for clause in CONTRACT:
            await clause(bench)


async def test_a_missing_bucket_holds_the_destination() -> None:
    async with moto_bucket() as bucket, open_client("s3", bucket.s3) as client:
        storage = replace(bucket.storage, bucket="there-is-none")
        with pytest.raises(DestinationHeldError) as caught:
            await S3Destination(client, storage).put(new_request(storage, b"x"), b"x")
        assert caught.value.code is HoldCode.DESTINATION_MISSING


@pytest.mark.aws
@pytest.mark.slow
async def test_seaweedfs_encrypts_with_the_configured_key_or_is_refused(tmp_path: Path) -> None:
    async with seaweedfs_bucket(tmp_path) as (bucket, keys):
        key_id = bucket.storage.kms_key_arn.rpartition("/")[2]
        async with open_client("s3", bucket.s3) as client:
            destination = S3Destination(client, bucket.storage)
            answer = await probe(destination, bucket.storage, now=NOW)
            assert (answer.put, answer.multipart, answer.checksums) == ("answer", "head", "checked")
            keys.disable(key_id)
            with pytest.raises(DestinationBusyError):
                await destination.put(new_request(bucket.storage, b"x"), b"x")
            keys.enable(key_id)
            await destination.put(new_request(bucket.storage, b"x"), b"x")
        data = [path.read_bytes() for path in (tmp_path / "seaweedfs").rglob("*") if path.is_file()]
        assert data
        assert not any(b"A probe of the recording pipeline" in one for one in data)


async def test_a_bucket_that_ignores_the_condition_is_refused() -> None:
    class Overwriting(StrictDestination):
        def _expect_free(self, key: str) -> None:
            pass

    with pytest.raises(RefuseError, match="would overwrite"):
        await probe(Overwriting(), STORAGE, now=NOW)


async def test_a_bucket_that_ignores_the_condition_of_multipart_uploads_only_is_refused() -> None:
    class Overwriting(StrictDestination):
        def _expect_free(self, key: str) -> None:
            if not key.endswith("-multipart"):
                super()._expect_free(key)

    destination = Overwriting()
    with pytest.raises(RefuseError, match="end of a multipart upload"):
        await probe(destination, STORAGE, now=NOW)
    assert destination.objects == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"kms_key_arn": None, "encryption": None},
        {"encryption": "AES256"},
        {"kms_key_arn": "arn:aws:kms:eu-central-1:111122223333:key/another"},
    ],
)
async def test_a_bucket_without_the_configured_key_is_refused(changes: dict[str, str | None]) -> None:
    destination = StrictDestination()
    destination.echo = {name: lambda facts: replace(facts, **changes) for name in ("put", "head", "complete")}  # type: ignore[arg-type]
    with pytest.raises(RefuseError, match="SSE-KMS under the configured key") as caught:
        await probe(destination, STORAGE, now=NOW)
    assert caught.value.field == "StorageConfig.S3Config.EncryptionConfig.KeyId"
    assert destination.objects == {}
    assert destination.uploads == {}


async def test_a_bucket_without_checksums_is_refused() -> None:
    destination = StrictDestination()
    destination.echo = {name: lambda facts: replace(facts, crc64nvme=None) for name in ("put", "head", "complete")}
    with pytest.raises(RefuseError, match="gives no proof of an object: checksum"):
        await probe(destination, STORAGE, now=NOW)


async def test_without_head_every_key_must_be_unique() -> None:
    def forbidden() -> list[Exception]:
        return [DestinationHeldError(HoldCode.DESTINATION_ACCESS_DENIED, "403")]

    destination = StrictDestination()
    destination.failures["head before"] = forbidden()
    with pytest.raises(RefuseError, match="HEAD") as caught:
        await probe(destination, STORAGE, now=NOW)
    assert caught.value.field == "discriminator"
