"""An instance (tenant) as its configuration file states it: keys, storage per kind, token hashes, limits.

Pure: parsing, checking and writing of the text only. The shape of a storage configuration is Amazon Connect's
`InstanceStorageConfig` (one association per resource type; `EncryptionConfig` mandatory, the KMS key by its full ARN:
an alias could be pointed at another key by someone who may not change this file).
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import tomli_w
from msgspec import Meta, Struct

from pipeline.errors import RefuseError
from pipeline.ids import RECORDINGS_CLASS, InstanceId, Kind
from pipeline.records.scopes import DEFAULT, Places, ScopeConfig, placed

RESOURCE_TYPES: Mapping[Kind, str] = {
    Kind.VOICE: "CALL_RECORDINGS",
    Kind.SCREEN: "SCREEN_RECORDINGS",
    Kind.CHAT: "CHAT_TRANSCRIPTS",
}


class Discriminator(StrEnum):
    """When an object key carries its recording id."""

    ON_COLLISION = "on_collision"
    ALWAYS = "always"


class Colon(StrEnum):
    """What stands between hour and minute in an object key."""

    KEEP = "keep"
    DASH = "dash"


class KeyAccess(StrEnum):
    """What permits this service the use of an instance's KMS key."""

    GRANT = "grant"
    """A grant that the service makes for itself: the key's policy lets it, for this instance's data keys alone."""
    POLICY = "policy"
    """The key's own policy; the service makes no grants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """Where one kind of recording goes."""

    association_id: str
    bucket: str
    prefix: str
    kms_key_arn: str
    bucket_owner: str
    """12 digits: sent as `ExpectedBucketOwner`."""
    discriminator: Discriminator = Discriminator.ON_COLLISION
    colon: Colon = Colon.KEEP


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one instance may ask of the node."""

    recording_bytes: int = 20 * 2**30
    requests_per_s: float = 500.0
    burst: int = 2_000
    open_recordings: int = 5_000
    held_bytes: int | None = None
    """Undelivered bytes that may wait in the interim store; `None` for as many as it has room for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One tenant."""

    instance_id: InstanceId
    alias: str
    account_id: str
    region: str
    kms_key_arn: str
    """The KMS key its data keys are made under."""
    previous_kms_key_arn: str | None = None
    former_bucket_key_arns: tuple[str, ...] = ()
    """KMS keys that objects in its buckets may be encrypted under still: to be read, and encrypted anew."""
    key_access: KeyAccess = KeyAccess.POLICY
    role_arn: str | None = None
    """Role that is taken on for its keys and buckets; without one the service uses its own."""
    external_id: str | None = None
    """What the role's owner asks for, so that nobody else has us take it on."""
    token_sha256: tuple[str, ...] = ()
    """Hex SHA-256 of each token that may write."""
    storage: Mapping[Kind, Storage] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    expects: tuple[str, ...] = ()
    """What each contact that meets an agent has to bring, by the end of the URL that it is put to (`voice.wav`)."""
    records: tuple[ScopeConfig, ...] = ()
    """Domains, object types and resources of its other data, and a customer's KMS key for each."""

    @property
    def places(self) -> Places:
        """Every scope of its other data, by class and name."""
        return placed(self.instance_id, self.account_id, self.records)

    @property
    def arn(self) -> str:
        """The instance's ARN, as events name it."""
        return f"arn:aws:connect:{self.region}:{self.account_id}:instance/{self.instance_id}"

    @property
    def recordings_context(self) -> dict[str, str]:
        """Encryption context of its recordings' data keys: constant, and no personal data in it."""
        return instance_context(self.account_id, self.instance_id)


def instance_context(account_id: str, instance_id: InstanceId) -> dict[str, str]:
    """Give the encryption context of an instance's recordings."""
    return {
        "pipeline:accountId": account_id,
        "pipeline:instanceId": str(instance_id),
        "pipeline:dataClass": RECORDINGS_CLASS,
    }


# --- the file

_Account = Annotated[str, Meta(pattern=r"^[0-9]{12}\Z")]
ALIAS = r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,43}[A-Za-z0-9])?\Z"
"""What an instance may be called; part of object keys and bucket names."""
_Alias = Annotated[str, Meta(pattern=ALIAS)]
_AssociationId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,100}\Z")]
_Region = Annotated[str, Meta(pattern=r"^[a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}\Z")]
_Expected = Annotated[
    str, Meta(pattern=r"^(?:voice|screen|chat)(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}|(?:\.[A-Za-z0-9]{1,10})?)\Z")
]
_ROLE = r"^arn:aws(?:-[a-z]+)*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]{1,512}\Z"
_TokenHash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
KEY_ARN = re.compile(r"arn:aws(?:-[a-z]+)*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]{1,64}")
_BUCKET = re.compile(r"(?!.*\.\.)(?![0-9.]+\Z)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:=-]*[A-Za-z0-9_:=-])?")
MAX_PREFIX = 128
"""Characters (Amazon Connect API, `S3Config`)."""
MAX_KEY_ID = 128
"""Characters (Amazon Connect API, `EncryptionConfig`)."""
_DEFAULTS = Limits()
_PLACE = re.compile(r" - at `\$\.?(?P<path>.*)`\Z")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[A-Za-z0-9_-]{1,64})`")


class _EncryptionConfig(Struct, forbid_unknown_fields=True, rename="pascal"):
    encryption_type: Literal["KMS"]
    key_id: str


class _S3Config(Struct, forbid_unknown_fields=True, rename="pascal"):
    bucket_name: str
    bucket_prefix: str
    encryption_config: _EncryptionConfig


class _StorageConfig(Struct, forbid_unknown_fields=True, rename={"storage_type": "StorageType", "s3": "S3Config"}):
    storage_type: Literal["S3"]
    s3: _S3Config


class _Association(
    Struct,
    forbid_unknown_fields=True,
    rename={
        "association_id": "AssociationId",
        "resource_type": "ResourceType",
        "storage_config": "StorageConfig",
    },
):
    association_id: _AssociationId
    resource_type: str
    bucket_owner: _Account
    storage_config: _StorageConfig
    discriminator: Discriminator = Discriminator.ON_COLLISION
    colon: Colon = Colon.KEEP


class _Limits(Struct, forbid_unknown_fields=True):
    recording_bytes: Annotated[int, Meta(ge=1, le=5 * 2**40)] = _DEFAULTS.recording_bytes
    requests_per_s: Annotated[float, Meta(gt=0, le=1_000_000)] = _DEFAULTS.requests_per_s
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] = _DEFAULTS.burst
    open_recordings: Annotated[int, Meta(ge=1, le=1_000_000)] = _DEFAULTS.open_recordings
    held_bytes: Annotated[int, Meta(ge=1, le=2**60)] | None = _DEFAULTS.held_bytes


class _Records(Struct, forbid_unknown_fields=True, rename={"data_class": "class"}):
    data_class: str
    name: str | None = None
    arn: str | None = None
    object_type: str | None = None
    kms_key_arn: str | None = None
    previous_kms_key_arn: str | None = None
    flags: tuple[str, ...] = ()
    expiration_days: int | None = None


class _File(Struct, forbid_unknown_fields=True):
    instance_id: UUID
    alias: _Alias
    account_id: _Account
    region: _Region
    kms_key_arn: str
    previous_kms_key_arn: str | None = None
    former_bucket_key_arns: Annotated[tuple[str, ...], Meta(max_length=10)] = ()
    key_access: KeyAccess = KeyAccess.POLICY
    role_arn: Annotated[str, Meta(pattern=_ROLE)] | None = None
    external_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_+=,.@:/-]{2,1224}\Z")] | None = None
    token_sha256: tuple[_TokenHash, ...] = ()
    limits: _Limits = msgspec.field(default_factory=_Limits)
    expects: Annotated[tuple[_Expected, ...], Meta(max_length=10)] = ()
    storage: tuple[_Association, ...] = ()
    records: Annotated[tuple[_Records, ...], Meta(max_length=1000)] = ()


def parse(text: str, *, name: str) -> Instance:
    """Read an instance's file. `name` is the file's own, `<instance id>.toml`.

    Raises `RefuseError` with the field, as a path from the top of the file.
    """
    try:
        given = msgspec.convert(tomllib.loads(text), _File)
    except tomllib.TOMLDecodeError as error:
        # The parser's message may quote what it met; only the position is repeated.
        place = str(error).rpartition("(")[2].rstrip(")")
        raise RefuseError(f"The file is not TOML ({place})") from None
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    if name != file_name(InstanceId(given.instance_id)):
        raise RefuseError("The file's name is not <instance id>.toml", field="instance_id")
    if given.external_id is not None and given.role_arn is None:
        raise RefuseError("It is for the role that role_arn names, and there is none", field="external_id")
    _check_key("kms_key_arn", given.kms_key_arn)
    if given.previous_kms_key_arn is not None:
        _check_key("previous_kms_key_arn", given.previous_kms_key_arn)
    for number, arn in enumerate(given.former_bucket_key_arns):
        _check_key(f"former_bucket_key_arns[{number}]", arn)
    return Instance(
        instance_id=InstanceId(given.instance_id),
        alias=given.alias,
        account_id=given.account_id,
        region=given.region,
        kms_key_arn=given.kms_key_arn,
        previous_kms_key_arn=given.previous_kms_key_arn,
        former_bucket_key_arns=given.former_bucket_key_arns,
        key_access=given.key_access,
        role_arn=given.role_arn,
        external_id=given.external_id,
        token_sha256=given.token_sha256,
        storage=_storage(given.storage),
        limits=Limits(**msgspec.structs.asdict(given.limits)),
        expects=given.expects,
        records=_records(given),
    )


def render(instance: Instance) -> str:
    """Write an instance's file: what `parse` reads."""
    document: dict[str, Any] = {
        "instance_id": str(instance.instance_id),
        "alias": instance.alias,
        "account_id": instance.account_id,
        "region": instance.region,
        "kms_key_arn": instance.kms_key_arn,
    }
    if instance.previous_kms_key_arn is not None:
        document["previous_kms_key_arn"] = instance.previous_kms_key_arn
    if instance.former_bucket_key_arns:
        document["former_bucket_key_arns"] = list(instance.former_bucket_key_arns)
    document["key_access"] = instance.key_access.value
    document |= {
        name: value
        for name, value in (("role_arn", instance.role_arn), ("external_id", instance.external_id))
        if value is not None
    }
    document["token_sha256"] = list(instance.token_sha256)
    if instance.expects:
        document["expects"] = list(instance.expects)
    limits = dataclasses.asdict(instance.limits)
    document["limits"] = {name: value for name, value in limits.items() if value is not None}
    document["storage"] = [_association(kind, storage) for kind, storage in sorted(instance.storage.items())]
    if instance.records:
        document["records"] = [_scope(config) for config in instance.records]
    return tomli_w.dumps(document, multiline_strings=False)


def checked(instance: Instance) -> Instance:
    """Give an instance as its file would give it back. Raises `RefuseError` naming what can't stand in one."""
    return parse(render(instance), name=file_name(instance.instance_id))


def file_name(instance_id: InstanceId) -> str:
    """Name an instance's file."""
    return f"{instance_id}.toml"


def _refusal(message: str) -> RefuseError:
    """Make a refusal of a validator's message, which ends in the place and holds no value."""
    place = _PLACE.search(message)
    path = place["path"] if place else ""
    unknown = _UNKNOWN.search(message)
    if unknown:
        path = f"{path}.{unknown['name']}".lstrip(".")
        return RefuseError("There is no such key", field=path)
    if "unknown field" in message:  # of strange characters: not repeated
        return RefuseError("There is no such key", field=path or None)
    if message.startswith("Invalid enum value"):  # would go on with the value
        return RefuseError("Not one of the values allowed here", field=path)
    return RefuseError(_PLACE.sub("", message), field=path or None)


def _check_key(path: str, arn: str) -> None:
    if ":alias/" in arn or arn.startswith("alias/"):
        raise RefuseError("An alias can be pointed at another key. Give the key's full ARN", field=path)
    if len(arn) > MAX_KEY_ID or not KEY_ARN.fullmatch(arn):
        raise RefuseError("Not the full ARN of a KMS key (arn:aws:kms:<region>:<account>:key/<id>)", field=path)


def _records(given: _File) -> tuple[ScopeConfig, ...]:
    configs = tuple(
        ScopeConfig(**msgspec.structs.asdict(each) | {"name": each.name or each.object_type or DEFAULT})
        for each in given.records
    )
    for number, config in enumerate(configs):
        for name in ("kms_key_arn", "previous_kms_key_arn"):
            arn = getattr(config, name)
            if arn is not None:
                _check_key(f"records[{number}].{name}", arn)
    placed(InstanceId(given.instance_id), given.account_id, configs)
    return configs


def _scope(config: ScopeConfig) -> dict[str, Any]:
    members = {"class" if name == "data_class" else name: value for name, value in dataclasses.asdict(config).items()}
    return {name: value for name, value in members.items() if value}


def _storage(associations: tuple[_Association, ...]) -> dict[Kind, Storage]:
    kinds = {resource_type: kind for kind, resource_type in RESOURCE_TYPES.items()}
    found: dict[Kind, Storage] = {}
    for number, given in enumerate(associations):
        path = f"storage[{number}]"
        kind = kinds.get(given.resource_type)
        if kind is None:
            served = ", ".join(RESOURCE_TYPES.values())
            raise RefuseError(f"Not a resource type that is served: {served}", field=f"{path}.ResourceType")
        if kind in found:
            raise RefuseError("A resource type has one association only", field=f"{path}.ResourceType")
        found[kind] = _checked_storage(given, f"{path}.StorageConfig.S3Config")
    return found


def _checked_storage(given: _Association, path: str) -> Storage:
    s3 = given.storage_config.s3
    if not _BUCKET.fullmatch(s3.bucket_name):
        raise RefuseError("Not a bucket name as S3 allows them", field=f"{path}.BucketName")
    segments = s3.bucket_prefix.split("/")
    if len(s3.bucket_prefix) > MAX_PREFIX or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        message = f"Not segments of A-Z a-z 0-9 . _ : = - between single slashes, at most {MAX_PREFIX} characters"
        raise RefuseError(message, field=f"{path}.BucketPrefix")
    _check_key(f"{path}.EncryptionConfig.KeyId", s3.encryption_config.key_id)
    return Storage(
        association_id=given.association_id,
        bucket=s3.bucket_name,
        prefix=s3.bucket_prefix,
        kms_key_arn=s3.encryption_config.key_id,
        bucket_owner=given.bucket_owner,
        discriminator=given.discriminator,
        colon=given.colon,
    )


def _association(kind: Kind, storage: Storage) -> dict[str, Any]:
    return {
        "AssociationId": storage.association_id,
        "ResourceType": RESOURCE_TYPES[kind],
        "bucket_owner": storage.bucket_owner,
        "discriminator": storage.discriminator.value,
        "colon": storage.colon.value,
        "StorageConfig": {
            "StorageType": "S3",
            "S3Config": {
                "BucketName": storage.bucket,
                "BucketPrefix": storage.prefix,
                "EncryptionConfig": {"EncryptionType": "KMS", "KeyId": storage.kms_key_arn},
            },
        },
    }
