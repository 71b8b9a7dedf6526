"""S-23, S-45: text from outside, whatever it is, forges no screen, no log line and no object key."""

import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from pipeline import logs
from pipeline.delivery.naming import object_keys
from pipeline.errors import RefuseError
from pipeline.ids import InstanceId, RecordingId
from pipeline.instances import Storage
from pipeline.intake.contacts import object_contact
from pipeline.settings import LogSettings
from pipeline.terminal import escaped

HOSTILE = [
    "line\r\nfeed",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u2028\u2029\x85",
    "\u202eright to left",
    "back\x08space\x7f",
    "../../etc/passwd",
    "..",
    ".",
    "%2e%2e%2f",
    "%00",
    "a\0b",
    "a//b",
    "/absolute",
    "+49 151 0000000",
    "x" * 3000,
    "é" * 700,
]
KEY = re.compile(r"[A-Za-z0-9._=:/-]+")
INSTANCE = InstanceId(UUID(int=7))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(each) in {"Cc", "Zl", "Zp"} for each in text)


@given(st.text() | st.sampled_from(HOSTILE))
def test_no_text_moves_a_terminals_cursor(text: str) -> None:
    assert is_harmless(escaped(text))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", ["json", "text"])
def test_no_text_in_any_field_of_a_log_event_makes_a_line_or_moves_a_cursor(text: str, form: str) -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(format=form), stream)
    structlog.get_logger().warning("intake.refused", contact=text, k=text)
    logging.getLogger("other").warning("said %s", text)
    said = stream.getvalue()
    assert said.count("\n") == 2
    assert all(is_harmless(line) for line in said.removesuffix("\n").split("\n"))
    if form == "json":
        assert json.loads(said.split("\n")[0])["contact"] == text


@given(st.text(min_size=1) | st.sampled_from(HOSTILE), st.text() | st.sampled_from(HOSTILE))
def test_no_text_leads_a_key_out_of_its_prefix(contact: str, prefix: str) -> None:
    """A contact of any name has a key; a prefix that would not do is refused."""
    safe, _ = object_contact(contact, INSTANCE)
    for given_prefix in ("connect/acme", prefix):
        storage = Storage(
            association_id="a", bucket="b", prefix=given_prefix, kms_key_arn="arn", bucket_owner="111122223333"
        )
        try:
            keys = object_keys(
                storage=storage,
                contact=safe,
                stamp=datetime(2026, 11, 23, tzinfo=UTC),
                recording_id=RecordingId(UUID(int=1)),
                generation=1,
                extension="wav",
            )
        except RefuseError:
            assert given_prefix == prefix
            continue
        for key in keys:
            assert KEY.fullmatch(key)
            assert len(key.encode()) <= 1024
            assert not {"", ".", ".."} & set(key.split("/"))
            assert key.startswith(f"{given_prefix}/")
