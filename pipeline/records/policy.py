"""What the policy of a class of data is made of. Pure; the rows themselves are in `classes.py`."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from pipeline.errors import RefuseError


class KeyMode(StrEnum):
    """Whose KMS key it is."""

    OWNED = "owned"
    """The service's own, in the operator's account. A customer's is refused."""
    OPTIONAL = "cmk_optional"
    """The customer's if one is configured, else the service's."""
    REQUIRED = "cmk_required"
    """The customer's. Without one there is no record."""


class ScopeKind(StrEnum):
    """What has data keys of its own."""

    ACCOUNT = "account"
    INSTANCE = "instance"
    DOMAIN = "domain"
    OBJECT_TYPE = "object_type"
    RESOURCE = "resource"
    S3 = "s3"


class Holder(StrEnum):
    """Where a KMS key may be configured."""

    OBJECT_TYPE = "object_type"
    DOMAIN = "domain"
    RESOURCE = "resource"
    INSTANCE = "instance"
    STORAGE = "storage"
    SERVICE = "service"


class IndexKind(StrEnum):
    """How records are found other than by their id."""

    NONE = "none"
    BLIND = "blind"
    """By keyed hashes of some values."""
    DEDICATED = "dedicated"
    """By their text, in an index of their scope's own."""


class OnRevoke(StrEnum):
    """What happens while a customer's KMS key can't be used."""

    HOLD = "hold"
    """Work waits, and goes on by itself."""
    DENY = "deny"
    """Callers are told AccessDeniedException, and asynchronous work fails."""
    DROP = "drop"
    """The derived copy is closed, and later removed."""
    NEVER = "n/a"
    """No customer's key is involved."""


class KeyChange(StrEnum):
    """What another KMS key means for what is there."""

    IMMUTABLE = "immutable"
    NEW_ONLY = "new_only"
    REENCRYPT = "reencrypt_async"
    SERVICE_ROTATES = "service_rotates"


class Audit(StrEnum):
    """What the audit trail tells. Each use of a KMS key always."""

    KEY_USE = "key_use"
    MOVES = "moves"
    OPENINGS = "openings"
    CHANGES = "changes"
    COUNTS = "counts"


class Normal(StrEnum):
    """How a value is brought to one form before it is hashed."""

    NUMBER = "number"
    """A telephone number, E.164."""
    TEXT = "text"
    """Without regard to case and surrounding space."""
    EXACT = "exact"


def hours(time: timedelta) -> str:
    """Write a duration."""
    return f"{time / timedelta(hours=1):g} h" if time else "0"


# --- retention


@dataclass(frozen=True, slots=True)
class UntilDelivered:
    """Until the bucket has proved that it holds it, and this much longer."""

    grace: timedelta = timedelta(0)

    def __str__(self) -> str:
        return f"until_delivered({hours(self.grace)})"


@dataclass(frozen=True, slots=True)
class Fixed:
    """So many months or days from a time that the record names, else from when it came."""

    months: int = 0
    days: int = 0
    since: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"fixed({self.months} months)" if self.months else f"fixed({self.days} days)"


@dataclass(frozen=True, slots=True)
class FromConfig:
    """So many days as its scope's configuration says, which has to."""

    least_days: int
    most_days: int

    def __str__(self) -> str:
        return f"from_config({self.least_days}-{self.most_days} days)"


@dataclass(frozen=True, slots=True)
class UntilDeleted:
    """Until somebody deletes it."""

    def __str__(self) -> str:
        return "until_deleted"


@dataclass(frozen=True, slots=True)
class Disused:
    """So many months after it was last used: put, or said to have served."""

    months: int

    def __str__(self) -> str:
        return f"disused({self.months} months)"


@dataclass(frozen=True, slots=True)
class Transient:
    """Until it was handed on; what could not be for that long is poison."""

    most: timedelta

    def __str__(self) -> str:
        return f"transient({hours(self.most)})"


Retention = UntilDelivered | Fixed | FromConfig | UntilDeleted | Disused | Transient


# --- a row


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One blind index: its name, where in a record's JSON its values stand, and their form."""

    name: str
    normal: Normal
    paths: tuple[str, ...]
    """Members by name, `.` between them; a list stands for each of its elements. Names in any case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What belongs to a class and has a retention of its own."""

    name: str
    retention: Retention
    shreds: bool = False
    """Sealed under a key of its subject besides, so that deleting that key destroys it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """All that makes a class what it is."""

    data_class: str
    key_mode: KeyMode
    required_when: tuple[str, ...] = ()
    """Flags of the configuration that make an optional key required."""
    key_scope: ScopeKind
    key_lookup: tuple[Holder, ...]
    """The first that is configured is taken. One that can't be used is never passed over."""
    context_keys: tuple[str, ...]
    grant_operations: frozenset[str] = frozenset()
    grant_constraint: str = "none"
    data_key_life: timedelta | None
    """Of an active data key; `None` where the data keys are another's."""
    retention: Retention
    parts: tuple[Part, ...] = ()
    index: IndexKind = IndexKind.NONE
    fields: tuple[Field, ...] = ()
    on_revoke: OnRevoke = OnRevoke.NEVER
    key_change: KeyChange
    locked_after: str | None = None
    """The flag of the configuration that forbids any further change of key."""
    audit: frozenset[Audit]
    configured_as: str | None = None
    """The class whose scopes these are, if it has none of its own."""
    kept: bool = True
    """Whether it is a class of the record store."""

    @property
    def change_text(self) -> str:
        """Write the rule for a change of key."""
        return str(self.key_change) + (f", locked_after({self.locked_after})" if self.locked_after else "")

    @property
    def takes_customer_key(self) -> bool:
        """Whether a customer's KMS key may be configured."""
        return self.key_mode is not KeyMode.OWNED

    def field(self, name: str) -> Field | None:
        """Find a blind index."""
        return next((field for field in self.fields if field.name == name), None)

    def part(self, name: str | None) -> Part | None:
        """Find a part. `None` where the class has none.

        Raises:
            RefuseError: it has parts and this is none of them, or it has none.

        """
        if name is None and not self.parts:
            return None
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            known = ", ".join(part.name for part in self.parts)
            raise RefuseError(f"must be one of {known}" if known else "this class has no parts", field="part")
        return found
