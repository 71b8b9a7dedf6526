"""What adding an instance takes: its file's text, a key that works, destinations that prove themselves."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import msgspec
import tomli_w

from pipeline.commands.access import Access
from pipeline.config import save_probe
from pipeline.crypt.grants import GrantRecord, end_grant, make_grant, terms
from pipeline.delivery.probe import ProbeAnswer, probe
from pipeline.errors import DeferError, HoldCode, KeyBusyError, KeyUnavailableError, PipelineError, RefuseError
from pipeline.ids import RECORDINGS_CLASS, InstanceId, Kind
from pipeline.instances import RESOURCE_TYPES, Instance, KeyAccess, file_name, parse
from pipeline.provision import PREFIXES

_PAUSES_S = (1.0, 2.0, 4.0)
"""Between attempts with a key that was just granted, or whose service is busy."""
_UNDOING_S = 10.0
_USABLE = ("Enabled", "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """An instance as it was asked for."""

    instance_id: UUID
    alias: str
    account_id: str
    region: str
    kms_key_arn: str
    token_sha256: str
    key_access: KeyAccess
    role_arn: str | None
    external_id: str | None
    storage: list[Any]
    """Associations in the shape of Amazon Connect's `InstanceStorageConfig`."""

    def instance(self) -> Instance:
        """Check it as its file will be. Raises `RefuseError` with the field."""
        document = {
            "instance_id": str(self.instance_id),
            "alias": self.alias,
            "account_id": self.account_id,
            "region": self.region,
            "kms_key_arn": self.kms_key_arn,
            "key_access": self.key_access.value,
            "token_sha256": [self.token_sha256],
            "storage": self.storage,
        }
        optional = {"role_arn": self.role_arn, "external_id": self.external_id}
        document |= {name: value for name, value in optional.items() if value is not None}
        try:
            text = tomli_w.dumps(document)
        except (TypeError, ValueError):
            raise RefuseError("it holds what no settings file can, null perhaps", field="--storage") from None
        return parse(text, name=file_name(InstanceId(self.instance_id)))


def one_bucket(alias: str, bucket: str, bucket_key: str, owner: str, prefix: str | None) -> list[Any]:
    """Make the associations of one bucket for every kind."""
    base = prefix or f"connect/{alias}"
    return [
        {
            "AssociationId": str(kind),
            "ResourceType": RESOURCE_TYPES[kind],
            "bucket_owner": owner,
            "StorageConfig": {
                "StorageType": "S3",
                "S3Config": {
                    "BucketName": bucket,
                    "BucketPrefix": f"{base}/{folder}",
                    "EncryptionConfig": {"EncryptionType": "KMS", "KeyId": bucket_key},
                },
            },
        }
        for kind, folder in PREFIXES.items()
    ]


def read_storage(file: Path) -> list[Any]:
    """Read associations from a JSON file: a list of them, or one. Raises `RefuseError`."""
    try:
        given = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise RefuseError(f"the file can't be read: {error.strerror}", field="--storage") from None
    except msgspec.MsgspecError:
        raise RefuseError("the file is not JSON", field="--storage") from None
    return given if isinstance(given, list) else [given]


async def check_key(access: Access, instance: Instance) -> None:
    """Ask for the key's state, and make and open a data key with it.

    Raises:
        RefuseError: it is no key for this.
        KeyUnavailableError, KeyBusyError: it can't be used now.

    """
    await describe_key(access, instance)
    await try_key(access, instance)


async def describe_key(access: Access, instance: Instance) -> None:
    """Ask for the key's state. Raises as `check_key`."""
    described = await (await access.granted_keys(instance)).describe(instance.kms_key_arn)
    if (described.state, described.spec, described.usage) != _USABLE:
        message = "an enabled symmetric key for encryption is needed, and this is none"
        raise RefuseError(message, field="kms_key_arn")


async def try_key(access: Access, instance: Instance) -> None:
    """Make and open a data key, with the token of a grant that is new; a key service that is busy is given a moment.

    Raises as `check_key`.
    """
    keys, context = await access.granted_keys(instance), instance.recordings_context
    for pause_s in (*_PAUSES_S, None):
        try:
            made = await keys.generate_data_key(instance.kms_key_arn, context)
            opened = await keys.decrypt(instance.kms_key_arn, made.wrapped, context)
        except KeyBusyError:
            if pause_s is None:
                raise
            await anyio.sleep(pause_s)
            continue
        if opened != made.plaintext:
            raise KeyUnavailableError(HoldCode.KEY_MISMATCH, "the key gave back another data key than it made")
        return


async def grant_key(access: Access, instance: Instance) -> GrantRecord:
    """Let the service use the instance's KMS key for its recordings, by a grant; a repeat finds the one there is.

    Raises:
        RefuseError: KMS makes no such grant.
        KeyUnavailableError, KeyBusyError: not now.

    """
    wanted = terms(
        str(instance.instance_id), RECORDINGS_CLASS, instance.recordings_context, await access.grantee(instance)
    )
    service = await access.keys(instance)
    try:
        return await make_grant(service, access.grants(instance), access.clock, instance.kms_key_arn, wanted)
    except KeyUnavailableError as error:
        if error.code is not HoldCode.KEY_ACCESS_DENIED:
            raise
        message = (
            "this service may make no grant on the KMS key. Allow it kms:CreateGrant as `pipeline policy show` and"
            " `pipeline instance add --policies` say; or let the key's policy allow the use itself, and give --no-grant"
        )
        raise RefuseError(message, field="kms_key_arn") from error


@asynccontextmanager
async def granted(access: Access, instance: Instance) -> AsyncIterator[None]:
    """Make the grant that an instance is to have, if any, and retire it again if the block fails."""
    if instance.key_access is not KeyAccess.GRANT:
        yield
        return
    await grant_key(access, instance)
    try:
        yield
    except BaseException:
        with anyio.move_on_after(_UNDOING_S, shield=True), contextlib.suppress(PipelineError):
            await end_grant(await access.keys(instance), access.grants(instance), instance.kms_key_arn)
        raise


async def retire_grants(access: Access, instance: Instance) -> int:
    """Retire every grant that is kept for an instance; tell how many.

    Raises:
        KeyUnavailableError, KeyBusyError: one is not retired, and kept.

    """
    folder = access.grants(instance)
    records = await anyio.to_thread.run_sync(folder.read)
    for arn in records:
        await end_grant(await access.keys(instance), folder, arn)
    return len(records)


async def probe_all(access: Access, instance: Instance) -> dict[Kind, ProbeAnswer | PipelineError]:
    """Try every destination of an instance; an error stands in for the answer."""
    answers: dict[Kind, ProbeAnswer | PipelineError] = {}
    for kind, storage in sorted(instance.storage.items()):
        destination = await access.destination(instance, storage)
        try:
            answers[kind] = await probe(destination, storage, now=access.clock.now())
        except (RefuseError, DeferError) as error:
            answers[kind] = error
    return answers


async def save_answers(
    config_dir: Path, instance_id: InstanceId, answers: Mapping[Kind, ProbeAnswer | PipelineError]
) -> None:
    """Keep what the probes found; an error leaves the last answer."""
    for kind, answer in answers.items():
        if isinstance(answer, ProbeAnswer):
            await anyio.to_thread.run_sync(save_probe, config_dir, instance_id, kind, msgspec.json.encode(answer))


def described(kind: Kind, instance: Instance, answer: ProbeAnswer | PipelineError) -> dict[str, Any]:
    """Write a probe's outcome as a row."""
    storage = instance.storage[kind]
    row: dict[str, Any] = {"kind": kind, "bucket": storage.bucket, "prefix": storage.prefix}
    if isinstance(answer, ProbeAnswer):
        found: dict[str, Any] = msgspec.to_builtins(answer)
        return row | {"usable": True} | found
    place = {"field": answer.field} if isinstance(answer, RefuseError) and answer.field else {}
    return row | {"usable": False, "problem": str(answer), "reason": answer.reason} | place
