"""What `KeyService` does over the AWS KMS API, on each server that speaks it; and that every call is told."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from pipeline.adapters import kms
from pipeline.adapters.aws import open_client
from pipeline.adapters.kms import AwsKeyService
from pipeline.errors import HoldCode, KeyBusyError, KeyUnavailableError, RefuseError
from pipeline.keyports import KmsCall
from pipeline.settings import Credentials, Endpoint
from tests.kms_server import IDENTITIES, REGION, running_key_server
from tests.servers import localstack, moto
from tests.wire import HANG, RESET, http, wire

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

ARN = "arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000002"
CONTEXT = {"pipeline:accountId": "111122223333", "pipeline:dataClass": "recordings_interim"}


@dataclass
class Heard:
    """The audit trail."""

    calls: list[KmsCall] = field(default_factory=list)

    async def __call__(self, call: KmsCall) -> None:
        await anyio.lowlevel.checkpoint()
        self.calls.append(call)

    @property
    def names(self) -> list[tuple[str, str | None]]:
        return [(call.name, call.error_code) for call in self.calls]


@dataclass
class Bench:
    service: AwsKeyService
    heard: Heard
    key_arn: str
    admin: "KMSClient"


@contextlib.asynccontextmanager
async def _over(endpoint: Endpoint, key_arn: str, admin: "KMSClient") -> AsyncIterator[Bench]:
    heard = Heard()
    async with open_client("kms", endpoint) as client:
        yield Bench(AwsKeyService(client, heard), heard, key_arn, admin)


@contextlib.asynccontextmanager
async def key_server(tmp_path: Path) -> AsyncIterator[Bench]:
    identity = IDENTITIES["service"]
    async with running_key_server(tmp_path) as server, server.client("admin") as admin:
        key = await admin.create_key()
        endpoint = Endpoint(
            region=REGION, url=server.url, credentials=Credentials(identity.access_key, identity.secret_key)
        )
        async with _over(endpoint, key["KeyMetadata"]["Arn"], admin) as bench:
            yield bench


@contextlib.asynccontextmanager
async def in_localstack(tmp_path: Path) -> AsyncIterator[Bench]:
    async with localstack(tmp_path) as endpoint, open_client("kms", endpoint) as admin:
        key = await admin.create_key()
        async with _over(endpoint, key["KeyMetadata"]["Arn"], admin) as bench:
            yield bench


@contextlib.asynccontextmanager
async def in_moto(tmp_path: Path) -> AsyncIterator[Bench]:
    async with moto() as endpoint, open_client("kms", endpoint) as admin:
        key = await admin.create_key()
        async with _over(endpoint, key["KeyMetadata"]["Arn"], admin) as bench:
            yield bench


Opener = Callable[[Path], contextlib.AbstractAsyncContextManager[Bench]]
STATEFUL = [
    pytest.param(key_server, id="key-server"),
    pytest.param(in_localstack, id="localstack", marks=[pytest.mark.aws, pytest.mark.slow]),
]
ALL = [*STATEFUL, pytest.param(in_moto, id="moto")]


@pytest.mark.parametrize("opener", ALL)
async def test_a_data_key_opens_again_under_its_key_and_context_only(opener: Opener, tmp_path: Path) -> None:
    async with opener(tmp_path) as bench:
        made = await bench.service.generate_data_key(bench.key_arn, CONTEXT)
        assert len(made.plaintext) == 32
        assert made.key_arn == bench.key_arn
        assert repr(made.plaintext) not in repr(made)
        assert await bench.service.decrypt(bench.key_arn, made.wrapped, CONTEXT) == made.plaintext
        described = await bench.service.describe(bench.key_arn)
        assert (described.key_arn, described.state) == (bench.key_arn, "Enabled")
        assert (described.spec, described.usage) == ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")

        other = {**CONTEXT, "pipeline:dataClass": "other"}
        with pytest.raises(KeyUnavailableError) as caught:
            await bench.service.decrypt(bench.key_arn, made.wrapped, other)
        assert caught.value.code is HoldCode.KEY_MISMATCH
        assert bench.heard.names == [
            ("GenerateDataKey", None),
            ("Decrypt", None),
            ("DescribeKey", None),
            ("Decrypt", "InvalidCiphertextException"),
        ]
        for call in bench.heard.calls:
            assert (call.key_arn, call.resource_arn) == (bench.key_arn, bench.key_arn)
            assert call.context == ({} if call.name == "DescribeKey" else other if call.error_code else CONTEXT)
            assert call.request_id
            assert made.plaintext not in repr(call).encode()


@pytest.mark.parametrize("opener", ALL)
async def test_a_data_key_is_wrapped_again_under_another_key(opener: Opener, tmp_path: Path) -> None:
    async with opener(tmp_path) as bench:
        other = (await bench.admin.create_key())["KeyMetadata"]["Arn"]
        made = await bench.service.generate_data_key(bench.key_arn, CONTEXT)
        again = await bench.service.re_encrypt(bench.key_arn, other, made.wrapped, CONTEXT)
        assert await bench.service.decrypt(other, again, CONTEXT) == made.plaintext
        call = bench.heard.calls[1]
        assert (call.name, call.source_arn, call.key_arn, call.resource_arn) == (
            "ReEncrypt",
            bench.key_arn,
            other,
            other,
        )

        wrong = {**CONTEXT, "pipeline:dataClass": "other"}
        with pytest.raises(KeyUnavailableError) as caught:
            await bench.service.re_encrypt(bench.key_arn, other, made.wrapped, wrong)
        assert caught.value.code is HoldCode.KEY_MISMATCH


@pytest.mark.parametrize("opener", STATEFUL)
async def test_a_key_that_was_taken_away_is_a_hold_with_its_own_code(opener: Opener, tmp_path: Path) -> None:
    """DisabledException is also sent for keys that are pending deletion: the state tells them apart."""
    async with opener(tmp_path) as bench:
        key_id = bench.key_arn.rpartition("/")[2]
        made = await bench.service.generate_data_key(bench.key_arn, CONTEXT)
        await bench.admin.disable_key(KeyId=key_id)
        assert await refusal(bench, made.wrapped) is HoldCode.KEY_DISABLED
        await bench.admin.enable_key(KeyId=key_id)
        assert await bench.service.decrypt(bench.key_arn, made.wrapped, CONTEXT) == made.plaintext
        await bench.admin.schedule_key_deletion(KeyId=key_id, PendingWindowInDays=7)
        assert await refusal(bench, made.wrapped) is HoldCode.KEY_PENDING_DELETION
        refused = [name for name, code in bench.heard.names if code]
        assert refused == ["Decrypt", "Decrypt"]
        assert [name for name, _ in bench.heard.names].count("DescribeKey") == 2


async def refusal(bench: Bench, wrapped: bytes) -> HoldCode:
    with pytest.raises(KeyUnavailableError) as caught:
        await bench.service.decrypt(bench.key_arn, wrapped, CONTEXT)
    return caught.value.code


@pytest.mark.parametrize("opener", ALL)
async def test_a_key_that_never_was_is_not_found(opener: Opener, tmp_path: Path) -> None:
    async with opener(tmp_path) as bench:
        missing = bench.key_arn[:-4] + "ffff"
        with pytest.raises(KeyUnavailableError) as caught:
            await bench.service.generate_data_key(missing, CONTEXT)
        assert caught.value.code is HoldCode.KEY_NOT_FOUND
        assert bench.heard.names == [("GenerateDataKey", "NotFoundException")]


async def test_a_caller_without_permission_is_denied(tmp_path: Path) -> None:
    identity, heard = IDENTITIES["bare"], Heard()
    async with running_key_server(tmp_path) as server, server.client("admin") as admin:
        arn = (await admin.create_key())["KeyMetadata"]["Arn"]
        for secret in (identity.secret_key, "a wrong one"):
            endpoint = Endpoint(region=REGION, url=server.url, credentials=Credentials(identity.access_key, secret))
            async with open_client("kms", endpoint) as client:
                with pytest.raises(KeyUnavailableError) as caught:
                    await AwsKeyService(client, heard).generate_data_key(arn, CONTEXT)
                assert caught.value.code is HoldCode.KEY_ACCESS_DENIED
    assert [code for _, code in heard.names] == ["AccessDeniedException", "InvalidSignatureException"]


# --- codes that no server can be made to send


def kms_error(code: str, status: int = 400) -> bytes:
    body = json.dumps({"__type": code, "message": "no"}).encode()
    return http(status, body, Content_Type="application/x-amz-json-1.1", x_amzn_RequestId="r-1")


def described_as(state: str) -> bytes:
    metadata = {"Arn": ARN, "KeyState": state, "KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT"}
    return http(200, json.dumps({"KeyMetadata": {"KeyId": "k", **metadata}}).encode(), x_amzn_RequestId="r-2")


async def answered(*answers: bytes) -> tuple[Exception, Heard]:
    """Give what GenerateDataKey raises when the requests are answered like that, one after the other."""
    heard, left = Heard(), list(answers)
    async with wire(lambda _: left.pop(0)) as told, open_client("kms", told.endpoint) as client:
        with pytest.raises((KeyBusyError, KeyUnavailableError, RefuseError)) as caught:
            await AwsKeyService(client, heard).generate_data_key(ARN, CONTEXT)
    assert left == []
    return caught.value, heard


@pytest.mark.parametrize(
    "answer",
    [
        kms_error("ThrottlingException"),
        kms_error("KeyUnavailableException", 500),
        kms_error("DependencyTimeoutException", 500),
        kms_error("KMSInternalException", 500),
        kms_error("SomethingNew"),
        http(500, b"<html>proxy</html>"),
        http(200, b"<html>proxy</html>"),
        http(200, b"{}"),
        RESET,
    ],
)
async def test_impatience_and_nonsense_are_transient_and_told_once(answer: bytes) -> None:
    error, heard = await answered(answer)
    assert isinstance(error, KeyBusyError)
    assert len(heard.calls) == 1


@pytest.mark.parametrize("code", ["InvalidArnException", "InvalidKeyUsageException", "ValidationException"])
async def test_a_key_that_can_not_be_meant_is_refused(code: str) -> None:
    error, heard = await answered(kms_error(code))
    assert isinstance(error, RefuseError)
    assert heard.names == [("GenerateDataKey", code)]
    assert heard.calls[0].request_id == "r-1"


@pytest.mark.parametrize("code", ["DisabledException", "KMSInvalidStateException"])
@pytest.mark.parametrize(
    ("state", "hold"),
    [
        ("Disabled", HoldCode.KEY_DISABLED),
        ("PendingDeletion", HoldCode.KEY_PENDING_DELETION),
        ("PendingReplicaDeletion", HoldCode.KEY_PENDING_DELETION),
        ("PendingImport", HoldCode.KEY_INVALID_STATE),
        ("Unavailable", HoldCode.KEY_INVALID_STATE),
        ("Creating", None),
        ("Updating", None),
        ("Enabled", None),
    ],
)
async def test_the_state_decides_and_not_the_text(code: str, state: str, hold: HoldCode | None) -> None:
    error, heard = await answered(kms_error(code), described_as(state))
    assert getattr(error, "code", None) is hold
    assert heard.names == [("GenerateDataKey", code), ("DescribeKey", None)]


@pytest.mark.parametrize(
    ("code", "hold"),
    [("DisabledException", HoldCode.KEY_DISABLED), ("KMSInvalidStateException", HoldCode.KEY_INVALID_STATE)],
)
@pytest.mark.parametrize("answer", [kms_error("AccessDeniedException"), kms_error("ThrottlingException")])
async def test_where_the_state_can_not_be_asked_the_code_is_believed(code: str, hold: HoldCode, answer: bytes) -> None:
    error, heard = await answered(kms_error(code), answer)
    assert isinstance(error, KeyUnavailableError)
    assert error.code is hold
    assert len(heard.calls) == 2


async def test_the_work_of_another_key_does_not_count() -> None:
    body = {
        "KeyId": ARN[:-1] + "9",
        "Plaintext": "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=",
        "CiphertextBlob": "QQ==",
    }
    error, heard = await answered(http(200, json.dumps(body).encode()))
    assert isinstance(error, KeyUnavailableError)
    assert error.code is HoldCode.KEY_MISMATCH
    assert heard.calls[0].resource_arn == body["KeyId"]


async def test_no_answer_is_transient_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kms, "PATIENCE_S", 0.4)
    error, heard = await answered(HANG)
    assert isinstance(error, KeyBusyError)
    assert heard.names == [("GenerateDataKey", "TimeoutError")]


async def test_a_cancelled_call_is_told_too() -> None:
    heard = Heard()
    async with wire(HANG) as told, open_client("kms", told.endpoint) as client:
        with anyio.move_on_after(0.1) as scope:
            await AwsKeyService(client, heard).decrypt(ARN, b"wrapped", CONTEXT)
        assert scope.cancelled_caught
    assert heard.names == [("Decrypt", "RequestCancelled")]


async def test_what_can_not_be_told_does_not_happen(tmp_path: Path) -> None:
    async def full(call: KmsCall) -> None:
        raise OSError("disk full")

    async with key_server(tmp_path) as bench:
        service = AwsKeyService(bench.service._client, full)
        with pytest.raises(OSError, match="disk full"):
            await service.generate_data_key(bench.key_arn, CONTEXT)
