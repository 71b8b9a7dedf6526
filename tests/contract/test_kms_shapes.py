"""The answers of the key server have the shape of another implementation's of the same API: moto's."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiobotocore.session import get_session
from moto.server import ThreadedMotoServer

from tests.kms_server import IDENTITIES, REGION, running_key_server

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

CONTEXT = {"pipeline:instanceId": "a"}
MOTO_LACKS = {
    "KeyMaterialId", "SourceKeyMaterialId", "DestinationKeyMaterialId", "CurrentKeyMaterialId", "KeyUsage",
    "MultiRegion", "EncryptionAlgorithm", "SourceEncryptionAlgorithm", "DestinationEncryptionAlgorithm",
    "CreationDate", "IssuingAccount", "PolicyName", "KeyState", "PendingWindowInDays",
}  # fmt: skip
"""Members of AWS' current API that moto leaves out of some answers."""


@asynccontextmanager
async def moto_client() -> AsyncIterator["KMSClient"]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys: dict[str, Any] = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": REGION}
        async with get_session().create_client("kms", endpoint_url=f"http://{host}:{port}", **keys) as client:
            yield client
    finally:
        server.stop()


async def journey(kms: "KMSClient") -> dict[str, Any]:
    """Make the same calls of whichever server, and give their answers by name."""
    seen: dict[str, Any] = {"create": await kms.create_key(Description="d")}
    key = seen["create"]["KeyMetadata"]["KeyId"]
    arn = seen["create"]["KeyMetadata"]["Arn"]
    seen["alias"] = await kms.create_alias(AliasName="alias/a", TargetKeyId=key)
    seen["describe"] = await kms.describe_key(KeyId="alias/a")
    seen["list"] = await kms.list_keys()
    seen["policy"] = await kms.get_key_policy(KeyId=key, PolicyName="default")
    seen["put-policy"] = await kms.put_key_policy(KeyId=key, PolicyName="default", Policy=seen["policy"]["Policy"])
    seen["data-key"] = await kms.generate_data_key(KeyId=arn, KeySpec="AES_256", EncryptionContext=CONTEXT)
    seen["sealed-key"] = await kms.generate_data_key_without_plaintext(KeyId=arn, KeySpec="AES_256")
    blob = seen["data-key"]["CiphertextBlob"]
    seen["decrypt"] = await kms.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT)
    assert seen["decrypt"]["Plaintext"] == seen["data-key"]["Plaintext"]
    seen["encrypt"] = await kms.encrypt(KeyId=arn, Plaintext=b"x")
    seen["re-encrypt"] = await kms.re_encrypt(
        CiphertextBlob=blob, SourceEncryptionContext=CONTEXT, DestinationKeyId=arn
    )
    grantee = IDENTITIES["bare"].principal
    seen["grant"] = await kms.create_grant(
        KeyId=key,
        GranteePrincipal=grantee,
        Operations=["Decrypt"],
        Name="n",
        Constraints={"EncryptionContextEquals": CONTEXT},
    )
    seen["grants"] = await kms.list_grants(KeyId=key)
    seen["revoke"] = await kms.revoke_grant(KeyId=key, GrantId=seen["grant"]["GrantId"])
    seen["rotate"] = await kms.rotate_key_on_demand(KeyId=key)
    seen["disable"] = await kms.disable_key(KeyId=key)
    seen["enable"] = await kms.enable_key(KeyId=key)
    seen["schedule"] = await kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    seen["pending"] = await kms.describe_key(KeyId=key)
    seen["cancel"] = await kms.cancel_key_deletion(KeyId=key)
    return seen


def members(answer: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Reduce an answer to the paths and types of its members."""
    if isinstance(answer, dict):
        for name, value in answer.items():
            if name != "ResponseMetadata":
                yield from members(value, f"{path}.{name}")
    elif isinstance(answer, list):
        for value in answer:
            yield from members(value, f"{path}[]")
    else:
        yield path, type(answer).__name__


@pytest.mark.aws
async def test_the_same_calls_are_answered_in_the_same_shape(tmp_path: Path) -> None:
    async with running_key_server(tmp_path) as server, server.client("root") as kms:
        ours = await journey(kms)
    async with moto_client() as kms:
        theirs = await journey(kms)
    assert set(members(theirs)) - set(members(ours)) == set()
    assert {path.rpartition(".")[2] for path, _ in set(members(ours)) - set(members(theirs))} == MOTO_LACKS
