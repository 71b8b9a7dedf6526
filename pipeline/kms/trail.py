"""The record of every call, in CloudTrail's shape: one JSON line each, one file per UTC day.

A record is handed to the operating system before its call is answered, and synced to the disk at least every second.
It holds no key, no plaintext, no ciphertext and no grant token. If it can't be written, the call fails.
Source: AWS CloudTrail User Guide, "CloudTrail record contents"; AWS KMS Developer Guide, "Logging AWS KMS API calls".
"""

import os
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from pipeline.kms.access import Call
from pipeline.kms.asks import Ask
from pipeline.kms.principals import Identity
from pipeline.kms.refusal import KmsRefusalError
from pipeline.kms.rootkey import sync_directory

_SECRET = frozenset({"plaintext", "ciphertext_blob", "grant_tokens", "grant_token"})
_AGENT = 256
_ENCODER = msgspec.json.Encoder()


class Trail:
    """The files below one directory. Written by one thread; `unsynced` hands out what another may sync."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(directory.parent)
        self._directory = directory
        self._day: date | None = None
        self._file = -1
        self._torn = False
        self._dirty = False

    def write(self, record: dict[str, Any], at: datetime) -> None:
        """Append a record.

        Raises: OSError if the record was not taken whole.
        """
        if self._day != at.date():
            self._open(at.date())
        line = _ENCODER.encode(record) + b"\n"
        if self._torn:
            line = b"\n" + line
        self._dirty = True
        self._torn = True
        written = os.write(self._file, line)
        if written < len(line):
            # A second attempt tells why: it fails, or the disk took a pause.
            written += os.write(self._file, line[written:])
        if written < len(line):
            raise OSError("a trail record was cut")
        self._torn = False

    def unsynced(self) -> int | None:
        """Give a descriptor to sync and close, if something was written since the last time."""
        if not self._dirty:
            return None
        self._dirty = False
        return os.dup(self._file)

    def close(self) -> None:
        """Sync and close."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def _open(self, day: date) -> None:
        self.close()
        path = self._directory / f"{day.isoformat()}.jsonl"
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._file).st_size
        # A crash may have cut the last line: what follows starts on a line of its own.
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        sync_directory(self._directory)
        self._day = day


def sync_descriptor(descriptor: int) -> None:
    """Sync what `Trail.unsynced` gave."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def record_of(
    *,
    operation: str | None,
    read_only: bool,
    call: Call | None,
    ask: Ask | None,
    refusal: KmsRefusalError | None,
    request_id: str,
    source: str,
    agent: str,
    region: str,
    at: datetime,
) -> dict[str, Any]:
    """Make the record of one call.

    Args:
        operation: None if the caller named none that exists.
        call: None if the caller could not be told.
        ask: None if the request could not be read.
    """
    caller = None if call is None else call.caller
    record: dict[str, Any] = {
        "eventVersion": "1.11",
        "userIdentity": _user_identity(caller),
        "eventTime": at.replace(microsecond=0, tzinfo=None).isoformat() + "Z",
        "eventSource": "kms.amazonaws.com",
        "eventName": operation or "UnknownOperation",
        "awsRegion": region,
        "sourceIPAddress": source,
        "userAgent": agent[:_AGENT],
        "requestParameters": None if operation == "RetireGrant" or ask is None else _parameters(ask),
        "responseElements": call.response if call is not None and refusal is None else None,
        "requestID": request_id,
        "eventID": str(uuid4()),
        "readOnly": read_only,
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "eventCategory": "Management",
    }
    if refusal is not None:
        record |= {"errorCode": refusal.code, "errorMessage": refusal.message}
    if call is not None:
        record |= _resources(call)
    return record


def _resources(call: Call) -> dict[str, Any]:
    about: dict[str, Any] = {"recipientAccountId": call.caller.account_id}
    if call.resources:
        about["resources"] = [
            {"accountId": key.account_id, "type": "AWS::KMS::Key", "ARN": key.arn} for key in call.resources
        ]
    if call.additional:
        about["additionalEventData"] = call.additional
    if any(key.account_id != call.caller.account_id for key in call.resources):
        about["sharedEventID"] = str(uuid4())
    return about


def _user_identity(caller: Identity | None) -> dict[str, Any]:
    if caller is None:
        return {"type": "Unknown"}
    kinds = {"root": "Root", "user": "IAMUser", "role": "Role", "assumed-role": "AssumedRole"}
    kind = caller.principal.split(":")[5].split("/")[0]
    identity = {
        "type": kinds.get(kind, "FederatedUser"),
        "arn": caller.principal,
        "accountId": caller.account_id,
        "accessKeyId": caller.access_key,
    }
    if caller.via_service is not None:
        identity["invokedBy"] = caller.via_service
    return identity


def _parameters(ask: Ask) -> dict[str, Any]:
    fields = ((name, getattr(ask, name)) for name in ask.__struct_fields__ if name not in _SECRET)
    shown = {_camel(name): value for name, value in fields if value is not None}
    if "ciphertext_blob" in ask.__struct_fields__ or "plaintext" in ask.__struct_fields__:
        names = [name for name in ask.__struct_fields__ if name.endswith("encryption_algorithm")]
        shown |= {_camel(name): getattr(ask, name) or "SYMMETRIC_DEFAULT" for name in names}
    return {name: _parameters(value) if isinstance(value, Ask) else value for name, value in shown.items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
