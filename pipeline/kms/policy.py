"""Key policies: read one document, then say what it means for a call. Pure.

What it can't evaluate it refuses to store, since a condition that is silently never true turns a Deny into nothing:
`NotPrincipal`, federated principals, unknown condition operators and condition keys.
Source: AWS KMS Developer Guide, "Key policies"; IAM User Guide, "Policy evaluation logic".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import msgspec

from pipeline.kms.conditions import Condition, Facts, parse_conditions
from pipeline.kms.patterns import glob
from pipeline.kms.principals import ACCOUNT, PRINCIPAL, Identity
from pipeline.kms.refusal import KmsRefusalError

_STATEMENT = {
    "Sid", "Effect", "Principal", "Action", "NotAction", "Resource", "NotResource", "Condition",
}  # fmt: skip


class Verdict(Enum):
    """What a key policy says about one call."""

    DENIED = auto()
    ALLOWED = auto()
    DELEGATED = auto()
    """The caller's account may: its own (IAM) policies decide."""
    SILENT = auto()


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, checked."""

    allow: bool
    principals: tuple[str, ...]
    """ARNs, account ids or `*`; service principals are left out, none of them calls this server."""
    actions: tuple[str, ...]
    actions_negated: bool
    resources: tuple[str, ...]
    resources_negated: bool
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A key policy: the text as it was put, and what was read from it."""

    text: str
    statements: tuple[Statement, ...]


def default_policy(account_id: str) -> str:
    """Give the policy of a key made without one: its account may do everything, and IAM decides for whom."""
    statement = {
        "Sid": "Enable IAM User Permissions",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{account_id}:root"},
        "Action": "kms:*",
        "Resource": "*",
    }
    document = {"Version": "2012-10-17", "Id": "key-default-1", "Statement": [statement]}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def parse_policy(text: str) -> Policy:
    """Read a policy document.

    Raises: KmsRefusalError (MalformedPolicyDocumentException), naming the statement by number.
    """
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise _malformed("The policy is not valid JSON.") from None
    if not isinstance(document, dict) or document.get("Version", "2012-10-17") not in {"2012-10-17", "2008-10-17"}:
        raise _malformed("The policy must be an object of Version 2012-10-17.")
    statements = document.get("Statement")
    statements = [statements] if isinstance(statements, dict) else statements
    if not isinstance(statements, list) or not statements:
        raise _malformed("The policy has no Statement.")
    return Policy(text, tuple(_statement(item, number) for number, item in enumerate(statements, 1)))


def evaluate(policy: Policy, who: Identity, action: str, resource: str, facts: Facts) -> Verdict:
    """Say what the policy means for `who` doing `action` (without the `kms:`): an explicit Deny wins."""
    verdict = Verdict.SILENT
    for statement in policy.statements:
        meant = _means(statement, who)
        if meant is Verdict.SILENT or not _applies(statement, action, resource, facts):
            continue
        if not statement.allow:
            return Verdict.DENIED
        if verdict is not Verdict.ALLOWED:
            verdict = meant
    return verdict


def _means(statement: Statement, who: Identity) -> Verdict:
    meant = Verdict.SILENT
    for principal in statement.principals:
        if principal == "*" or principal in who.names:
            return Verdict.ALLOWED
        if principal in {who.account_arn, who.account_id}:
            meant = Verdict.DELEGATED
    return meant


def _applies(statement: Statement, action: str, resource: str, facts: Facts) -> bool:
    named = any(glob(pattern, f"kms:{action}", ignore_case=True) for pattern in statement.actions)
    if named is statement.actions_negated:
        return False
    named = any(glob(pattern, resource) for pattern in statement.resources)
    if named is statement.resources_negated:
        return False
    return all(condition.holds(facts) for condition in statement.conditions)


def _statement(item: Any, number: int) -> Statement:
    if not isinstance(item, dict) or not set(item) <= _STATEMENT:
        raise _malformed(f"Statement {number} has an element that is not supported.")
    if item.get("Effect") not in {"Allow", "Deny"}:
        raise _malformed(f"Statement {number} needs an Effect, Allow or Deny.")
    actions, actions_negated = _either(item, "Action", number)
    resources, resources_negated = _either(item, "Resource", number)
    return Statement(
        allow=item["Effect"] == "Allow",
        principals=_principals(item.get("Principal"), number),
        actions=actions,
        actions_negated=actions_negated,
        resources=resources,
        resources_negated=resources_negated,
        conditions=_conditions(item.get("Condition", {}), number),
    )


def _either(item: Mapping[str, Any], name: str, number: int) -> tuple[tuple[str, ...], bool]:
    if (name in item) == (f"Not{name}" in item):
        raise _malformed(f"Statement {number} needs exactly one of {name} and Not{name}.")
    negated = name not in item
    return _strings(item[f"Not{name}" if negated else name], f"Statement {number}: {name}"), negated


def _principals(value: Any, number: int) -> tuple[str, ...]:
    if value == "*":
        return ("*",)
    if not isinstance(value, dict) or not value or not set(value) <= {"AWS", "Service"}:
        raise _malformed(f"Statement {number} needs a Principal of AWS accounts, users, roles or services.")
    principals = _strings(value["AWS"], f"Statement {number}: Principal") if "AWS" in value else ()
    for principal in principals:
        if principal != "*" and not PRINCIPAL.fullmatch(principal) and not ACCOUNT.fullmatch(principal):
            raise _malformed(f"Statement {number} names an invalid principal.")
    return principals


def _conditions(value: Any, number: int) -> tuple[Condition, ...]:
    try:
        return parse_conditions(value)
    except ValueError as error:
        raise _malformed(f"Statement {number}: {error}") from None


def _strings(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(entry, str) for entry in values):
        raise _malformed(f"{where} must be a string or a list of strings.")
    return tuple(values)


def _malformed(message: str) -> KmsRefusalError:
    return KmsRefusalError("MalformedPolicyDocumentException", message)
