"""Logging to one stream: one JSON line for each event, or text at a terminal.

An event is a name and fields. No line holds the locals of a traceback, the message of an exception that is not ours,
or a control character that could forge a line or a screen. Libraries that print keys at DEBUG stay at INFO or above.
A stream that does not take its lines stops nobody: see `logsink`.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePath
from traceback import walk_tb
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from pipeline.errors import PipelineError
from pipeline.logsink import LogSink
from pipeline.settings import LogSettings
from pipeline.terminal import escaped

PINNED = ("aiobotocore", "aiohttp", "boto3", "botocore", "urllib3")
"""At DEBUG these print whole answers of services, plaintext data keys among them."""
_SERVER = ("uvicorn", "uvicorn.error", "uvicorn.asgi")
_ACCESS = "uvicorn.access"
_FRAMES = 40
_LEVEL_WIDTH = 8


def configure(settings: LogSettings, stream: TextIO) -> None:
    """Send everything that is logged in this process to `stream`; may be called again."""
    text = stream.isatty() if settings.format == "auto" else settings.format == "text"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _structured_exception,
    ]
    render: Processor = _as_text if text else structlog.processors.JSONRenderer(default=str)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[_from_elsewhere, structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        foreign_pre_chain=shared,
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = _handler(stream, text=text)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for before in root.handlers:
        if isinstance(before, LogSink):
            before.close()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    _route_libraries(root.level)


def dropped() -> int:
    """Tell how many lines were lost because the stream did not take them."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogSink))


def _handler(stream: TextIO, *, text: bool) -> logging.Handler:
    """Write to a stream's descriptor; to the stream itself if it has none, being memory."""
    try:
        descriptor = stream.fileno()
    except OSError:
        return logging.StreamHandler(stream)
    return LogSink(descriptor, partial(_dropped_line, text))


def _dropped_line(text: bool, count: int) -> str:
    event: EventDict = {
        "event": "log.dropped",
        "lines": count,
        "level": "warning",
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    return _as_text(None, "", event) if text else json.dumps(event)


def _route_libraries(level: int) -> None:
    for name in PINNED:
        logging.getLogger(name).setLevel(max(level, logging.INFO))
    for name in _SERVER:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    access = logging.getLogger(_ACCESS)  # would print addresses and contacts, which are in every URL
    access.handlers.clear()
    access.propagate = False
    access.disabled = True


# --- processors


def _from_elsewhere(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Give a line of another library the shape of ours: an event named after its logger, its text as a field."""
    if not event["_from_structlog"]:
        record: logging.LogRecord = event["_record"]
        event["detail"] = event["event"]
        event["event"] = f"log.{record.name}"
    return event


def _structured_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Tell an exception by its classes and places: its message may quote anything, its locals may hold keys."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    if isinstance(given, tuple):
        given = given[1]
    if isinstance(given, BaseException):
        event["exception"] = [_told(error) for error in _chain(given)]
    return event


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give an exception and what caused it, the last first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _told(error: BaseException) -> dict[str, Any]:
    frames = [f"{_place(frame.f_code.co_filename)}:{line}" for frame, line in walk_tb(error.__traceback__)]
    told: dict[str, Any] = {"type": type(error).__qualname__, "frames": frames[-_FRAMES:]}
    if isinstance(error, PipelineError):  # ours repeat no value
        told |= {"reason": error.reason, "message": str(error)}
    if isinstance(error, BaseExceptionGroup):
        told["exceptions"] = [[_told(each) for each in _chain(one)] for one in error.exceptions]
    return told


def _place(path: str) -> str:
    return "/".join(PurePath(path).parts[-3:])


def _as_text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Render for a person: time, level, event, fields; an exception on lines of its own."""
    moment = str(event.pop("timestamp", ""))[11:19]
    level = str(event.pop("level", "")).ljust(_LEVEL_WIDTH)
    name = str(event.pop("event", ""))
    exception = event.pop("exception", ())
    fields = [f"{key}={_value(value)}" for key, value in event.items()]
    first = escaped(" ".join([moment, level, name, *fields]))
    return "\n".join([first, *(f"    {escaped(line)}" for told in exception for line in _lines(told))])


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text or not text else text


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    yield f"{told['type']}: {told['message']}" if "message" in told else told["type"]
    yield from (f"  {frame}" for frame in told["frames"])
    for chain in told.get("exceptions", ()):
        for each in chain:
            yield from (f"  {line}" for line in _lines(each))
