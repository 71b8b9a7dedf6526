"""A restore drill: a node is backed up while it serves, is lost later, and goes on from the backup.

What was acknowledged before the backup arrives, what was delivered since is recognised, and nothing is written twice.
"""

import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.e2e.journey import check_no_plaintext, contact_event, message, wav
from tests.e2e.test_commands import answered, cli, logging_aside
from tests.node import Caller, node, until
from tests.proxy import proxied
from tests.sites import Party, Site, key_server_site

pytestmark = pytest.mark.aws

HALF = 600_000


@cache
def body(number: int) -> bytes:
    return wav(20_000) + bytes([number])


async def send(caller: Caller, party: Party, *numbers: int) -> None:
    for number in numbers:
        assert (await caller.put(party, f"c-{number}", "voice.wav", body(number))).status == 201


async def half(caller: Caller, party: Party, whole: bytes) -> None:
    """Send the first part of a recording, until it is acknowledged; then the connection breaks."""

    async def first() -> AsyncIterator[bytes]:
        yield whole[:HALF]
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(caller.put, party, "c-long", "voice.wav", first())
        while await caller.offset(party, "c-long", "voice.wav") != HALF:  # noqa: ASYNC110
            await anyio.sleep(0.05)
        group.cancel_scope.cancel()


async def backed_up(site: Site, caller: Caller, numbers: range) -> Path:
    """Make a backup while recordings come in."""
    target = site.directory / "backup"
    config = str(site.write_settings())
    async with anyio.create_task_group() as group:
        group.start_soon(send, caller, site.borealis, *numbers)
        made = answered(await cli("backup", str(target), "--config", config, "--json"))
        assert made["unread"] == []
    assert (await cli("backup", "verify", str(target))).exit_code == 0
    return target


async def chat(caller: Caller, party: Party) -> None:
    events = [
        contact_event(party, "c-chat", channel="CHAT"),
        *(message(party, "c-chat", f"i-{number}", f"said {number}", final=number == 2) for number in range(3)),
    ]
    assert (await caller.post(party, events)).status == 202


async def lost_and_restored(site: Site, target: Path) -> dict[str, Any]:
    shutil.rmtree(site.state)
    config = str(site.write_settings())
    answer: dict[str, Any] = answered(await cli("restore", str(target), "--config", config, "--json"))
    return answer


def held(site: Site, party: Party) -> set[str]:
    return {
        json.loads(path.read_bytes())["code"]
        for path in (site.state / "holds").glob(f"{party.instance.instance_id}.*.json")
    }


def unfinished(site: Site, party: Party) -> list[Path]:
    return [path for path in site.artifacts(".open") if party.instance.instance_id.hex in path.name]


async def check_bucket(site: Site, party: Party, bodies: list[bytes], chats: int = 0) -> None:
    """Everything is there once, as it was sent."""
    objects = await site.objects(party)
    recordings = [stored.body for stored in objects.values() if stored.content_type == "audio/wav"]
    assert sorted(recordings) == sorted(bodies)
    assert len(objects) == len(bodies) + chats
    assert set(Counter(await site.versions(party)).values()) == {1}


@pytest.mark.slow
async def test_a_node_that_is_lost_goes_on_from_its_backup(tmp_path: Path) -> None:
    whole = wav(900_000)
    with logging_aside():
        async with key_server_site(tmp_path) as (site, keys), proxied(site.settings.s3) as proxy:
            site.settings = replace(site.settings, s3=proxy.endpoint)
            async with keys.client("admin") as admin:
                new_arn = (await admin.create_key())["KeyMetadata"]["Arn"]
            old_arn = site.acme.instance.kms_key_arn
            async with node(site) as caller:
                await send(caller, site.acme, 0, 1)
                await until(lambda: len(site.published(site.acme)) == 2)
                proxy.closed = True
                await send(caller, site.acme, 2, 3)
                await chat(caller, site.acme)
                await half(caller, site.acme, whole)
                target = await backed_up(site, caller, range(10, 20))
                check_no_plaintext(target)
                proxy.closed = False  # what the backup holds as sealed is delivered after it
                await until(lambda: len(site.published(site.acme)) == 5)
                await until(lambda: len(site.published(site.borealis)) == 10)
            site.reconfigure(replace(site.acme.instance, kms_key_arn=new_arn, previous_kms_key_arn=old_arn))
            async with node(site) as caller:
                await send(caller, site.acme, 4)
                await until(lambda: len(site.published(site.acme)) == 6)
            proxy.closed = True

            # Lost, with the configuration as somebody left it who took the old key for done with.
            site.reconfigure(replace(site.acme.instance, previous_kms_key_arn=None))
            answer = await lost_and_restored(site, target)
            acme = str(site.acme.instance.instance_id)
            needed = {row["kmsKeyArn"]: row["configured"] for row in answer["kmsKeys"] if row["instance"] == acme}
            assert needed == {old_arn: False}
            proxy.closed = False
            async with node(site) as caller:
                await until(lambda: held(site, site.acme) == {"KEY_MISMATCH"})
                assert site.artifacts(".sealed")  # waiting, and nothing of it poison
            site.reconfigure(replace(site.acme.instance, previous_kms_key_arn=old_arn))
            async with node(site) as caller:
                assert await caller.offset(site.acme, "c-long", "voice.wav") == HALF
                rest = {"Content_Range": f"bytes {HALF}-{len(whole) - 1}/*"}
                assert (await caller.put(site.acme, "c-long", "voice.wav", whole[HALF:], **rest)).status == 201
                await send(caller, site.acme, 5)
                await until(lambda: not [*site.artifacts(".sealed"), *unfinished(site, site.acme)])
            assert site.artifacts(".poison.*") == []
            await check_bucket(site, site.acme, [*(body(number) for number in range(6)), whole], chats=1)
            await check_bucket(site, site.borealis, [body(number) for number in range(10, 20)])
            check_no_plaintext(site.state)
