"""The audit commands, against a store that its own parts made."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.adapters.disk import Disk
from pipeline.audit.appender import ChainedLogs
from pipeline.audit.records import Actor, hour_of, kms_call
from pipeline.audit.signing import SignedLog, SigningKeys
from pipeline.cli import app
from pipeline.keyports import KmsCall
from tests.audit_stranger import Stranger
from tests.cli_store import World, copied_world, made_world
from tests.held_store import ACME, GLOBEX
from tests.unit.keyring_fakes import ARN

KINDS = ("missing", "gap", "invalid")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    return made_world(tmp_path_factory.mktemp("store") / "state")


@pytest.fixture
def world(template: World, tmp_path: Path) -> World:
    return copied_world(template, tmp_path)


def log_of(world: World) -> Path:
    return world.state / "audit" / str(ACME)


def signed(world: World) -> str:
    """Sign the log as the service would; give the checkpoint."""
    made = SignedLog(str(log_of(world)), Disk(), SigningKeys(world.state.parent / "config")).sign()
    assert made is not None
    return made.note


def key(world: World) -> str:
    return world.run("audit", "key", "--instance", "acme").stdout.strip()


def tamper(world: World, old: bytes, new: bytes) -> None:
    [path] = log_of(world).glob("*.jsonl")
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))


def check(proof: Path, vkey: str) -> Result:
    return CliRunner().invoke(app, ["audit", "check-proof", str(proof), "--key", vkey, "--json"])


def prove(world: World, wanted: object, *, code: int = 0) -> Path:
    proof = world.state.parent / "proof.json"
    result = world.run("audit", "prove", str(wanted), "-o", str(proof))
    assert result.exit_code == code, result.output
    return proof


# --- verify


def test_whole_logs_verify_and_the_last_line_is_the_sum(world: World) -> None:
    signed(world)
    result = world.run("audit", "verify", "--json")
    assert result.exit_code == 0, result.output
    *rows, total = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["log"] for row in rows} == {str(ACME), str(GLOBEX)}
    assert list(total) == ["ok", "records", "firstBad", *KINDS]
    assert (total["ok"], total["records"], total["firstBad"]) == (True, sum(row["records"] for row in rows), None)
    assert total["records"] > 5
    assert "all whole" in world.run("audit", "verify").stdout


@pytest.mark.parametrize(
    ("old", "new", "kind"), [(b"ArtifactSealed", b"ArtifactSeaied", "invalid"), (b'{"logIndex":1,', b"", "invalid")]
)
def test_a_changed_record_is_named_with_its_log_and_ends_with_code_1(
    world: World, old: bytes, new: bytes, kind: str
) -> None:
    signed(world)
    tamper(world, old, new)
    result = world.run("audit", "verify", "--json")
    total = json.loads(result.stdout.splitlines()[-1])
    assert (result.exit_code, total["ok"], total[kind]) == (1, False, 1)
    assert total["firstBad"]["log"] == str(ACME)
    assert "first bad record" in world.run("audit", "verify").stdout
    assert world.run("audit", "verify", "--instance", "globex").exit_code == 0


def test_a_log_that_was_cut_with_all_its_signatures_is_missing_by_a_checkpoint_kept_elsewhere(world: World) -> None:
    elsewhere = world.state.parent / "elsewhere.txt"
    elsewhere.write_text(signed(world))
    [path] = log_of(world).glob("*.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    shutil.rmtree(log_of(world) / "checkpoints")
    (log_of(world) / "leaves").unlink()
    (world.state.parent / "config" / "audit" / f"{ACME}.checkpoint").unlink()
    assert world.run("audit", "verify").exit_code == 0
    result = world.run("audit", "verify", "--json", "--checkpoint", str(elsewhere))
    total = json.loads(result.stdout.splitlines()[-1])
    assert (result.exit_code, total["missing"], total["gap"], total["invalid"]) == (1, 2, 0, 0)


def test_a_log_whose_folder_is_gone_is_missed(world: World) -> None:
    signed(world)
    shutil.rmtree(log_of(world))
    result = world.run("audit", "verify", "--json")
    total = json.loads(result.stdout.splitlines()[-1])
    assert (result.exit_code, total["firstBad"]) == (1, {"log": str(ACME), "index": 0})
    assert total["missing"] > 3


def test_a_log_or_checkpoint_that_is_not_there_is_refused(world: World) -> None:
    assert world.run("audit", "verify", "--instance", "node").exit_code == 3
    assert world.run("audit", "verify", "--checkpoint", "/nowhere").exit_code == 3


# --- search and export


@pytest.mark.parametrize(
    ("arguments", "events"),
    [
        (("--event", "ArtifactDelivered"), {"ArtifactDelivered"}),
        (("--kms-key", ARN, "--instance", "acme"), {"Decrypt"}),
        (("--error", "DisabledException"), {"Decrypt"}),
        (("--error", "any", "--instance", "acme"), {"Decrypt"}),
        (("--error", "AccessDenied"), set()),
        (("--actor", "nobody"), set()),
        (("--since", "2100-01-01"), set()),
        (("--until", "2000-01-01T00:00:00Z"), set()),
    ],
)
def test_records_are_found_by_what_is_given(world: World, arguments: tuple[str, ...], events: set[str]) -> None:
    call = KmsCall("Decrypt", ARN, {}, "r-1", ARN, "DisabledException", "key is disabled")
    actor, now = Actor("Service", "pipeline"), datetime.now(UTC)
    line = kms_call(call, actor=actor, account_id="111122223333", region="eu-central-1", now=now)
    ChainedLogs(Disk()).append(str(log_of(world)), [line], hour_of(now))
    found = world.json("audit", "search", *arguments)
    assert {record["eventName"] for record in found} == events


def test_a_recording_is_found_by_its_id_and_by_its_data_key(world: World) -> None:
    [first, *_] = world.json("audit", "search", "--event", "ArtifactDelivered")
    given: dict[str, Any] = first["requestParameters"]
    for name in ("recordingId", "artifactId"):
        found = world.json("audit", "search", "--id", given[name])
        names = [record["eventName"] for record in found]
        assert names == ["ArtifactOpened", "ArtifactSealed", "ArtifactDelivered"]
    by_key = world.json("audit", "search", "--data-key", given["dataKeyId"])
    assert {record["log"] for record in by_key} == {str(ACME)}
    assert len(by_key) > 3
    assert len(world.json("audit", "search", "--data-key", given["dataKeyId"], "--limit", "2")) == 2
    assert "ArtifactDelivered by" in world.run("audit", "search", "--id", given["recordingId"]).stdout
    assert world.run("audit", "search", "--since", "yesterday").exit_code == 2


def test_an_exported_log_is_all_that_a_stranger_needs(world: World) -> None:
    signed(world)
    out = world.state.parent / "given"
    assert world.run("audit", "export", "acme", "-o", str(out)).exit_code == 0
    assert Stranger(out, (out / "key.txt").read_text()).verify().kinds == set()
    assert (out / "key.txt").read_text().strip() == key(world)
    assert world.run("audit", "export", "acme", "-o", str(out)).exit_code == 3
    assert [path for path in out.rglob("*") if path.is_file() and path.stat().st_mode & 0o077] == []


# --- custody


def test_a_proof_of_custody_is_checked_with_the_public_key_alone(world: World) -> None:
    proof, vkey = prove(world, world.delivered.artifact_id), key(world)
    shutil.rmtree(world.state)
    answer = json.loads(check(proof, vkey).stdout)
    assert answer["ok"]
    assert [each["event"] for each in answer["records"]] == ["ArtifactOpened", "ArtifactSealed", "ArtifactDelivered"]
    [delivered], [sealed] = answer["delivered"], answer["sealed"]
    assert delivered["sha256"] == sealed["sha256"]
    assert delivered["bucket"]
    (world.state.parent / "key").write_text(vkey)
    shown = CliRunner().invoke(app, ["audit", "check-proof", str(proof), "--key", str(world.state.parent / "key")])
    assert (shown.exit_code, "delivered 20" in shown.stdout) == (0, True)


def test_a_recording_that_waits_has_a_proof_without_a_receipt(world: World) -> None:
    answer = json.loads(check(prove(world, world.sealed.artifact_id), key(world)).stdout)
    assert (answer["delivered"], len(answer["sealed"])) == ([], 1)
    prove(world, "019b0c3e-7d1a-7c22-9f5e-2a4b6c8d0e1f", code=3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ArtifactSealed", "ArtifactSeaied"),
        ('"index": ', '"index": 1'),
        ('\\"sizeBytes\\":9', '\\"sizeBytes\\":8'),
        ('"version": 1', '"version": 2'),
        ('"recordingId": "', '"recordingId": "0'),
        ("recording-pipeline/audit/", "recording-pipeline/other/"),
    ],
)
def test_a_proof_that_was_changed_proves_nothing(world: World, old: str, new: str) -> None:
    proof, vkey = prove(world, world.delivered.artifact_id), key(world)
    assert old in proof.read_text()
    proof.write_text(proof.read_text().replace(old, new))
    assert check(proof, vkey).exit_code == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version":1}'])
def test_what_is_no_proof_proves_nothing(world: World, text: str) -> None:
    proof = world.state.parent / "proof.json"
    proof.write_text(text)
    assert check(proof, key(world)).exit_code == 1


def test_another_key_does_not_check_a_proof(world: World, tmp_path: Path) -> None:
    proof = prove(world, world.delivered.artifact_id)
    assert check(proof, str(SigningKeys(tmp_path / "others").verifier(str(ACME)))).exit_code == 1
    assert check(proof, "nonsense+key").exit_code == 3


# --- a log that goes on


def test_a_log_that_was_cut_refuses_until_it_is_restarted_with_a_reason(world: World) -> None:
    before = signed(world), key(world)
    [path] = log_of(world).glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert world.run("instance", "remove", "acme", "--force", "--reason", "x").exit_code == 4
    result = world.run("audit", "restart", "acme", "--reason", "the disk lost it", "--json")
    answer = json.loads(result.stdout)
    assert (answer["signedRecords"], answer["previousKeyId"]) == (len(lines), before[1].split("+")[1])
    assert answer["key"] == key(world) != before[1]
    last = world.json("audit", "search", "--instance", "acme")[-1]
    assert (last["eventName"], last["requestParameters"]["reason"]) == ("AuditLogRestarted", "the disk lost it")
    signed(world)
    assert world.run("audit", "verify", "--instance", "acme").exit_code == 0
    assert (world.state.parent / "config" / "audit" / f"{ACME}.{answer['previousKeyId']}.key").exists()


def test_a_broken_log_is_set_aside_whole_and_an_empty_one_begun(world: World) -> None:
    signed(world)
    tamper(world, b"ArtifactOpened", b"ArtifactOpaned")
    [path] = log_of(world).glob("*.jsonl")
    broken = path.read_bytes()
    assert world.run("audit", "restart", "acme", "--reason", "x").exit_code == 4
    assert world.run("audit", "restart", "acme", "--reason", "looked at it", "--set-aside").exit_code == 0
    [kept] = (world.state / "lost+found").rglob(path.name)
    assert kept.read_bytes() == broken
    [only] = world.json("audit", "search", "--instance", "acme")
    assert (only["logIndex"], only["requestParameters"]["setAside"]) == (0, [path.name])
    signed(world)
    assert world.run("audit", "verify", "--instance", "acme").exit_code == 0
