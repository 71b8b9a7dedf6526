"""Who calls, and by which names a policy or a grant may mean them. Pure.

Source: IAM User Guide, "AWS JSON policy elements: Principal".
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

from pipeline.kms.patterns import glob

PRINCIPAL = re.compile(r"arn:aws:(?:iam|sts)::(\d{12}):(root|(?:user|role|assumed-role|federated-user)/[\w+=,.@/-]+)")
ACCOUNT = re.compile(r"\d{12}")
_SESSION = re.compile(r"arn:aws:sts::(\d{12}):assumed-role/([^/]+)/.+")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One caller that the configuration knows."""

    access_key: str
    secret_key: str = field(repr=False)
    principal: str
    """ARN of a user, a role, a role session or an account's root."""
    account_id: str
    allow: tuple[str, ...] = ("kms:*",)
    """Stands for the caller's IAM policy: action patterns, used where the key policy leaves the choice to IAM."""
    via_service: str | None = None
    """Set when this caller is a service that acts for others, like `s3.eu-central-1.amazonaws.com`."""

    @cached_property
    def account_arn(self) -> str:
        """The account as a principal."""
        return f"arn:aws:iam::{self.account_id}:root"

    @cached_property
    def names(self) -> frozenset[str]:
        """ARNs that mean this caller alone: its own, and the role's if it is a session."""
        session = _SESSION.fullmatch(self.principal)
        if session is None:
            return frozenset({self.principal})
        return frozenset({self.principal, f"arn:aws:iam::{session[1]}:role/{session[2]}"})

    @cached_property
    def policy_arn(self) -> str:
        """What `aws:PrincipalArn` says: of a session, the role."""
        session = _SESSION.fullmatch(self.principal)
        return self.principal if session is None else f"arn:aws:iam::{session[1]}:role/{session[2]}"

    @property
    def is_root(self) -> bool:
        """Whether this is the account itself."""
        return self.principal == self.account_arn

    def allows(self, action: str) -> bool:
        """Whether its own policy lets it do `action` (without the `kms:`)."""
        return any(glob(pattern, f"kms:{action}", ignore_case=True) for pattern in self.allow)

    def is_meant_by(self, principal: str, action: str) -> bool:
        """Whether a grant's principal means this caller; an account leaves the choice to the caller's own policy."""
        if principal in self.names:
            return True
        return principal in {self.account_arn, self.account_id} and self.allows(action)
