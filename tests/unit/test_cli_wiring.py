"""The command line as a whole: what every command has, how it ends, and what it does not load."""

import functools
import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from pipeline.cli import Commands, app
from pipeline.commands.exits import ExitCode, code_of
from pipeline.errors import (
    DestinationBusyError,
    DestinationHeldError,
    HaltError,
    HoldCode,
    KeyBusyError,
    PipelineError,
    RefuseError,
    SegmentForgedError,
)
from pipeline.holdwords import ACTIONS, WHAT

TOP = ["serve", "put", "feed", "ls", "status", "get", "verify", "restore", "kms", "doctor"]
ALL = [
    *([each] for each in TOP),
    *(["instance", each] for each in ("add", "list", "probe", "remove")),
    *(["keys", each] for each in ("status", "change", "rekey", "reencrypt")),
    ["classes", "show"],
    *(["backup", each] for each in ("create", "verify", "list", "forget")),
    *(["grants", each] for each in ("list", "create", "revoke")),
    ["policy", "show"],
    *(["subject", each] for each in ("export", "erase", "opt-out")),
    *(["records", each] for each in ("put", "get", "ls", "search", "delete", "import", "change-key", "sweep")),
    *(["erase", each] for each in ("instance", "recording")),
    *(["legal-hold", each] for each in ("add", "release", "list")),
]
HEAVY = (
    "aiobotocore",
    "aiohttp",
    "anyio",
    "awscrt",
    "cryptography",
    "prometheus_client",
    "starlette",
    "structlog",
    "uvicorn",
)


@functools.cache
def helped(*command: str) -> Result:
    return CliRunner().invoke(app, [*command, "--help"])


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: list[str]) -> None:
    result = helped(*command)
    assert result.exit_code == 0
    assert f"Example: pipeline {' '.join(command)}" in result.output


@pytest.mark.parametrize("command", [each for each in ALL if each != ["kms"]], ids=" ".join)
def test_every_command_can_print_json(command: list[str]) -> None:
    assert "--json" in helped(*command).output


def test_the_exit_codes_are_in_the_help() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    assert all(f"{code.value} " in output for code in ExitCode)


@pytest.mark.parametrize("arguments", [["no-such-command"], ["ls", "--state", "lost"], ["get", "no-id"], ["put"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SegmentForgedError("x"), ExitCode.FOUND),
        (RefuseError("x"), ExitCode.REFUSED),
        (KeyBusyError("x"), ExitCode.WAITING),
        (DestinationBusyError("x"), ExitCode.WAITING),
        (DestinationHeldError(HoldCode.DESTINATION_MISSING, "x"), ExitCode.WAITING),
        (HaltError("x"), ExitCode.HALTED),
        (PipelineError("x"), ExitCode.REFUSED),
    ],
)
def test_an_error_of_ours_ends_with_its_code(error: PipelineError, code: ExitCode) -> None:
    assert code_of(error) is code


def raising(error: BaseException) -> Any:
    sample = typer.Typer(cls=Commands)

    @sample.command()
    def one() -> None:
        raise error

    @sample.command()
    def other() -> None:
        """Make it a group."""

    return CliRunner().invoke(sample, ["one"])


def test_an_error_of_ours_is_one_line_and_no_traceback() -> None:
    result = raising(RefuseError("not\x1b[2J so", field="storage[0].\x07x"))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "pipeline: storage[0].\\x07x: not\\x1b[2J so\n"


def test_an_error_of_ours_inside_a_group_is_told_the_same() -> None:
    result = raising(ExceptionGroup("tasks", [ExceptionGroup("more", [HaltError("another process")])]))
    assert (result.exit_code, result.stderr) == (5, "pipeline: another process\n")


def test_a_bug_is_not_hidden() -> None:
    for error in (ValueError("bug"), ExceptionGroup("tasks", [HaltError("x"), ValueError("bug")])):
        assert raising(error).exception is error


def test_a_traceback_shows_no_locals() -> None:
    assert app.pretty_exceptions_show_locals is False


def test_every_hold_says_what_to_do() -> None:
    assert set(ACTIONS) == set(WHAT) == set(HoldCode)


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    program = "import sys, pipeline.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
    assert [each for each in HEAVY if each in loaded] == []


def test_python_m_pipeline_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "ls", "--state", "x"], capture_output=True, check=False)
    assert done.returncode == ExitCode.USAGE
