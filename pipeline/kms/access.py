"""Find the key that a call names, and decide whether the caller may do this with it.

Order, as AWS evaluates: the name, then permission, then the key's state. Permission: an explicit Deny of the key policy
wins; an Allow for the caller suffices within the key's account; an Allow for the account leaves it to the caller's own
`allow` list; from another account both are needed; else a grant must permit it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.kms.conditions import Facts
from pipeline.kms.grants import permits_context, token_grant
from pipeline.kms.policy import Policy, Verdict, evaluate
from pipeline.kms.principals import Identity
from pipeline.kms.records import Grant, Key, check_state
from pipeline.kms.refusal import KmsRefusalError, not_found
from pipeline.kms.vault import Vault

_ARN = re.compile(r"arn:aws:kms:([a-z0-9-]+):(\d{12}):(key/[0-9a-fA-F-]+|alias/[a-zA-Z0-9:/_-]+)")
_TAKES_ALIAS = frozenset({
    "DescribeKey", "Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt",
})  # fmt: skip
_CROSS_ACCOUNT = _TAKES_ALIAS | {"CreateGrant", "ListGrants", "RevokeGrant", "RetireGrant"}
_WITHOUT_CONTEXT = frozenset({"DescribeKey", "RetireGrant"})
"""Operations that a grant's encryption context constraint does not touch."""


@dataclass(slots=True)
class Call:
    """One authenticated call, and what the trail will say of it."""

    operation: str
    caller: Identity
    vault: Vault
    now: datetime
    resources: list[Key] = field(default_factory=list)
    """The keys it touched, in order."""
    additional: dict[str, str] = field(default_factory=dict)
    response: dict[str, Any] | None = None
    """What the trail repeats of the answer; only calls that change something have it."""


def find_key(call: Call, reference: str) -> Key:
    """Find a key by id, ARN, alias name or alias ARN, as far as the operation takes them.

    Raises: KmsRefusalError: NotFoundException, InvalidArnException.
    """
    account, name = call.caller.account_id, reference
    if reference.startswith("arn:"):
        arn = _ARN.fullmatch(reference)
        if arn is None:
            raise KmsRefusalError("InvalidArnException", "The KeyId is not a valid ARN of a KMS key or alias.")
        if arn[1] != call.vault.region:
            raise not_found(f"Invalid ARN: this key server is {call.vault.region}.")
        account, name = arn[2], arn[3].removeprefix("key/")
    if name.startswith("alias/"):
        if call.operation not in _TAKES_ALIAS:
            raise not_found(f"{call.operation} takes a key ID or key ARN, not an alias.")
        alias = call.vault.alias(account, name)
        if alias is None:
            raise not_found("The alias does not exist.")
        name = alias.key_id
    key = call.vault.key(name.lower())
    if key is None or key.account_id != account:
        raise not_found("The key does not exist.")
    call.resources.append(key)
    return key


def use_key(
    call: Call,
    reference: str | Key,
    action: str | None = None,
    *,
    context: Mapping[str, str] | None = None,
    tokens: Iterable[str] | None = None,
    grant_facts: Mapping[str, tuple[str, ...]] | None = None,
    grant_permits: Callable[[Grant], bool] | None = None,
) -> Key:
    """Find the key, make sure that the caller may, and that the key's state lets them.

    Args:
        action: the permission needed, if it is not named as the operation.
        grant_permits: what a grant must further satisfy; by default its encryption context constraint.

    Raises: KmsRefusalError: also AccessDeniedException, InvalidGrantTokenException, DisabledException and
    KMSInvalidStateException.
    """
    key = find_key(call, reference) if isinstance(reference, str) else reference
    action = action or call.operation
    context = context or {}
    facts = Facts(call.caller, context, grant_facts or {})
    named = frozenset(_token_grants(call.vault, tokens or ()))
    verdict = permitted_by_policy(call, key, key.policy, action, facts)
    if verdict is None:
        permits = grant_permits or (lambda grant: action in _WITHOUT_CONTEXT or permits_context(grant, context))
        verdict = any(_granted(call, grant, action, named) and permits(grant) for grant in key.grants.values())
    if not verdict:
        raise denied(call.caller, action, key.arn)
    check_state(key, call.operation)
    return key


def permitted_by_policy(call: Call, key: Key, policy: Policy, action: str, facts: Facts) -> bool | None:
    """Say what key policy and `allow` list decide: yes, no for good, or None (a grant may still permit it)."""
    verdict = evaluate(policy, call.caller, action, key.arn, facts)
    if verdict is Verdict.DENIED:
        return False
    same_account = key.account_id == call.caller.account_id
    if not same_account and call.operation not in _CROSS_ACCOUNT:
        return False
    if verdict is Verdict.ALLOWED and same_account:
        return True
    if verdict in {Verdict.ALLOWED, Verdict.DELEGATED} and call.caller.allows(action):
        return True
    return None


def own_policy_permits(call: Call, action: str) -> None:
    """Make sure of the caller's own permission for what concerns no key yet.

    Raises: KmsRefusalError (AccessDeniedException).
    """
    if not call.caller.allows(action):
        raise denied(call.caller, action, "*")


def denied(caller: Identity, action: str, resource: str) -> KmsRefusalError:
    """Refuse for want of permission."""
    message = f"User: {caller.principal} is not authorized to perform: kms:{action} on resource: {resource}"
    return KmsRefusalError("AccessDeniedException", message)


def dry_run(asked: bool | None) -> None:
    """End a dry run, at the point where nothing could fail any more.

    Raises: KmsRefusalError (DryRunOperationException).
    """
    if asked:
        raise KmsRefusalError(
            "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."
        )


def _granted(call: Call, grant: Grant, action: str, named: frozenset[str]) -> bool:
    if action not in grant.operations or not call.caller.is_meant_by(grant.grantee, action):
        return False
    return grant.grant_id in named or grant.created_at + call.vault.propagation <= call.now


def _token_grants(vault: Vault, tokens: Iterable[str]) -> Iterable[str]:
    for token in tokens:
        grant_id = token_grant(vault.token_secret, token)
        if grant_id is None or vault.grant(grant_id) is None:
            raise KmsRefusalError("InvalidGrantTokenException", "A grant token is not valid.")
        yield grant_id
