"""What the key server keeps: the trail, its keys over a restart, and what it does when the disk refuses."""

import base64
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from pipeline.kms.grants import new_token, token_grant
from tests.kms_server import (
    ACCOUNT,
    IDENTITIES,
    RunningKeyServer,
    code_of,
    new_key,
    running_key_server,
)

if TYPE_CHECKING:
    from pathlib import Path

    from types_aiobotocore_kms import KMSClient

CONTEXT = {"pipeline:instanceId": "a", "pipeline:dataClass": "recordings_interim"}


async def test_the_trail_has_one_record_for_every_call(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client("service") as kms:
        key = await new_key(kms)
        made = await kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
        opened = await kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=CONTEXT)
        await code_of(kms.describe_key(KeyId="alias/none"))
        records = server.trail()
    assert [record["eventName"] for record in records] == ["CreateKey", "GenerateDataKey", "Decrypt", "DescribeKey"]
    _, generated, decrypted, failed = records
    assert decrypted["requestID"] == opened["ResponseMetadata"]["RequestId"]
    assert decrypted["requestParameters"] == {
        "encryptionContext": CONTEXT,
        "encryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }
    assert generated["requestParameters"] == {"keyId": key, "keySpec": "AES_256", "encryptionContext": CONTEXT}
    assert generated["additionalEventData"] == {"keyMaterialId": made["KeyMaterialId"]}
    assert decrypted["resources"] == [{"accountId": ACCOUNT, "type": "AWS::KMS::Key", "ARN": key}]
    assert decrypted["userIdentity"]["arn"] == IDENTITIES["service"].principal
    assert decrypted["userIdentity"]["type"] == "AssumedRole"
    assert (failed["errorCode"], failed["readOnly"]) == ("NotFoundException", True)
    assert not _has(records, made["Plaintext"])


def _has(records: list[dict[str, Any]], secret: bytes) -> bool:
    text = repr(records)
    return any(form in text for form in (base64.b64encode(secret).decode(), secret.hex(), repr(secret)[2:-1]))


async def test_keys_states_grants_and_aliases_survive_a_restart(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        blob = (await kms.encrypt(KeyId=key, Plaintext=b"kept", EncryptionContext=CONTEXT))["CiphertextBlob"]
        await kms.rotate_key_on_demand(KeyId=key)
        await kms.create_alias(AliasName="alias/kept", TargetKeyId=key)
        grant = await kms.create_grant(
            KeyId=key,
            GranteePrincipal=IDENTITIES["bare"].principal,
            Operations=["Decrypt"],
            Constraints={"EncryptionContextSubset": {"pipeline:instanceId": "a"}},
            Name="kept",
        )
        before = [await _view(kms, key)]
        asleep = await new_key(kms)
        await kms.schedule_key_deletion(KeyId=asleep, PendingWindowInDays=8)
        before.append(await _view(kms, asleep))
    async with running_key_server(tmp_path) as server, server.client() as kms, server.client("bare") as bare:
        assert [await _view(kms, key), await _view(kms, asleep)] == before
        token = grant["GrantToken"]
        opened = await bare.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT, GrantTokens=[token])
        assert opened["Plaintext"] == b"kept"


async def _view(kms: "KMSClient", key: str) -> list[Any]:
    answers: list[Any] = [
        await kms.describe_key(KeyId=key),
        await kms.list_grants(KeyId=key),
        await kms.list_aliases(KeyId=key),
        await kms.get_key_policy(KeyId=key),
    ]
    return [{name: value for name, value in answer.items() if name != "ResponseMetadata"} for answer in answers]


async def test_a_full_disk_gives_no_key_out_without_a_record(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        with _full_trail(server), pytest.raises(ClientError) as refused:
            await kms.generate_data_key(KeyId=key, KeySpec="AES_256")
        assert refused.value.response["Error"]["Code"] == "KMSInternalException"
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
        assert "Plaintext" not in refused.value.response


async def test_a_change_that_the_disk_refuses_is_not_made_in_memory_either(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        server.authority.vault._database._sql.execute("PRAGMA query_only = ON")
        assert await code_of(kms.disable_key(KeyId=key)) == "KMSInternalException"
        assert await code_of(kms.rotate_key_on_demand(KeyId=key)) == "KMSInternalException"
        await kms.encrypt(KeyId=key, Plaintext=b"x")
        server.authority.vault._database._sql.execute("PRAGMA query_only = OFF")
        await kms.disable_key(KeyId=key)
        failed = [record.get("errorCode") for record in server.trail()]
    assert failed == [None, "KMSInternalException", "KMSInternalException", None, None]


async def test_a_fault_of_the_server_is_answered_and_recorded(tmp_path: "Path") -> None:
    def broken(_: str) -> None:
        raise RuntimeError("a bug")

    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        server.authority.vault.key = broken  # type: ignore[method-assign,assignment]
        assert await code_of(kms.describe_key(KeyId=key)) == "KMSInternalException"
        assert server.trail()[-1]["errorCode"] == "KMSInternalException"
        assert server.trail()[-1]["eventName"] == "DescribeKey"


@contextlib.contextmanager
def _full_trail(server: RunningKeyServer) -> Iterator[None]:
    """Make every write of the trail fail: a device that is always full takes the file's place."""
    trail = server.authority.trail
    kept = os.dup(trail._file)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, trail._file)
    try:
        yield
    finally:
        os.dup2(kept, trail._file)
        os.close(full)
        os.close(kept)


def test_a_token_of_another_server_is_none_of_ours() -> None:
    token = new_token(b"a" * 32, "ab" * 32)
    assert token_grant(b"a" * 32, token) == "ab" * 32
    assert token_grant(b"b" * 32, token) is None
    assert token_grant(b"a" * 32, token[:-4]) is None
    assert token_grant(b"a" * 32, "no token") is None
