"""What all tests share."""

import functools
import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from _pytest.terminal import TerminalReporter

if TYPE_CHECKING:
    from tests.log_guard import LogGuard


def pytest_configure(config: pytest.Config) -> None:
    """Hear everything that is logged in this process, and collect no garbage before all is imported: there is none."""
    gc.disable()
    if config.getoption("dist", "no") == "no" or hasattr(config, "workerinput"):
        # not where tests are only handed out to workers, who wait for that process to start
        from tests import log_guard

        log_guard.install()


@pytest.fixture(autouse=True, scope="session")
def commands_are_put_together_once() -> Iterator[None]:
    """Let `CliRunner` keep what it makes of an app: making sixty commands takes longer than most of them take."""
    import typer.main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True, scope="session")
def what_aws_clients_share_is_made_once() -> Iterator[None]:
    """Spare each client three quarters of what making it takes."""
    from tests.ready_clients import ready_clients

    with ready_clients():
        yield


@pytest.fixture(autouse=True)
def nothing_secret_is_logged() -> Iterator["LogGuard"]:
    """Fail a test in which something was logged, at whatever level, that is secret or personal."""
    from tests import log_guard

    yield from log_guard.guarded()


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_the_caller() -> None:
    """Forget `PIPELINE_*` variables of whoever runs the tests: they are settings, and each test makes its own."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        del os.environ[name]


def pytest_collection_finish() -> None:
    """Spare the collector what importing and collecting made, as the service does with what its start made."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the slow ones the time that they take on a busy machine; only one that hangs takes longer."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print what tests counted, whether they passed or not."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    counted = [(report, text) for report in reports for name, text in report.user_properties if name == "counted"]
    if counted:
        terminalreporter.section("counted")
    for report, text in counted:
        terminalreporter.write_line(f"{report.nodeid}: {text}")
