"""What the S3 adapter makes of any answer: facts, or one of its port's errors; and proof only where it is named.

An input is a byte that chooses the call, one that chooses the status, header lines, an empty line, and the body. It
goes through the whole client, as if it had come over a connection.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from aiobotocore.awsrequest import AioAWSResponse

from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.delivery.proof import Receipt, Subject, compare, verify
from pipeline.errors import DestinationBusyError, DestinationHeldError, DestinationRefusedError
from pipeline.ids import ArtifactId, InstanceId, Kind, RecordingId
from pipeline.ports import ObjectExistsError, ObjectFacts, PartFacts, PutRequest, UploadLostError
from pipeline.settings import Credentials, Endpoint
from tests.s3_strict import STORAGE

_DOCUMENTED = (
    DestinationHeldError,
    DestinationRefusedError,
    DestinationBusyError,
    ObjectExistsError,
    UploadLostError,
)
_STATUSES = (200, 200, 200, 204, 301, 307, 400, 403, 404, 409, 412, 416, 429, 500, 503, 100, 999)
_CRC = "AAAAAAAAAAE="
_SUBJECT = Subject(
    recording_id=RecordingId(UUID(int=1)),
    artifact_id=ArtifactId(UUID(int=2)),
    instance_id=InstanceId(UUID(int=3)),
    kind=Kind.VOICE,
    generation=1,
    sha256="ab" * 32,
)
_REQUEST = PutRequest("p/a.wav", 3, _CRC, "audio/wav", _SUBJECT.metadata)
_PARTS = [PartFacts(1, '"etag"', _CRC)]
_NOW = datetime(2026, 11, 23, tzinfo=UTC)
_CALLS: Sequence[Callable[[S3Destination], Any]] = (
    lambda bucket: bucket.put(_REQUEST, b"abc"),
    lambda bucket: bucket.complete_multipart(_REQUEST, "upload", _PARTS),
    lambda bucket: bucket.head(_REQUEST.key),
    lambda bucket: bucket.create_multipart(_REQUEST),
    lambda bucket: bucket.upload_part(_REQUEST.key, "upload", 1, b"abc", _CRC),
    lambda bucket: bucket.unfinished("p/"),
    lambda bucket: bucket.abort_multipart(_REQUEST.key, "upload"),
    lambda bucket: bucket.delete(_REQUEST.key),
)
_PROOF = (
    b"x-amz-server-side-encryption: aws:kms\n"
    b"x-amz-server-side-encryption-aws-kms-key-id: " + STORAGE.kms_key_arn.encode() + b"\n"
)
_DECLARED = b'<?xml version="1.0" encoding="UTF-8"?>'


def answers() -> Sequence[bytes]:
    checksum = b"x-amz-checksum-crc64nvme: " + _CRC.encode() + b"\n"
    completed = b"<CompleteMultipartUploadResult><ETag>e</ETag><ChecksumCRC64NVME>" + _CRC.encode()
    completed += b"</ChecksumCRC64NVME><ChecksumType>FULL_OBJECT</ChecksumType></CompleteMultipartUploadResult>"
    error = b"<Error><Code>SlowDown</Code><Message>no</Message><ArgumentName>Key</ArgumentName></Error>"
    uploads = b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>p/a</NextKeyMarker><Upload>"
    uploads += b"<Key>p/a</Key><UploadId>u</UploadId></Upload></ListMultipartUploadsResult>"
    started = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
    return [
        b"\0\0" + _PROOF + checksum + b"\n",
        b"\1\0" + _PROOF + b"\n" + _DECLARED + completed,
        b"\1\0\n" + _DECLARED + error,
        b"\2\0" + _PROOF + checksum + b"content-length: 3\nx-amz-meta-rid: 1\nx-amz-meta-gen: 1\n\n",
        b"\3\0\n" + started,
        b'\4\0etag: "e"\n' + checksum + b"\n",
        b"\5\0\n" + uploads,
        b"\0\7x-amz-request-id: 1\n\n" + error,
        b"\0\16retry-after: 3\ndate: Mon, 23 Nov 2026 14:05:12 GMT\n\n<html>busy</html>",
        b"\2\12\n",
    ]


class _Raw:
    """As much of a response as the client reads."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


@contextmanager
def opened() -> Iterator[Callable[[bytes], None]]:
    """Open the client once; nothing of it ever reaches a network."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        answering: list[AioAWSResponse] = []
        client = runner.run(_client(stack, answering))
        try:
            yield lambda data: runner.run(_tried(client, answering, data))
        finally:
            runner.run(stack.aclose())


async def _client(stack: AsyncExitStack, answering: list[AioAWSResponse]) -> Any:
    endpoint = Endpoint(region="us-east-1", url="http://127.0.0.1:9", credentials=Credentials("key", "secret"))
    client = await stack.enter_async_context(open_client("s3", endpoint))
    client.meta.events.register("before-send.s3", lambda **_: answering[-1])
    return client


async def _tried(client: Any, answering: list[AioAWSResponse], data: bytes) -> None:
    call = data[0] % len(_CALLS) if data else 0
    status = _STATUSES[data[1] % len(_STATUSES)] if len(data) > 1 else 200
    head, _, body = data[2:].partition(b"\n\n")
    lines = (line.decode("latin-1").partition(":") for line in head.split(b"\n"))
    headers: Any = {name.strip(): value.strip() for name, _, value in lines if name.strip()}
    answering[:] = [AioAWSResponse("http://127.0.0.1:9/acme-recordings/p/a.wav", status, headers, _Raw(body))]
    try:
        answer = await _CALLS[call](S3Destination(client, STORAGE))
    except _DOCUMENTED:
        return
    if isinstance(answer, ObjectFacts):
        _check(answer, status, data)


def _check(facts: ObjectFacts, status: int, data: bytes) -> None:
    """Whatever the facts are, they can be judged; and a receipt needs an answer that names all that proves."""
    compare(_REQUEST, STORAGE, facts)
    if isinstance(verify(_SUBJECT, _REQUEST, STORAGE, facts, _NOW), Receipt):
        assert status < 300
        for named in (_CRC.encode(), b"aws:kms", STORAGE.kms_key_arn.encode()):
            assert named in data
