"""The operations on grants: create, list, revoke, retire.

Source: the page of each operation in the AWS KMS API reference, and "Grants in AWS KMS" in its developer guide.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from pipeline.kms import asks
from pipeline.kms.access import Call, denied, dry_run, find_key, use_key
from pipeline.kms.grants import OPERATIONS, may_retire, new_token, permits_child, same_grant, token_grant
from pipeline.kms.pages import page
from pipeline.kms.principals import ACCOUNT, PRINCIPAL
from pipeline.kms.records import Grant, Key, check_state
from pipeline.kms.refusal import KmsRefusalError, invalid, not_found, unsupported

_PAIRS, _PAIR_CHARACTERS = 8, 384


def create_grant(call: Call, ask: asks.CreateGrant) -> dict[str, Any]:
    """Permit a principal to use a key. A repeat with the same name and the same rest gives the first grant again."""
    key = find_key(call, ask.key_id)
    grant = _wanted(call, key, ask)
    use_key(
        call,
        key,
        # As AWS: a policy's conditions on the encryption context hold for what the grant would be bound to.
        context=grant.equals or grant.subset or {},
        tokens=ask.grant_tokens,
        grant_facts=_facts(grant),
        grant_permits=lambda parent: permits_child(parent, grant),
    )
    dry_run(ask.dry_run)
    there = next((one for one in key.grants.values() if grant.name is not None and same_grant(one, grant)), None)
    if there is None:
        call.vault.add_grant(key, grant)
    grant_id = (there or grant).grant_id
    call.response = {"grantId": grant_id, "keyId": key.arn}
    return {"GrantId": grant_id, "GrantToken": new_token(call.vault.token_secret, grant_id)}


def _wanted(call: Call, key: Key, ask: asks.CreateGrant) -> Grant:
    if ask.grantee_principal is None:
        raise invalid("1 validation error detected: GranteePrincipal must not be null.")
    for principal in (ask.grantee_principal, ask.retiring_principal):
        if principal is not None and not PRINCIPAL.fullmatch(principal) and not ACCOUNT.fullmatch(principal):
            raise KmsRefusalError("InvalidArnException", "A principal of the grant is not a valid ARN.")
    if not ask.operations or not set(ask.operations) <= OPERATIONS:
        raise invalid("Operations must list operations that a grant on a symmetric key may allow.")
    constraints = ask.constraints or asks.Constraints()
    if constraints.source_arn is not None:
        raise unsupported("SourceArn constraints are not offered by this key server.")
    equals, subset = constraints.encryption_context_equals, constraints.encryption_context_subset
    if equals is not None and subset is not None:
        raise invalid("Constraints may have EncryptionContextEquals or EncryptionContextSubset, not both.")
    for pairs in (equals, subset):
        _check_pairs(pairs)
    return Grant(
        grant_id=secrets.token_hex(32),
        key_id=key.key_id,
        issuing_account=call.caller.account_id,
        created_at=call.now,
        grantee=ask.grantee_principal,
        retiring=ask.retiring_principal,
        operations=frozenset(ask.operations),
        equals=equals,
        subset=subset,
        name=ask.name,
    )


def _check_pairs(pairs: Mapping[str, str] | None) -> None:
    if pairs is None:
        return
    if len(pairs) > _PAIRS or any(len(value) > _PAIR_CHARACTERS for value in pairs.values()):
        raise invalid(f"A constraint has at most {_PAIRS} pairs, their values at most {_PAIR_CHARACTERS} characters.")
    if len({name.lower() for name in pairs}) < len(pairs):
        raise invalid("A constraint's pairs must differ by more than case.")


def _facts(grant: Grant) -> Mapping[str, tuple[str, ...]]:
    facts = {
        "kms:granteeprincipal": (grant.grantee,),
        "kms:grantoperations": tuple(sorted(grant.operations)),
        "kms:grantisforawsresource": ("false",),
    }
    if grant.retiring is not None:
        facts["kms:retiringprincipal"] = (grant.retiring,)
    if grant.equals is not None:
        facts["kms:grantconstrainttype"] = ("EncryptionContextEquals",)
    if grant.subset is not None:
        facts["kms:grantconstrainttype"] = ("EncryptionContextSubset",)
    return facts


def list_grants(call: Call, ask: asks.ListGrants) -> dict[str, Any]:
    """List a key's grants."""
    key = use_key(call, ask.key_id, grant_facts=_NOT_FOR_AWS)
    listed = [
        (grant.grant_id, _entry(key, grant))
        for grant in sorted(key.grants.values(), key=lambda grant: grant.grant_id)
        if ask.grant_id in {None, grant.grant_id} and ask.grantee_principal in {None, grant.grantee}
    ]
    return page("Grants", listed, ask.marker, min(ask.limit or 50, 100))


_NOT_FOR_AWS = {"kms:grantisforawsresource": ("false",)}


def _entry(key: Key, grant: Grant) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "KeyId": key.arn,
        "GrantId": grant.grant_id,
        "Name": grant.name or "",
        "CreationDate": round(grant.created_at.timestamp(), 3),
        "GranteePrincipal": grant.grantee,
        "IssuingAccount": f"arn:aws:iam::{grant.issuing_account}:root",
        "Operations": sorted(grant.operations),
    }
    if grant.retiring is not None:
        entry["RetiringPrincipal"] = grant.retiring
    if grant.equals is not None:
        entry["Constraints"] = {"EncryptionContextEquals": grant.equals}
    if grant.subset is not None:
        entry["Constraints"] = {"EncryptionContextSubset": grant.subset}
    return entry


def revoke_grant(call: Call, ask: asks.RevokeGrant) -> None:
    """Remove a grant, by right of the key's policy."""
    key = use_key(call, ask.key_id, grant_facts=_NOT_FOR_AWS)
    grant = _grant_of(key, ask.grant_id)
    dry_run(ask.dry_run)
    call.vault.remove_grant(key, grant)
    call.response = {"keyId": key.arn, "grantId": grant.grant_id}


def retire_grant(call: Call, ask: asks.RetireGrant) -> None:
    """Remove a grant, by right of the grant itself; key policies have no say (AWS: not effective there)."""
    key, grant = _retired(call, ask)
    call.additional["grantId"] = grant.grant_id
    if not may_retire(grant, call.caller):
        raise denied(call.caller, "RetireGrant", key.arn)
    check_state(key, call.operation)
    dry_run(ask.dry_run)
    call.vault.remove_grant(key, grant)


def _retired(call: Call, ask: asks.RetireGrant) -> tuple[Key, Grant]:
    if ask.grant_token is not None:
        if ask.key_id is not None or ask.grant_id is not None:
            raise invalid("Give a grant token, or a key ARN and a grant ID, not both.")
        grant_id = token_grant(call.vault.token_secret, ask.grant_token)
        found = None if grant_id is None else call.vault.grant(grant_id)
        if found is None:
            raise KmsRefusalError("InvalidGrantTokenException", "The grant token is not valid.")
        call.resources.append(found[0])
        return found
    if ask.key_id is None or ask.grant_id is None:
        raise invalid("Give a grant token, or a key ARN and a grant ID.")
    key = find_key(call, ask.key_id)
    return key, _grant_of(key, ask.grant_id)


def _grant_of(key: Key, grant_id: str) -> Grant:
    grant = key.grants.get(grant_id)
    if grant is None:
        raise not_found("The grant does not exist on this key.")
    return grant
