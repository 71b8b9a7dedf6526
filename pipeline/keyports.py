"""The ports to KMS: keys and grants. The docstrings are the contract; adapters keep the rules of `pipeline.ports`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class GeneratedKey:
    """Answer of GenerateDataKey. `repr` shows no key material."""

    plaintext: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    key_arn: str


@dataclass(frozen=True, slots=True)
class KmsCall:
    """What one call to the key service was, for the audit trail. Holds no key material and no ciphertext."""

    name: str
    key_arn: str
    context: Mapping[str, str]
    request_id: str
    resource_arn: str
    error_code: str | None = None
    error_message: str | None = None
    source_arn: str | None = None
    """Of ReEncrypt: the KMS key that opened what `key_arn` wrapped again."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Of an operation on grants: the members of the request that CloudTrail repeats, by its names."""
    grant_id: str | None = None
    """Of CreateGrant: the grant that it made, or found."""


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """Answer of DescribeKey, as far as it matters here."""

    key_arn: str
    state: str
    """`Enabled`, `Disabled`, `PendingDeletion`, `PendingImport`, `Unavailable`, `Creating`, `Updating`, ..."""
    spec: str
    usage: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantTerms:
    """What a grant is to permit, to whom."""

    name: str
    """A repeat with the same name and the same rest gives the first grant again."""
    grantee: str
    """ARN of the principal that may use the key; it may also retire the grant."""
    operations: tuple[str, ...]
    context: Mapping[str, str]
    """`EncryptionContextEquals`: the one encryption context it is good for."""


@dataclass(frozen=True, slots=True)
class MadeGrant:
    """Answer of CreateGrant. The token stands for the grant until it is known everywhere; it is no secret key."""

    grant_id: str
    token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantFacts:
    """One grant as ListGrants tells it."""

    grant_id: str
    name: str
    """Empty for one without."""
    grantee: str
    operations: tuple[str, ...]
    context: Mapping[str, str] | None
    """`EncryptionContextEquals`; `None` if it has no such constraint."""
    created_at: datetime | None


class KeyService(Protocol):
    """The AWS KMS API, whoever serves it.

    Raises `KeyBusyError` (throttled, 5xx, time-outs, unknown), and `KeyUnavailableError` with its code when the key
    is refused: DisabledException and KMSInvalidStateException are told apart by DescribeKey. A wrapped key that does
    not open (InvalidCiphertext, IncorrectKey) is `KeyUnavailableError` with `KEY_MISMATCH`. InvalidKeyUsage,
    InvalidArn and Validation raise `RefuseError`. Every call, failed or not, is told to the audit trail before this
    returns (see `adapters.kms`).

    `tokens` stand for grants that may not be known everywhere yet; one that is no good raises `GrantTokenError`.
    `crypt.grants.GrantedKeys` adds them by itself.
    """

    async def generate_data_key(
        self, key_arn: str, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> GeneratedKey:
        """Make a 256-bit data key under `key_arn`, bound to `context`."""
        ...

    async def decrypt(
        self, key_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        """Unwrap a data key."""
        ...

    async def re_encrypt(
        self,
        source_arn: str,
        target_arn: str,
        wrapped: bytes,
        context: Mapping[str, str],
        tokens: Sequence[str] = (),
    ) -> bytes:
        """Wrap a data key under another KMS key, bound to the same context; its plaintext stays with KMS.

        An error does not say which of the two keys it speaks of: `describe` both. `tokens` may be of both.
        """
        ...

    async def describe(self, key_arn: str, tokens: Sequence[str] = ()) -> KeyDescription:
        """Ask for a key's state."""
        ...


class GrantService(Protocol):
    """The part of the AWS KMS API that gives and takes the right to use a key. Raises as `KeyService` does.

    A limit that is reached (LimitExceeded) raises `RefuseError`: no retry helps. All but `create_grant` work on keys
    that are disabled or pending deletion, too.
    """

    async def create_grant(self, key_arn: str, terms: GrantTerms) -> MadeGrant:
        """Permit a principal to use a key, for one encryption context."""
        ...

    async def list_grants(self, key_arn: str) -> list[GrantFacts]:
        """List a key's grants, all pages."""
        ...

    async def revoke_grant(self, key_arn: str, grant_id: str) -> None:
        """Remove a grant, by right of the key's policy; nothing happens if it is gone already."""
        ...

    async def retire_grant(self, key_arn: str, grant_id: str) -> None:
        """Remove a grant, by right of the grant itself; nothing happens if it is gone already."""
        ...
