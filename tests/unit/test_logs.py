"""Logs: one line for each event, nothing in it that could be a key, and nothing that could forge another line."""

import base64
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline.adapters.aws import open_client
from pipeline.adapters.kms import AwsKeyService
from pipeline.errors import StoreFullError
from pipeline.keyports import KmsCall
from pipeline.logs import PINNED, configure
from pipeline.settings import Credentials, Endpoint, LogSettings
from tests.kms_server import ACCOUNT, REGION, running_key_server

JSON = LogSettings(level="DEBUG", format="json")
TEXT = LogSettings(level="DEBUG", format="text")
ATTACK = 'acme\n{"event":"forged"}\r\x1b[2J\x9b31m\u2028\u202e'
SECRET = "4f1c9a canary"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    named = {name: logging.getLogger(name) for name in (*PINNED, "uvicorn", "uvicorn.error", "uvicorn.access")}
    before = {name: (each.level, each.propagate, each.disabled, each.handlers[:]) for name, each in named.items()}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, logger in named.items():
        level, logger.propagate, logger.disabled, logger.handlers[:] = before[name]
        logger.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def failing(secret: str) -> None:
    inner = secret * 2
    raise KeyError(inner)


def test_an_event_is_one_json_line_with_its_fields() -> None:
    stream = io.StringIO()
    configure(LogSettings(), stream)
    structlog.get_logger().info("delivery.settled", artifact="a-1", attempt=3)
    (line,) = lines(stream)
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {"event": "delivery.settled", "level": "info", "artifact": "a-1", "attempt": 3}


def test_below_the_level_nothing_is_written() -> None:
    stream = io.StringIO()
    configure(LogSettings(level="WARNING"), stream)
    structlog.get_logger().info("delivery.settled")
    logging.getLogger("another").info("said")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("settings", [JSON, TEXT], ids=["json", "text"])
def test_text_from_outside_can_not_forge_a_line_or_a_screen(settings: LogSettings) -> None:
    stream = io.StringIO()
    configure(settings, stream)
    structlog.get_logger().warning("intake.refused", contact=ATTACK, nested={"name": [ATTACK]})
    logging.getLogger("library").warning("heard %s", ATTACK)
    written = stream.getvalue()
    assert written.count("\n") == 2
    assert written.replace("\n", "").isprintable()


def test_a_terminal_gets_text_and_a_pipe_json() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    configure(LogSettings(), terminal)
    structlog.get_logger().info("service.started", url="http://127.0.0.1:1", detail="all well")
    configure(LogSettings(), pipe)
    structlog.get_logger().info("service.started")
    assert "info     service.started url=http://127.0.0.1:1 detail='all well'\n" in terminal.getvalue()
    assert terminal.getvalue()[0] != "{"
    assert lines(pipe)[0]["event"] == "service.started"


@pytest.mark.parametrize("settings", [JSON, TEXT], ids=["json", "text"])
def test_an_exception_shows_class_and_places_but_neither_locals_nor_message(settings: LogSettings) -> None:
    stream = io.StringIO()
    configure(settings, stream)
    for logger in (structlog.get_logger(), logging.getLogger("library")):
        try:
            failing(SECRET)
        except KeyError:
            logger.exception("delivery.deferred")
    assert "canary" not in stream.getvalue()
    assert stream.getvalue().count("KeyError") == 2
    assert "tests/unit/test_logs.py:" in stream.getvalue()


def test_an_exception_tells_its_cause_its_group_and_our_own_message() -> None:
    stream = io.StringIO()
    configure(JSON, stream)
    try:
        try:
            failing(SECRET)
        except KeyError as error:
            raise ExceptionGroup("work", [StoreFullError("no room"), ValueError(SECRET)]) from error
    except ExceptionGroup:
        structlog.get_logger().exception("service.failed")
    (line,) = lines(stream)
    group, cause = line["exception"]
    assert (group["type"], cause["type"]) == ("ExceptionGroup", "KeyError")
    (ours,), (other,) = group["exceptions"]
    assert (ours["reason"], ours["message"]) == ("store-full", "no room")
    assert other == {"type": "ValueError", "frames": []}
    assert "canary" not in stream.getvalue()


def test_another_librarys_line_has_the_same_shape() -> None:
    stream = io.StringIO()
    configure(LogSettings(), stream)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP %s", "request")
    (line,) = lines(stream)
    assert (line["event"], line["detail"], line["level"]) == ("log.uvicorn.error", "Invalid HTTP request", "warning")


def test_requests_are_not_logged_by_the_server() -> None:
    stream = io.StringIO()
    configure(JSON, stream)
    logging.getLogger("uvicorn.access").info("PUT /v1/instances/i/contacts/+4930123456/voice")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("level", ["DEBUG", "ERROR"])
def test_libraries_that_print_keys_stay_at_info_or_above(level: str) -> None:
    configure(LogSettings(level=level), io.StringIO())
    at_least = max(logging.INFO, logging.getLevelName(level))
    assert {logging.getLogger(f"{name}.parsers").getEffectiveLevel() for name in PINNED} == {at_least}


async def test_no_data_key_is_in_the_log_at_debug(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure(JSON, stream)
    told: list[KmsCall] = []

    async def audit(call: KmsCall) -> None:
        told.append(call)

    async with running_key_server(tmp_path) as server:
        async with server.client() as admin:
            arn = (await admin.create_key())["KeyMetadata"]["Arn"]
        caller = next(one for one in server.config.identities if one.access_key == "AKADMIN")
        credentials = Credentials(caller.access_key, caller.secret_key)
        endpoint = Endpoint(region=REGION, url=server.url, credentials=credentials)
        async with open_client("kms", endpoint) as client:
            made = await AwsKeyService(client, audit).generate_data_key(arn, {"pipeline:accountId": ACCOUNT})
    logging.getLogger("probe").debug("still at debug")
    assert lines(stream)[-1]["detail"] == "still at debug"
    assert [call.name for call in told] == ["GenerateDataKey"]
    assert not found(stream.getvalue(), [made.plaintext, credentials.secret_key.encode()])


def found(text: str, secrets: Sequence[bytes]) -> list[bytes]:
    forms = [
        (each, form) for each in secrets for form in (each.hex(), base64.b64encode(each).decode(), repr(each)[2:-1])
    ]
    return [each for each, form in forms if form in text]


def test_the_search_for_secrets_finds_one() -> None:
    key = os.urandom(32)
    assert found(f"x{base64.b64encode(key).decode()}", [key]) == [key]
