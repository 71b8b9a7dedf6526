"""The commands that need no key, over a store that its own parts made; and the others where they refuse."""

import fcntl
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from pipeline.adapters.disk import Disk
from pipeline.canary import Arrival
from pipeline.cli import app
from pipeline.config import load_instances, save_instance
from pipeline.errors import HoldCode
from pipeline.ids import ArtifactId
from pipeline.instances import KeyAccess
from pipeline.intake.missinglog import Missing, missing_line
from pipeline.interim.survey import begun, survey
from tests.cli_store import BODY, World, hold
from tests.held_store import ACME, GLOBEX


@pytest.fixture
def world(command_world: World) -> World:
    """Give a store of one's own."""
    return command_world


# --- names


def test_a_survey_sees_every_state_by_names_alone(world: World) -> None:
    for path in (world.state / "artifacts").rglob("*.*"):
        path.chmod(0)  # nothing is opened
    found = survey(str(world.state), Disk())
    assert set(found.names) == {world.sealed, world.chat, world.opened, world.delivered, world.poison}
    assert [begun(name) for name in found.names] == sorted(begun(name) for name in found.names)
    assert found.undelivered(ACME) == [world.sealed, world.opened]


def test_a_receipt_counts_before_media_that_a_crash_left_and_half_files_not_at_all(world: World) -> None:
    media = world.file(world.sealed)
    receipt = media.with_name(str(world.sealed.delivered()))
    receipt.write_bytes(b"{}")
    media.with_name(f"{receipt.name}.tmp").write_bytes(b"")
    found = survey(str(world.state), Disk())
    assert world.sealed.delivered() in found.names
    assert world.sealed not in found.names
    assert found.strangers == ()


# --- ls


def test_ls_tells_each_recording_with_its_state_and_its_place(world: World) -> None:
    rows = {row["artifactId"]: row for row in world.json("ls")}
    assert {row["state"] for row in rows.values()} == {"open", "sealed", "delivered", "poison"}
    delivered = rows[str(world.delivered.artifact_id)]
    assert (delivered["bucket"], delivered["key"]) == ("acme-recordings", "connect/acme/voice/x.wav")
    assert delivered["recordingId"] == str(world.delivered.artifact_id)
    sealed = rows[str(world.sealed.artifact_id)]
    assert (sealed["instance"], sealed["kind"], sealed["sizeBytes"]) == ("acme", "voice", len(BODY))
    assert rows[str(world.poison.artifact_id)]["poison"] == "integrity"
    assert "sizeBytes" not in rows[str(world.opened.artifact_id)]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--state", "sealed"], 2),
        (["--state", "delivered"], 1),
        (["--kind", "chat"], 1),
        (["--instance", "acme"], 3),
        (["--instance", str(GLOBEX), "--state", "poison"], 1),
        (["--instance", "globex", "--state", "open"], 0),
    ],
)
def test_ls_shows_what_was_asked_for(world: World, options: list[str], count: int) -> None:
    assert len(world.json("ls", *options)) == count


def test_ls_as_a_table_cuts_nothing_where_there_is_no_terminal(world: World) -> None:
    hold(world.state, "voice", HoldCode.DESTINATION_MISSING)
    output = world.run("ls").stdout
    assert str(world.sealed.artifact_id) in output
    assert "held: DESTINATION_MISSING" in output
    assert "s3://acme-recordings/connect/acme/voice/x.wav" in output
    assert "293.0 KiB" in output
    assert not any(line.endswith(" ") for line in output.splitlines())


def test_ls_tells_a_receipt_that_can_not_be_read_and_goes_on(world: World) -> None:
    world.file(world.delivered).write_bytes(b"{}")
    (row,) = world.json("ls", "--state", "delivered")
    assert "not a receipt" in row["problem"]


def test_ls_tells_the_flags_of_a_receipt_and_why_those_of_a_sealed_one_can_not_be_told(world: World) -> None:
    receipt = json.loads(world.file(world.delivered).read_bytes()) | {
        "quality": ["SUSPECT_SILENT", "PAUSED"],
        "check": "",
    }
    world.file(world.delivered).write_text(json.dumps(receipt))
    rows = {row["artifactId"]: row for row in world.json("ls", "--flags")}
    assert rows[str(world.delivered.artifact_id)]["quality"] == ["SUSPECT_SILENT", "PAUSED"]
    assert "KMS" in rows[str(world.sealed.artifact_id)]["problem"]
    assert "problem" not in rows[str(world.opened.artifact_id)]
    assert "x.wav SUSPECT_SILENT PAUSED" in world.run("ls").stdout


def test_ls_of_an_unknown_alias_is_refused_and_of_no_store_is_empty(world: World, tmp_path: Path) -> None:
    assert world.run("ls", "--instance", "nobody").exit_code == 3
    empty = CliRunner().invoke(app, ["ls", "--json", "--state-dir", str(tmp_path / "nowhere")])
    assert (empty.exit_code, empty.stdout) == (0, "")


# --- status


def test_status_begins_with_the_oldest_undelivered_and_ends_with_1_for_poison(world: World) -> None:
    result = world.run("status")
    assert result.stdout.splitlines()[0].startswith("oldest undelivered: ")
    assert str(world.sealed.artifact_id) in result.stdout.splitlines()[0]
    assert result.exit_code == 1


def test_status_counts_states_bytes_and_instances(world: World) -> None:
    (facts,) = world.json("status")
    assert facts["oldestUndelivered"]["artifactId"] == str(world.sealed.artifact_id)
    assert facts["sealed"] == {"count": 2, "bytes": len(BODY) + 15}
    assert facts["open"] == {"count": 1, "bytes": world.file(world.opened).stat().st_size}
    assert facts["poison"]["count"] == 1
    assert facts["service"] == {"running": False, "pid": None}
    acme = next(each for each in facts["instances"] if each["instance"] == "acme")
    assert acme == {
        "instance": "acme",
        "instanceId": str(ACME),
        "open": 1,
        "sealed": 1,
        "delivered": 1,
        "poison": 0,
    }


def test_status_tells_holds_with_what_to_do_and_ends_with_4(world: World) -> None:
    hold(world.state, "keys", HoldCode.KEY_DISABLED)
    result = world.run("status")
    assert result.exit_code == 4
    assert "held: acme (keys): the KMS key" in result.stdout
    assert "is disabled (KEY_DISABLED), since 2026-11-23T12:00:00+00:00; what is sealed here is safe" in result.stdout
    assert "To do: enable the KMS key" in result.stdout
    assert "as it answered: the bucket said no\\x1b[2J" in result.stdout


@pytest.mark.parametrize(
    ("access", "what"),
    [(KeyAccess.GRANT, "pipeline grants create acme"), (KeyAccess.POLICY, "pipeline policy show acme")],
)
def test_status_tells_how_access_to_a_key_is_given_back(world: World, access: KeyAccess, what: str) -> None:
    config = world.state.parent / "config"
    save_instance(config, replace(load_instances(config).instances[ACME], key_access=access))
    hold(world.state, "keys", HoldCode.KEY_ACCESS_DENIED)
    (told,) = json.loads(world.run("status", "--json").stdout)["holds"]
    assert told["action"].endswith(what)
    assert told["decisionNeeded"] == (told["heldS"] > 7 * 86_400)


def test_status_asks_for_a_decision_after_the_time_that_is_set(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(world.state, "keys", HoldCode.KEY_NOT_FOUND)
    monkeypatch.setenv("PIPELINE_HEALTH_DECIDE_AFTER_S", "60")
    assert "decide: mend it" in world.run("status").stdout


def test_status_of_an_idle_store_is_0(world: World) -> None:
    for name in (world.sealed, world.chat, world.opened, world.poison):
        world.file(name).unlink()
    result = world.run("status")
    assert result.exit_code == 0
    assert "none, everything sealed is delivered" in result.stdout


def test_status_tells_what_was_announced_and_did_not_come_and_ends_with_1(world: World) -> None:
    for name in (world.sealed, world.chat, world.opened, world.poison):
        world.file(name).unlink()
    missing = Missing(
        recording_id=world.sealed.artifact_id,
        instance_id=ACME,
        kind="voice",
        contact="c-7",
        tags=("0" * 16,),
        announced=datetime(2026, 11, 23, 12, tzinfo=UTC),
        given_up=datetime(2026, 11, 23, 14, tzinfo=UTC),
    )
    line = missing_line(str(world.state / "missing"), missing, missing.given_up.date())
    Path(line.path).parent.mkdir(parents=True)
    Path(line.path).write_bytes(line.line + b"\n")
    result = world.run("status")
    assert result.exit_code == 1
    assert "missing: 1 announced recordings have not come" in result.stdout
    assert "voice of acme, contact c-7, announced 2026-11-23T12:00:00+00:00" in result.stdout
    (facts,) = world.json("status")
    assert facts["missing"]["count"] == 1
    assert facts["missing"]["latest"][0]["recordingId"] == str(world.sealed.artifact_id)
    came = msgspec.structs.replace(missing, came=True)
    Path(line.path).write_bytes(msgspec.json.encode(came) + b"\n" + line.line + b"\n")
    assert world.run("status").exit_code == 0


def test_status_tells_when_the_canary_last_arrived(world: World) -> None:
    assert world.json("status")[0]["canary"] is None
    arrived = Arrival(datetime.now(UTC) - timedelta(minutes=3), 1.5)
    (world.state / "canary.json").write_bytes(msgspec.json.encode(arrived))
    assert "canary: last arrived 3m " in world.run("status").stdout
    assert world.json("status")[0]["canary"]["latencyS"] == 1.5


def test_status_knows_who_holds_the_store(world: World) -> None:
    lock = os.open(world.state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(lock, b"4711\n")
        fcntl.flock(lock, fcntl.LOCK_EX)
        (facts,) = world.json("status")
    finally:
        os.close(lock)
    assert facts["service"] == {"running": True, "pid": 4711}


# --- verify


def test_verify_finds_nothing_wrong_with_a_sound_store(world: World) -> None:
    result = world.run("verify", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer == {"checked": 4, "readData": False, "problems": [], "unopened": [], "poison": 1}


def truncate(world: World) -> str:
    path = world.file(world.sealed)
    os.truncate(path, path.stat().st_size - 1)
    return "cut off inside a segment"


def cut_manifest(world: World) -> str:
    path = world.file(world.chat)
    raw = path.read_bytes()
    at = 96
    ends = []
    while at < len(raw):
        at += 13 + int.from_bytes(raw[at : at + 4])
        ends.append(at)
    os.truncate(path, ends[-2])
    return "no manifest"


def swap_names(world: World) -> str:
    mine, theirs = world.file(world.sealed), world.file(world.chat)
    aside = mine.with_name("aside")
    mine.rename(aside)
    theirs.rename(mine)
    aside.rename(theirs)
    return "header and its name disagree"


def forge_receipt(world: World) -> str:
    path = world.file(world.delivered)
    path.rename(path.with_name(path.name.replace(".g1.", ".g2.")))
    return "receipt and its name disagree"


def damage_receipt(world: World) -> str:
    path = world.file(world.delivered)
    path.write_bytes(path.read_bytes().replace(b"acme-recordings", b"acme-recordingr"))
    return "was damaged after it was written"


def leave_stranger(world: World) -> str:
    (world.state / "artifacts" / "0").mkdir(exist_ok=True)
    (world.state / "artifacts" / "0" / "evil\x1b[2J.sealed").write_bytes(b"x")
    return "bears no artifact's name"


def make_unreadable(world: World) -> str:
    path = world.file(world.sealed)
    path.unlink()
    path.mkdir()
    return "could not read: EISDIR"


@pytest.mark.parametrize(
    "damage", [make_unreadable, truncate, cut_manifest, swap_names, forge_receipt, damage_receipt, leave_stranger]
)
def test_verify_names_what_is_wrong_and_ends_with_1(world: World, damage: Any) -> None:
    said = damage(world)
    result = world.run("verify")
    assert result.exit_code == 1
    assert said in result.stdout
    assert "\x1b" not in result.stdout


def test_verify_lets_an_open_artifact_have_a_torn_tail(world: World) -> None:
    path = world.file(world.opened)
    os.truncate(path, path.stat().st_size - 1)
    assert world.run("verify").exit_code == 0


def test_verify_of_one_instance_looks_at_no_other(world: World) -> None:
    cut_manifest(world)
    assert world.run("verify", "--instance", "acme").exit_code == 0
    assert world.run("verify", "--instance", "globex").exit_code == 1


# --- get, where it is refused


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--range", "9-1"], 2, "FIRST-LAST"),
        (["--range", "x"], 2, "FIRST-LAST"),
        (["--from", "moon"], 2, "moon"),
        (["--from", "bucket"], 3, "not delivered yet"),
        (["--generation", "7"], 3, "nothing of that id"),
    ],
)
def test_get_refuses_what_can_not_be(world: World, tmp_path: Path, options: list[str], code: int, said: str) -> None:
    result = world.run("get", str(world.sealed.artifact_id), "-o", str(tmp_path / "out"), *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_get_refuses_what_is_still_received_unknown_or_gone_from_the_store(world: World, tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    assert "still being received" in world.run("get", str(world.opened.artifact_id), *out).stderr
    assert "nothing of that id" in world.run("get", str(ArtifactId(ACME)), *out).stderr
    gone = world.run("get", str(world.delivered.artifact_id), "--from", "store", *out)
    assert (gone.exit_code, "media are gone" in gone.stderr) == (3, True)


def test_get_with_json_needs_a_file(world: World) -> None:
    assert world.run("get", str(world.sealed.artifact_id), "--json").exit_code == 2


# --- instances, where no key is asked


def test_instance_list_tells_instances_and_files_that_are_bad(world: World) -> None:
    assert world.run("instance", "list").exit_code == 0
    (world.state.parent / "config" / "instances" / f"{GLOBEX}.toml").write_text("alias = 5")
    result = world.run("instance", "list", "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [each["alias"] for each in answer["instances"]] == ["acme"]
    assert [each["file"] for each in answer["problems"]] == [f"{GLOBEX}.toml"]


def test_instance_remove_refuses_while_recordings_are_held_and_keeps_everything_but_the_file(world: World) -> None:
    config = world.state.parent / "config"
    refused = world.run("instance", "remove", "acme")
    assert (refused.exit_code, "2 undelivered" in refused.stderr) == (3, True)
    assert world.run("instance", "remove", "acme", "--force").exit_code == 3  # without a reason
    assert ACME in load_instances(config).instances
    other = f"{GLOBEX}.keys.json"
    for name in (f"{ACME}.keys.json", f"{ACME}.voice.json", other):
        (world.state / "holds").mkdir(exist_ok=True)
        (world.state / "holds" / name).write_text("{}")
    done = world.run("instance", "remove", "acme", "--force", "--reason", "moved away", "--json")
    answer = {"instanceId": str(ACME), "undelivered": 2, "grantsRetired": 0, "serviceTold": False}
    assert json.loads(done.stdout) == answer
    assert set(load_instances(config).instances) == {GLOBEX}
    assert world.file(world.sealed).exists()
    log = max((world.state / "audit" / str(ACME)).glob("*.jsonl"))  # there are two if the hour has just ended
    record = json.loads(log.read_text().splitlines()[-1])
    assert (record["eventName"], record["requestParameters"]["reason"]) == ("InstanceRemoved", "moved away")
    assert [path.name for path in (world.state / "holds").iterdir()] == [other]
    assert record["userIdentity"]["type"] == "Command"


def test_instance_add_refuses_a_name_that_is_taken_and_names_a_missing_option(world: World) -> None:
    assert world.run("instance", "add", "acme").exit_code == 3
    missing = world.run("instance", "add", "initech", "--account", "111122223333", "--region", "eu-central-1")
    assert (missing.exit_code, "--kms-key" in missing.stderr) == (2, True)
