"""Backups are made, checked, listed and brought back; half and changed ones are told, and nothing is overwritten."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from pipeline.adapters.disk import Disk, locked
from pipeline.adapters.sqlite import SqliteEngine
from pipeline.backup import manifest as manifests
from pipeline.backup.copies import Copied
from pipeline.backup.manifest import read_manifest
from pipeline.cli import app
from pipeline.errors import HaltError, PipelineError, RefuseError, StoreFullError
from pipeline.ids import KeyId
from pipeline.interim.commit import GroupCommit
from pipeline.interim.marker import RESTORING
from pipeline.interim.store import InterimStore
from pipeline.records.rows import Row, RowChange
from tests.cli_store import BODY, World
from tests.held_store import ACME, GLOBEX


@pytest.fixture
def world(command_world: World) -> World:
    """Give a store of one's own."""
    return command_world


def backup(world: World, name: str = "backup", *options: str) -> Path:
    target = world.state.parent / name
    result = world.run("backup", str(target), *options)
    assert result.exit_code == 0, result.output
    return target


def verify(target: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["backup", "verify", str(target), *options])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def restored(world: World, target: Path, name: str = "state-2") -> World:
    """Bring a backup back beside the store that it is of."""
    there = World(world.state.parent / name, world.sealed, world.chat, world.opened, world.delivered, world.poison)
    result = there.run("restore", str(target))
    assert result.exit_code == 0, result.output
    return there


def test_what_is_restored_is_what_was_backed_up(world: World) -> None:
    before = files(world.state)
    target = backup(world)
    there = restored(world, target)
    after = files(there.state)
    audit = {path for path in after if path.startswith("audit/") and path.endswith(".jsonl")}
    assert {path: raw for path, raw in after.items() if path not in audit and not path.endswith("lock")} == {
        path: raw for path, raw in before.items() if path not in audit and path != "ballast" and path[-4:] != "lock"
    }
    assert {path.split("/")[1] for path in audit} == {"node", str(ACME), str(GLOBEX)}
    for path in audit:  # each log goes on where it was
        assert after[path].startswith(before.get(path, b""))
        told = after[path].removeprefix(before.get(path, b"")).splitlines()
        assert [json.loads(line)["eventName"] for line in told] == ["BackupRestored"]
    rows = there.json("ls")
    assert {row["artifactId"] for row in rows} == {row["artifactId"] for row in world.json("ls")}
    assert there.run("verify").exit_code == 0


def test_a_backup_is_its_owners_alone_and_nothing_in_it_is_in_clear(world: World) -> None:
    target = backup(world)
    for path in (target, *target.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert [path for path, raw in files(target).items() if BODY[:64] in raw] == []
    assert not (target / "config").exists()


def test_a_backup_is_told_in_every_audit_trail_and_kept_on_a_list_until_it_is_forgotten(world: World) -> None:
    target = backup(world)
    (made,) = world.json("backup", "list")[0]["backups"]
    manifest = read_manifest(Disk(), str(target))
    assert (made["folder"], made["manifestSha256"]) == (str(target), manifest.sha256)
    assert made["backupId"] == str(manifest.beginning.backup_id)
    told = [
        json.loads(line)
        for log in (world.state / "audit").glob("*/*.jsonl")
        for line in log.read_text().splitlines()
        if json.loads(line)["userIdentity"]["type"] == "Command"
    ]
    assert {each["eventName"] for each in told} == {"BackupMade"}
    assert len(told) == 3  # the node's, and two instances'
    assert world.run("backup", "forget", made["backupId"], "--reason", "burnt").exit_code == 0
    assert world.json("backup", "list")[0]["backups"] == []
    assert target.exists()
    assert world.run("backup", "forget", made["backupId"], "--reason", "burnt").exit_code == 3


def test_a_backup_with_the_configuration_brings_that_back_too(world: World) -> None:
    target = backup(world, "backup", "--with-config")
    config = world.state.parent / "config"
    to = world.state.parent / "config-2"
    result = world.run("restore", str(target), "--config-to", str(to))
    assert result.exit_code == 0, result.output
    assert {path: raw for path, raw in files(config).items() if not path.startswith("backups/")} == files(to)
    assert world.run("restore", str(target), "--config-to", str(to)).exit_code == 3
    assert world.run("restore", str(backup(world, "plain")), "--config-to", str(to / "new")).exit_code == 3


def test_the_configuration_inside_the_state_directory_is_left_out_unless_it_is_wanted(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "config" / "instances").mkdir(parents=True)
    (state / "embedded").mkdir()
    (state / "embedded" / "root-key").write_bytes(b"secret")
    (state / "store.json").write_text('{"storeId": "s", "formatVersion": 2}')

    def made(name: str, *options: str) -> list[str]:
        result = CliRunner().invoke(app, ["backup", str(tmp_path / name), "--state-dir", str(state), *options])
        assert result.exit_code == 0, result.output
        return [path for path in files(tmp_path / name) if "audit" not in path]

    assert sorted(made("a")) == ["manifest.jsonl", "store/store.json"]
    assert not [path for path in made("b", "--with-config") if path.startswith("store/config")]


# --- what is no backup, or not one any more


def broken(folder: Path, how: str) -> str:
    path = next((folder / "store" / "artifacts").rglob("*.sealed"))
    if how == "flipped":
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif how == "missing":
        path.unlink()
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path = path.with_name("stranger")
        path.write_bytes(b"x")
    return str(path.relative_to(folder))


@pytest.mark.parametrize("how", ["flipped", "missing", "cut", "more"])
def test_verify_names_each_file_that_is_not_as_it_was(world: World, how: str) -> None:
    target = backup(world)
    assert verify(target).exit_code == 0
    path = broken(target, how)
    result = verify(target, "--json")
    assert (result.exit_code, [each["path"] for each in json.loads(result.stdout)["problems"]]) == (1, [path])


@pytest.mark.parametrize("how", ["flipped", "missing", "cut"])
def test_a_changed_backup_is_not_served_and_a_sound_one_can_still_be_restored(world: World, how: str) -> None:
    target = backup(world)
    sound = world.state.parent / "sound"
    shutil.copytree(target, sound)
    broken(target, how)
    there = World(world.state.parent / "new", world.sealed, world.chat, world.opened, world.delivered, world.poison)
    assert there.run("restore", str(target)).exit_code == 3
    assert RESTORING in {path.name for path in there.state.iterdir()}
    with pytest.raises(HaltError, match="restore"):
        InterimStore(str(there.state), Disk(), GroupCommit(Disk()), free_bytes=0).open(None)
    assert there.run("restore", str(sound)).exit_code == 0
    assert there.run("verify").exit_code == 0


def test_another_backup_does_not_go_on_where_one_broke_off(world: World) -> None:
    first, second = backup(world, "first"), backup(world, "second")
    broken(first, "missing")
    there = World(world.state.parent / "new", world.sealed, world.chat, world.opened, world.delivered, world.poison)
    assert there.run("restore", str(first)).exit_code == 3
    refused = there.run("restore", str(second))
    assert (refused.exit_code, "another backup" in refused.stderr) == (3, True)


def test_half_a_backup_is_none(world: World) -> None:
    target = backup(world)
    raw = (target / manifests.NAME).read_bytes()
    for content in (None, b"", raw[:-1], raw[: len(raw) // 2], raw.replace(b'"sizeBytes":', b'"sizeBytes": ', 1)):
        (target / manifests.NAME).unlink()
        if content is not None:
            (target / manifests.NAME).write_bytes(content)
        else:
            assert "half" in verify(target).stderr
        assert verify(target).exit_code == 3
        assert world.run("restore", str(target)).exit_code == 3
        (target / manifests.NAME).write_bytes(raw)


def test_a_disk_that_fills_leaves_half_a_backup_that_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    target = world.state.parent / "backup"
    append = Disk.append

    def full(disk: Disk, handle: int, buffers: Any) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().is_relative_to(target / "store" / "artifacts"):
            raise StoreFullError("no room to write")
        append(disk, handle, buffers)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "append", full)
        assert world.run("backup", str(target)).exit_code == 4
    assert verify(target).exit_code == 3
    assert world.json("backup", "list")[0]["backups"] == []


# --- where it is refused


def test_a_backup_goes_into_a_new_or_empty_folder_outside_of_what_it_is_of(world: World) -> None:
    backup(world)
    for target in (world.state.parent / "backup", world.state / "backup", world.state.parent / "config" / "backup"):
        assert world.run("backup", str(target)).exit_code == 3
    assert not (world.state / "backup").exists()


def test_two_backups_do_not_run_side_by_side(world: World) -> None:
    with locked(f"{world.state}/backup.lock"):
        refused = world.run("backup", str(world.state.parent / "backup"))
    assert (refused.exit_code, "under way" in refused.stderr) == (3, True)


def test_a_backup_is_restored_into_an_empty_state_directory_that_nobody_serves(world: World) -> None:
    target = backup(world)
    before = files(world.state)
    refused = world.run("restore", str(target))
    assert (refused.exit_code, "not empty" in refused.stderr) == (3, True)
    assert {path: raw for path, raw in files(world.state).items() if path != "lock"} == {
        path: raw for path, raw in before.items() if path != "lock"
    }
    there = World(world.state.parent / "new", world.sealed, world.chat, world.opened, world.delivered, world.poison)
    there.state.mkdir(mode=0o700)
    with locked(f"{there.state}/lock"):
        assert there.run("restore", str(target)).exit_code == 3


def test_a_configuration_that_knows_another_store_takes_no_backup(world: World) -> None:
    target = backup(world)
    (world.state.parent / "config" / "store-id").write_text("another\n")
    there = World(world.state.parent / "new", world.sealed, world.chat, world.opened, world.delivered, world.poison)
    refused = there.run("restore", str(target))
    assert (refused.exit_code, "store-id" in refused.stderr, there.state.exists()) == (3, True, False)


def test_a_restore_says_which_kms_keys_it_needs_and_which_are_not_configured(world: World) -> None:
    target = backup(world)
    path = world.state.parent / "config" / "instances" / f"{ACME}.toml"
    path.write_text(path.read_text().replace("key/", "key/0"))
    there = World(world.state.parent / "new", world.sealed, world.chat, world.opened, world.delivered, world.poison)
    (answer,) = there.json("restore", str(target))
    assert {row["instance"]: row["configured"] for row in answer["kmsKeys"]} == {str(ACME): False, str(GLOBEX): True}


@pytest.mark.parametrize("path", ["../x", "store/../../x", "/x", "", "store//x", "store/./x", "store/\0"])
def test_a_manifest_leads_nowhere_else(world: World, path: str) -> None:
    target = backup(world)
    known = read_manifest(Disk(), str(target))
    (target / manifests.NAME).unlink()
    manifests.write_manifest(Disk(), str(target), known.beginning, [Copied(path, 0, "0" * 64)])
    with pytest.raises(RefuseError, match="path"):
        read_manifest(Disk(), str(target))


@given(st.binary(max_size=400))
def test_no_bytes_but_a_manifests_are_taken_for_one(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    (folder / manifests.NAME).write_bytes(raw)
    with pytest.raises(PipelineError):
        read_manifest(Disk(), str(folder))


def test_records_are_backed_up_as_of_one_moment_while_they_change(world: World) -> None:
    """A plain copy of the file, with its log beside it, would be of no moment at all."""
    begun, ended = threading.Event(), threading.Event()

    def pair(number: int) -> list[RowChange]:
        rows = [
            Row(b"s" * 16, f"{number}{half}".encode().ljust(16), 1, KeyId(UUID(int=1)), b"x" * 500) for half in "ab"
        ]
        return [RowChange(row.shelf, row.tag, 0, row) for row in rows]

    async def write() -> None:
        engine, number = SqliteEngine(f"{world.state}/records/records.db"), 0
        while not ended.is_set():
            await engine.write(pair(number))
            begun.set()
            number += 1
        engine.close()

    async def count(path: str) -> int:
        engine = SqliteEngine(path)
        try:
            return await engine.count(b"s" * 16)
        finally:
            engine.close()

    writer = threading.Thread(target=anyio.run, args=(write,))
    writer.start()
    begun.wait()
    target = backup(world)
    ended.set()
    writer.join()
    assert sorted(each.name for each in (target / "store" / "records").iterdir()) == ["records.db"]
    assert not (target / "records.moment").exists()
    there = restored(world, target)
    found = anyio.run(count, f"{there.state}/records/records.db")
    assert found > 0
    assert found % 2 == 0
