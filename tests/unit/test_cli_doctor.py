"""`pipeline doctor`, and what every command says of wrong settings."""

import json
from datetime import UTC, datetime

import pytest

from pipeline.commands import machine
from pipeline.commands.machine import Level
from tests.cli_store import World


@pytest.fixture
def world(command_world: World) -> World:
    """Give a store of one's own."""
    return command_world


def test_a_wrong_setting_is_named_and_ends_with_3(world: World) -> None:
    (world.state.parent / "config" / "pipeline.toml").write_text("[http]\nprot = 1\n")
    result = world.run("ls")
    assert result.exit_code == 3
    assert "http.prot: there is no such setting; did you mean port?" in result.stderr


def test_doctor_finds_what_others_may_read(world: World) -> None:
    world.file(world.sealed).chmod(0o644)
    result = world.run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 1
    assert checks["permissions"]["level"] == "fail"
    assert world.sealed.path in checks["permissions"]["detail"]
    assert checks["python"]["level"] == "ok"
    assert checks["cryptography"]["level"] == "ok"
    assert checks["configuration"]["level"] == "ok"
    assert (checks["acme key"]["level"], checks["globex chat bucket"]["level"]) == ("warn", "warn")  # nobody answers


def test_doctor_warns_of_a_configuration_inside_the_state_directory(world: World) -> None:
    (world.state.parent / "config").rename(world.state / "config")
    result = world.run("doctor", embedded=True)
    assert "WARN  configuration: the configuration lies inside the state directory" in result.stdout


def test_doctor_goes_on_as_far_as_it_can_with_settings_that_can_not_be_read(world: World) -> None:
    (world.state.parent / "config" / "pipeline.toml").write_text("=")
    result = world.run("doctor")
    assert result.exit_code == 1
    assert "FAIL  settings: " in result.stdout
    assert "OK    python: " in result.stdout


def test_a_clock_that_went_back_is_noticed() -> None:
    now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    assert machine.clock(now, None).level is Level.OK
    assert machine.clock(now, now.replace(hour=13)).level is Level.WARN
    assert machine.clock(now.replace(year=1970), None).level is Level.FAIL
