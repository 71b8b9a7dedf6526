"""Watches what is logged while a test runs, at DEBUG: nothing that is secret or personal may be in it.

Watched are the records of this process, whatever becomes of them: name and fields of an event, message, arguments,
extra members, and the text of our own exceptions; and the logs of services that a test runs as processes. Searched for
are the markers that tests send, and every data key of this process, in each form that a log may give them. What moto
says of its requests is none of ours.
"""

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline import logs
from pipeline.crypt.segments import DataKey
from pipeline.errors import PipelineError
from tests.markers import all_markers

_OTHERS = ("werkzeug", "moto", "hypothesis")
_PLAIN = frozenset(vars(logging.makeLogRecord({})))
_RANDOM = 16
"""A key with fewer different bytes was written down by a test, not made."""


def forms(secret: bytes) -> Iterator[bytes]:
    """Give a secret as it may be written: raw, hex, base64 at any offset, as Python, JSON and a URL show it."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield repr(secret)[2:-1].encode()
    yield repr(secret)[2:-1].replace("\\", "\\\\").encode()  # shown, and then shown in something else
    yield json.dumps(secret.decode("latin-1" if not _is_text(secret) else "utf-8"))[1:-1].encode()
    yield secret.replace(b"+", b"%2B").replace(b" ", b"%20")
    for shift in range(3):
        # The first and the last four letters also depend on what stands before and behind it.
        yield base64.b64encode(b"\0" * shift + secret)[4:-4]


def _is_text(secret: bytes) -> bool:
    try:
        secret.decode()
    except UnicodeDecodeError:
        return False
    return True


def found(secret: bytes, said: bytes) -> list[bytes]:
    """Give the forms in which a secret was said."""
    return [form for form in forms(secret) if form in said]


MARKERS = {form: marker for marker in all_markers() for form in forms(marker)}
"""By form: the marker it is of."""


class LogGuard:
    """What was said during one test, and what must not be in it."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._files: list[Path] = []
        self._keys: set[bytes] = set()
        """Backwards: others look for keys that are left in memory."""

    def hear(self, *parts: object) -> None:
        """Take what is logged."""
        self._said.add(" ".join(map(str, parts)))

    def watch(self, file: Path) -> None:
        """Read a file, too, at the end."""
        self._files.append(file)

    def learn(self, secret: bytes) -> None:
        """Look for a data key."""
        if len(set(secret)) >= _RANDOM:
            self._keys.add(secret[::-1])

    def hits(self) -> list[str]:
        """Tell what was said that must not be."""
        said = "\n".join(self._said).encode(errors="surrogateescape")
        said += b"".join(file.read_bytes() for file in self._files if file.exists())
        told = [f"the marker {marker!r} as {form!r}" for form, marker in MARKERS.items() if form in said]
        return told + [f"a data key as {form!r}" for key in self._keys for form in found(key[::-1], said)]


class _Watch:
    """Who hears now; one for the process."""

    def __init__(self) -> None:
        self.guard: LogGuard | None = None

    def record(self, record: logging.LogRecord) -> None:
        """Hear a record of the standard library."""
        if self.guard is None or record.name.partition(".")[0] in _OTHERS:
            return
        more = {name: value for name, value in vars(record).items() if name not in _PLAIN}
        self.guard.hear(record.name, repr(record.msg), repr(record.args), repr(more), *_told(record.exc_info))

    def event(self, _logger: Any, _method: str, event: Any) -> Any:
        """Hear an event; a processor of structlog."""
        if self.guard is not None:
            self.guard.hear(repr(event), *_told(event.get("exc_info")))
        return event


WATCH = _Watch()


def _told(given: Any) -> list[str]:
    """Give what our own exceptions say: what others say is not logged (`logs._structured_exception`)."""
    error = given[1] if isinstance(given, tuple) else given
    told = []
    while isinstance(error, BaseException):
        if isinstance(error, PipelineError):
            told.append(str(error))
        error = error.__cause__ or error.__context__
    return told


def install() -> None:
    """Have every record and every data key of this process told to `WATCH`."""
    handle, capture, made = logging.Logger.handle, structlog.testing.LogCapture.__call__, DataKey.__init__

    def told(logger: logging.Logger, record: logging.LogRecord) -> None:
        WATCH.record(record)
        handle(logger, record)

    def captured(self: Any, logger: Any, method: str, event: Any) -> Any:
        WATCH.event(logger, method, event)
        return capture(self, logger, method, event)

    def learnt(self: DataKey, key_id: Any, secret: bytes) -> None:
        if WATCH.guard is not None:
            WATCH.guard.learn(secret)
        made(self, key_id, secret)

    logging.Logger.handle = told  # type: ignore[method-assign, assignment]
    structlog.testing.LogCapture.__call__ = captured  # type: ignore[method-assign, assignment]
    DataKey.__init__ = learnt  # type: ignore[method-assign]


def _hears_all() -> bool:
    """Tell whether everything is logged as the service does at DEBUG; a test may have changed that."""
    levels = {logging.getLogger(name).level for name in logs.PINNED}
    routed = logging.getLogger(logs._ACCESS).disabled and not any(
        logging.getLogger(name).handlers for name in logs._SERVER
    )
    return logging.getLogger().level == logging.DEBUG and levels == {logging.INFO} and routed


def guarded() -> Iterator[LogGuard]:
    """Watch what is logged, at DEBUG, until this is gone on with; then fail if something was said."""
    if not _hears_all():  # setting a level makes every logger ask for its own anew
        logging.getLogger().setLevel(logging.DEBUG)
        logs._route_libraries(logging.DEBUG)  # as the service does
    processors = structlog.get_config()["processors"]
    if WATCH.event not in processors:
        structlog.configure(processors=[WATCH.event, *processors])
    WATCH.guard = guard = LogGuard()
    try:
        yield guard
    finally:
        WATCH.guard = None
    if hits := guard.hits():
        pytest.fail("what must not be logged was: " + "; ".join(hits), pytrace=False)
