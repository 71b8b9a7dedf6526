"""What changed in the configuration is in the audit trail, by the names of keys; secrets are not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import anyio
import pytest

from pipeline.adapters.disk import Disk
from pipeline.audit.records import Actor
from pipeline.configtrail import ConfigurationTrail
from pipeline.errors import DeferError
from pipeline.interim.commit import GroupCommit
from pipeline.settings import Settings, load
from pipeline.trail import Trail
from tests.audit_logs import chained, files_of
from tests.store_fixture import instance
from tests.unit.keyring_fakes import ARN, OLD_ARN, A, B, FakeClock

SECRET = "a-secret-of-an-access-key"


def settings(**more: str) -> Settings:
    environ = {"PIPELINE_STATE_DIR": "/state", "AWS_REGION": "eu-central-1"} | {
        f"PIPELINE_{name.upper()}": value for name, value in more.items()
    }
    return load("", environ, base=PurePath("/config"))


@asynccontextmanager
async def trail(root: Path) -> AsyncIterator[ConfigurationTrail]:
    files, lines = Disk(), Trail(str(root), actor=Actor("Service", "test"), clock=FakeClock())
    commits = GroupCommit(files)
    async with anyio.create_task_group() as group:
        group.start_soon(commits.run)
        try:
            yield ConfigurationTrail(f"{root}/audit/configuration.json", files=files, commits=commits, trail=lines)
        finally:
            commits.stop()


def told(root: Path, log: object) -> list[dict[str, Any]]:
    folder = root / "audit" / str(log)
    if not folder.exists():
        return []
    records = chained(files_of({str(path): path.read_bytes() for path in folder.iterdir()}, str(folder)))
    return [each["requestParameters"] for each in records]


async def test_instances_are_told_when_they_come_change_and_go_and_else_not(tmp_path: Path) -> None:
    first, changed = instance(A), replace(instance(A), kms_key_arn=OLD_ARN, token_sha256=("ab" * 32,))
    for given in ([first], [first], [changed], [changed], []):
        async with trail(tmp_path) as configured:  # each a run of its own
            assert await configured.tell_instances(given) == set()
    came, moved, went = told(tmp_path, A)
    assert (came["change"], came["values"]["kms_key_arn"]) == ("added", ARN)
    assert (moved["change"], moved["keys"]) == ("changed", ["kms_key_arn", "token_sha256"])
    assert moved["values"] == {"kms_key_arn": OLD_ARN}
    assert went == {"change": "removed"}


async def test_a_file_that_can_not_be_read_is_no_removal(tmp_path: Path) -> None:
    async with trail(tmp_path) as configured:
        await configured.tell_instances([instance(A), instance(B)])
        await configured.tell_instances([instance(B)], {str(A)})
    assert [each["change"] for each in told(tmp_path, A)] == ["added"]


async def test_what_can_not_be_told_is_given_back_and_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / str(A)).write_bytes(b"")
    async with trail(tmp_path) as configured:
        assert await configured.tell_instances([instance(A), instance(B)]) == {A}
        (tmp_path / "audit" / str(A)).unlink()
        assert await configured.tell_instances([instance(A), instance(B)]) == set()
    assert [each["change"] for each in told(tmp_path, A) + told(tmp_path, B)] == ["added", "added"]


async def test_settings_are_told_at_each_start_with_the_names_of_those_that_changed_and_no_secret(
    tmp_path: Path,
) -> None:
    keys = {"s3_access_key": "access", "s3_secret_key": SECRET, "s3_url": "http://127.0.0.1:9"}
    for given in (settings(**keys), settings(**keys), settings(**keys, http_port="81")):
        async with trail(tmp_path) as configured:
            await configured.tell_settings(given)
    first, same, changed = told(tmp_path, "node")
    assert "http.port" in first["keys"]
    assert (same["keys"], same["sha256"]) == ([], first["sha256"])
    assert (changed["keys"], changed["sha256"] != same["sha256"]) == (["http.port"], True)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


async def test_settings_that_can_not_be_told_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "audit").write_bytes(b"")
    async with trail(tmp_path) as configured:
        with pytest.raises(DeferError):
            await configured.tell_settings(settings())
