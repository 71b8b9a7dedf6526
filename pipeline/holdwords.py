"""What an operator is told of a hold: key or bucket, since when, what is safe, and what mends it. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from pipeline.errors import KEY_CODES, HoldCode
from pipeline.instances import Instance, KeyAccess

KEYS, SEALING = "keys", "sealing"
"""Scopes; see `delivery.holds`."""
WHAT: Mapping[HoldCode, str] = {
    HoldCode.KEY_DISABLED: "is disabled",
    HoldCode.KEY_PENDING_DELETION: "is to be deleted",
    HoldCode.KEY_INVALID_STATE: "is in a state in which it can't be used",
    HoldCode.KEY_ACCESS_DENIED: "may not be used by this service",
    HoldCode.KEY_NOT_FOUND: "is not found",
    HoldCode.KEY_UNREACHABLE: "can't be reached",
    HoldCode.KEY_MISMATCH: "does not open a data key that lies in the key ring",
    HoldCode.DESTINATION_ACCESS_DENIED: "may not be written to by this service",
    HoldCode.DESTINATION_MISSING: "is not there",
    HoldCode.DESTINATION_WRONG_KEY: "holds objects under another KMS key than the configured one",
    HoldCode.DESTINATION_UNREACHABLE: "can't be reached",
}
ACTIONS: Mapping[HoldCode, str] = {
    HoldCode.KEY_DISABLED: "enable the KMS key",
    HoldCode.KEY_PENDING_DELETION: "cancel the deletion of the KMS key, now: what is sealed under it would be lost",
    HoldCode.KEY_INVALID_STATE: "see the state of the KMS key",
    HoldCode.KEY_ACCESS_DENIED: "allow this service the KMS key, as `pipeline policy show` says",
    HoldCode.KEY_NOT_FOUND: "check the KMS key's ARN in the instance's file; a key that is deleted does not come back",
    HoldCode.KEY_UNREACHABLE: "check the way to the key service",
    HoldCode.KEY_MISMATCH: "restore the key ring's files: a wrapped key is not its instance's",
    HoldCode.DESTINATION_ACCESS_DENIED: "allow this service to write to the bucket, and check its owner",
    HoldCode.DESTINATION_MISSING: "check the bucket's name and Region",
    HoldCode.DESTINATION_WRONG_KEY: "objects in the bucket are under another KMS key: re-encrypt them",
    HoldCode.DESTINATION_UNREACHABLE: "check the way to the bucket",
}
"""What a person can do about a hold. It then ends by itself."""
DECISION = (
    "decide: mend it, and all goes on by itself; or give up what is held, by `pipeline erase`. Until then nothing is"
    " dropped, and new recordings are refused"
)


class Held(Protocol):
    """What is known of a hold."""

    @property
    def scope(self) -> str: ...
    @property
    def code(self) -> HoldCode: ...
    @property
    def message(self) -> str: ...
    @property
    def inaccessible_since(self) -> datetime: ...
    @property
    def kms_key_arn(self) -> str | None: ...


def subject(hold: Held) -> str:
    """Name what is held."""
    if hold.code in KEY_CODES:
        whose = "" if hold.scope in {KEYS, SEALING} or hold.scope.startswith("key-") else f"{hold.scope} bucket's "
        return f"the {whose}KMS key {hold.kms_key_arn or '(not named)'}"
    return f"the bucket for {hold.scope}"


def safe(hold: Held) -> str:
    """Say what is safe, and what happens meanwhile."""
    if hold.scope == KEYS:
        return "what is sealed here is safe and waits; new recordings are refused with 503"
    if hold.scope == SEALING:
        return "what is sealed here is safe and is being delivered; new recordings are refused with 503"
    if hold.scope.startswith("key-"):
        return "what is sealed under that data key is safe and waits; everything else goes on"
    return "recordings of that kind are taken in, are safe here and wait; everything else goes on"


def action(hold: Held, instance: Instance | None = None) -> str:
    """Give the one thing that mends it."""
    is_data_key = hold.scope in {KEYS, SEALING}
    if hold.code is not HoldCode.KEY_ACCESS_DENIED or instance is None or not is_data_key:
        return ACTIONS[hold.code]
    if instance.key_access is KeyAccess.GRANT:
        return f"grant this service the KMS key again: pipeline grants create {instance.alias}"
    return f"let the KMS key's policy permit what is printed by: pipeline policy show {instance.alias}"


def told(hold: Held, instance: Instance | None = None) -> str:
    """Tell all of it in one line."""
    since = hold.inaccessible_since.isoformat(timespec="seconds")
    return (
        f"{subject(hold)} {WHAT[hold.code]} ({hold.code}), since {since}; {safe(hold)}."
        f" To do: {action(hold, instance)}. It then goes on by itself, oldest first"
    )
