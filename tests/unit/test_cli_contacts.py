"""Recordings joined to contacts, where no key can be had: everything is still listed, and the reason told."""

import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.contacts import contact_in
from pipeline.errors import RefuseError
from tests.cli_store import World


@pytest.fixture
def world(command_world: World) -> World:
    """Give a store of one's own."""
    return command_world


def test_ls_lists_all_with_the_reason_why_contacts_can_not_be_told(world: World) -> None:
    rows = world.json("ls", "--metadata")
    assert len(rows) == len(world.json("ls")) == 5
    assert all(row["contactProblem"] for row in rows)
    assert "its object's key names no contact" in world.run("ls", "--metadata").stdout


def test_ls_of_one_contact_says_how_many_it_could_not_judge(world: World) -> None:
    result = world.run("ls", "--contact", "c-3", "--json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "5 more may be among them" in result.output


def test_ls_by_number_wants_one_on_standard_input(world: World) -> None:
    assert world.run("ls", "--number").exit_code == 3


@pytest.mark.parametrize("more", [["--range", "0-1"], ["--from", "bucket"]])
def test_metadata_is_no_range_and_in_no_bucket(world: World, more: list[str]) -> None:
    target = str(world.state / "x")
    result = world.run("get", str(world.sealed.artifact_id), "--metadata", "-o", target, *more)
    assert result.exit_code == 2


def test_metadata_that_nobody_keeps_is_refused(world: World) -> None:
    receipt = json.loads(world.file(world.delivered).read_bytes())
    assert receipt["key"].endswith("x.wav")
    target = world.state / "x"
    assert world.run("get", str(world.delivered.artifact_id), "--metadata", "-o", str(target)).exit_code == 3
    assert not target.exists()


def test_plaintext_goes_to_no_terminal_and_not_among_json(world: World) -> None:
    config = str(world.state.parent / "config" / "pipeline.toml")
    result = CliRunner().invoke(app, ["get", str(world.sealed.artifact_id), "--metadata", "--json", "--config", config])
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("key", "contact"),
    [
        ("connect/acme/CallRecordings/2026/11/23/c-1_20261123T14:05_UTC.wav", "c-1"),
        ("c-1_20261123T14-05_UTC_019b0c3e.wav", "c-1"),
    ],
)
def test_an_objects_key_names_its_contact(key: str, contact: str) -> None:
    assert contact_in(key) == contact


@pytest.mark.parametrize("key", ["connect/x.wav", "c_1_20261123T14:05_UTC.wav", "c-1_20261123_UTC.wav"])
def test_a_key_that_is_not_ours_names_none(key: str) -> None:
    with pytest.raises(RefuseError):
        contact_in(key)
