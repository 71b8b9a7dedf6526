"""The Condition element of a key policy, and the facts of a call that it is held against. Pure.

Source: AWS KMS Developer Guide, "Condition keys"; IAM User Guide, "Condition operators" and "Multivalued context keys".
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.kms.patterns import arn_glob, glob
from pipeline.kms.principals import Identity

_CONTEXT = "kms:encryptioncontext:"
_OPERATOR = re.compile(r"(?:(ForAnyValue|ForAllValues):)?(\w+?)(IfExists)?")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a call. An absent fact is not an empty one."""

    who: Identity
    context: Mapping[str, str] = field(default_factory=dict)
    """Its encryption context."""
    grant: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of CreateGrant: the `kms:Grant…` keys, in lower case."""

    def of(self, name: str) -> tuple[str, ...] | None:
        """Give the values of a condition key; its name is not case sensitive, nor is a context pair's inside it."""
        if name.startswith(_CONTEXT):
            wanted = name.removeprefix(_CONTEXT)
            return tuple(value for key, value in self.context.items() if key.lower() == wanted) or None
        if name in self.grant:
            return self.grant[name]
        known = _KNOWN.get(name)
        return None if known is None else known(self)


_KNOWN: Mapping[str, Callable[[Facts], tuple[str, ...] | None]] = {
    "kms:encryptioncontextkeys": lambda facts: tuple(facts.context) or None,
    "kms:calleraccount": lambda facts: (facts.who.account_id,),
    "kms:viaservice": lambda facts: None if facts.who.via_service is None else (facts.who.via_service,),
    "aws:principalarn": lambda facts: (facts.who.policy_arn,),
    "aws:principalaccount": lambda facts: (facts.who.account_id,),
}
_GRANT_KEYS = frozenset({
    "kms:granteeprincipal", "kms:retiringprincipal", "kms:grantoperations", "kms:grantisforawsresource",
    "kms:grantconstrainttype",
})  # fmt: skip


def _ignoring_case(wanted: str, given: str) -> bool:
    return wanted.lower() == given.lower()


_MATCHERS: Mapping[str, tuple[Callable[[str, str], bool], bool]] = {
    "StringEquals": (str.__eq__, False),
    "StringNotEquals": (str.__eq__, True),
    "StringEqualsIgnoreCase": (_ignoring_case, False),
    "StringNotEqualsIgnoreCase": (_ignoring_case, True),
    "StringLike": (glob, False),
    "StringNotLike": (glob, True),
    "ArnEquals": (arn_glob, False),
    "ArnLike": (arn_glob, False),
    "ArnNotEquals": (arn_glob, True),
    "ArnNotLike": (arn_glob, True),
    "Bool": (_ignoring_case, False),
}
"""Operator → how one wanted value meets one given value, and whether the operator asks for the opposite."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one condition key."""

    key: str
    wanted: tuple[str, ...]
    operator: str
    quantifier: str | None
    """`ForAnyValue`, `ForAllValues` or none."""
    if_exists: bool

    def holds(self, facts: Facts) -> bool:
        """Whether the facts meet it."""
        given = facts.of(self.key)
        if self.operator == "Null":
            return (given is None) == (self.wanted[0].lower() == "true")
        matches, negated = _MATCHERS[self.operator]
        if given is None:
            return self.if_exists or self.quantifier == "ForAllValues" or (negated and self.quantifier is None)
        each = (any(matches(wanted, value) for wanted in self.wanted) is not negated for value in given)
        # Without a quantifier a key has one value; a negated operator then asks it of each, the others of any.
        return all(each) if self.quantifier == "ForAllValues" or (negated and not self.quantifier) else any(each)


def parse_conditions(value: Any) -> tuple[Condition, ...]:
    """Read a Condition element.

    Raises: ValueError with a message that names no value of the document.
    """
    if not isinstance(value, dict) or not all(isinstance(block, dict) for block in value.values()):
        raise ValueError("Condition must map operators to condition keys.")
    return tuple(
        _condition(operator, key, wanted) for operator, block in value.items() for key, wanted in block.items()
    )


def _condition(operator: str, key: str, wanted: Any) -> Condition:
    parts = _OPERATOR.fullmatch(operator)
    if parts is None or (parts[2] not in _MATCHERS and parts[2] != "Null"):
        raise ValueError("a condition operator is not supported by this server.")
    name = key.lower()
    if name not in _KNOWN and name not in _GRANT_KEYS and not name.startswith(_CONTEXT):
        raise ValueError("a condition key is not supported by this server.")
    return Condition(name, tuple(_texts(wanted)), parts[2], parts[1], parts[3] is not None)


def _texts(wanted: Any) -> Iterable[str]:
    for value in wanted if isinstance(wanted, list) and wanted else [wanted]:
        if isinstance(value, bool):
            yield str(value).lower()
        elif isinstance(value, str):
            yield value
        else:
            raise ValueError("a condition's values must be strings.")  # noqa: TRY004 - the document is wrong, not the call
