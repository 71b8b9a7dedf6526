"""The project's key server without its network: in virtual time, called as the AWS client is. For tests only.

Everything is decided by the server's own code: names, permission, grants, key state, encryption context, ciphertexts.
What it refuses comes out as botocore's exception, so that the adapter under test translates it.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio.lowlevel
import msgspec
from botocore.exceptions import ClientError

from pipeline.adapters.kms import AwsKeyService
from pipeline.crypt.grants import terms
from pipeline.ids import RECORDINGS_CLASS
from pipeline.instances import Instance
from pipeline.keyports import KmsCall
from pipeline.kms import rootkey
from pipeline.kms.access import Call
from pipeline.kms.asks import read_ask
from pipeline.kms.config import RootKeySource
from pipeline.kms.operations import OPERATIONS
from pipeline.kms.principals import Identity
from pipeline.kms.records import KeyState
from pipeline.kms.refusal import KmsRefusalError
from pipeline.kms.vault import Vault, open_vault
from pipeline.ports import Clock

REGION = "eu-central-1"
ACCOUNT = "111122223333"
SERVICE = f"arn:aws:iam::{ACCOUNT}:role/pipeline"
ADMIN = f"arn:aws:iam::{ACCOUNT}:user/admin"
_BLOBS = {"Plaintext", "CiphertextBlob"}


def _identity(principal: str, allow: tuple[str, ...]) -> Identity:
    return Identity(access_key=principal, secret_key="", principal=principal, account_id=ACCOUNT, allow=allow)


@dataclass
class KeyServer:
    """The server, and what a tenant's administrator does with it."""

    vault: Vault
    calls: list[KmsCall] = field(default_factory=list)
    """As they are told to the audit trail."""
    asked: list[str] = field(default_factory=list)
    """What the server was asked under the service's own identity."""

    def service(self) -> AwsKeyService:
        """Give the service's own adapter; the service may do what policies and grants permit, and nothing else."""
        return AwsKeyService(DirectClient(self, _identity(SERVICE, ())), self._tell)  # type: ignore[arg-type]

    async def _tell(self, call: KmsCall) -> None:
        await anyio.lowlevel.checkpoint()
        self.calls.append(call)

    def admin(self, operation: str, **members: Any) -> dict[str, Any]:
        """Do something as the tenant's administrator."""
        return perform(self.vault, _identity(ADMIN, ("kms:*",)), operation, members)

    def new_key(self) -> str:
        """Make a key that its account's administrators alone may use; give its ARN."""
        arn: str = self.admin("CreateKey")["KeyMetadata"]["Arn"]
        return arn

    def grant(self, instance: Instance, key_arn: str) -> None:
        """Grant the service the use of a key, as adding the instance does."""
        wanted = terms(str(instance.instance_id), RECORDINGS_CLASS, instance.recordings_context, SERVICE)
        self.admin(
            "CreateGrant",
            KeyId=key_arn,
            Name=wanted.name,
            GranteePrincipal=wanted.grantee,
            RetiringPrincipal=wanted.grantee,
            Operations=list(wanted.operations),
            Constraints={"EncryptionContextEquals": dict(wanted.context)},
        )

    def revoke_grants(self, key_arn: str) -> None:
        """Take every grant from a key."""
        for grant in self.admin("ListGrants", KeyId=key_arn)["Grants"]:
            self.admin("RevokeGrant", KeyId=key_arn, GrantId=grant["GrantId"])

    def put_policy(self, key_arn: str, *statements: dict[str, Any]) -> None:
        """Give a key the policy of its account, and these statements."""
        own = {"Sid": "Own", "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}}
        document = [own | {"Action": "kms:*", "Resource": "*"}, *statements]
        text = json.dumps({"Version": "2012-10-17", "Statement": document})
        self.admin("PutKeyPolicy", KeyId=key_arn, PolicyName="default", Policy=text)

    def state(self, key_arn: str, state: KeyState) -> None:
        """Put a key into a state."""
        key = self.vault.key(key_arn.rpartition("/")[2])
        assert key is not None
        pending = state is KeyState.PENDING_DELETION
        self.vault.set_state(key, state, timedelta(days=30) if pending else None)


def perform(vault: Vault, caller: Identity, operation: str, members: dict[str, Any]) -> dict[str, Any]:
    """Answer one call. Raises `ClientError` as a client of the server does."""
    given = OPERATIONS[operation]
    try:
        ask = read_ask(given.ask, msgspec.json.encode(members))
        answer = given.perform(Call(operation, caller, vault, vault.now()), ask) or {}
    except KmsRefusalError as refusal:
        error: Any = {"Error": {"Code": refusal.code, "Message": refusal.message}, "ResponseMetadata": {}}
        raise ClientError(error, operation) from refusal
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(answer))
    for name in _BLOBS & set(decoded):
        decoded[name] = msgspec.convert(decoded[name], bytes)
    return decoded | {"ResponseMetadata": {"RequestId": "in-process"}}


class DirectClient:
    """What of a KMS client the adapter uses."""

    def __init__(self, server: KeyServer, caller: Identity) -> None:
        self._server = server
        self._caller = caller

    async def _ask(self, operation: str, members: dict[str, Any]) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        self._server.asked.append(operation)
        return perform(self._server.vault, self._caller, operation, members)

    async def generate_data_key(self, **members: Any) -> dict[str, Any]:
        return await self._ask("GenerateDataKey", members)

    async def decrypt(self, **members: Any) -> dict[str, Any]:
        return await self._ask("Decrypt", members)

    async def re_encrypt(self, **members: Any) -> dict[str, Any]:
        return await self._ask("ReEncrypt", members)

    async def describe_key(self, **members: Any) -> dict[str, Any]:
        return await self._ask("DescribeKey", members)


@contextlib.contextmanager
def key_server(directory: Path, clock: Clock) -> Iterator[KeyServer]:
    """Open a key server whose time is a test's."""
    directory.mkdir(mode=0o700, exist_ok=True)
    root = rootkey.read(RootKeySource(file=directory.with_suffix(".key"), create=True))
    with open_vault(directory, REGION, root, clock.now, timedelta(0)) as vault:
        yield KeyServer(vault)
