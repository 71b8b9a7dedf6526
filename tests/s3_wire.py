"""A strict S3 server on loopback, for one bucket: it checks what S3 checks, and misbehaves to the byte when told to.

What it holds is a `StrictDestination`; what it adds is HTTP: headers, XML, errors, and everything that a wire can do.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute

from pipeline.delivery import upload
from pipeline.errors import PipelineError
from pipeline.ports import ObjectExistsError, ObjectFacts, PartFacts, PutRequest, UploadLostError
from pipeline.settings import Credentials, Endpoint
from tests import s3_strict
from tests.s3_strict import STORAGE, StrictDestination
from tests.wire import HANG, RESET, http, s3_error

SECRETS = Credentials("key", "secret")
ALLOWED_SKEW = timedelta(minutes=15)
_STATUS = {"NoSuchUpload": 404, "NoSuchKey": 404}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one request."""

    answer: bytes | None = None
    """Sent instead of the true answer; `RESET` closes the connection, `HANG` says nothing more."""
    applied: bool = False
    """The request takes effect before that."""
    reset_at: int | None = None
    """The connection is reset when so many bytes of the body have come."""
    flip_at: int | None = None
    """A bit of that byte of the body changes on its way."""
    stop_reading: bool = False
    """The body is never read, the connection stays."""
    bytes_per_s: float | None = None
    """How fast the answer comes."""
    then: Callable[[], None] = lambda: None
    """Called when it has happened."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    operation: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def put(self) -> PutRequest:
        """What it says of the object, its encryption and condition being as they must be."""
        about = self.headers
        return PutRequest(
            key=self.key,
            size_bytes=int(about.get("x-amz-mp-object-size", about["content-length"])),
            crc64nvme=about.get("x-amz-checksum-crc64nvme", ""),
            content_type=about.get("content-type", ""),
            metadata={name[11:]: value for name, value in about.items() if name.startswith("x-amz-meta-")},
        )


@dataclass
class S3Wire:
    """The server."""

    bucket: StrictDestination = field(default_factory=StrictDestination)
    port: int = 0
    scheme: str = "http"
    faults: defaultdict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    """By operation: what happens to its next requests, in order."""
    always: dict[str, Fault] = field(default_factory=dict)
    """By operation: what happens to each, after `faults`."""
    asked: list[Asked] = field(default_factory=list)
    page: int = 1000
    """Uploads in one page of a list."""
    clock_ahead: timedelta = timedelta(0)
    tokens: set[str] | None = None
    """Session tokens that are good now; None: none are wanted."""
    versions: bool = False
    owner: str = STORAGE.bucket_owner
    connections: int = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(region="us-east-1", url=f"{self.scheme}://127.0.0.1:{self.port}", credentials=SECRETS)

    @property
    def operations(self) -> list[str]:
        return [asked.operation for asked in self.asked]

    async def serve(self, stream: ByteStream) -> None:
        self.connections += 1
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                while await self._one(stream):
                    pass

    # --- one request

    async def _one(self, stream: ByteStream) -> bool:
        line, headers, body = await _head(stream)
        operation, key, query = _understood(line)
        fault = self._fault(operation)
        length = int(headers.get("content-length", "0"))
        if fault.stop_reading:
            await anyio.sleep_forever()
        while len(body) < (length if fault.reset_at is None else min(length, fault.reset_at)):
            body += await stream.receive()
        if fault.reset_at is not None:
            fault.then()
            return False
        if fault.flip_at is not None:
            body = body[: fault.flip_at] + bytes([body[fault.flip_at] ^ 1]) + body[fault.flip_at + 1 :]
        asked = Asked(operation, key, query, headers, body)
        self.asked.append(asked)
        answer = await self._true_answer(asked) if fault.answer is None or fault.applied else b""
        fault.then()
        if fault.answer is not None:
            answer = fault.answer
        if answer == HANG:
            await anyio.sleep_forever()
        if answer == RESET:
            return False
        await self._say(stream, answer, fault.bytes_per_s)
        return b"\r\nConnection: close\r\n" not in answer

    def _fault(self, operation: str) -> Fault:
        for name in (operation, "any"):
            if self.faults[name]:
                return self.faults[name].pop(0)
        return self.always.get(operation) or self.always.get("any") or Fault()

    async def _say(self, stream: ByteStream, answer: bytes, bytes_per_s: float | None) -> None:
        date = format_datetime(datetime.now(UTC) + self.clock_ahead, usegmt=True)
        line, _, rest = answer.partition(b"\r\n")
        answer = b"\r\n".join([line, f"Date: {date}".encode(), rest])
        if bytes_per_s is None:
            await stream.send(answer)
            return
        for byte in answer:
            await stream.send(bytes([byte]))
            await anyio.sleep(1 / bytes_per_s)

    async def _true_answer(self, asked: Asked) -> bytes:
        refusal = self._refusal(asked)
        if refusal is not None:
            return refusal
        serve: Callable[[Asked], Awaitable[bytes]] = getattr(self, f"_{asked.operation}")
        try:
            return await serve(asked)
        except ObjectExistsError:
            return s3_error(412, "PreconditionFailed")
        except (UploadLostError, PipelineError) as error:
            return s3_error(_STATUS.get(str(error), 400), str(error))

    def _refusal(self, asked: Asked) -> bytes | None:
        assert "AWS4-HMAC-SHA256" in asked.headers["authorization"]
        signed = datetime.strptime(asked.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        bare = asked.operation == "head"  # has no body, and so no code
        if abs(datetime.now(UTC) + self.clock_ahead - signed) > ALLOWED_SKEW:
            return http(403) if bare else s3_error(403, "RequestTimeTooSkewed")
        if self.tokens is not None and asked.headers.get("x-amz-security-token") not in self.tokens:
            return http(400) if bare else s3_error(400, "ExpiredToken")
        if asked.headers["x-amz-expected-bucket-owner"] != self.owner:
            return http(403) if bare else s3_error(403, "AccessDenied")
        return None

    # --- operations

    async def _put(self, asked: Asked) -> bytes:
        _expect_encryption(asked)
        assert asked.headers["if-none-match"] == "*"
        return self._written(200, b"", await self.bucket.put(asked.put, asked.body))

    async def _create(self, asked: Asked) -> bytes:
        _expect_encryption(asked)
        assert asked.headers["x-amz-checksum-type"] == "FULL_OBJECT"
        upload_id = await self.bucket.create_multipart(asked.put)
        return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>")

    async def _part(self, asked: Asked) -> bytes:
        number, crc = int(asked.query["partNumber"]), asked.headers["x-amz-checksum-crc64nvme"]
        facts = await self.bucket.upload_part(asked.key, asked.query["uploadId"], number, asked.body, crc)
        return http(200, ETag=facts.etag, x_amz_checksum_crc64nvme=facts.crc64nvme)

    async def _complete(self, asked: Asked) -> bytes:
        assert asked.headers["if-none-match"] == "*"
        assert asked.headers["x-amz-checksum-type"] == "FULL_OBJECT"
        said = asked.put
        upload = self.bucket.uploads.get(asked.query["uploadId"])
        if upload is None:
            raise UploadLostError("NoSuchUpload")
        # The length and checksum of the whole are only told here.
        upload.request = replace(upload.request, size_bytes=said.size_bytes, crc64nvme=said.crc64nvme)
        facts = await self.bucket.complete_multipart(upload.request, asked.query["uploadId"], _parts_in(asked.body))
        inside = f"<ETag>{facts.etag}</ETag><ChecksumCRC64NVME>{facts.crc64nvme}</ChecksumCRC64NVME>"
        return self._written(
            200, f"<CompleteMultipartUploadResult>{inside}</CompleteMultipartUploadResult>".encode(), facts
        )

    async def _abort(self, asked: Asked) -> bytes:
        await self.bucket.abort_multipart(asked.key, asked.query["uploadId"])
        return http(204)

    async def _uploads(self, asked: Asked) -> bytes:
        found = sorted((one.key, one.upload_id) for one in await self.bucket.unfinished(asked.query.get("prefix", "")))
        after = asked.query.get("key-marker", ""), asked.query.get("upload-id-marker", "")
        rest = [each for each in found if each > after] if after[0] else found
        shown = rest[: self.page]
        more = len(rest) > len(shown)
        inside = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        if more:
            inside += (
                f"<NextKeyMarker>{shown[-1][0]}</NextKeyMarker><NextUploadIdMarker>{shown[-1][1]}</NextUploadIdMarker>"
            )
        inside += "".join(f"<Upload><Key>{key}</Key><UploadId>{one}</UploadId></Upload>" for key, one in shown)
        return _xml("ListMultipartUploadsResult", inside)

    async def _head(self, asked: Asked) -> bytes:
        facts = await self.bucket.head(asked.key)
        if facts is None:
            return http(404, x_amz_delete_marker="true" if self.versions else "false")
        answer = self._written(200, b"", facts)
        return answer.replace(b"Content-Length: 0", f"Content-Length: {facts.size_bytes}".encode())

    async def _read(self, asked: Asked) -> bytes:
        first, last = (int(end) for end in asked.headers["range"].removeprefix("bytes=").split("-"))
        return http(206, await self.bucket.read(asked.key, first, last - first + 1))

    async def _delete(self, asked: Asked) -> bytes:
        await self.bucket.delete(asked.key)
        return http(204)

    def _written(self, status: int, body: bytes, facts: ObjectFacts) -> bytes:
        headers: dict[str, str | None] = {
            "ETag": facts.etag,
            "x-amz-checksum-crc64nvme": facts.crc64nvme,
            "x-amz-checksum-type": facts.checksum_type,
            "x-amz-server-side-encryption": facts.encryption,
            "x-amz-server-side-encryption-aws-kms-key-id": facts.kms_key_arn,
            "x-amz-server-side-encryption-bucket-key-enabled": "true" if facts.bucket_key else None,
            "x-amz-version-id": f"v-{facts.key[-8:]}" if self.versions else None,
            **{f"x-amz-meta-{name}": value for name, value in facts.metadata.items()},
        }
        return http(status, body, **{name: value for name, value in headers.items() if value is not None})


def _expect_encryption(asked: Asked) -> None:
    assert asked.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert asked.headers["x-amz-server-side-encryption-aws-kms-key-id"] == STORAGE.kms_key_arn
    assert asked.headers["x-amz-server-side-encryption-bucket-key-enabled"].lower() == "true"


def _parts_in(body: bytes) -> list[PartFacts]:
    parts = []
    for part in re.findall(r"<Part>(.*?)</Part>", body.decode(), re.DOTALL):
        found = {
            name: re.search(rf"<{name}>(.*?)</{name}>", part) for name in ("PartNumber", "ETag", "ChecksumCRC64NVME")
        }
        number, etag, crc = (match[1] if match else "" for match in found.values())
        parts.append(PartFacts(int(number), etag.replace("&quot;", '"'), crc))
    return parts


def _xml(name: str, inside: str) -> bytes:
    return http(200, f"<?xml version='1.0'?><{name}>{inside}</{name}>".encode(), Content_Type="application/xml")


def _understood(line: str) -> tuple[str, str, dict[str, str]]:
    """Tell operation, key and query of a request line."""
    method, target, _ = line.split(" ")
    parts = urlsplit(target)
    key = unquote(parts.path).lstrip("/").partition("/")[2]
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if "uploadId" in query:
        return {"PUT": "part", "POST": "complete", "DELETE": "abort"}[method], key, query
    if "uploads" in query:
        return {"POST": "create", "GET": "uploads"}[method], key, query
    return {"PUT": "put", "HEAD": "head", "GET": "read", "DELETE": "delete"}[method], key, query


async def _head(stream: ByteStream) -> tuple[str, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    return line, {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}, body


@contextlib.asynccontextmanager
async def s3_wire(bucket: StrictDestination | None = None) -> AsyncIterator[S3Wire]:
    """Listen on a free loopback port."""
    server = S3Wire(bucket or StrictDestination())
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server.port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, server.serve)
        try:
            yield server
        finally:
            tg.cancel_scope.cancel()


SMALL_PARTS = 100_000


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let parts be small, so that an upload of many takes no time; give their size."""
    monkeypatch.setattr(upload, "PART_BYTES", SMALL_PARTS)
    monkeypatch.setattr(upload, "MIB", 1)
    monkeypatch.setattr(s3_strict, "SMALLEST_PART", SMALL_PARTS)
    return SMALL_PARTS
