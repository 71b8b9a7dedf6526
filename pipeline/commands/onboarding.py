"""What adding an instance takes: its file's text, a key that works, destinations that prove themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import msgspec
import tomli_w

from pipeline.commands.access import Access
from pipeline.config import save_probe
from pipeline.delivery.probe import ProbeAnswer, probe
from pipeline.errors import DeferError, HoldCode, KeyUnavailableError, PipelineError, RefuseError
from pipeline.ids import InstanceId, Kind
from pipeline.instances import RESOURCE_TYPES, Instance, file_name, parse
from pipeline.provision import PREFIXES

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
            "token_sha256": [self.token_sha256],
            "storage": self.storage,
        }
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
    keys = await access.keys(instance)
    described = await keys.describe(instance.kms_key_arn)
    if (described.state, described.spec, described.usage) != _USABLE:
        message = "an enabled symmetric key for encryption is needed, and this is none"
        raise RefuseError(message, field="kms_key_arn")
    context = instance.recordings_context
    made = await keys.generate_data_key(instance.kms_key_arn, context)
    if await keys.decrypt(instance.kms_key_arn, made.wrapped, context) != made.plaintext:
        raise KeyUnavailableError(HoldCode.KEY_MISMATCH, "the key gave back another data key than it made")


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
