"""F23 to F28: what comes over the wire, and what becomes of it. Only our own exceptions ever leave the adapter."""

import logging
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from pipeline.adapters import s3
from pipeline.adapters.aws import LOGGERS, open_client, pin_loggers
from pipeline.adapters.s3 import S3Destination
from pipeline.errors import (
    DestinationBusyError,
    DestinationHeldError,
    DestinationRefusedError,
    HoldCode,
    PipelineError,
)
from pipeline.ports import ObjectExistsError, PartFacts, PutRequest, UploadLostError
from pipeline.settings import Credentials, Endpoint
from tests.s3_strict import STORAGE
from tests.wire import HANG, RESET, Wire, http, s3_error, wire

BODY = b"recorded speech"
REQUEST = PutRequest("a/key", len(BODY), "AAAAAAAAAAE=", "audio/wav", {"rid": "r", "gen": "1", "sha256": "0"})
PART = PartFacts(1, '"etag"', "AAAAAAAAAAE=")
Call = Callable[[S3Destination], Awaitable[object]]
CALLS: dict[str, Call] = {
    "put": lambda it: it.put(REQUEST, BODY),
    "create": lambda it: it.create_multipart(REQUEST),
    "part": lambda it: it.upload_part("a/key", "u-1", 1, BODY, "AAAAAAAAAAE="),
    "complete": lambda it: it.complete_multipart(REQUEST, "u-1", [PART]),
    "abort": lambda it: it.abort_multipart("a/key", "u-1"),
    "unfinished": lambda it: it.unfinished("a/key"),
    "head": lambda it: it.head("a/key"),
    "read": lambda it: it.read("a/key", 0, 5),
    "delete": lambda it: it.delete("a/key"),
}
TRUNCATED = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n<Trunc"
EVERY_CALL = pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CALLS.items()])


async def outcome(call: Call, answer: bytes) -> tuple[Exception, Wire]:
    """Give what the call raises when it is answered like that."""
    async with wire(answer) as told, open_client("s3", told.endpoint) as client:
        with pytest.raises((PipelineError, ObjectExistsError, UploadLostError)) as caught:
            await call(S3Destination(client, STORAGE))
        return caught.value, told


NONSENSE = {
    "reset": RESET,
    "500": http(500),
    "html": http(503, b"<html><body>proxy</html>", Content_Type="text/html"),
    "slow-down": s3_error(503, "SlowDown"),
    "429": s3_error(429, "TooManyRequests"),
    "internal": s3_error(500, "InternalError"),
    "bad-digest": s3_error(400, "BadDigest"),
    "unknown": s3_error(400, "SomethingNew"),
    "no-xml": http(418, b"\xff\xfe\x00 no xml"),
    "another-protocol": b"SMTP ready\r\n\r\n",
}


def every_nonsense() -> list[object]:
    """Leave to the slow tests what writes, asks or reads as another call does, but for three of the answers."""
    return [
        pytest.param(
            call,
            answer,
            id=f"{what}-{name}",
            marks=[]
            if name in {"put", "complete", "head", "read"} or what in {"reset", "html", "slow-down"}
            else pytest.mark.slow,
        )
        for name, call in CALLS.items()
        for what, answer in NONSENSE.items()
    ]


@pytest.mark.parametrize(("call", "answer"), every_nonsense())
async def test_nonsense_and_impatience_are_transient_and_asked_once(call: Call, answer: bytes) -> None:
    error, told = await outcome(call, answer)
    assert type(error) is DestinationBusyError
    # A connection that ends without an answer is replaced once by aiohttp itself, the whole body sent again.
    assert len(told.requests) <= (2 if answer == RESET else 1)
    assert set(told.bodies) <= {told.bodies[0]}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CALLS.items() if name != "head"])
@pytest.mark.parametrize("answer", [s3_error(403, "RequestTimeTooSkewed"), TRUNCATED], ids=["skew", "truncated"])
async def test_an_answer_whose_body_says_more_or_ends_early_is_transient(
    call: Call, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEAD has no body."""
    monkeypatch.setattr(s3, "PATIENCE_S", 0.3)
    error, _ = await outcome(call, answer)
    assert type(error) is DestinationBusyError


@EVERY_CALL
async def test_a_bucket_that_never_answers_is_given_up(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PATIENCE_S", 0.05)
    error, _ = await outcome(call, HANG)
    assert type(error) is DestinationBusyError


async def test_a_bucket_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body fills the socket's buffers, and nothing moves any more."""
    monkeypatch.setattr(s3, "PATIENCE_S", 0.2)
    monkeypatch.setattr(s3, "SLOWEST_BYTES_PER_S", 2**30)
    body = bytes(32 * 2**20)
    async with wire(HANG) as told, open_client("s3", told.endpoint) as client:
        told.read_body = False
        with pytest.raises(DestinationBusyError):
            await S3Destination(client, STORAGE).upload_part("a/key", "u-1", 1, body, "AAAAAAAAAAE=")


async def test_a_closed_port_is_transient() -> None:
    async with wire() as told:
        endpoint = told.endpoint
    async with open_client("s3", endpoint) as client:
        with pytest.raises(DestinationBusyError):
            await S3Destination(client, STORAGE).put(REQUEST, BODY)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (s3_error(403, "AccessDenied"), HoldCode.DESTINATION_ACCESS_DENIED),
        (s3_error(403, "InvalidAccessKeyId"), HoldCode.DESTINATION_ACCESS_DENIED),
        (s3_error(403, "SignatureDoesNotMatch"), HoldCode.DESTINATION_ACCESS_DENIED),
        (s3_error(400, "ExpiredToken"), HoldCode.DESTINATION_ACCESS_DENIED),
        (http(403), HoldCode.DESTINATION_ACCESS_DENIED),
        (s3_error(404, "NoSuchBucket"), HoldCode.DESTINATION_MISSING),
        (s3_error(301, "PermanentRedirect", Endpoint="elsewhere"), HoldCode.DESTINATION_MISSING),
        (s3_error(307, "TemporaryRedirect"), HoldCode.DESTINATION_MISSING),
        (s3_error(400, "AuthorizationHeaderMalformed", Region="eu-west-3"), HoldCode.DESTINATION_MISSING),
        (s3_error(400, "KMS.DisabledException"), HoldCode.KEY_DISABLED),
        (s3_error(400, "KMS.KMSInvalidStateException"), HoldCode.KEY_INVALID_STATE),
        (s3_error(400, "KMS.NotFoundException"), HoldCode.KEY_NOT_FOUND),
    ],
)
async def test_what_somebody_must_mend_holds_the_destination(answer: bytes, code: HoldCode) -> None:
    """F27 to F29."""
    error, told = await outcome(CALLS["put"], answer)
    assert isinstance(error, DestinationHeldError)
    assert error.code is code
    assert len(told.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    """F27: a recording goes where its request was signed for, or nowhere."""
    async with wire(http(200)) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/other/key"
        error, told = await outcome(CALLS["put"], http(status, Location=location, x_amz_bucket_region="eu-west-3"))
        assert elsewhere.requests == []
    assert isinstance(error, DestinationHeldError)
    assert error.code is HoldCode.DESTINATION_MISSING
    assert len(told.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        s3_error(400, "EntityTooLarge"),
        s3_error(400, "KeyTooLongError"),
        s3_error(400, "InvalidArgument", ArgumentName="key"),
    ],
)
async def test_few_answers_mean_never(answer: bytes) -> None:
    error, _ = await outcome(CALLS["put"], answer)
    assert type(error) is DestinationRefusedError


async def test_an_invalid_argument_that_is_not_the_key_is_transient() -> None:
    error, _ = await outcome(CALLS["put"], s3_error(400, "InvalidArgument", ArgumentName="partNumber"))
    assert type(error) is DestinationBusyError


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("put", s3_error(412, "PreconditionFailed"), ObjectExistsError),
        ("complete", s3_error(412, "PreconditionFailed"), ObjectExistsError),
        ("put", s3_error(409, "ConditionalRequestConflict"), DestinationBusyError),
        ("complete", s3_error(409, "ConditionalRequestConflict"), UploadLostError),
        ("complete", s3_error(404, "NoSuchUpload"), UploadLostError),
        ("complete", s3_error(400, "InvalidPart"), UploadLostError),
        ("part", s3_error(404, "NoSuchUpload"), UploadLostError),
        ("put", http(404, b"<html/>"), DestinationBusyError),
        ("read", s3_error(404, "NoSuchKey"), DestinationBusyError),
        ("read", http(200, b"more than five bytes"), DestinationBusyError),
    ],
)
async def test_conflicts_are_told_apart(name: str, answer: bytes, expected: type[Exception]) -> None:
    error, _ = await outcome(CALLS[name], answer)
    assert type(error) is expected


@pytest.mark.parametrize("code", ["InternalError", "SlowDown", "NoSuchUpload"])
async def test_an_error_in_a_body_of_200_is_an_error(code: str) -> None:
    """F26: S3 sends the status before it knows how a completion ends."""
    error, _ = await outcome(CALLS["complete"], s3_error(200, code))
    assert type(error) is (UploadLostError if code == "NoSuchUpload" else DestinationBusyError)


@pytest.mark.parametrize("body", [b"", b"<CompleteMultipartUploadResult/>", b"<html><body>fine</body></html>"])
async def test_a_200_that_names_nothing_proves_nothing(body: bytes) -> None:
    async with wire(http(200, body)) as told, open_client("s3", told.endpoint) as client:
        facts = await S3Destination(client, STORAGE).complete_multipart(REQUEST, "u-1", [PART])
        assert (facts.crc64nvme, facts.encryption, facts.kms_key_arn) == (None, None, None)
        assert (await S3Destination(client, STORAGE).put(REQUEST, BODY)).crc64nvme is None if not body else True


async def test_a_connection_that_ends_between_requests_sends_the_whole_body_again() -> None:
    """F25: aiohttp repeats a PUT on a stale connection by itself."""
    count = 0

    def answer(request: str) -> bytes:
        nonlocal count
        count += 1
        return RESET if count == 2 else http(200)

    body = bytearray(b"x" * 300_000)
    request = PutRequest("a/key", len(body), "AAAAAAAAAAE=", "audio/wav", REQUEST.metadata)
    async with wire(answer) as told, open_client("s3", told.endpoint) as client:
        destination = S3Destination(client, STORAGE)
        await destination.put(request, body)
        await destination.put(request, body)
        assert told.bodies == [bytes(body)] * 3


async def test_a_certificate_that_is_not_valid_holds_the_destination(tmp_path: Path) -> None:
    """F23: a server that shows a certificate of its own making."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own_certificate(tmp_path / "own.pem"))
    seen: list[str] = []

    async def serve(stream: ByteStream) -> None:
        seen.append("a request")

    plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
    url = f"https://127.0.0.1:{plain.extra(SocketAttribute.local_port)}"
    endpoint = Endpoint(region="us-east-1", url=url, credentials=Credentials("key", "secret"))
    async with TLSListener(plain, context) as listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, serve)
        code: HoldCode | None = None
        async with open_client("s3", endpoint) as client:
            try:
                await S3Destination(client, STORAGE).put(REQUEST, BODY)
            except DestinationHeldError as error:
                code = error.code
        tg.cancel_scope.cancel()
    assert code is HoldCode.DESTINATION_UNREACHABLE
    assert seen == []


def own_certificate(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    return path


async def test_cancellation_passes_through() -> None:
    async with wire(HANG) as told, open_client("s3", told.endpoint) as client:
        with anyio.move_on_after(0.05) as scope:
            await S3Destination(client, STORAGE).put(REQUEST, BODY)
        assert scope.cancelled_caught


async def test_a_long_list_of_unfinished_uploads_is_read_to_its_end() -> None:
    def page(request: str) -> bytes:
        last = "key-marker=k1&" in request or "key-marker=k1 " in request
        more = "" if last else "<NextKeyMarker>k1</NextKeyMarker><NextUploadIdMarker>u1</NextUploadIdMarker>"
        name = "2" if last else "1"
        body = (
            f"<ListMultipartUploadsResult><IsTruncated>{str(not last).lower()}</IsTruncated>{more}"
            f"<Upload><Key>k{name}</Key><UploadId>u{name}</UploadId></Upload></ListMultipartUploadsResult>"
        )
        return http(200, body.encode())

    async with wire(page) as told, open_client("s3", told.endpoint) as client:
        found = await S3Destination(client, STORAGE).unfinished("k")
        assert [(one.key, one.upload_id) for one in found] == [("k1", "u1"), ("k2", "u2")]


async def test_every_request_names_owner_key_and_condition() -> None:
    heads: list[bytes] = []
    async with wire(http(200)) as told, open_client("s3", told.endpoint) as client:

        def note(request: object, **_: object) -> None:
            heads.append(str(sorted((k.lower(), str(v)) for k, v in request.headers.items())).encode())  # type: ignore[attr-defined]

        client.meta.events.register("before-send.s3", note)
        destination = S3Destination(client, STORAGE)
        await destination.put(REQUEST, BODY)
        await destination.complete_multipart(REQUEST, "u-1", [PART])
        await destination.delete("a/key")
    put, complete, delete = heads
    for expected in (b"111122223333", b"('if-none-match'", b"x-amz-checksum-crc64nvme", b"x-amz-mp-object-size"):
        assert expected in complete
    for expected in (b"111122223333", b"('if-none-match'", STORAGE.kms_key_arn.encode(), b"aws:kms", b"crc64nvme"):
        assert expected in put
    assert b"111122223333" in delete


async def test_nothing_of_an_answer_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-7f3a"
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger("botocore").setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG):
        async with wire(http(200, ETag=canary)) as told, open_client("s3", told.endpoint) as client:
            facts = await S3Destination(client, STORAGE).put(REQUEST, canary.encode())
    assert facts.etag == canary
    assert canary not in caplog.text
    logging.getLogger("botocore").setLevel(logging.WARNING)
    pin_loggers()
    assert logging.getLogger("botocore").level == logging.WARNING
