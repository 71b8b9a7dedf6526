"""Every operation of the API that this server offers: its request, what it does, whether it only reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.kms import asks, manage, permit, use


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation."""

    ask: type[asks.Ask]
    perform: Callable[..., dict[str, Any] | None]
    """Takes the call and its ask; gives the answer's members, or None for an empty answer."""
    read_only: bool
    """As CloudTrail marks it: whether anything on the server changes."""


OPERATIONS: Mapping[str, Operation] = {
    "CreateKey": Operation(asks.CreateKey, manage.create_key, read_only=False),
    "DescribeKey": Operation(asks.DescribeKey, manage.describe_key, read_only=True),
    "ListKeys": Operation(asks.ListKeys, manage.list_keys, read_only=True),
    "EnableKey": Operation(asks.KeyOnly, manage.enable_key, read_only=False),
    "DisableKey": Operation(asks.KeyOnly, manage.disable_key, read_only=False),
    "ScheduleKeyDeletion": Operation(asks.ScheduleKeyDeletion, manage.schedule_key_deletion, read_only=False),
    "CancelKeyDeletion": Operation(asks.KeyOnly, manage.cancel_key_deletion, read_only=False),
    "RotateKeyOnDemand": Operation(asks.KeyOnly, manage.rotate_key_on_demand, read_only=False),
    "CreateAlias": Operation(asks.CreateAlias, manage.create_alias, read_only=False),
    "DeleteAlias": Operation(asks.DeleteAlias, manage.delete_alias, read_only=False),
    "ListAliases": Operation(asks.ListAliases, manage.list_aliases, read_only=True),
    "PutKeyPolicy": Operation(asks.PutKeyPolicy, manage.put_key_policy, read_only=False),
    "GetKeyPolicy": Operation(asks.GetKeyPolicy, manage.get_key_policy, read_only=True),
    "GenerateDataKey": Operation(asks.GenerateDataKey, use.generate_data_key, read_only=True),
    "GenerateDataKeyWithoutPlaintext": Operation(
        asks.GenerateDataKey, use.generate_data_key_without_plaintext, read_only=True
    ),
    "Encrypt": Operation(asks.Encrypt, use.encrypt, read_only=True),
    "Decrypt": Operation(asks.Decrypt, use.decrypt, read_only=True),
    "ReEncrypt": Operation(asks.ReEncrypt, use.re_encrypt, read_only=True),
    "CreateGrant": Operation(asks.CreateGrant, permit.create_grant, read_only=False),
    "ListGrants": Operation(asks.ListGrants, permit.list_grants, read_only=True),
    "RevokeGrant": Operation(asks.RevokeGrant, permit.revoke_grant, read_only=False),
    "RetireGrant": Operation(asks.RetireGrant, permit.retire_grant, read_only=False),
}
