"""Scopes: what of an instance's data has data keys of its own, by which KMS key and in which encryption context. Pure.

An instance's file names its domains, object types and resources, and a customer's KMS key for each, in tables
`[[records]]`. A scope's key is looked up along its class's chain here, once: the first that is configured is the key,
whether it can be used or not.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from pipeline.errors import RefuseError
from pipeline.ids import InstanceId
from pipeline.records.classes import POLICIES, policy_of
from pipeline.records.policy import FromConfig, Holder, KeyChange, KeyMode, Policy, ScopeKind

DEFAULT = "default"
"""The name of a scope that is the only one of its class."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAMESPACE = UUID("6b1f6f6e-9b57-5f0c-8a51-3d6f6c1b0e75")
_OBJECT_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,254}")
_ARN = r"arn:aws(?:-[a-z]+)*:[a-z0-9-]+:[a-z0-9-]+:{account}:[A-Za-z0-9][A-Za-z0-9/_.:-]{{0,255}}"
_NAMED = frozenset({ScopeKind.DOMAIN, ScopeKind.OBJECT_TYPE, ScopeKind.RESOURCE})
"""Scopes that have an ARN, and so need a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScopeConfig:
    """One table `[[records]]` of an instance's file."""

    data_class: str
    name: str = DEFAULT
    """Tells several scopes of one class apart, in addresses and commands."""
    arn: str | None = None
    object_type: str | None = None
    kms_key_arn: str | None = None
    previous_kms_key_arn: str | None = None
    flags: tuple[str, ...] = ()
    expiration_days: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """What has data keys of its own."""

    policy: Policy
    name: str
    """Unique within its class: an ARN, or what it is and its id."""
    shelf_name: str
    """What its records belong to. Two instances of one account share its keys, and no records."""
    context: Mapping[str, str]

    owner: InstanceId
    """The id by which its key ring knows it."""
    shelf: bytes
    """The 16 bytes by which the engine knows its records."""

    @property
    def directory(self) -> str:
        """Where its key ring is, below the state directory."""
        return f"keys/{self.policy.data_class}/{self.owner.hex}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A scope as one instance has it: with its customer's KMS key, if any, and what else was configured."""

    scope: Scope
    kms_key_arn: str | None = None
    """Of the customer; `None`: the service's is used."""
    previous_kms_key_arn: str | None = None
    flags: tuple[str, ...] = ()
    expiration_days: int | None = None


Places = Mapping[tuple[str, str], Placed]
"""By class and name."""


def placed(instance_id: InstanceId, account_id: str, configs: Sequence[ScopeConfig]) -> Places:
    """Give every scope of an instance: those that are named, and those that need no name.

    Raises:
        RefuseError: a table is wrong; `field` is its path in the instance's file.

    """
    for number, config in enumerate(configs):
        _check(config, configs[:number], account_id, f"records[{number}]")
    found: dict[tuple[str, str], Placed] = {}
    for policy in POLICIES.values():
        if policy.key_scope is ScopeKind.S3 or policy.data_class.startswith("recordings_"):
            continue
        of_class = [each for each in configs if each.data_class == (policy.configured_as or policy.data_class)]
        if not of_class and policy.key_scope not in _NAMED:
            of_class = [ScopeConfig(data_class=policy.data_class)]
        for config in of_class:
            scope = scope_of(policy, instance_id, account_id, config)
            found[policy.data_class, config.name] = _looked_up(policy, scope, config, configs)
    for number, config in enumerate(configs):
        _check_key(config, found[config.data_class, config.name], f"records[{number}]")
    return found


def scope_of(policy: Policy, instance_id: InstanceId, account_id: str, config: ScopeConfig) -> Scope:
    """Make a scope: its names and its encryption context, which is constant and holds nothing personal."""
    match policy.key_scope:
        case ScopeKind.ACCOUNT:
            name = f"account/{account_id}"
        case ScopeKind.INSTANCE:
            name = f"instance/{instance_id}"
        case ScopeKind.OBJECT_TYPE:
            name = f"{config.arn}/object-types/{config.object_type}"
        case _:
            name = str(config.arn)
    shelf_name = f"{name}/instance/{instance_id}" if policy.key_scope is ScopeKind.ACCOUNT else name
    values = {
        "pipeline:accountId": account_id,
        "aws:accountId": account_id,
        "pipeline:instanceId": str(instance_id),
        "aws:connect:instanceId": str(instance_id),
        "pipeline:domain": config.arn,
        "aws:voiceid:domain:arn": config.arn,
        "pipeline:resource": config.arn,
        "pipeline:objectType": config.object_type,
        "pipeline:dataClass": policy.data_class,
    }
    return Scope(
        policy=policy,
        name=name,
        shelf_name=shelf_name,
        owner=InstanceId(uuid5(_NAMESPACE, f"{policy.data_class}\0{name}")),
        shelf=uuid5(_NAMESPACE, f"{policy.data_class}\0{shelf_name}").bytes,
        context={key: str(values[key]) for key in policy.context_keys},
    )


def _looked_up(policy: Policy, scope: Scope, config: ScopeConfig, configs: Iterable[ScopeConfig]) -> Placed:
    """Find the key, and what else the class's chain gives: the first that is configured counts."""
    if not policy.takes_customer_key:
        return Placed(scope=scope, flags=config.flags, expiration_days=config.expiration_days)
    chain = [config]
    if policy.key_scope is ScopeKind.OBJECT_TYPE and Holder.DOMAIN in policy.key_lookup:
        chain += [each for each in configs if each.data_class == "profiles_domain" and each.arn == config.arn]
    holding = next((each for each in chain if each.kms_key_arn is not None), config)
    days = next((each.expiration_days for each in chain if each.expiration_days is not None), None)
    return Placed(
        scope=scope,
        kms_key_arn=holding.kms_key_arn,
        previous_kms_key_arn=next((each.previous_kms_key_arn for each in chain if each.previous_kms_key_arn), None),
        flags=tuple(dict.fromkeys(flag for each in chain for flag in each.flags)),
        expiration_days=days,
    )


# --- what may stand in a file


def _check(config: ScopeConfig, before: Sequence[ScopeConfig], account_id: str, path: str) -> None:
    try:
        policy = policy_of(config.data_class)
    except RefuseError as error:
        raise RefuseError(str(error), field=f"{path}.class") from None
    if policy.configured_as is not None:
        raise RefuseError(f"its scopes are those of {policy.configured_as}: name that class", field=f"{path}.class")
    if policy.data_class.startswith("recordings_"):
        raise RefuseError("recordings have their keys at the top of the file and in storage", field=f"{path}.class")
    if not NAME.fullmatch(config.name):
        raise RefuseError("1 to 64 letters, digits and . _ -", field=f"{path}.name")
    if any((each.data_class, each.name) == (config.data_class, config.name) for each in before):
        raise RefuseError("another table of this class has the same name", field=f"{path}.name")
    _check_place(config, policy, account_id, path)
    known = (*policy.required_when, *((policy.locked_after,) if policy.locked_after else ()))
    if not set(config.flags) <= set(known):
        raise RefuseError(f"one of {', '.join(known)}" if known else "this class has no flags", field=f"{path}.flags")
    _check_days(config, policy, path)
    _check_previous(config, policy, path)


def _check_place(config: ScopeConfig, policy: Policy, account_id: str, path: str) -> None:
    if policy.key_scope not in _NAMED:
        if config.arn is not None:
            raise RefuseError(f"a scope of this class is the {policy.key_scope}: it has no ARN", field=f"{path}.arn")
    elif config.arn is None or not re.fullmatch(_ARN.format(account=account_id), config.arn):
        raise RefuseError("the full ARN, in the instance's own account, is required", field=f"{path}.arn")
    if (policy.key_scope is ScopeKind.OBJECT_TYPE) != (config.object_type is not None):
        raise RefuseError("belongs to profiles_object_type, which needs it", field=f"{path}.object_type")
    if config.object_type is not None and not _OBJECT_TYPE.fullmatch(config.object_type):
        raise RefuseError("1 to 255 letters, digits, _ and -", field=f"{path}.object_type")


def _check_days(config: ScopeConfig, policy: Policy, path: str) -> None:
    if not isinstance(policy.retention, FromConfig):
        if config.expiration_days is not None:
            raise RefuseError(f"this class is kept {policy.retention}", field=f"{path}.expiration_days")
        return
    low, high = policy.retention.least_days, policy.retention.most_days
    needed = policy.key_scope is ScopeKind.DOMAIN
    if (config.expiration_days is None and needed) or not low <= (config.expiration_days or low) <= high:
        raise RefuseError(f"{low} to {high} days{', required' if needed else ''}", field=f"{path}.expiration_days")


def _check_previous(config: ScopeConfig, policy: Policy, path: str) -> None:
    """Refuse a change of key that the class does not allow."""
    if config.previous_kms_key_arn is None:
        return
    if policy.key_change is KeyChange.IMMUTABLE:
        raise RefuseError(
            "the key of this class never changes: make the resource anew", field=f"{path}.previous_kms_key_arn"
        )
    if policy.locked_after in config.flags:
        raise RefuseError(f"{policy.locked_after} forbids a change of key", field=f"{path}.previous_kms_key_arn")


def _check_key(config: ScopeConfig, place: Placed, path: str) -> None:
    """Refuse a customer's key where none may be, and its absence where one must be."""
    policy = place.scope.policy
    if not policy.takes_customer_key and (config.kms_key_arn or config.previous_kms_key_arn):
        raise RefuseError(
            "the key of this class is the service's own: no other is possible", field=f"{path}.kms_key_arn"
        )
    needing = [flag for flag in policy.required_when if flag in place.flags]
    if place.kms_key_arn is None and (policy.key_mode is KeyMode.REQUIRED or needing):
        why = f" with {needing[0]}" if needing else ""
        raise RefuseError(f"a customer's KMS key is required{why}", field=f"{path}.kms_key_arn")
