"""F45: instance files that are bad, gone, or come back, while the service runs and holds recordings of theirs."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
import pytest

from pipeline import config
from pipeline.delivery.holds import Hold
from pipeline.errors import HoldCode
from pipeline.ids import Kind
from pipeline.instances import file_name
from pipeline.node import Clients, Node
from tests.e2e.test_holds import hold
from tests.node import Caller, node, until
from tests.proxy import proxied
from tests.sites import Party, Site, moto_site

pytestmark = pytest.mark.aws

BODY = b"RIFF" + bytes(2000)


def path_of(site: Site, party: Party) -> Path:
    return Path(site.settings.config_dir, config.INSTANCES, file_name(party.instance.instance_id))


def reload() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


async def part(caller: Caller, name: str) -> str:
    """Ask what the service says of one of its parts."""
    answer = await caller.ask("GET", "/readyz", None, headers={"Accept": "application/json"})
    assert answer.status == 200
    [detail] = [line["detail"] for line in answer.json["parts"] if line["part"] == name]
    return str(detail)


async def says(caller: Caller, name: str, detail: str) -> None:
    while await part(caller, name) != detail:  # noqa: ASYNC110 - the service is asked over HTTP
        await anyio.sleep(0.01)


def left_over(site: Site, party: Party) -> None:
    """Leave a hold that nothing waits for any more."""
    left = Hold(party.instance.instance_id, "chat", HoldCode.DESTINATION_MISSING, "gone", datetime.now(UTC))
    path = site.state / "holds" / f"{party.instance.instance_id}.chat.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(left))


async def test_holds_of_an_instance_that_is_removed_go_and_those_of_a_bad_file_stay(tmp_path: Path) -> None:
    """Whether a reload sees it, or a start after a crash between the file's removal and the hold's."""
    async with moto_site(tmp_path) as site:
        path = path_of(site, site.acme)
        good = path.read_bytes()
        for party in site.parties:
            left_over(site, party)
        async with node(site) as caller:
            path.write_bytes(b"not toml")
            reload()
            await says(caller, "configuration", "1 instance files can't be used")
            assert hold(site, site.acme, "chat") == "DESTINATION_MISSING"
            path.unlink()
            reload()
            await until(lambda: hold(site, site.acme, "chat") is None)
        path.write_bytes(good)
        left_over(site, site.acme)
        path.unlink()
        async with node(site):
            assert hold(site, site.acme, "chat") is None
            assert hold(site, site.borealis, "chat") == "DESTINATION_MISSING"


async def test_a_bad_file_leaves_what_was_in_force_and_hides_no_other(tmp_path: Path) -> None:
    async with moto_site(tmp_path) as site, node(site) as caller:
        good = path_of(site, site.acme).read_bytes()
        token, token_hash = config.new_token()
        for bad in (b"", b"not toml", good.replace(b"alias", b"alyas"), b"\xff"):
            path_of(site, site.acme).write_bytes(bad)
            config.save_instance(site.settings.config_dir, replace(site.borealis.instance, token_sha256=(token_hash,)))
            reload()
            await says(caller, "configuration", "1 instance files can't be used")
            assert (await caller.put(site.acme, f"c-{len(bad)}", "voice", BODY)).status == 201
            assert (await caller.put(site.borealis, "c", "voice", BODY)).status == 401
            assert (await caller.put(Party(site.borealis.instance, token), "c", "voice", BODY)).status == 201
        path_of(site, site.acme).write_bytes(good)
        reload()
        await says(caller, "configuration", "ok")
        await until(lambda: len(site.published(site.acme)) == 4 and len(site.published(site.borealis)) == 1)


async def test_the_backlog_of_a_deleted_instance_is_held_told_and_delivered_when_it_is_back(tmp_path: Path) -> None:
    async with moto_site(tmp_path) as site, proxied(site.settings.s3) as proxy:
        site.settings = replace(site.settings, s3=proxy.endpoint)
        good = path_of(site, site.acme).read_bytes()
        async with node(site) as caller:
            proxy.closed = True
            for number in range(3):
                assert (await caller.put(site.acme, f"c-{number}", "voice", BODY)).status == 201
            config.remove_instance(site.settings.config_dir, site.acme.instance.instance_id)
            reload()
            await until(lambda: hold(site, site.acme, "voice"))
            proxy.closed = False
            assert hold(site, site.acme, "voice") == "DESTINATION_MISSING"
            assert (await caller.put(site.acme, "c-3", "voice", BODY)).status == 401
            assert (await caller.put(site.borealis, "c", "voice", BODY)).status == 201
            await until(lambda: site.published(site.borealis))
            assert await part(caller, "destinations") == "1 holds of 1 instances, 1 DESTINATION_MISSING"
        async with node(site) as caller:
            assert len(site.artifacts("sealed")) == 3
            path_of(site, site.acme).write_bytes(good)
            reload()
            await until(lambda: len(site.published(site.acme)) == 3)
            await says(caller, "destinations", "none held")
        assert site.artifacts("sealed") == site.artifacts("poison") == []


async def test_a_directory_that_is_gone_removes_nobody(tmp_path: Path) -> None:
    """Its volume may not be mounted just now."""
    async with configured(tmp_path) as (site, served):
        directory = Path(site.settings.config_dir, config.INSTANCES)
        directory.rename(directory.with_name("elsewhere"))
        await served.configure()
        assert len(served.tenants.instances()) == 2
        directory.mkdir()
        await served.configure()
        assert served.tenants.instances() == []


async def test_keys_that_can_not_be_read_leave_the_old_configuration_in_force(tmp_path: Path) -> None:
    """With an empty ring everything that is sealed would look as if its key were lost."""
    async with configured(tmp_path) as (site, served):
        before = served.tenants[site.acme.instance.instance_id]
        folder = site.state / "keys" / str(site.acme.instance.instance_id)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.write_bytes(b"no directory")
        other = site.borealis.instance.kms_key_arn
        site.reconfigure(replace(site.acme.instance, kms_key_arn=other))
        await served.configure()
        now = served.tenants[site.acme.instance.instance_id]
        assert (now.instance, now.ring) == (before.instance, before.ring)
        assert served.refused_files == 1
        folder.unlink()
        await served.configure()
        assert served.tenants[site.acme.instance.instance_id].instance.kms_key_arn == other
        assert served.refused_files == 0


async def test_what_a_probe_answered_may_be_unreadable(tmp_path: Path) -> None:
    async with configured(tmp_path) as (site, served):
        instance_id = site.acme.instance.instance_id
        config.save_probe(site.settings.config_dir, instance_id, Kind.VOICE, b'{"head":false')
        await served.configure()
        assert served.head_allowed(instance_id, Kind.VOICE)


async def test_a_ring_is_kept_while_its_keys_are_and_dropped_with_its_instance(tmp_path: Path) -> None:
    async with configured(tmp_path) as (site, served):
        instance_id = site.acme.instance.instance_id
        ring = served.tenants[instance_id].ring
        key = await ring.active()
        site.reconfigure(replace(site.acme.instance, alias="renamed"))
        await served.configure()
        assert served.tenants[instance_id].ring is ring
        config.remove_instance(site.settings.config_dir, instance_id)
        await served.configure()
        assert served.tenants.get(instance_id) is None
        assert ring._copies.get(key.key_id) is None


@asynccontextmanager
async def configured(directory: Path) -> AsyncIterator[tuple[Site, Node]]:
    """Give a node that has read its configuration, its commits running."""
    async with moto_site(directory) as site, AsyncExitStack() as stack, anyio.create_task_group() as group:
        site.state.mkdir()
        served = Node(site.settings, Clients(stack, site.settings))
        group.start_soon(served.commits.run, name="group commit")
        await served.configure()
        try:
            yield site, served
        finally:
            served.commits.stop()
