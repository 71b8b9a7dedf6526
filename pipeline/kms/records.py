"""A key, its materials, grants and aliases; and what each state of a key refuses. No I/O, no clock.

Source: AWS KMS Developer Guide, "Key states of AWS KMS keys".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from pipeline.kms.policy import Policy
from pipeline.kms.refusal import KmsRefusalError


class KeyState(StrEnum):
    """The states a key of this server can have."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"
    PENDING_DELETION = "PendingDeletion"


@dataclass(frozen=True, slots=True)
class Material:
    """One generation of a key's secret."""

    material_id: str
    """64 hex digits."""
    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """A permission on one key for one principal."""

    grant_id: str
    """64 hex digits."""
    key_id: str
    issuing_account: str
    created_at: datetime
    grantee: str
    retiring: str | None
    operations: frozenset[str]
    equals: Mapping[str, str] | None
    subset: Mapping[str, str] | None
    name: str | None


@dataclass(frozen=True, slots=True)
class Alias:
    """A second name for a key, within one account and Region."""

    account_id: str
    name: str
    """With its `alias/`."""
    key_id: str
    created_at: datetime


@dataclass(kw_only=True, slots=True)
class Key:
    """A symmetric key. Only the vault changes one, after the change is on disk."""

    key_id: str
    account_id: str
    arn: str
    created_at: datetime
    description: str
    policy: Policy = field(repr=False)
    state: KeyState = KeyState.ENABLED
    deletion_at: datetime | None = None
    deletion_window: timedelta | None = None
    materials: dict[str, Material] = field(default_factory=dict, repr=False)
    """In the order they were made; the last one seals."""
    grants: dict[str, Grant] = field(default_factory=dict, repr=False)

    @property
    def current(self) -> Material:
        """The material that new ciphertext is made with."""
        return next(reversed(self.materials.values()))


_USE = frozenset({"Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt"})
_NOT_DISABLED = _USE | {"CreateGrant", "RotateKeyOnDemand"}
_NOT_PENDING = _NOT_DISABLED | {"CreateAlias", "DisableKey", "EnableKey", "ScheduleKeyDeletion"}


def check_state(key: Key, operation: str) -> None:
    """Refuse an operation that the key's state forbids.

    Raises: KmsRefusalError with DisabledException or KMSInvalidStateException. (AWS may also send DisabledException
    for a key pending deletion; this server always sends the other.)
    """
    if key.state is KeyState.DISABLED and operation in _NOT_DISABLED:
        raise KmsRefusalError("DisabledException", f"{key.arn} is disabled.")
    if key.state is KeyState.PENDING_DELETION and operation in _NOT_PENDING:
        raise KmsRefusalError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
    if key.state is not KeyState.PENDING_DELETION and operation == "CancelKeyDeletion":
        raise KmsRefusalError("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
