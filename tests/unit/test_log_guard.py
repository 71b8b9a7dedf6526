"""The guard over what tests log: it finds a secret wherever it stands in a record, and fails the test for it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import structlog
from structlog.testing import capture_logs

from pipeline.crypt.segments import DataKey
from pipeline.errors import RefuseError
from pipeline.ids import KeyId
from tests import markers
from tests.log_guard import WATCH, LogGuard, forms, guarded

SECRET = bytes(range(7, 39))
plain = logging.getLogger("pipeline.test")
log = structlog.get_logger()


@pytest.fixture
def watched() -> Iterator[LogGuard]:
    """Hear what a test says on purpose in the place of the guard that watches this test."""
    before = WATCH.guard
    running = guarded()
    yield next(running)
    with pytest.raises(pytest.fail.Exception, match="must not be logged"):
        next(running)
    WATCH.guard = before


def with_exception() -> None:
    log.error("refused", exc_info=RefuseError(f"not for {markers.CALLER}"))


def captured() -> None:
    with capture_logs():
        log.debug("call", name=markers.ATTRIBUTE)


SAYINGS: dict[str, Callable[[], None]] = {
    "message": lambda: plain.debug("call of %s" % markers.NUMBER),  # noqa: UP031
    "argument": lambda: plain.debug("call of %s", markers.NUMBER),
    "extra": lambda: plain.debug("call", extra={"caller": markers.CALLER}),
    "field": lambda: log.debug("call", body=markers.MEDIA + b"..."),
    "escaped": lambda: log.debug("call", name=markers.WORD.encode()),
    "exception": with_exception,
    "captured": captured,
}


@pytest.mark.parametrize("say", SAYINGS.values(), ids=SAYINGS)
def test_a_marker_is_found_wherever_it_stands(say: Callable[[], None], watched: LogGuard) -> None:
    say()
    assert watched.hits() != []


@pytest.mark.parametrize("form", [bytes, bytes.hex, repr])
def test_a_data_key_is_found_in_each_form(form: Callable[[bytes], object], watched: LogGuard) -> None:
    DataKey(KeyId(uuid4()), SECRET)
    log.debug("key", opened=form(SECRET))
    assert any("data key" in hit for hit in watched.hits())


def test_every_form_of_a_data_key_is_found_in_a_file_that_a_process_wrote(tmp_path: Path, watched: LogGuard) -> None:
    watched.learn(SECRET)
    for form in forms(SECRET):
        (tmp_path / "log").write_bytes(b"{" + form + b"}")
        watched.watch(tmp_path / "log")
        assert watched.hits() != []


def test_what_tells_nothing_is_no_hit() -> None:
    guard = LogGuard()
    guard.learn(SECRET)
    guard.learn(b"k" * 32)  # of a test, not made
    guard.hear("intake.sealed", "k" * 32, str(uuid4()))
    assert guard.hits() == []
