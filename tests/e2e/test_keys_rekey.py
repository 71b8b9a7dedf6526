"""`pipeline keys rekey` beside a running service and without one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from tests.node import Caller, node, process_node, until
from tests.sites import Site, key_server_site

BODY = b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(5000)


async def rekey(site: Site, *more: str) -> tuple[int, dict[str, Any]]:
    settings = str(site.write_settings())
    arguments = ["keys", "rekey", "acme", "--reason", "a copy was found", "--json", "--config", settings, *more]
    result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, arguments, catch_exceptions=False))
    return result.exit_code, json.loads(result.stdout.splitlines()[-1]) if result.stdout else {}


def ring(site: Site) -> list[str]:
    folder = site.state / "keys" / str(site.acme.instance.instance_id)
    return sorted(path.stem for path in folder.glob("*.json"))


def held_under(site: Site, key: str) -> list[str]:
    return [path.name for path in site.state.rglob("*") if key in path.name and not path.name.endswith(".done")]


async def taken(site: Site, caller: Caller, *contacts: str) -> None:
    for contact in contacts:
        assert (await caller.put(site.acme, contact, "voice.wav", BODY)).status == 201


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the test's own process as it is."""
    monkeypatch.setattr("pipeline.process.harden", lambda: None)
    monkeypatch.setattr("pipeline.logs.configure", lambda *_: None)


@pytest.mark.slow
async def test_what_is_held_gets_another_data_key_and_is_delivered(quiet: None, tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, _):
        right = site.acme.instance
        missing = {kind: replace(place, bucket="there-is-none") for kind, place in right.storage.items()}
        site.reconfigure(replace(right, storage=missing))
        async with node(site) as caller:
            await taken(site, caller, "c-1", "c-2")
            (first,) = ring(site)
            code, answer = await rekey(site, "--data-key", first)
            assert (code, answer["destroyed"], answer["damaged"]) == (0, [str(_dashed(first))], [])
            assert held_under(site, first) == []
            assert first not in ring(site)
            await taken(site, caller, "c-3")
        (second,) = ring(site)
        code, answer = await rekey(site)
        assert (code, answer["destroyed"]) == (0, [str(_dashed(second))])
        assert len(site.artifacts(".sealed")) == 3
        assert (await rekey(site, "--data-key", first))[0] == 3
        site.reconfigure(right)
        async with node(site):
            await until(lambda: len(site.published(site.acme)) == 3)
        stored = await site.objects(site.acme)
        assert [each.body for each in stored.values()] == [BODY] * 3
        events = [each["eventName"] for each in site.audit(site.acme)]
        assert (events.count("ArtifactRekeyed"), events.count("DataKeyDestroyed")) == (5, 2)


def _dashed(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_killed_at_any_time_the_service_goes_on_with_it_by_itself(quiet: None, tmp_path: Path) -> None:
    """Whatever the moment: all is held, it ends without the old data key, and all is delivered once."""
    async with key_server_site(tmp_path) as (site, _):
        right = site.acme.instance
        missing = {kind: replace(place, bucket="there-is-none") for kind, place in right.storage.items()}
        site.reconfigure(replace(right, storage=missing))
        async with process_node(site) as running:
            await taken(site, running.caller, *(f"c-{number}" for number in range(30)))
            for delay_s in (0.3, 1.0):
                (key,) = ring(site)
                async with anyio.create_task_group() as group:
                    group.start_soon(rekey, site, "--data-key", key)
                    await until(lambda: any((site.state / "jobs").glob("*.ask.json")))
                    await anyio.sleep(delay_s)
                    running.kill()
                await running.start()
                await until(lambda key=key: key not in ring(site), 60)  # type: ignore[misc]
                assert held_under(site, key) == []
                assert len(site.artifacts(".sealed")) == 30
                for job in (site.state / "jobs").glob("*"):
                    job.unlink()
            site.reconfigure(right)
            running.kill()
            await running.start()
            await until(lambda: len(site.artifacts(".done")) == 30, 60)
        assert {each.body for each in (await site.objects(site.acme)).values()} == {BODY}
        assert len(await site.versions(site.acme)) == 30
