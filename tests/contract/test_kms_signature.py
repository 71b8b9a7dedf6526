"""Signature Version 4 at the key server's door, and what it makes of requests that no AWS client would send."""

import io
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.kms_server import IDENTITIES, REGION, RunningKeyServer, running_key_server

ADMIN = IDENTITIES["admin"]
TARGET = "TrentService.ListKeys"


def signed(server: RunningKeyServer, body: bytes = b"{}", target: str = TARGET, **more: Any) -> dict[str, str]:
    """Sign with botocore; `more` changes what is signed with."""
    headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1", **more.get("headers", {})}
    request = AWSRequest(method="POST", url=f"{server.url}/", data=body, headers=headers)
    credentials = Credentials(more.get("access", ADMIN.access_key), more.get("secret", ADMIN.secret_key))
    signer = SigV4Auth(credentials, more.get("service", "kms"), more.get("region", REGION))
    stamp = more.get("at", datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    request.context["timestamp"] = request.headers["X-Amz-Date"] = stamp
    names = signer.signed_headers(signer.headers_to_sign(request))
    signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    request.headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={signer.scope(request)}, SignedHeaders={names}, Signature={signature}"
    )
    return {name: value for name, value in request.headers.items() if name not in more.get("without", ())}


async def post(server: RunningKeyServer, headers: dict[str, str], body: bytes = b"{}") -> tuple[int, str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/", data=io.BytesIO(body), headers=headers) as response,
    ):
        assert response.headers["x-amzn-requestid"]
        assert response.headers["content-type"] == "application/x-amz-json-1.1"
        answer = json.loads(await response.read() or b"null")
    if response.status == 200:
        return response.status, "", answer
    assert set(answer) == {"__type", "message"}
    return response.status, answer["__type"], answer


async def test_a_request_signed_by_botocore_is_taken(tmp_path: Path) -> None:
    async with running_key_server(tmp_path) as server:
        assert await post(server, signed(server)) == (200, "", {"Keys": [], "Truncated": False})
        # Go signs content-length too; the hash of the body may be given, or left out.
        extra = {"Content-Length": "2", "X-Amz-Content-SHA256": sha256(b"{}").hexdigest()}
        assert (await post(server, signed(server, headers=extra)))[0] == 200


async def test_each_wrong_signature_has_its_own_error(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    other_body = {"X-Amz-Content-SHA256": sha256(b"other").hexdigest()}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"secret": "not-the-secret-of-anyone"}, "InvalidSignatureException"),
        ({"access": "AKNOBODY"}, "UnrecognizedClientException"),
        ({"region": "us-east-1"}, "InvalidSignatureException"),
        ({"service": "s3"}, "InvalidSignatureException"),
        ({"at": now - timedelta(minutes=6)}, "InvalidSignatureException"),
        ({"at": now + timedelta(minutes=6)}, "InvalidSignatureException"),
        ({"headers": other_body}, "InvalidSignatureException"),
        ({"headers": {"X-Amz-Security-Token": "t"}}, "UnrecognizedClientException"),
        ({"without": ("Authorization",)}, "MissingAuthenticationTokenException"),
        ({"without": ("X-Amz-Date",)}, "IncompleteSignatureException"),
    ]
    async with running_key_server(tmp_path) as server:
        for how, code in wrong:
            status, got, _ = await post(server, signed(server, **how))
            assert (status, got) == (400, code), how
        for minutes in (-4, 4):
            assert (await post(server, signed(server, at=now + timedelta(minutes=minutes))))[0] == 200


async def test_what_was_signed_can_not_be_changed(tmp_path: Path) -> None:
    async with running_key_server(tmp_path) as server:
        headers = signed(server, b'{"Limit":1}')
        assert (await post(server, headers, b'{"Limit":2}'))[1] == "InvalidSignatureException"
        changed = {**headers, "X-Amz-Target": "TrentService.CreateKey"}
        assert (await post(server, changed, b'{"Limit":1}'))[1] == "InvalidSignatureException"
        unsigned_target = {**headers, "Authorization": headers["Authorization"].replace(";x-amz-target", "")}
        assert (await post(server, unsigned_target, b'{"Limit":1}'))[1] == "InvalidSignatureException"
        garbled = {**headers, "Authorization": "AWS4-HMAC-SHA256 Credential=x"}
        assert (await post(server, garbled))[1] == "IncompleteSignatureException"
        assert (await post(server, headers, b'{"Limit":1}'))[0] == 200


BODIES: list[tuple[str, bytes, str]] = [
    ("ListKeys", b"", "SerializationException"),
    ("ListKeys", b"[]", "SerializationException"),
    ("ListKeys", b'{"Limit":"canary-value"}', "SerializationException"),
    ("ListKeys", b'{"Limit":0}', "ValidationException"),
    ("DescribeKey", b"{}", "ValidationException"),
    ("DescribeKey", b'{"KeyId":null}', "ValidationException"),
    ("DescribeKey", b'{"KeyId":7}', "SerializationException"),
    ("DescribeKey", b'{"KeyId":""}', "ValidationException"),
    ("DescribeKey", b'{"KeyId":"\\ud800canary-value"}', "SerializationException"),
    ("DescribeKey", b'{"KeyId":"canary-value"}', "NotFoundException"),
    ("Encrypt", b'{"KeyId":"a","Plaintext":"canary-value!"}', "SerializationException"),
    ("Encrypt", b'{"KeyId":"a","Plaintext":""}', "ValidationException"),
    ("Encrypt", b'{"KeyId":"a","Plaintext":"eA==","EncryptionContext":{"canary-value":1}}', "SerializationException"),
    ("Encrypt", b'{"KeyId":"a","Plaintext":"eA==","EncryptionAlgorithm":"canary-value"}', "InvalidKeyUsageException"),
    ("Decrypt", b'{"CiphertextBlob":"eA==","Recipient":{"a":"canary-value"}}', "UnsupportedOperationException"),
    ("Decrypt", b'{"CiphertextBlob":"' + b"A" * 8196 + b'"}', "ValidationException"),
    ("CreateAlias", b'{"AliasName":"canary value","TargetKeyId":"a"}', "ValidationException"),
    ("GenerateDataKey", b'{"KeyId":"a","KeySpec":"canary-value"}', "ValidationException"),
    ("GenerateRandom", b"{}", "UnknownOperationException"),
]


async def test_malformed_input_is_refused_without_repeating_it(tmp_path: Path) -> None:
    async with running_key_server(tmp_path) as server:
        for operation, body, code in BODIES:
            headers = signed(server, body, f"TrentService.{operation}")
            status, got, answer = await post(server, headers, body)
            assert (status, got) == (400, code), body
            assert "canary" not in json.dumps(answer)
        assert len(server.trail()) == len(BODIES)


async def test_unsigned_requests_are_recorded_without_what_they_say(tmp_path: Path) -> None:
    async with running_key_server(tmp_path) as server:
        headers = {"X-Amz-Target": "TrentService.canary-value", "User-Agent": "a\tb" + "x" * 999}
        await post(server, headers, b'{"Description":"canary-value"}')
        [record] = server.trail()
    assert record["userIdentity"] == {"type": "Unknown"}
    assert record["eventName"] == "UnknownOperation"
    assert record["errorCode"] == "MissingAuthenticationTokenException"
    assert record["requestParameters"] is None
    assert len(record["userAgent"]) == 256
    assert "canary" not in json.dumps(record)


async def test_a_body_over_one_mebibyte_is_refused(tmp_path: Path) -> None:
    async with running_key_server(tmp_path) as server:
        body = b'{"KeyId":"' + b"a" * 2**20 + b'"}'
        status, code, _ = await post(server, signed(server, body), body)
        assert (status, code) == (413, "RequestEntityTooLargeException")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/healthz", 200), ("GET", "/", 405), ("POST", "/x", 404)]
)
async def test_there_are_two_routes(tmp_path: Path, method: str, path: str, status: int) -> None:
    async with (
        running_key_server(tmp_path) as server,
        aiohttp.ClientSession() as session,
        session.request(method, server.url + path) as response,
    ):
        assert response.status == status
