"""`pipeline keys reencrypt`: what is delivered, under another KMS key in its bucket; read again without the old one."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner, Result

from pipeline.adapters.aws import open_client
from pipeline.audit.hourly import OBJECTS
from pipeline.cli import app
from pipeline.config import load_instances
from pipeline.errors import HoldCode
from pipeline.instances import Instance
from pipeline.settings import AuditSettings, CanarySettings
from tests.kms_server import RunningKeyServer, new_key
from tests.node import node, until
from tests.sites import Site, key_server_site, seaweedfs_site

BODY = b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(5000)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the test's own process as it is."""
    monkeypatch.setattr("pipeline.process.harden", lambda: None)
    monkeypatch.setattr("pipeline.logs.configure", lambda *_: None)


async def run(site: Site, *arguments: str, group: str = "keys") -> Result:
    settings = ["--config", str(site.write_settings())]
    return await anyio.to_thread.run_sync(
        lambda: CliRunner().invoke(app, [group, *arguments, *settings], catch_exceptions=False)
    )


async def answered(site: Site, *arguments: str) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    result = await run(site, *arguments, "--json")
    # The service in this process logs there, too.
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return result.exit_code, lines[-1], lines[:-1]


def with_bucket_key(instance: Instance, arn: str) -> Instance:
    return replace(
        instance, storage={kind: replace(place, kms_key_arn=arn) for kind, place in instance.storage.items()}
    )


def bodies(stored: Mapping[str, Any]) -> dict[str, bytes]:
    return {key: each.body for key, each in stored.items()}


def former(site: Site) -> list[str]:
    """Give the bucket keys that the configuration says are still needed."""
    loaded = load_instances(site.settings.config_dir).instances[site.acme.instance.instance_id]
    return list(loaded.former_bucket_key_arns)


def disable(keys: RunningKeyServer, arn: str) -> None:
    keys.disable(arn.rpartition("/")[2])


async def everything(site: Site) -> dict[str, tuple[str, bytes]]:
    """Read every object of the instance's bucket, whatever wrote it: its KMS key, and its bytes."""
    found = {}
    async with open_client("s3", site.reader) as s3:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=site.acme.bucket)
        for key in [each["Key"] async for page in pages for each in page.get("Contents", [])]:
            answer = await s3.get_object(Bucket=site.acme.bucket, Key=key)
            found[key] = answer.get("SSEKMSKeyId", ""), await answer["Body"].read()
    return found


async def brought(site: Site, prefix: str) -> None:
    """Wait until there is an object below a prefix."""
    async with open_client("s3", site.reader) as s3:
        with anyio.fail_after(20):
            while not (await s3.list_objects_v2(Bucket=site.acme.bucket, Prefix=prefix)).get("KeyCount"):  # noqa: ASYNC110
                await anyio.sleep(0.1)


@pytest.mark.aws
@pytest.mark.slow
async def test_after_none_is_left_every_object_reads_with_the_old_key_disabled(tmp_path: Path) -> None:
    """SeaweedFS, which truly encrypts: a change of KMS key for both what is held and what is delivered."""
    async with seaweedfs_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        site.settings = replace(
            site.settings,
            audit=AuditSettings(checkpoint_every=timedelta(seconds=1)),
            canary=CanarySettings(instance="acme"),
        )
        site.reconfigure(with_bucket_key(site.acme.instance, site.acme.instance.kms_key_arn))
        old, new = site.acme.instance.kms_key_arn, await new_key(admin)
        audits = f"{OBJECTS}{site.acme.instance.instance_id}/"
        large = bytes(range(256)) * 40_000  # 10 MB: more than one part
        async with node(site) as caller:
            for number in range(3):
                assert (await caller.put(site.acme, f"c-{number}", "voice.wav", BODY + bytes([number]))).status == 201
            assert (await caller.put(site.acme, "large", "screen.mp4", large)).status == 201
            await until(lambda: len(site.published(site.acme)) == 5)
            await brought(site, audits)
            before = await everything(site)
            assert {key.split("/")[0] for key in before} == {"connect", "canary", "audit"}
            code, change, _ = await answered(site, "change", "acme", new)
            assert (code, change["DeliveryMoved"]) == (0, ["chat", "screen", "voice"])
            assert change["DeliveredUnderOldKey"] == "unknown"
            _, looked, rows = await answered(site, "reencrypt", "acme", "--dry-run", "--list")
            assert (looked["DeliveredUnderOldKey"], looked["Reencrypted"]) == (len(rows), 0)
            assert {row["kmsKeyArn"] for row in rows} == {old}
            assert {row["key"] for row in rows} >= set(before)
            assert former(site) == [old]
            shown = await run(site, "reencrypt", "acme", "--rate", "1000")
            assert shown.exit_code == 0, shown.output
            assert "DeliveredUnderOldKey: 0" in shown.stdout
            assert former(site) == []
            disable(keys, old)
            assert (await caller.put(site.acme, "later", "voice.wav", BODY)).status == 201
            await until(lambda: len(site.published(site.acme)) == 6)
        after = await everything(site)
        assert {key: after[key][1] for key in before} == {key: body for key, (_, body) in before.items()}
        assert {arn for arn, _ in after.values()} == {new}
        verified = await run(site, "verify", "--bucket", "--instance", "acme", "--json", group="audit")
        assert (verified.exit_code, json.loads(verified.stdout.splitlines()[-1])["ok"]) == (0, True)
        rows = json.loads((await run(site, "status", "--json")).stdout)["instances"]
        (status,) = [row["change"] for row in rows if row["instance"] == "acme"]
        assert (status["UpdateStatus"], status["DeliveredUnderOldKey"]) == ("COMPLETED", 0)
        assert "nothing that is held or delivered needs" in (await run(site, "status")).stdout
        names = [each["eventName"] for each in site.audit(site.acme)]
        assert names.count("ObjectReencryptionBegun") == names.count("ObjectReencrypted") >= len(before)


@pytest.mark.slow
async def test_older_versions_keep_the_number_above_none(tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        new = await new_key(admin)
        async with open_client("s3", site.reader) as s3:
            await s3.put_bucket_versioning(Bucket=site.acme.bucket, VersioningConfiguration={"Status": "Enabled"})
        async with node(site) as caller:
            assert (await caller.put(site.acme, "c-1", "voice.wav", BODY)).status == 201
            await until(lambda: len(site.published(site.acme)) == 1)
        site.reconfigure(with_bucket_key(site.acme.instance, new))
        code, answer, _ = await answered(site, "reencrypt", "acme")
        assert (code, answer["Reencrypted"], answer["OlderVersions"], answer["Left"]) == (0, 1, 1, 0)
        assert answer["DeliveredUnderOldKey"] == 1
        again = (await answered(site, "reencrypt", "acme"))[1]
        assert (again["Reencrypted"], again["DeliveredUnderOldKey"]) == (0, 1)
        assert "lifecycle rule" in (await run(site, "reencrypt", "acme")).stdout
        assert bodies(await site.objects(site.acme)).popitem()[1] == BODY


@pytest.mark.slow
async def test_it_mends_a_recording_whose_object_lies_under_another_key(tmp_path: Path) -> None:
    """Delivered under the old key, and the receipt lost in a crash; then the key was changed."""
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        right = site.acme.instance
        missing = {kind: replace(place, bucket="there-is-none") for kind, place in right.storage.items()}
        site.reconfigure(replace(right, storage=missing))
        async with node(site) as caller:
            assert (await caller.put(site.acme, "c-1", "voice.wav", BODY)).status == 201
        (sealed,) = site.artifacts(".sealed")
        shutil.copy(sealed, tmp_path / "kept")
        site.reconfigure(right)
        async with node(site):
            await until(lambda: len(site.published(site.acme)) == 1)
        for receipt in site.artifacts(".done"):
            receipt.unlink()
        shutil.copy(tmp_path / "kept", sealed)
        site.reconfigure(with_bucket_key(right, await new_key(admin)))
        async with node(site):
            hold = site.state / "holds" / f"{right.instance_id}.voice.json"
            await until(hold.exists)
            assert json.loads(hold.read_text())["code"] == HoldCode.DESTINATION_WRONG_KEY
            code, answer, _ = await answered(site, "reencrypt", "acme")
            assert (code, answer["DeliveredUnderOldKey"], answer["ServiceTold"]) == (0, 0, True)
            await until(lambda: len(site.artifacts(".done")) == 1 and not hold.exists())
        assert len(await site.objects(site.acme)) == 1


async def test_a_key_that_can_not_be_used_stops_it_and_it_goes_on_later(tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, _):
        assert load_instances(site.settings.config_dir).instances
        missing = {kind: replace(place, bucket="there-is-none") for kind, place in site.acme.instance.storage.items()}
        site.reconfigure(replace(site.acme.instance, storage=missing))
        assert (await run(site, "reencrypt", "acme")).exit_code == 4
