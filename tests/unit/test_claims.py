from datetime import UTC, datetime
from uuid import UUID

import pytest
from starlette.datastructures import Headers

from pipeline.errors import RefuseError
from pipeline.ids import InstanceId, Kind
from pipeline.intake.address import Address
from pipeline.intake.claims import Claims, read_claims

ADDRESS = Address(InstanceId(UUID(int=1)), "contact", Kind.VOICE, "contact/voice")


def claims(**headers: str) -> Claims:
    return read_claims(Headers({name.replace("_", "-"): value for name, value in headers.items()}), ADDRESS)


def test_without_headers_the_path_is_the_source() -> None:
    found = claims()
    assert (found.source.source_id, found.source.contact, found.source.kind) == ("contact/voice", "contact", Kind.VOICE)
    assert (found.size_bytes, found.sha256, found.resumes_at) == (None, None, None)
    assert (found.source.started, found.source.ended, dict(found.source.metadata)) == (None, None, {})


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T14:05:12Z",
        "2026-11-23T14:05:12",
        "2026-11-23T15:05:12+01:00",
        "2026-11-23T14:05:12.000000+00:00",
        "1795442712",
        "1795442712.000000",
    ],
)
def test_times_come_as_iso_or_as_unix_seconds(text: str) -> None:
    assert claims(x_recording_start=text).source.started == datetime(2026, 11, 23, 14, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "now", "nan", "inf", "-5", "1e9", "2026-13-01T00:00:00Z", "9" * 12])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(RefuseError) as refused:
        claims(x_recording_end=text)
    assert refused.value.field == "X-Recording-End"


@pytest.mark.parametrize(
    ("text", "offset"),
    [("bytes 0-9/*", 0), ("bytes 100-/*", 100), (" bytes 7-9/10 ", 7), ("bytes 999999999999999-/*", 10**15 - 1)],
)
def test_a_resumed_body_says_where_it_goes_on(text: str, offset: int) -> None:
    assert claims(content_range=text).resumes_at == offset


@pytest.mark.parametrize(
    "text", ["bytes */10", "bytes 0-9", "bytes a-b/*", "0-9/*", "bytes 0-4/10", "bytes 5-/10", "bytes ²-/*"]
)
def test_another_range_is_refused(text: str) -> None:
    with pytest.raises(RefuseError) as refused:
        claims(content_range=text)
    assert refused.value.field == "Content-Range"


def test_what_the_source_says_is_kept_as_it_came() -> None:
    found = claims(x_recording_completion_cause="success", x_recording_call_id="a@b", other="not kept")
    assert found.source.metadata == {"x-recording-completion-cause": "success", "x-recording-call-id": "a@b"}
