"""The event that tells a recording's status."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid5

import pytest

from pipeline.errors import DestinationConflictError, HoldCode, SegmentForgedError
from pipeline.ids import InstanceId, Kind, RecordingId
from pipeline.instances import Instance
from pipeline.status import Facts, Failure, FailureCode, Quality, Status, resource_arn, status_event

INSTANCE = Instance(
    instance_id=InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001")),
    alias="acme",
    account_id="111122223333",
    region="eu-central-1",
    kms_key_arn="arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000002",
)
RECORDING = RecordingId(UUID("01a208b9-9dc0-7e08-9d5a-3f1c8e2b6a90"))
CONTACT = "cccc3333-0000-4000-8000-000000000003"
LOCATION = f"s3://acme-recordings/connect/acme/CallRecordings/2026/11/23/{CONTACT}_20261123T14:05_UTC.wav"
FACTS = Facts(
    start=datetime(2026, 11, 23, 14, 5, 12, tzinfo=UTC),
    end=datetime(2026, 11, 23, 14, 20, 59, 480_000, tzinfo=UTC),
    published=datetime(2026, 11, 23, 14, 21, 39, 870_000, tzinfo=UTC),
    location=LOCATION,
    size_bytes=30_319_404,
)


def line(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "instance": INSTANCE,
        "contact": CONTACT,
        "kind": Kind.VOICE,
        "recording_id": RECORDING,
        "generation": 1,
        "sequence": 3,
        "status": Status.PUBLISHED,
        "time": datetime(2026, 11, 23, 14, 21, 40, 5_000, tzinfo=UTC),
        "facts": FACTS,
        "quality": (Quality.RECOVERED,),
    }
    return status_event(**{**arguments, **changes})


def detail(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line(**changes))["detail"]
    return found


def test_a_published_recording_is_told_in_full() -> None:
    instance_arn = "arn:aws:connect:eu-central-1:111122223333:instance/aaaa1111-0000-4000-8000-000000000001"
    deduplication_id = uuid5(RECORDING, "1/PUBLISHED/3")
    assert json.loads(line()) == {
        "version": "0",
        "id": str(uuid5(deduplication_id, "2026-11-23T14:21:40.005Z")),
        "detail-type": "Recording Status Changed",
        "source": "pipeline.recordings",
        "account": "111122223333",
        "time": "2026-11-23T14:21:40Z",
        "region": "eu-central-1",
        "resources": [f"{instance_arn}/contact/{CONTACT}"],
        "detail": {
            "version": "1.0",
            "recordingKind": "voice",
            "recordingStatus": "PUBLISHED",
            "eventDeduplicationId": str(deduplication_id),
            "sequence": 3,
            "instanceArn": instance_arn,
            "recordingId": "01a208b9-9dc0-7e08-9d5a-3f1c8e2b6a90",
            "generation": 1,
            "quality": ["RECOVERED"],
            "recordingInfo": {
                "startTime": "2026-11-23T14:05:12.000Z",
                "endTime": "2026-11-23T14:20:59.480Z",
                "publishTime": "2026-11-23T14:21:39.870Z",
                "location": LOCATION,
                "durationInMillis": 947_480,
                "sizeInBytes": 30_319_404,
            },
        },
    }


def test_an_event_is_one_compact_line() -> None:
    failure = Failure(FailureCode.UNKNOWN, "two\nlines")
    written = line(status=Status.FAILED, failure=failure)
    assert b"\n" not in written
    assert b'":"' in written
    assert b'": ' not in written


@pytest.mark.parametrize(
    ("status", "members"),
    [
        (Status.INITIATED, None),
        (Status.COMPLETED, {"startTime", "endTime"}),
        (
            Status.PUBLISHED,
            {"startTime", "endTime", "publishTime", "location", "durationInMillis", "sizeInBytes"},
        ),
        (Status.FAILED, {"startTime"}),
    ],
)
def test_each_status_tells_its_own_part(status: Status, members: set[str] | None) -> None:
    info = detail(status=status).get("recordingInfo")
    assert (None if info is None else set(info)) == members


def test_what_is_unknown_is_left_out() -> None:
    told = detail(facts=Facts(size_bytes=0, published=FACTS.published), quality=())
    assert told["recordingInfo"] == {"publishTime": "2026-11-23T14:21:39.870Z", "sizeInBytes": 0}
    assert {"quality", "failureInfo", "heldReason"}.isdisjoint(told)


def test_a_failure_names_code_message_and_source() -> None:
    failure = Failure(FailureCode.DESTINATION_CONFLICT, "another object holds both keys")
    assert detail(status=Status.FAILED, failure=failure)["failureInfo"] == {
        "code": "DESTINATION_CONFLICT",
        "message": "another object holds both keys",
        "source": "DESTINATION",
    }
    assert detail(status=Status.FAILED)["failureInfo"]["code"] == "UNKNOWN"
    assert "failureInfo" not in detail(failure=failure)


def test_waiting_is_told_with_completed_only() -> None:
    assert detail(status=Status.COMPLETED, held=HoldCode.KEY_DISABLED)["heldReason"] == "KEY_DISABLED"
    assert "heldReason" not in detail(status=Status.PUBLISHED, held=HoldCode.KEY_DISABLED)


def test_flags_have_one_order_and_stand_once() -> None:
    flags = (Quality.PAUSED, Quality.SUSPECT_EMPTY, Quality.PAUSED)
    assert detail(quality=flags)["quality"] == ["SUSPECT_EMPTY", "PAUSED"]


def test_the_same_change_told_later_is_recognisable() -> None:
    first, later = json.loads(line()), json.loads(line(time=datetime(2026, 11, 24, tzinfo=UTC)))
    assert first["detail"]["eventDeduplicationId"] == later["detail"]["eventDeduplicationId"]
    assert first["id"] != later["id"]
    assert line() == line()


@pytest.mark.parametrize(
    "other",
    [
        {"recording_id": RecordingId(UUID(int=1))},
        {"generation": 2},
        {"sequence": 4},
        {"status": Status.COMPLETED},
    ],
)
def test_another_change_has_another_deduplication_id(other: dict[str, Any]) -> None:
    assert detail(**other)["eventDeduplicationId"] != detail()["eventDeduplicationId"]


def test_times_of_any_zone_are_told_in_utc() -> None:
    local = datetime(2026, 11, 23, 15, 21, 40, tzinfo=timezone(timedelta(hours=1)))
    assert json.loads(line(time=local))["time"] == "2026-11-23T14:21:40Z"


def test_a_duration_is_never_negative() -> None:
    backwards = Facts(start=FACTS.end, end=FACTS.start)
    assert detail(facts=backwards)["recordingInfo"]["durationInMillis"] == 0


def test_a_contact_has_an_arn() -> None:
    assert resource_arn(INSTANCE, "c-1") == f"{INSTANCE.arn}/contact/c-1"


def test_the_reason_of_an_error_gives_its_code() -> None:
    assert FailureCode.of_reason(SegmentForgedError.reason) is FailureCode.INTEGRITY
    assert FailureCode.of_reason(DestinationConflictError.reason) is FailureCode.DESTINATION_CONFLICT
    assert FailureCode.of_reason("never heard of") is FailureCode.UNKNOWN


@pytest.mark.parametrize(
    ("code", "source"),
    [
        (FailureCode.CLIENT_UNSUPPORTED_OS, "CLIENT"),
        (FailureCode.MULTIPLE_CCP_INTERACTION, "CLIENT"),
        (FailureCode.SERVICE_ISSUE, "SERVICE"),
        (FailureCode.SOURCE_MISSING, "SOURCE"),
        (FailureCode.STORE_IO, "STORE"),
        (FailureCode.KEY_LOST, "KEY"),
        (FailureCode.ERASED, "OPERATOR"),
    ],
)
def test_a_code_says_whose_failure_it_is(code: FailureCode, source: str) -> None:
    assert code.source == source
