"""The operations that make, name, describe, switch, rotate and delete keys, and their policies.

Source: the page of each operation in the AWS KMS API reference.
"""

import re
from datetime import timedelta
from typing import Any

from pipeline.kms import asks
from pipeline.kms.access import Call, own_policy_permits, permitted_by_policy, use_key
from pipeline.kms.conditions import Facts
from pipeline.kms.pages import page
from pipeline.kms.policy import Policy, default_policy, parse_policy
from pipeline.kms.records import Alias, Key, KeyState
from pipeline.kms.refusal import KmsRefusalError, invalid, not_found, unsupported
from pipeline.kms.use import ALGORITHM

_POLICY_BYTES = 32 * 1024
_ALIAS = re.compile(r"alias/[a-zA-Z0-9/_-]+")
_ROTATIONS = 25
_WINDOW_DAYS = range(7, 31)


def create_key(call: Call, ask: asks.CreateKey) -> dict[str, Any]:
    """Make a symmetric key."""
    if ask.key_usage not in {None, "ENCRYPT_DECRYPT"}:
        raise unsupported("Only keys for ENCRYPT_DECRYPT are offered.")
    if {ask.key_spec, ask.customer_master_key_spec} - {None, ALGORITHM}:
        raise unsupported("Only SYMMETRIC_DEFAULT keys are offered.")
    if ask.origin not in {None, "AWS_KMS"} or ask.multi_region:
        raise unsupported("Only single-Region keys of this key server's own making are offered.")
    own_policy_permits(call, "CreateKey")
    policy = _checked_policy(ask.policy or default_policy(call.caller.account_id))
    key = call.vault.draft_key(call.caller.account_id, ask.description or "", policy)
    if not ask.bypass_policy_lockout_safety_check and _locks_out(call, key, policy):
        raise _lockout()
    call.vault.add_key(key)
    call.resources.append(key)
    metadata = describe(key)
    call.response = {"keyMetadata": {"keyId": key.key_id, "arn": key.arn, "keyState": key.state.value}}
    return {"KeyMetadata": metadata}


def describe(key: Key) -> dict[str, Any]:
    """Give a key's metadata."""
    metadata: dict[str, Any] = {
        "AWSAccountId": key.account_id,
        "KeyId": key.key_id,
        "Arn": key.arn,
        "CreationDate": round(key.created_at.timestamp(), 3),
        "Enabled": key.state is KeyState.ENABLED,
        "Description": key.description,
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": key.state.value,
        "Origin": "AWS_KMS",
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": ALGORITHM,
        "KeySpec": ALGORITHM,
        "EncryptionAlgorithms": [ALGORITHM],
        "MultiRegion": False,
        "CurrentKeyMaterialId": key.current.material_id,
    }
    if key.deletion_at is not None:
        metadata["DeletionDate"] = round(key.deletion_at.timestamp(), 3)
    return metadata


def describe_key(call: Call, ask: asks.DescribeKey) -> dict[str, Any]:
    """Describe a key."""
    return {"KeyMetadata": describe(use_key(call, ask.key_id, tokens=ask.grant_tokens))}


def list_keys(call: Call, ask: asks.ListKeys) -> dict[str, Any]:
    """List the keys of the caller's account."""
    own_policy_permits(call, "ListKeys")
    keys = [
        (key.key_id, {"KeyId": key.key_id, "KeyArn": key.arn}) for key in call.vault.keys_of(call.caller.account_id)
    ]
    return page("Keys", keys, ask.marker, ask.limit or 100)


def enable_key(call: Call, ask: asks.KeyOnly) -> None:
    """Let a key be used again."""
    call.vault.set_state(use_key(call, ask.key_id), KeyState.ENABLED)


def disable_key(call: Call, ask: asks.KeyOnly) -> None:
    """Stop all use of a key."""
    call.vault.set_state(use_key(call, ask.key_id), KeyState.DISABLED)


def schedule_key_deletion(call: Call, ask: asks.ScheduleKeyDeletion) -> dict[str, Any]:
    """Stop all use of a key, and destroy it after the waiting period."""
    days = 30 if ask.pending_window_in_days is None else ask.pending_window_in_days
    if days not in _WINDOW_DAYS:
        raise invalid("PendingWindowInDays must be from 7 to 30.")
    key = use_key(call, ask.key_id)
    call.vault.set_state(key, KeyState.PENDING_DELETION, timedelta(days=days))
    assert key.deletion_at is not None
    call.response = {"keyId": key.arn, "keyState": key.state.value, "pendingWindowInDays": days}
    return {
        "KeyId": key.arn,
        "DeletionDate": round(key.deletion_at.timestamp(), 3),
        "KeyState": key.state.value,
        "PendingWindowInDays": days,
    }


def cancel_key_deletion(call: Call, ask: asks.KeyOnly) -> dict[str, Any]:
    """Keep a key after all; it stays disabled."""
    key = use_key(call, ask.key_id)
    call.vault.set_state(key, KeyState.DISABLED)
    call.response = {"keyId": key.arn}
    return {"KeyId": key.arn}


def rotate_key_on_demand(call: Call, ask: asks.KeyOnly) -> dict[str, Any]:
    """Give a key new material; the old goes on opening what it sealed."""
    key = use_key(call, ask.key_id)
    if len(key.materials) > _ROTATIONS:
        raise KmsRefusalError("LimitExceededException", f"A key can be rotated on demand {_ROTATIONS} times.")
    call.vault.rotate(key)
    call.response = {"keyId": key.arn}
    return {"KeyId": key.arn}


# --- aliases


def create_alias(call: Call, ask: asks.CreateAlias) -> None:
    """Give a key a second name."""
    if _ALIAS.fullmatch(ask.alias_name) is None:
        raise invalid("AliasName must be alias/ and then letters, digits, /, _ or -.")
    if ask.alias_name.startswith("alias/aws/"):
        raise KmsRefusalError("InvalidAliasNameException", "Names below alias/aws/ are AWS' own.")
    own_policy_permits(call, "CreateAlias")
    key = use_key(call, ask.target_key_id)
    if call.vault.alias(key.account_id, ask.alias_name) is not None:
        raise KmsRefusalError("AlreadyExistsException", "An alias of this name already exists.")
    call.vault.add_alias(Alias(key.account_id, ask.alias_name, key.key_id, call.now))


def delete_alias(call: Call, ask: asks.DeleteAlias) -> None:
    """Take a second name away; the key stays."""
    own_policy_permits(call, "DeleteAlias")
    alias = call.vault.alias(call.caller.account_id, ask.alias_name)
    if alias is None:
        raise not_found("The alias does not exist.")
    use_key(call, alias.key_id)
    call.vault.remove_alias(alias)


def list_aliases(call: Call, ask: asks.ListAliases) -> dict[str, Any]:
    """List the aliases of the caller's account, or of one of its keys."""
    own_policy_permits(call, "ListAliases")
    key = None if ask.key_id is None else use_key(call, ask.key_id)
    listed = [
        (alias.name, _alias_entry(call.vault.region, alias))
        for alias in call.vault.aliases_of(call.caller.account_id)
        if key is None or alias.key_id == key.key_id
    ]
    return page("Aliases", listed, ask.marker, min(ask.limit or 50, 100))


def _alias_entry(region: str, alias: Alias) -> dict[str, Any]:
    made = round(alias.created_at.timestamp(), 3)
    return {
        "AliasName": alias.name,
        "AliasArn": f"arn:aws:kms:{region}:{alias.account_id}:{alias.name}",
        "TargetKeyId": alias.key_id,
        "CreationDate": made,
        "LastUpdatedDate": made,
    }


# --- key policies


def put_key_policy(call: Call, ask: asks.PutKeyPolicy) -> None:
    """Replace a key's policy, unless that would lock the caller out."""
    _check_policy_name(ask.policy_name, invalid("PolicyName must be default."))
    key = use_key(call, ask.key_id)
    policy = _checked_policy(ask.policy)
    if not ask.bypass_policy_lockout_safety_check and _locks_out(call, key, policy):
        raise _lockout()
    call.vault.set_policy(key, policy)


def get_key_policy(call: Call, ask: asks.GetKeyPolicy) -> dict[str, Any]:
    """Read a key's policy."""
    key = use_key(call, ask.key_id)
    _check_policy_name(ask.policy_name, not_found("No such policy exists."))
    return {"Policy": key.policy.text, "PolicyName": "default"}


def _check_policy_name(name: str | None, refusal: KmsRefusalError) -> None:
    if name not in {None, "default"}:
        raise refusal


def _checked_policy(text: str) -> Policy:
    if len(text.encode()) > _POLICY_BYTES:
        raise KmsRefusalError("LimitExceededException", "A key policy has at most 32 KiB.")
    return parse_policy(text)


def _locks_out(call: Call, key: Key, policy: Policy) -> bool:
    """Whether the caller could not put another policy after this one."""
    later = Call("PutKeyPolicy", call.caller, call.vault, call.now)
    return permitted_by_policy(later, key, policy, "PutKeyPolicy", Facts(call.caller)) is not True


def _lockout() -> KmsRefusalError:
    message = "The new key policy will not allow you to update the key policy in the future."
    return KmsRefusalError("MalformedPolicyDocumentException", message)
