"""The status of a recording, and the event that tells it. No I/O, no clock.

The four words, and the shape of the event, are those of Amazon Connect's "Screen Recording Status Changed"; here they
serve voice, screen and chat alike. Waiting is not a status: a sealed recording whose instance is held stays COMPLETED,
with `heldReason`. The same change told twice carries the same `eventDeduplicationId`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import uuid5

import msgspec

from pipeline.errors import HoldCode
from pipeline.ids import Kind, RecordingId
from pipeline.instances import Instance

DETAIL_TYPE = "Recording Status Changed"
SOURCE = "pipeline.recordings"
"""EventBridge keeps sources that begin with `aws.` for itself."""


class Status(StrEnum):
    """How far a recording has come."""

    INITIATED = "INITIATED"
    """Expected, or begun."""
    COMPLETED = "COMPLETED"
    """Its source ended; sealed and durable here, not delivered."""
    PUBLISHED = "PUBLISHED"
    """In the instance's bucket, proven."""
    FAILED = "FAILED"
    """No further move without a person; what bytes there are stay held."""


class FailureCode(StrEnum):
    """Why a recording failed."""

    CLIENT_LOCAL_NETWORK_ACCESS_BLOCKED = "CLIENT_LOCAL_NETWORK_ACCESS_BLOCKED"
    CLIENT_APP_NOT_RUNNING = "CLIENT_APP_NOT_RUNNING"
    CLIENT_UNSUPPORTED_OS = "CLIENT_UNSUPPORTED_OS"
    CLIENT_AUTH_ERROR = "CLIENT_AUTH_ERROR"
    CLIENT_CONNECTION_ERROR = "CLIENT_CONNECTION_ERROR"
    MULTIPLE_CCP_INTERACTION = "MULTIPLE_CCP_INTERACTION"
    USER_ERROR = "USER_ERROR"
    SERVICE_ISSUE = "SERVICE_ISSUE"
    UNKNOWN = "UNKNOWN"
    SOURCE_MISSING = "SOURCE_MISSING"
    """Expected, and nothing came before the deadline."""
    SOURCE_REJECTED = "SOURCE_REJECTED"
    """Refused at intake: no bytes are held."""
    INTEGRITY = "INTEGRITY"
    """A segment does not authenticate."""
    STORE_IO = "STORE_IO"
    KEY_LOST = "KEY_LOST"
    """The KMS key was deleted."""
    DESTINATION_CONFLICT = "DESTINATION_CONFLICT"
    DESTINATION_REFUSED = "DESTINATION_REFUSED"
    ERASED = "ERASED"
    """Removed on request."""

    @classmethod
    def of_reason(cls, reason: str) -> "FailureCode":
        """Give the code of an error's `reason`, or of the ending of a poisoned artifact's name."""
        code = reason.upper().replace("-", "_")
        return cls.__members__.get(code, cls.UNKNOWN)

    @property
    def source(self) -> str:
        """Whose failure it is, as `failureInfo.source` says it."""
        return _SOURCES.get(self, "CLIENT")


_SOURCES: Mapping[FailureCode, str] = {
    FailureCode.SERVICE_ISSUE: "SERVICE",
    FailureCode.UNKNOWN: "UNKNOWN",
    FailureCode.SOURCE_MISSING: "SOURCE",
    FailureCode.SOURCE_REJECTED: "SOURCE",
    FailureCode.INTEGRITY: "STORE",
    FailureCode.STORE_IO: "STORE",
    FailureCode.KEY_LOST: "KEY",
    FailureCode.DESTINATION_CONFLICT: "DESTINATION",
    FailureCode.DESTINATION_REFUSED: "DESTINATION",
    FailureCode.ERASED: "OPERATOR",
}


class Quality(StrEnum):
    """What is odd about a recording. Never stops delivery, never counts as success."""

    SUSPECT_EMPTY = "SUSPECT_EMPTY"
    SUSPECT_SHORT = "SUSPECT_SHORT"
    SUSPECT_SILENT = "SUSPECT_SILENT"
    """A channel without a sound from beginning to end."""
    SUSPECT_FORMAT = "SUSPECT_FORMAT"
    SUSPECT_NO_MOOV = "SUSPECT_NO_MOOV"
    """An MP4 without its index."""
    RECOVERED = "RECOVERED"
    """Sealed after a crash, or because its source fell silent."""
    GAPS = "GAPS"
    PAUSED = "PAUSED"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a recording; each status tells the part of it that is its own."""

    start: datetime | None = None
    end: datetime | None = None
    published: datetime | None = None
    location: str | None = None
    """`s3://bucket/key`."""
    size_bytes: int | None = None

    @property
    def duration(self) -> timedelta | None:
        """Time from start to end, where both are known."""
        return self.end - self.start if self.start and self.end else None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why, for `FAILED`. The message repeats nothing of anybody's data."""

    code: FailureCode
    message: str


_TELLS: Mapping[Status, frozenset[str]] = {
    Status.INITIATED: frozenset(),
    Status.COMPLETED: frozenset({"startTime", "endTime"}),
    Status.PUBLISHED: frozenset({"startTime", "endTime", "publishTime", "location", "durationInMillis", "sizeInBytes"}),
    Status.FAILED: frozenset({"startTime"}),
}
"""The members of `recordingInfo` that each status has, as Amazon Connect's event has them."""


def resource_arn(instance: Instance, contact: str) -> str:
    """Give the ARN of a contact. `contact` is the id as object keys carry it: events hold no personal data."""
    return f"{instance.arn}/contact/{contact}"


def status_event(
    *,
    instance: Instance,
    contact: str,
    kind: Kind,
    recording_id: RecordingId,
    generation: int,
    sequence: int,
    status: Status,
    time: datetime,
    facts: Facts,
    quality: Sequence[Quality] = (),
    held: HoldCode | None = None,
    failure: Failure | None = None,
) -> bytes:
    """Make the event: one line of JSON without its line feed. What is unknown is left out.

    Args:
        instance: whose recording it is.
        contact: as `resource_arn` wants it.
        kind: voice, screen or chat.
        recording_id: the recording.
        generation: which of its generations.
        sequence: counts the artifact's status events from 1.
        status: what became true.
        time: when, aware.
        facts: all that is known; only what belongs to `status` is told.
        quality: flags, told in the order of `Quality`.
        held: why delivery waits; told with `COMPLETED` only.
        failure: told with `FAILED`, and needed there.

    """
    deduplication_id = uuid5(recording_id, f"{generation}/{status}/{sequence}")
    detail: dict[str, Any] = {
        "version": "1.0",
        "recordingKind": kind,
        "recordingStatus": status,
        "eventDeduplicationId": deduplication_id,
        "sequence": sequence,
        "instanceArn": instance.arn,
        "recordingId": recording_id,
        "generation": generation,
        "quality": [flag for flag in Quality if flag in quality] if quality else [],
        "heldReason": held if status is Status.COMPLETED else None,
        "recordingInfo": _recording_info(facts, _TELLS[status]),
        "failureInfo": _failure_info(failure) if status is Status.FAILED else None,
    }
    return msgspec.json.encode(
        {
            "version": "0",
            "id": uuid5(deduplication_id, _milliseconds(time)),
            "detail-type": DETAIL_TYPE,
            "source": SOURCE,
            "account": instance.account_id,
            "time": _seconds(time),
            "region": instance.region,
            "resources": [resource_arn(instance, contact)],
            "detail": {name: value for name, value in detail.items() if value not in (None, [], {})},
        }
    )


def _recording_info(facts: Facts, told: frozenset[str]) -> dict[str, str | int]:
    duration = facts.duration
    info: dict[str, str | int | None] = {
        "startTime": _milliseconds(facts.start) if facts.start else None,
        "endTime": _milliseconds(facts.end) if facts.end else None,
        "publishTime": _milliseconds(facts.published) if facts.published else None,
        "location": facts.location,
        "durationInMillis": None if duration is None else max(0, round(duration.total_seconds() * 1000)),
        "sizeInBytes": facts.size_bytes,
    }
    return {name: value for name, value in info.items() if name in told and value is not None}


def _failure_info(failure: Failure | None) -> dict[str, str]:
    known = failure or Failure(FailureCode.UNKNOWN, "the reason is not known")
    return {"code": known.code, "message": known.message, "source": known.code.source}


def _seconds(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _milliseconds(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
