"""Audit records in CloudTrail's shape, as JSON lines. Pure.

Field names follow the CloudTrail record contents reference; `eventSource` tells a call to KMS
(`kms.amazonaws.com`) from a move of ours (`pipeline.recordings`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec

from pipeline.keyports import KmsCall

_EVENT_VERSION = "1.11"
_READ_ONLY = frozenset({"GenerateDataKey", "Encrypt", "Decrypt", "DescribeKey", "ListGrants", "ReEncrypt"})


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: the service, or a command run by a person."""

    kind: str
    """`Service` or `Command`."""
    name: str
    """Principal ARN or user name of the operating system."""


def kms_call(call: KmsCall, *, actor: Actor, account_id: str, region: str, now: datetime) -> bytes:
    """Record one call to the key service, successful or not."""
    parameters: dict[str, Any] = dict(call.asked)
    for side, arn in _sides(call):
        parameters[f"{side}KeyId" if side else "keyId"] = arn
        if call.context:
            parameters[f"{side}EncryptionContext" if side else "encryptionContext"] = dict(call.context)
    if call.name == "GenerateDataKey":
        parameters["keySpec"] = "AES_256"
    if call.name == "Decrypt":
        parameters["encryptionAlgorithm"] = "SYMMETRIC_DEFAULT"
    record = _common(actor, now) | {
        "eventID": uuid4(),
        "eventSource": "kms.amazonaws.com",
        "eventName": call.name,
        "awsRegion": region,
        "requestParameters": parameters,
        "responseElements": None if call.grant_id is None else {"grantId": call.grant_id, "keyId": call.key_arn},
        "requestID": call.request_id,
        "readOnly": call.name in _READ_ONLY,
        "resources": [
            {"accountId": account_id, "type": "AWS::KMS::Key", "ARN": arn}
            for arn in (call.source_arn, call.resource_arn)
            if arn is not None
        ],
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "recipientAccountId": account_id,
        "eventCategory": "Management",
    }
    if call.error_code is not None:
        record |= {"errorCode": call.error_code, "errorMessage": call.error_message}
    return msgspec.json.encode(record)


def _sides(call: KmsCall) -> list[tuple[str, str]]:
    """Name the keys of a request; ReEncrypt has two."""
    if call.source_arn is None:
        return [("", call.key_arn)]
    return [("source", call.source_arn), ("destination", call.key_arn)]


def move(name: str, details: Mapping[str, Any], *, actor: Actor, now: datetime) -> bytes:
    """Record one move of an artifact, or one change of configuration: `name` is a verb phrase in CamelCase."""
    return _own(name, details, _common(actor, now))


def about_log(name: str, details: Mapping[str, Any], *, like: bytes) -> bytes:
    """Record something about a log itself, by the actor and at the time of another record."""
    known = msgspec.json.decode(like)
    return _own(name, details, {each: known[each] for each in ("eventVersion", "userIdentity", "eventTime")})


def _own(name: str, details: Mapping[str, Any], common: Mapping[str, Any]) -> bytes:
    record = {
        **common,
        "eventID": uuid4(),
        "eventSource": "pipeline.recordings",
        "eventName": name,
        "requestParameters": dict(details),
        "readOnly": False,
        "eventType": "PipelineEvent",
        "managementEvent": False,
        "eventCategory": "Data",
    }
    return msgspec.json.encode(record)


def hour_of(now: datetime) -> str:
    """Name the hour that a record is appended in."""
    return f"{now:%Y-%m-%dT%H}"


def _common(actor: Actor, now: datetime) -> dict[str, Any]:
    return {
        "eventVersion": _EVENT_VERSION,
        "userIdentity": {"type": actor.kind, "arn": actor.name},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
