"""Grants: what a constraint lets through, who may retire one, and the tokens that stand for one. Pure.

Source: AWS KMS Developer Guide, "Grants in AWS KMS", and the API reference of CreateGrant.
"""

import base64
import hmac
import secrets
from collections.abc import Mapping

from pipeline.kms.principals import Identity
from pipeline.kms.records import Grant

OPERATIONS = frozenset({
    "Decrypt", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo",
    "CreateGrant", "RetireGrant", "DescribeKey", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
})  # fmt: skip
"""What a grant on a symmetric key may allow."""

_ID_BYTES, _NONCE_BYTES, _MAC_BYTES = 32, 16, 32


def permits_context(grant: Grant, context: Mapping[str, str]) -> bool:
    """Whether the grant's constraint lets this encryption context through."""
    given = _folded(context)
    if grant.equals is not None:
        return given == _folded(grant.equals) and len(given) == len(context)
    return grant.subset is None or _folded(grant.subset).items() <= given.items()


def permits_child(grant: Grant, child: Grant) -> bool:
    """Whether a grant made by right of this one is no wider: no more operations, no looser constraint."""
    if not child.operations <= grant.operations:
        return False
    if grant.equals is not None:
        return child.equals is not None and _folded(child.equals) == _folded(grant.equals)
    if grant.subset is None:
        return True
    bound = child.equals if child.equals is not None else child.subset
    return bound is not None and _folded(grant.subset).items() <= _folded(bound).items()


def may_retire(grant: Grant, who: Identity) -> bool:
    """Whether `who` may retire it: the retiring principal, a grantee with that operation, or the issuing account."""
    if grant.retiring is not None and who.is_meant_by(grant.retiring, "RetireGrant"):
        return True
    if "RetireGrant" in grant.operations and who.is_meant_by(grant.grantee, "RetireGrant"):
        return True
    return who.is_root and who.account_id == grant.issuing_account


def same_grant(one: Grant, other: Grant) -> bool:
    """Whether a repeated CreateGrant with a name means the grant that is already there."""
    return (
        one.name == other.name
        and one.issuing_account == other.issuing_account
        and one.grantee == other.grantee
        and one.retiring == other.retiring
        and one.operations == other.operations
        and one.equals == other.equals
        and one.subset == other.subset
    )


def new_token(secret: bytes, grant_id: str) -> str:
    """Make another token for a grant. Nothing of it is stored: it carries the id, and a MAC under the root key."""
    body = bytes.fromhex(grant_id) + secrets.token_bytes(_NONCE_BYTES)
    return base64.b64encode(body + _mac(secret, body)).decode()


def token_grant(secret: bytes, token: str) -> str | None:
    """Give the grant id that a token stands for, or None if this server did not make it."""
    try:
        raw = base64.b64decode(token, validate=True)
    except ValueError:
        return None
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if len(body) != _ID_BYTES + _NONCE_BYTES or not hmac.compare_digest(mac, _mac(secret, body)):
        return None
    return body[:_ID_BYTES].hex()


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, b"grant-token/1\x00" + body, "sha256")


def _folded(pairs: Mapping[str, str]) -> dict[str, str]:
    # In a constraint the names are not case sensitive, the values are.
    return {name.lower(): value for name, value in pairs.items()}
