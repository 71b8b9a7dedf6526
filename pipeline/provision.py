"""Make an instance on the embedded servers: two keys, a bucket, its configuration file, a token.

The service's key and the bucket's key are different ones: who may use the one may not use the other. Does nothing for
AWS, where keys and buckets belong to others and are named in the instance's file.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any
from uuid import uuid4

import anyio.to_thread

from pipeline.adapters import resources
from pipeline.adapters.aws import open_client
from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk
from pipeline.adapters.kms import AwsKeyService
from pipeline.config import (
    load_instances,
    load_service_key,
    new_token,
    save_instance,
    save_service_key,
    token_hash,
    write_private,
)
from pipeline.crypt.grants import GrantFolder, make_grant, terms
from pipeline.embedded import ACCOUNT, BUCKET_SERVER, OPERATOR, REGION, SERVICE, Embedded
from pipeline.errors import RefuseError
from pipeline.ids import RECORDINGS_CLASS, InstanceId, Kind
from pipeline.instances import ALIAS, Instance, KeyAccess, Storage, instance_context
from pipeline.keyports import KmsCall
from pipeline.policies import granting_statements
from pipeline.records.classes import policy_of
from pipeline.records.policy import FromConfig
from pipeline.records.scopes import ScopeConfig

DEMO = "demo"
RESOURCES = {
    "appintegrations_data": ("app-integrations", "data-integration"),
    "cases": ("cases", "domain"),
    "profiles_domain": ("profile", "domains"),
    "ai_content": ("wisdom", "assistant"),
    "voiceid": ("voiceid", "domain"),
}
"""How the ARN of a class's scope is made, where there is no Amazon Connect to make it."""
PREFIXES = {Kind.VOICE: "CallRecordings", Kind.SCREEN: "ScreenRecordings", Kind.CHAT: "ChatTranscripts"}


async def provision_instance(
    embedded: Embedded,
    config_dir: PurePath,
    alias: str,
    *,
    instance_id: InstanceId | None = None,
    token: str | None = None,
) -> tuple[Instance, str]:
    """Make an instance with storage for every kind; give back its token too. Id and token are new unless given.

    The servers must be running. Raises `RefuseError` for an alias or id that is taken and an alias not of its form,
    `DeferError` if a server does not do its part: nothing is saved then.
    """
    if not re.match(ALIAS, alias):
        raise RefuseError("Not 1 to 45 letters, digits and, between them, hyphens", field="alias")
    await anyio.to_thread.run_sync(_check_new, config_dir, alias, instance_id)
    token = token or new_token()[0]
    instance_id = instance_id or InstanceId(uuid4())
    bucket = f"{alias.lower()}-{instance_id.hex[:12]}"
    async with open_client("kms", embedded.kms(embedded.secrets.kms_operator)) as kms:
        data_key = await resources.make_key(
            kms, description=f"Data keys of instance {instance_id}", policy=data_key_policy(instance_id)
        )
        bucket_key = await resources.make_key(
            kms, description=f"Bucket of instance {instance_id}", policy=bucket_key_policy()
        )
        records_key = await resources.make_key(
            kms, description=f"Records of instance {instance_id}", policy=records_key_policy()
        )
        instance = Instance(
            instance_id=instance_id,
            alias=alias,
            account_id=ACCOUNT,
            region=REGION,
            kms_key_arn=data_key,
            key_access=KeyAccess.GRANT,
            token_sha256=(token_hash(token),),
            storage={kind: _storage(kind, alias, bucket, bucket_key) for kind in PREFIXES},
            records=tuple(_scopes(alias, records_key)),
        )
        await _grant(AwsKeyService(kms, _untold), embedded, instance)
    async with open_client("s3", embedded.s3(embedded.secrets.s3_operator)) as s3:
        await resources.make_bucket(s3, bucket)
    await anyio.to_thread.run_sync(save_instance, config_dir, instance)
    return instance, token


async def _grant(service: AwsKeyService, embedded: Embedded, instance: Instance) -> None:
    wanted = terms(str(instance.instance_id), RECORDINGS_CLASS, instance.recordings_context, SERVICE)
    folder = GrantFolder(Disk(), f"{embedded.directory.parent}/keys/{instance.instance_id}")
    await make_grant(service, folder, SystemClock(), instance.kms_key_arn, wanted)


async def _untold(_: KmsCall) -> None:
    """Record nothing here: what the operator does is in the key server's trail, and not in an instance's."""


async def provision_service_key(embedded: Embedded, config_dir: PurePath) -> None:
    """Make the service's own KMS key unless there is one: for the classes of data that take no customer's."""
    if await anyio.to_thread.run_sync(load_service_key, config_dir) is not None:
        return
    async with open_client("kms", embedded.kms(embedded.secrets.kms_operator)) as kms:
        arn = await resources.make_key(kms, description="The service's own", policy=service_key_policy())
    await anyio.to_thread.run_sync(save_service_key, config_dir, arn)


async def provision_demo(embedded: Embedded, config_dir: PurePath) -> tuple[Instance, str | None]:
    """Make the instance `demo` unless it exists. Its token, kept in a file too, is given back on that occasion only."""
    known = await anyio.to_thread.run_sync(_known, config_dir, DEMO)
    if known is not None:
        return known, None
    token = await anyio.to_thread.run_sync(_kept_token, demo_token_file(embedded))
    return await provision_instance(embedded, config_dir, DEMO, token=token)


def demo_token_file(embedded: Embedded) -> Path:
    """Name the file (0600) that keeps the demo instance's token."""
    return embedded.directory / "demo-token"


def data_key_policy(instance_id: InstanceId) -> str:
    """Write the policy of a key for data keys: the service may grant itself its use, for this instance only."""
    context = instance_context(ACCOUNT, instance_id)
    return _policy(_allow("Administration", OPERATOR, "kms:*"), *granting_statements(SERVICE, ACCOUNT, "*", context))


def service_key_policy() -> str:
    """Write the policy of the service's own key: the service may use it, in whatever encryption context."""
    return _policy(
        _allow("Administration", OPERATOR, "kms:*"),
        _allow("Use", SERVICE, "kms:DescribeKey", "kms:GenerateDataKey", "kms:Decrypt", "kms:ReEncrypt*"),
    )


def records_key_policy() -> str:
    """Write the policy of a key for records: the service may grant itself its use, one encryption context at a time."""
    bound = {
        "kms:GranteePrincipal": SERVICE,
        "kms:RetiringPrincipal": SERVICE,
        "kms:GrantConstraintType": "EncryptionContextEquals",
    }
    return _policy(
        _allow("Administration", OPERATOR, "kms:*"),
        _allow("Asking", SERVICE, "kms:DescribeKey", "kms:ListGrants"),
        _allow("Granting", SERVICE, "kms:CreateGrant") | {"Condition": {"StringEquals": bound}},
    )


def bucket_key_policy() -> str:
    """Write the policy of a bucket's key: only the bucket server may use it; the service may ask for its state."""
    return _policy(
        _allow("Administration", OPERATOR, "kms:*"),
        _allow("Asking", SERVICE, "kms:DescribeKey"),
        _allow("Use", BUCKET_SERVER, "kms:GenerateDataKey", "kms:Decrypt", "kms:DescribeKey"),
    )


def _policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _allow(sid: str, principal: str, *actions: str) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Principal": {"AWS": principal}, "Action": actions, "Resource": "*"}


def _storage(kind: Kind, alias: str, bucket: str, key_arn: str) -> Storage:
    return Storage(
        association_id=str(kind),
        bucket=bucket,
        prefix=f"connect/{alias}/{PREFIXES[kind]}",
        kms_key_arn=key_arn,
        bucket_owner=ACCOUNT,
    )


def _scopes(alias: str, key_arn: str) -> Iterator[ScopeConfig]:
    """Name one domain or resource for each class of data that needs one; those of the customer's key take `key_arn`."""
    for data_class, resource in RESOURCES.items():
        policy = policy_of(data_class)
        yield ScopeConfig(
            data_class=data_class,
            arn=f"arn:aws:{resource[0]}:{REGION}:{ACCOUNT}:{resource[1]}/{alias}",
            kms_key_arn=key_arn if policy.takes_customer_key else None,
            expiration_days=policy.retention.most_days if isinstance(policy.retention, FromConfig) else None,
        )


def _check_new(config_dir: PurePath, alias: str, instance_id: InstanceId | None) -> None:
    instances = load_instances(config_dir).instances
    if any(instance.alias == alias for instance in instances.values()):
        raise RefuseError("An instance of that name exists already", field="alias")
    if instance_id in instances:
        raise RefuseError("An instance of that id exists already", field="instance_id")


def _known(config_dir: PurePath, alias: str) -> Instance | None:
    instances = load_instances(config_dir).instances.values()
    return next((instance for instance in instances if instance.alias == alias), None)


def _kept_token(path: Path) -> str:
    """Read the token that an interrupted attempt chose, or choose one: it is on disk before anything names it."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    token, _ = new_token()
    write_private(path, f"{token}\n".encode())
    return token
