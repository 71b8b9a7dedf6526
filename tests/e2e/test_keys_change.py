"""`pipeline keys change` on a running service and without one, against a key server that enforces key states."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.config import load_instances
from pipeline.instances import Instance, KeyAccess
from tests.kms_server import RunningKeyServer, new_key
from tests.node import Caller, node, process_node, until
from tests.sites import Party, Site, key_server_site

BODY = b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(5000)


async def run(site: Site, *arguments: str) -> Result:
    settings = str(site.write_settings())
    return await anyio.to_thread.run_sync(
        lambda: CliRunner().invoke(app, ["keys", *arguments, "--config", settings], catch_exceptions=False)
    )


async def change(site: Site, arn: str, *more: str) -> tuple[int, dict[str, Any]]:
    result = await run(site, "change", "acme", arn, "--json", *more)
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


async def status(site: Site) -> dict[str, Any]:
    rows = json.loads((await run(site, "status", "--json")).stdout)["instances"]
    return next(row for row in rows if row["instance"] == "acme")


def configured(site: Site) -> Instance:
    return load_instances(site.settings.config_dir).instances[site.acme.instance.instance_id]


def disable(keys: RunningKeyServer, arn: str) -> None:
    keys.disable(arn.rpartition("/")[2])


def enable(keys: RunningKeyServer, arn: str) -> None:
    keys.enable(arn.rpartition("/")[2])


async def taken(site: Site, caller: Caller, party: Party, count: int) -> None:
    """Take recordings."""
    for number in range(count):
        assert (await caller.put(party, f"c-{number}", "voice.wav", BODY + bytes([number]))).status == 201


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the test's own process as it is."""
    monkeypatch.setattr("pipeline.process.harden", lambda: None)
    monkeypatch.setattr("pipeline.logs.configure", lambda *_: None)


async def test_a_change_under_a_running_service_loses_no_request_and_needs_the_old_key_no_more(
    quiet: None, tmp_path: Path
) -> None:
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        old, new = site.acme.instance.kms_key_arn, await new_key(admin)
        async with node(site) as caller:
            await taken(site, caller, site.acme, 3)
            sending = anyio.Event()

            async def live() -> Any:
                yield BODY
                sending.set()
                await changed.wait()
                yield b"and the rest"

            changed = anyio.Event()
            answers: list[int] = []

            async def send() -> None:
                answers.append((await caller.put(site.acme, "live", "voice.wav", live())).status)

            async with anyio.create_task_group() as group:
                group.start_soon(send)
                await sending.wait()
                code, answer = await change(site, new)
                disable(keys, old)
                changed.set()
            assert answers == [201]
            assert code == 0
            assert (answer["UpdateStatus"], answer["FailedSide"], answer["OldKmsKeyId"]) == ("COMPLETED", None, old)
            assert answer["Done"] == answer["Total"] >= 2
            assert answer["DeliveredUnderOldKey"] == "unknown"
            assert answer["DeliveryMoved"] == []
            await taken(site, caller, site.acme, 4)
            await until(lambda: len(site.published(site.acme)) >= 5)
        assert configured(site).kms_key_arn == new
        assert configured(site).previous_kms_key_arn is None
        row = await status(site)
        assert row["change"]["UpdateStatus"] == "COMPLETED"
        assert all(key["wrappedUnder"] == [new] for key in row["dataKeys"])
        assert old not in row["neededKmsKeyArns"]
        names = [each["eventName"] for each in site.audit(site.acme)]
        assert {"KeyChangeBegun", "JobAsked", "ReEncrypt", "JobEnded", "KeyChangeCompleted"} <= set(names)
        assert (await change(site, new))[0] == 0


async def test_a_change_writes_no_recording(quiet: None, tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        right = site.acme.instance
        missing = {kind: replace(place, bucket="there-is-none") for kind, place in right.storage.items()}
        site.reconfigure(replace(right, storage=missing))
        async with node(site) as caller:
            await taken(site, caller, site.acme, 3)
        before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in site.artifacts("")}
        asked = len(keys.trail())
        assert (await change(site, await new_key(admin)))[0] == 0
        assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in site.artifacts("")} == before
        assert [each["eventName"] for each in keys.trail()[asked:]].count("ReEncrypt") == 1
        site.reconfigure(replace(configured(site), storage=right.storage))
        async with node(site):
            await until(lambda: len(site.published(site.acme)) == 3)


@pytest.mark.slow
async def test_the_grant_goes_with_the_key(quiet: None, tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        old, new = site.acme.instance.kms_key_arn, await new_key(admin)
        site.reconfigure(replace(site.acme.instance, key_access=KeyAccess.GRANT))

        async def names(arn: str) -> list[str]:
            return [grant["Name"] for grant in (await admin.list_grants(KeyId=arn))["Grants"]]

        result = await anyio.to_thread.run_sync(
            lambda: CliRunner().invoke(app, ["grants", "create", "acme", "--config", str(site.write_settings())])
        )
        assert result.exit_code == 0, result.output
        (name,) = await names(old)
        async with node(site) as caller:
            await taken(site, caller, site.acme, 1)
            disable(keys, new)
            assert (await run(site, "change", "acme", new)).exit_code == 3
            assert (await names(old), await names(new)) == ([name], [])
            enable(keys, new)
            assert (await change(site, new))[0] == 0
            assert (await names(old), await names(new)) == ([], [name])
            await taken(site, caller, site.acme, 2)
            await until(lambda: len(site.published(site.acme)) == 2)


async def test_a_key_that_is_no_key_changes_nothing(quiet: None, tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        before, disabled = configured(site), await new_key(admin)
        disable(keys, disabled)
        for arn in (disabled, "alias/x", before.kms_key_arn.replace("eu-central-1", "us-east-1"), disabled[:-1] + "0"):
            result = await run(site, "change", "acme", arn)
            assert result.exit_code == 3, arn
        assert configured(site) == before
        assert (await status(site))["change"] is None


async def test_either_key_lost_is_told_with_its_side_and_the_same_command_goes_on(quiet: None, tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        old, new, third = site.acme.instance.kms_key_arn, await new_key(admin), await new_key(admin)
        async with node(site) as caller:
            await taken(site, caller, site.acme, 1)
        disable(keys, old)
        code, answer = await change(site, new)
        assert (code, answer["UpdateStatus"], answer["FailedSide"]) == (1, "FAILED", "old")
        assert (answer["Done"], answer["Total"]) == (1, 2)
        shown = await run(site, "status")
        assert f"do not delete {old}" in shown.stdout
        refused = await run(site, "change", "acme", third)
        assert refused.exit_code == 3
        assert "conflict" in refused.stderr
        enable(keys, old)
        disable(keys, new)
        code, answer = await change(site, new)
        assert (code, answer["UpdateStatus"], answer["FailedSide"]) == (1, "FAILED", "new")
        assert (await status(site))["change"]["FailedSide"] == "new"
        enable(keys, new)
        code, answer = await change(site, new)
        assert (code, answer["UpdateStatus"]) == (0, "COMPLETED")
        disable(keys, old)
        async with node(site):
            await until(lambda: len(site.published(site.acme)) == 1)


@pytest.mark.slow
async def test_what_was_delivered_under_the_old_key_is_from_then_on_delivered_under_the_new_one(
    quiet: None, tmp_path: Path
) -> None:
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        new, other = await new_key(admin), await new_key(admin)
        instance = site.acme.instance
        storage = {
            kind: place if kind == "chat" else type(place)(**{**_fields(place), "kms_key_arn": instance.kms_key_arn})
            for kind, place in instance.storage.items()
        }
        site.reconfigure(type(instance)(**{**_fields(instance), "storage": storage}))
        code, answer = await change(site, new)
        assert (code, answer["DeliveryMoved"]) == (0, ["screen", "voice"])
        assert {kind: place.kms_key_arn == new for kind, place in configured(site).storage.items()} == {
            "voice": True,
            "screen": True,
            "chat": False,
        }
        code, answer = await change(site, await new_key(admin), "--bucket-key", other)
        assert (code, answer["DeliveryMoved"]) == (0, ["chat", "screen", "voice"])
        assert {place.kms_key_arn for place in configured(site).storage.values()} == {other}


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


@pytest.mark.slow
async def test_killed_at_any_time_a_change_goes_on_when_it_is_asked_for_again(quiet: None, tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, keys), keys.client("admin") as admin:
        old = site.acme.instance.kms_key_arn
        async with process_node(site) as running:
            for delay_s in (0.0, 0.2):
                arn = await new_key(admin)
                await taken(site, running.caller, site.acme, 2)
                async with anyio.create_task_group() as group:
                    group.start_soon(run, site, "change", "acme", arn)
                    await anyio.sleep(delay_s)
                    running.kill()
                await running.start()
                code, answer = await change(site, arn)
                assert (code, answer["UpdateStatus"]) == (0, "COMPLETED")
                disable(keys, old)
                old = arn
            await until(lambda: len(site.published(site.acme)) == len(site.artifacts(".done")) >= 2)
            assert site.artifacts(".sealed") == []
