"""`pipeline keys status`: told from files and names alone."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.adapters.disk import Disk
from pipeline.config import load_instances, save_instance
from pipeline.errors import HoldCode
from pipeline.interim.keyuse import key_uses
from pipeline.interim.survey import survey
from tests.cli_store import World, hold
from tests.held_store import ACME, BUCKET_KEY, GLOBEX
from tests.unit.keyring_fakes import ARN, OLD_ARN


@pytest.fixture
def world(command_world: World) -> World:
    """Give a store of one's own."""
    return command_world


def rows(world: World) -> dict[str, Any]:
    return {row["instance"]: row for row in json.loads(world.run("keys", "status", "--json").stdout)["instances"]}


def ring_file(world: World, key_id: str) -> Path:
    return next((world.state / "keys").rglob(f"{key_id.replace('-', '')}.json"))


def change(path: Path, **members: Any) -> None:
    path.write_bytes(msgspec.json.encode({**json.loads(path.read_bytes()), **members}))


def test_each_instance_is_told_with_its_keys_and_what_they_have_sealed(world: World) -> None:
    result = world.run("keys", "status")
    assert result.exit_code == 0
    assert "age 0%" in result.stdout
    acme = rows(world)["acme"]
    assert (acme["kmsKeyArn"], acme["state"], acme["heldReason"]) == (ARN, "IN_USE", None)
    assert acme["deliveryKmsKeyArns"] == dict.fromkeys(("chat", "screen", "voice"), BUCKET_KEY)
    (key,) = acme["dataKeys"]
    assert key["keyId"] == str(world.sealed.key_id)
    assert (key["state"], key["artifacts"], key["held"], key["wrappedUnder"]) == ("ACTIVE", 3, 2, [ARN])
    assert key["bytes"] == (world.sealed.size_bytes or 0) + (world.delivered.size_bytes or 0)
    assert key["limits"]["artifacts"] == round(3 / 2**20, 6)


def test_a_key_is_retired_when_its_time_is_over(world: World) -> None:
    key_id = str(world.sealed.key_id)
    change(ring_file(world, key_id), createdAt=(datetime.now(UTC) - timedelta(hours=25)).isoformat())
    (key,) = rows(world)["acme"]["dataKeys"]
    assert key["state"] == "RETIRED"
    assert key["limits"]["age"] > 1


def test_a_key_service_that_refuses_is_told_with_what_to_do_and_ends_with_4(world: World) -> None:
    hold(world.state, "voice", HoldCode.DESTINATION_MISSING)
    assert rows(world)["acme"]["state"] == "IN_USE"
    hold(world.state, "keys", HoldCode.KEY_DISABLED)
    result = world.run("keys", "status")
    assert result.exit_code == 4
    assert "enable the KMS key" in result.stdout
    assert (rows(world)["acme"]["state"], rows(world)["globex"]["state"]) == ("HELD", "IN_USE")


def test_a_ring_file_that_can_not_be_used_or_is_gone_ends_with_1(world: World) -> None:
    change(ring_file(world, str(world.sealed.key_id)), dataClass="another")
    ring_file(world, str(world.chat.key_id)).unlink()
    result = world.run("keys", "status")
    assert result.exit_code == 1
    found = rows(world)
    (damaged,), (gone,) = found["acme"]["dataKeys"], found["globex"]["dataKeys"]
    assert (damaged["state"], gone["state"], gone["held"]) == ("UNUSABLE", "UNUSABLE", 2)
    assert "data class" in damaged["why"]
    assert "restore keys/" in gone["why"]


def test_a_previous_kms_key_is_needed_while_something_can_be_opened_by_it_alone(world: World) -> None:
    config_dir = world.state.parent / "config"
    acme_now = load_instances(config_dir).instances[ACME]
    save_instance(config_dir, replace(acme_now, kms_key_arn=OLD_ARN, previous_kms_key_arn=ARN))
    acme = rows(world)["acme"]
    assert acme["neededKmsKeyArns"] == sorted({ARN, OLD_ARN, BUCKET_KEY})
    assert acme["dataKeys"][0]["state"] == "RETIRED"
    for name in (world.sealed, world.opened):
        world.file(name).unlink()
    assert rows(world)["acme"]["neededKmsKeyArns"] == sorted({OLD_ARN, BUCKET_KEY})


def test_the_journal_and_what_was_cut_refer_to_keys_too(world: World) -> None:
    key = world.sealed.key_id
    day = world.state / "journal" / str(ACME) / "2026-11-23"
    day.mkdir(parents=True)
    (day / f"{'0' * 32}.{key.hex}.journal").write_bytes(b"")
    (day / "stranger").write_bytes(b"")
    lost = world.state / "lost+found"
    lost.mkdir(exist_ok=True)
    for name in (f"0123abcd.{world.opened}", f"0123abcd.{world.opened}.tail", "0123abcd.stranger", "x"):
        (lost / name).write_bytes(b"")
    uses = key_uses(str(world.state), Disk(), survey(str(world.state), Disk()))
    assert (uses[ACME, key].journal, uses[ACME, key].lost) == (1, 2)
    assert uses[ACME, key].is_needed
    assert uses[GLOBEX, world.chat.key_id].journal == 0
