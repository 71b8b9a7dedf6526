"""What a caller may ask: one struct per operation, read from JSON and checked. Pure.

Members this server has no use for are ignored, as AWS does; members that would change what is done, and that this
server does not offer, are refused. Source: the request syntax of each operation in the AWS KMS API reference.
"""

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from pipeline.kms.refusal import KmsRefusalError, invalid, unsupported

KeyRef = Annotated[str, Meta(min_length=1, max_length=2048)]
Context = dict[str, str]
Tokens = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=8192)], ...], Meta(max_length=10)]
Ciphertext = Annotated[bytes, Meta(min_length=1, max_length=6144)]
Principal = Annotated[str, Meta(min_length=1, max_length=256)]
Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[a-zA-Z0-9:/_-]+\Z")]
Marker = Annotated[str, Meta(min_length=1, max_length=1024)]
PolicyText = Annotated[str, Meta(min_length=1, max_length=131072, pattern=r"^[\u0009\u000A\u000D\u0020-\u00FF]+\Z")]
Limit = Annotated[int, Meta(ge=1, le=1000)]
GrantId = Annotated[str, Meta(min_length=1, max_length=128)]

_CONTEXT_BYTES = 8192
_NOT_OFFERED = (
    "Recipient", "DryRunModifiers", "CustomKeyStoreId", "XksKeyId", "GranteeServicePrincipal",
    "RetiringServicePrincipal", "Tags",
)  # fmt: skip
_MISSING = re.compile(r"Object missing required field `(\w+)`")


class Ask(Struct, rename="pascal"):
    """A request's members, by AWS' names."""


class CreateKey(Ask):
    """Make a key."""

    policy: PolicyText | None = None
    description: Annotated[str, Meta(max_length=8192)] | None = None
    key_usage: str | None = None
    key_spec: str | None = None
    customer_master_key_spec: str | None = None
    origin: str | None = None
    multi_region: bool | None = None
    bypass_policy_lockout_safety_check: bool | None = None


class KeyOnly(Ask):
    """An operation that names a key and nothing else."""

    key_id: KeyRef


class DescribeKey(Ask):
    """Describe a key."""

    key_id: KeyRef
    grant_tokens: Tokens | None = None


class ListKeys(Ask):
    """List a page of keys."""

    limit: Limit | None = None
    marker: Marker | None = None


class ListAliases(Ask):
    """List a page of aliases, of one key or of the account."""

    key_id: KeyRef | None = None
    limit: Limit | None = None
    marker: Marker | None = None


class CreateAlias(Ask):
    """Give a key a second name."""

    alias_name: Name
    target_key_id: KeyRef


class DeleteAlias(Ask):
    """Take a second name away."""

    alias_name: Name


class ScheduleKeyDeletion(Ask):
    """Have a key destroyed after a waiting period."""

    key_id: KeyRef
    pending_window_in_days: int | None = None


class GenerateDataKey(Ask):
    """Make a data key; also the request of GenerateDataKeyWithoutPlaintext."""

    key_id: KeyRef
    encryption_context: Context | None = None
    key_spec: str | None = None
    number_of_bytes: Annotated[int, Meta(ge=1, le=1024)] | None = None
    grant_tokens: Tokens | None = None
    dry_run: bool | None = None


class Encrypt(Ask):
    """Seal a few bytes."""

    key_id: KeyRef
    plaintext: Annotated[bytes, Meta(min_length=1, max_length=4096)]
    encryption_context: Context | None = None
    encryption_algorithm: str | None = None
    grant_tokens: Tokens | None = None
    dry_run: bool | None = None


class Decrypt(Ask):
    """Open a ciphertext blob."""

    ciphertext_blob: Ciphertext
    key_id: KeyRef | None = None
    encryption_context: Context | None = None
    encryption_algorithm: str | None = None
    grant_tokens: Tokens | None = None
    dry_run: bool | None = None


class ReEncrypt(Ask):
    """Open a ciphertext blob and seal it under another key or context, without showing what it holds."""

    ciphertext_blob: Ciphertext
    destination_key_id: KeyRef
    source_key_id: KeyRef | None = None
    source_encryption_context: Context | None = None
    source_encryption_algorithm: str | None = None
    destination_encryption_context: Context | None = None
    destination_encryption_algorithm: str | None = None
    grant_tokens: Tokens | None = None
    dry_run: bool | None = None


class Constraints(Ask):
    """What a grant is limited to."""

    encryption_context_equals: Context | None = None
    encryption_context_subset: Context | None = None
    source_arn: str | None = None


class CreateGrant(Ask):
    """Permit a principal to use a key."""

    key_id: KeyRef
    operations: tuple[str, ...]
    grantee_principal: Principal | None = None
    retiring_principal: Principal | None = None
    constraints: Constraints | None = None
    name: Name | None = None
    grant_tokens: Tokens | None = None
    dry_run: bool | None = None


class ListGrants(Ask):
    """List a page of a key's grants."""

    key_id: KeyRef
    grant_id: GrantId | None = None
    grantee_principal: Principal | None = None
    limit: Limit | None = None
    marker: Marker | None = None


class RevokeGrant(Ask):
    """Remove a grant, by right of the key's policy."""

    key_id: KeyRef
    grant_id: GrantId
    dry_run: bool | None = None


class RetireGrant(Ask):
    """Remove a grant, by right of the grant."""

    key_id: KeyRef | None = None
    grant_id: GrantId | None = None
    grant_token: Annotated[str, Meta(min_length=1, max_length=8192)] | None = None
    dry_run: bool | None = None


class PutKeyPolicy(Ask):
    """Replace a key's policy."""

    key_id: KeyRef
    policy: PolicyText
    policy_name: str | None = None
    bypass_policy_lockout_safety_check: bool | None = None


class GetKeyPolicy(Ask):
    """Read a key's policy."""

    key_id: KeyRef
    policy_name: str | None = None


AnyAsk = TypeVar("AnyAsk", bound=Ask)


def read_ask(kind: type[AnyAsk], body: bytes) -> AnyAsk:
    """Read a request body.

    Raises: KmsRefusalError: SerializationException (not JSON, a wrong type), ValidationException (a value out of
    bounds or missing), UnsupportedOperationException. Messages name members, never values.
    """
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
        ask = msgspec.convert(
            {name: value for name, value in members.items() if value is not None}, kind, builtin_types=()
        )
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise KmsRefusalError("SerializationException", "The request body is not a JSON object.") from None
    for name in _NOT_OFFERED:
        if members.get(name):
            raise unsupported(f"{name} is not offered by this key server.")
    _check_contexts(ask)
    return ask


def _refused(message: str) -> KmsRefusalError:
    where = message.rpartition(" - at ")[2].strip("`") if " - at " in message else "$"
    missing = _MISSING.match(message)
    if missing is not None:
        return invalid(f"1 validation error detected: {missing[1]} must not be null.")
    if "of length" in message or "matching regex" in message or "`int` >=" in message or "`int` <=" in message:
        return invalid(f"1 validation error detected: the value at {where} failed to satisfy its constraint.")
    return KmsRefusalError("SerializationException", f"The value at {where} is of a wrong type.")


def _check_contexts(ask: Ask) -> None:
    for name in ("encryption_context", "source_encryption_context", "destination_encryption_context"):
        context = getattr(ask, name, None) or {}
        if sum(len(key.encode()) + len(value.encode()) for key, value in context.items()) > _CONTEXT_BYTES:
            raise invalid("1 validation error detected: the encryption context is too long.")
        if "" in context:
            raise invalid("1 validation error detected: the encryption context has an empty name.")
