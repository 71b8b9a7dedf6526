"""What every `Rewritable` does, on each server that speaks S3; and which way each of them is encrypted anew."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from awscrt.checksums import crc64nvme

from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.checksums import checksum_text
from pipeline.delivery.reencrypt import OTHERS, Standing, Way, Ways, find_way, look, rewrite
from pipeline.instances import Storage
from pipeline.ports import ObjectExistsError, ObjectFacts, ObjectVersion, PutRequest, Rewritable
from pipeline.settings import Endpoint
from tests.kms_server import new_key
from tests.s3_strict import STORAGE, StrictDestination
from tests.servers import localstack_bucket, moto_bucket, seaweedfs_bucket

OTHER_KEY = "arn:aws:kms:eu-central-1:111122223333:key/cccc3333-0000-4000-8000-000000000003"
BODY = b"recorded speech" * 500


@dataclass(frozen=True)
class Bench:
    old: Rewritable
    """The bucket under the key that is left."""
    new: Rewritable
    storage: Storage
    """Under the key that it is changed to."""
    ways: Ways
    """What is to be found out about it."""
    version: Callable[[], Awaitable[None]]
    """Let the bucket keep versions from now on."""


@contextlib.asynccontextmanager
async def strict(tmp_path: Path) -> AsyncIterator[Bench]:
    new = StrictDestination(replace(STORAGE, kms_key_arn=OTHER_KEY))
    old = StrictDestination()
    old.objects, old.older, old.markers = new.objects, new.older, new.markers

    async def version() -> None:
        old.keeps_versions = new.keeps_versions = True

    yield Bench(old, new, new.storage, Ways(Way.UPDATE, in_parts=True), version)


@contextlib.asynccontextmanager
async def _over(s3: Endpoint, storage: Storage, new_arn: str, ways: Ways) -> AsyncIterator[Bench]:
    async with open_client("s3", s3) as client:
        changed = replace(storage, kms_key_arn=new_arn)

        async def version() -> None:
            status: Any = {"Status": "Enabled"}
            await client.put_bucket_versioning(Bucket=storage.bucket, VersioningConfiguration=status)

        yield Bench(S3Destination(client, storage), S3Destination(client, changed), changed, ways, version)


@contextlib.asynccontextmanager
async def moto(tmp_path: Path) -> AsyncIterator[Bench]:
    """Take the third way: it ignores the condition of a copy, and that of a multipart upload."""
    async with moto_bucket() as bucket, open_client("kms", bucket.kms) as kms:
        arn = (await kms.create_key())["KeyMetadata"]["Arn"]
        async with _over(bucket.s3, bucket.storage, arn, Ways(Way.PUT, in_parts=False)) as bench:
            yield bench


@contextlib.asynccontextmanager
async def seaweedfs(tmp_path: Path) -> AsyncIterator[Bench]:
    async with seaweedfs_bucket(tmp_path) as (bucket, keys), keys.client("admin") as admin:
        arn = await new_key(admin)
        async with _over(bucket.s3, bucket.storage, arn, Ways(Way.PUT, in_parts=True)) as bench:
            yield bench


@contextlib.asynccontextmanager
async def localstack(tmp_path: Path) -> AsyncIterator[Bench]:
    async with localstack_bucket(tmp_path) as bucket, open_client("kms", bucket.kms) as kms:
        arn = (await kms.create_key())["KeyMetadata"]["Arn"]
        async with _over(bucket.s3, bucket.storage, arn, Ways(Way.COPY, in_parts=True)) as bench:
            yield bench


async def delivered(bench: Bench, body: bytes = BODY) -> ObjectFacts:
    """Deliver an object under the old key."""
    metadata = {"rid": str(uuid4()), "gen": "1", "sha256": _sha256(body)}
    key = f"{bench.storage.prefix}/2026/11/23/{uuid4()}_20261123T14:05_UTC.wav"
    request = PutRequest(key, len(body), checksum_text(crc64nvme(body)), "audio/wav", metadata)
    await bench.old.put(request, body)
    facts = await bench.old.head(key)
    assert facts is not None
    return facts


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def listed(bench: Bench, prefix: str) -> list[ObjectVersion]:
    return [each async for page in bench.new.versions(prefix) for each in page]


async def the_way_is_found_without_touching_anything_and_leaves_nothing(bench: Bench) -> None:
    facts = await delivered(bench)
    assert await find_way(bench.new, bench.storage) == bench.ways
    assert await bench.new.head(facts.key) == facts
    assert [each.key for each in await listed(bench, f"{bench.storage.prefix}/pipeline-probe")] == []


async def an_object_is_the_same_under_another_key(bench: Bench) -> None:
    before = await delivered(bench)
    seen = await look(bench.new, bench.storage, ObjectVersion(before.key, "null", is_latest=True))
    assert seen is not None
    assert seen.standing is Standing.OTHER
    after = await rewrite(bench.new, bench.storage, before, bench.ways)
    assert after.kms_key_arn == bench.storage.kms_key_arn != before.kms_key_arn
    assert (after.size_bytes, after.crc64nvme, after.metadata) == (before.size_bytes, before.crc64nvme, before.metadata)
    assert after.content_type == "audio/wav"
    assert await bench.new.read(before.key, 0, len(BODY)) == BODY
    again = await look(bench.new, bench.storage, ObjectVersion(before.key, "null", is_latest=True))
    assert again is not None
    assert again.standing is Standing.CONFIGURED


async def an_object_that_changed_meanwhile_is_left_alone(bench: Bench) -> None:
    facts = await delivered(bench)
    request = PutRequest(facts.key, len(BODY), facts.crc64nvme or "", "audio/wav", facts.metadata)
    with pytest.raises(ObjectExistsError):
        await bench.new.put_over(request, BODY, OTHERS)
    if bench.ways.way is Way.COPY:
        with pytest.raises(ObjectExistsError):
            await bench.new.copy_over(request, OTHERS)
    gone = replace(request, key=f"{request.key}.gone")
    with pytest.raises(ObjectExistsError):
        await bench.new.put_over(gone, BODY, facts.etag or "")
    assert await bench.new.head(facts.key) == facts
    assert await bench.new.head(gone.key) is None


async def a_large_object_goes_in_parts(bench: Bench) -> None:
    if not bench.ways.in_parts:
        return
    body = bytes(range(256)) * 24 * 1024  # 6 MiB: more than one part, with parts made small
    before = await delivered(bench, body)
    way = Way.COPY if bench.ways.way is Way.COPY else Way.PUT
    after = await rewrite(bench.new, bench.storage, before, Ways(way, in_parts=True))
    assert after.kms_key_arn == bench.storage.kms_key_arn
    assert (after.size_bytes, after.crc64nvme, after.metadata) == (before.size_bytes, before.crc64nvme, before.metadata)
    assert await bench.new.read(before.key, len(body) - 10, 10) == body[-10:]
    assert await bench.new.unfinished(before.key) == []


async def every_version_and_delete_marker_is_listed(bench: Bench) -> None:
    first = await delivered(bench)
    await bench.version()
    facts = await bench.new.head(first.key)
    assert facts is not None
    after = await rewrite(bench.new, bench.storage, facts, bench.ways)
    found = await listed(bench, first.key)
    assert [each.is_latest for each in found if each.key == first.key].count(True) == 1
    standings = [seen.standing for each in found if (seen := await look(bench.new, bench.storage, each)) is not None]
    if bench.ways.way is Way.UPDATE:
        assert standings == [Standing.CONFIGURED]
    else:
        assert sorted(standings) == [Standing.CONFIGURED, Standing.OLDER]
        assert after.version_id != facts.version_id


CONTRACT: list[Callable[[Bench], Awaitable[None]]] = [
    the_way_is_found_without_touching_anything_and_leaves_nothing,
    an_object_is_the_same_under_another_key,
    an_object_that_changed_meanwhile_is_left_alone,
    a_large_object_goes_in_parts,
    every_version_and_delete_marker_is_listed,
]
Opener = Callable[[Path], contextlib.AbstractAsyncContextManager[Bench]]


@pytest.mark.parametrize(
    "opener",
    [
        pytest.param(strict, id="strict"),
        pytest.param(moto, id="moto"),
        pytest.param(seaweedfs, id="seaweedfs", marks=[pytest.mark.aws, pytest.mark.slow]),
        pytest.param(localstack, id="localstack", marks=[pytest.mark.aws, pytest.mark.slow]),
    ],
)
async def test_a_bucket_is_encrypted_anew(opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it on one server: some take seconds to start."""
    for module, name, value in (
        ("pipeline.delivery.reencrypt", "COPY_LIMIT", 5 * 2**20),
        ("pipeline.delivery.reencrypt", "COPIED_PART", 5 * 2**20),
        ("pipeline.delivery.reencrypt", "PART_BYTES", 5 * 2**20),
        ("pipeline.delivery.upload", "PART_BYTES", 5 * 2**20),
    ):
        monkeypatch.setattr(f"{module}.{name}", value)
    async with opener(tmp_path) as bench:
        for clause in CONTRACT:
            await clause(bench)


async def test_a_store_that_takes_the_update_for_a_write_loses_only_our_own_object() -> None:
    store = StrictDestination()
    store.knows_update = False
    assert await find_way(store, store.storage) == Ways(Way.COPY, in_parts=True)
    store.knows_copy = False
    assert await find_way(store, store.storage) == Ways(Way.PUT, in_parts=True)
    assert store.objects == {}
