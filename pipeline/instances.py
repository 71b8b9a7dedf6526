"""An instance (tenant) as its configuration file states it: keys, storage per kind, token hashes, limits.

Pure: parsing and checking only. The shape of a storage configuration is Amazon Connect's `InstanceStorageConfig`
(one association per resource type; `EncryptionConfig` mandatory, the KMS key by its full ARN).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.ids import InstanceId, Kind

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
    token_sha256: tuple[str, ...] = ()
    """Hex SHA-256 of each token that may write."""
    storage: Mapping[Kind, Storage] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    @property
    def arn(self) -> str:
        """The instance's ARN, as events name it."""
        return f"arn:aws:connect:{self.region}:{self.account_id}:instance/{self.instance_id}"

    @property
    def recordings_context(self) -> dict[str, str]:
        """Encryption context of its recordings' data keys: constant, and no personal data in it."""
        return {
            "pipeline:accountId": self.account_id,
            "pipeline:instanceId": str(self.instance_id),
            "pipeline:dataClass": "recordings_interim",
        }
