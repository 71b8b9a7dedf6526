"""Legal holds: kept apart from the store, told, and in the way of every removal."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_instances
from pipeline.delivery.proof import read_receipt
from pipeline.erasure.forbidden import refuse_for_receipt
from pipeline.errors import RefuseError
from pipeline.intake.contacts import object_contact
from pipeline.legalholds import LegalHold, LegalHolds, keeps_all, load_legal_holds
from tests.cli_store import World
from tests.held_store import ACME, GLOBEX

NUMBER = "+49 151 0000000"


@pytest.fixture
def world(command_world: World) -> World:
    """Give a store of one's own."""
    return command_world


def config(world: World) -> Path:
    return world.state.parent / "config"


def placed(world: World, *arguments: str) -> dict[str, Any]:
    (answer,) = world.json("legal-hold", "add", *arguments, "--reason", "case 7")
    found: dict[str, Any] = answer["placed"]
    return found


def told(world: World, instance: UUID) -> list[dict[str, Any]]:
    logs = sorted((world.state / "audit" / str(instance)).glob("*.jsonl"), key=lambda log: log.stat().st_mtime_ns)
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [line for line in lines if line["userIdentity"]["type"] == "Command"]


def discard(world: World) -> Any:
    return world.run("poison", "discard", str(world.poison.artifact_id), "--reason", "tidy", "--yes")


def test_a_hold_is_placed_listed_and_lifted_with_its_reasons_and_by_whom(world: World) -> None:
    assert world.run("legal-hold", "list").exit_code == 0
    hold = placed(world, "acme")
    assert (hold["on"], hold["reason"], hold["instance"]) == ("all of it", "case 7", "acme")
    listed = world.run("legal-hold", "list", "--json")
    assert (listed.exit_code, json.loads(listed.stdout)["legalHolds"]) == (1, [hold])
    assert hold["holdId"] in world.run("legal-hold", "list").stdout
    assert world.run("legal-hold", "list", "--instance", "globex").exit_code == 0
    released = world.run("legal-hold", "release", hold["holdId"], "--reason", "settled", "--json")
    assert json.loads(released.stdout)["released"]["holdId"] == hold["holdId"]
    assert world.run("legal-hold", "list").exit_code == 0
    begun, ended = told(world, ACME)
    assert (begun["eventName"], begun["requestParameters"]["reason"]) == ("LegalHoldPlaced", "case 7")
    assert (ended["eventName"], ended["requestParameters"]["reason"]) == ("LegalHoldReleased", "settled")
    assert ended["requestParameters"]["placedFor"] == "case 7"
    assert begun["userIdentity"]["arn"] == hold["placedBy"]


def test_a_hold_lies_in_the_configuration_and_names_no_person(world: World) -> None:
    hold = placed(world, "acme", "--contact", NUMBER)
    assert hold["contact"] == object_contact(NUMBER, ACME)[0]
    (file,) = (config(world) / "legal-holds").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    for path in (file, *(each for each in world.state.rglob("*") if each.is_file())):
        assert NUMBER.encode() not in path.read_bytes()
    assert not [each for each in world.state.rglob("*") if hold["holdId"] in each.name]


@pytest.mark.parametrize("scope", [[], ["--recording", "poison"]])
def test_poison_under_a_hold_is_not_discarded_whatever_is_given(world: World, scope: list[str]) -> None:
    artifact = str(world.poison.artifact_id)
    hold = placed(world, "globex", *(artifact if each == "poison" else each for each in scope))
    refused = discard(world)
    assert (refused.exit_code, hold["holdId"] in refused.stderr, "case 7" in refused.stderr) == (3, True, True)
    assert world.file(world.poison).exists()
    assert not (world.state / "discards").exists()
    assert world.run("legal-hold", "release", hold["holdId"], "--reason", "settled").exit_code == 0
    assert discard(world).exit_code == 0
    assert not world.file(world.poison).exists()


def test_two_holds_on_the_same_are_lifted_one_by_one(world: World) -> None:
    first, second = placed(world, "globex"), placed(world, "globex")
    world.run("legal-hold", "release", first["holdId"], "--reason", "settled")
    refused = discard(world)
    assert (refused.exit_code, second["holdId"] in refused.stderr) == (3, True)


def test_what_can_not_be_told_from_what_is_held_is_not_discarded(world: World) -> None:
    """Whose recording it is stands in its head, and no key opens that here."""
    placed(world, "globex", "--contact", "c-9")
    refused = discard(world)
    assert (refused.exit_code, "can't be told" in refused.stderr) == (3, True)
    assert world.file(world.poison).exists()


def test_a_hold_on_another_instance_is_in_nobodys_way(world: World) -> None:
    placed(world, "acme")
    assert discard(world).exit_code == 0


@pytest.mark.parametrize("scope", [[], ["--contact", "c-9"], ["--recording", str(uuid4())]])
def test_an_instance_of_which_anything_is_held_is_not_removed(world: World, scope: list[str]) -> None:
    placed(world, "acme", *scope)
    refused = world.run("instance", "remove", "acme", "--force", "--reason", "gone")
    assert (refused.exit_code, "legal hold" in refused.stderr) == (3, True)
    assert ACME in load_instances(config(world)).instances


def test_a_hold_that_can_not_be_read_holds_everything(world: World) -> None:
    placed(world, "acme")
    (file,) = (config(world) / "legal-holds").iterdir()
    file.write_bytes(b"{}")
    assert keeps_all(config(world), GLOBEX)
    refused = discard(world)
    assert (refused.exit_code, file.name in refused.stderr) == (3, True)
    assert world.run("legal-hold", "list").exit_code == 3


def test_without_a_configuration_directory_nobody_knows_what_is_held(tmp_path: Path) -> None:
    with pytest.raises(RefuseError, match="nobody can tell"):
        load_legal_holds(tmp_path / "nowhere")
    assert keeps_all(tmp_path / "nowhere", ACME)
    assert not keeps_all(tmp_path, ACME)


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "acme", "--reason", " "],
        ["add", "nobody", "--reason", "x"],
        ["add", "acme", "--contact", "c-1", "--recording", str(uuid4()), "--reason", "x"],
        ["add", "acme", "--contact", "", "--reason", "x"],
        ["release", str(uuid4()), "--reason", "x"],
    ],
)
def test_what_makes_no_hold_is_refused_and_recorded_nowhere(world: World, arguments: list[str]) -> None:
    assert world.run("legal-hold", *arguments).exit_code == 3
    assert load_legal_holds(config(world)).holds == ()
    assert told(world, ACME) == []


def test_a_hold_that_can_not_be_recorded_is_not_placed(world: World) -> None:
    shutil.rmtree(world.state / "audit")
    (world.state / "audit").write_bytes(b"no folder")
    assert world.run("legal-hold", "add", "acme", "--reason", "x").exit_code == 4
    assert load_legal_holds(config(world)).holds == ()


def test_a_delivered_recording_is_told_by_its_receipt(world: World) -> None:
    receipt = read_receipt(world.file(world.delivered).read_bytes())
    placed(world, "acme", "--contact", "c-9")
    refuse_for_receipt(load_legal_holds(config(world)), receipt)
    placed(world, "acme", "--recording", str(receipt.recording_id))
    with pytest.raises(RefuseError, match="legal hold"):
        refuse_for_receipt(load_legal_holds(config(world)), receipt)


@given(st.sampled_from(["c-1", "c-2", None]), st.integers(0, 2), st.sampled_from(["c-1", "c-2"]), st.integers(1, 2))
def test_a_hold_is_on_what_it_names_and_on_nothing_else(
    contact: str | None, recording: int, whose: str, asked: int
) -> None:
    ids = [UUID(int=number) for number in range(3)]
    hold = LegalHold(
        hold_id=uuid4(),
        instance_id=ACME,
        contact=contact,
        recording_id=ids[recording] if recording and contact is None else None,
        reason="x",
        placed_by=str(os.getuid()),
        placed_at=datetime.now(UTC),
    )
    holds = LegalHolds((hold,))
    expected = contact == whose or (contact is None and recording in {0, asked})
    assert (holds.on(ACME, whose, (ids[asked],)) is hold) is expected
    assert holds.on(GLOBEX, whose, (ids[asked],)) is None
    assert (holds.on_all(ACME) is hold) is (contact is None and not recording)
