"""S-43: no request leaves for a bucket without the account that must own it."""

import ast
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.adapters import s3
from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.delivery.probe import probe
from tests.contract.test_destination import new_request
from tests.s3_strict import STORAGE
from tests.servers import moto_bucket

OWNER = "x-amz-expected-bucket-owner"


def calls() -> list[ast.Call]:
    """Give every call of the adapter to the client, as its source says."""
    return [
        node
        for node in ast.walk(ast.parse(Path(s3.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "_client"
    ]


def test_every_call_to_a_bucket_is_given_the_place_which_names_its_owner() -> None:
    """By the source: a call that is added without it is found, also where no server here knows the operation."""
    assert len(calls()) > 10
    for call in calls():
        spread = [
            word.value.attr for word in call.keywords if word.arg is None and isinstance(word.value, ast.Attribute)
        ]
        assert "_place" in spread, ast.unparse(call)
        operation = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if "copy" in operation:  # the bucket is the source, too
            assert "ExpectedSourceBucketOwner" in ast.unparse(call) or "_source" in ast.unparse(call), operation
    destination = S3Destination(cast("Any", None), STORAGE)
    assert destination._place["ExpectedBucketOwner"] == STORAGE.bucket_owner
    assert destination._source("key", "etag")["ExpectedSourceBucketOwner"] == STORAGE.bucket_owner


@pytest.mark.aws
async def test_every_request_to_a_bucket_names_its_owner() -> None:
    asked: dict[str, set[str | None]] = {}

    def note(model: Any, params: dict[str, Any], **_: Any) -> None:
        asked.setdefault(model.name.lower(), set()).add(params["headers"].get(OWNER))

    async with moto_bucket() as bucket, open_client("s3", bucket.s3) as client:
        client.meta.events.register("before-call.s3", note)
        destination = S3Destination(client, bucket.storage)
        await probe(destination, bucket.storage, now=datetime.now(UTC))
        small = new_request(bucket.storage, b"x")
        await destination.put(small, b"x")
        await destination.head(small.key)
        await destination.read(small.key, 0, 1)
        large = new_request(bucket.storage, b"y" * 10)
        await destination.abort_multipart(large.key, await destination.create_multipart(large))
        await destination.unfinished(large.key)
        await destination.delete(small.key)
    assert len(asked) >= 9
    assert {owner for owners in asked.values() for owner in owners} == {bucket.storage.bucket_owner}
