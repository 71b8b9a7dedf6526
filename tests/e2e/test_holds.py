"""Keys and buckets that can't be used for a while: one instance waits, nothing is lost, and it goes on by itself."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from pipeline.adapters.aws import open_client
from pipeline.ids import Kind
from tests.e2e.journey import check_no_plaintext, message, wav
from tests.kms_server import RunningKeyServer
from tests.node import Caller, node, until
from tests.proxy import Proxy, proxied
from tests.sites import Party, Site, key_server_site, seaweedfs_site

pytestmark = pytest.mark.aws

BODY = wav(20_000)


@asynccontextmanager
async def forgetful(directory: Path) -> AsyncIterator[tuple[Site, RunningKeyServer, Proxy]]:
    """Use the key server, ask it often, and have a proxy before the buckets."""
    async with key_server_site(directory) as (site, keys), proxied(site.settings.s3) as proxy:
        known = replace(site.settings.keys, cache=timedelta(seconds=1), seal_grace=timedelta(0))
        site.settings = replace(site.settings, keys=known, s3=proxy.endpoint)
        yield site, keys, proxy


def key_id(arn: str) -> str:
    return arn.rpartition("/")[2]


async def send(caller: Caller, party: Party, first: int, count: int) -> None:
    for number in range(first, first + count):
        assert (await caller.put(party, f"c-{number}", "voice.wav", BODY + bytes([number]))).status == 201


async def whole(site: Site, party: Party, count: int) -> None:
    """Everything of a party has arrived, once, as it was sent."""
    await until(lambda: len(site.published(party)) >= count)
    bodies = [stored.body for stored in (await site.objects(party)).values()]
    assert sorted(bodies) == [BODY + bytes([number]) for number in range(count)]


def hold(site: Site, party: Party, scope: str) -> str | None:
    """Tell why something is held, as an operator sees it."""
    path = site.state / "holds" / f"{party.instance.instance_id}.{scope}.json"
    if not path.exists():
        return None
    code: str = json.loads(path.read_bytes())["code"]
    return code


def audited(site: Site, party: Party) -> list[tuple[str, str]]:
    """Give the holds that the audit trail tells of, in order."""
    return [
        (record["eventName"], record["requestParameters"]["code"])
        for record in site.audit(party)
        if record["eventName"].startswith("Hold")
    ]


async def test_a_disabled_data_key_holds_its_instance_only_until_it_is_back(tmp_path: Path) -> None:
    """Sealed recordings wait, new ones are asked to come again, and the hold survives a restart."""
    async with forgetful(tmp_path) as (site, keys, proxy):
        acme, borealis = site.parties
        proxy.closed = True
        async with node(site) as caller:
            await send(caller, acme, 0, 5)
            keys.disable(key_id(acme.instance.kms_key_arn))
            await until(lambda: hold(site, acme, "keys"))
            assert hold(site, acme, "keys") == "KEY_DISABLED"
            proxy.closed = False
            answer = await caller.put(acme, "c-5", "voice.wav", BODY)
            assert (answer.status, answer.json["reason"], answer.headers["Retry-After"]) == (503, "KEY_DISABLED", "30")
            answer = await caller.post(acme, message(acme, "c-chat", "i-1", "hello"))
            assert answer.status == 503
            await send(caller, borealis, 0, 3)
            await whole(site, borealis, 3)
        assert len(site.artifacts("sealed")) == 5
        async with node(site) as caller:
            assert hold(site, acme, "keys") == "KEY_DISABLED"
            assert (await caller.ask("GET", "/readyz", None)).status == 200
            keys.enable(key_id(acme.instance.kms_key_arn))
            await whole(site, acme, 5)
            await send(caller, acme, 5, 1)
            await whole(site, acme, 6)
            assert hold(site, acme, "keys") is None
        assert audited(site, acme) == [("HoldBegun", "KEY_DISABLED"), ("HoldEnded", "KEY_DISABLED")]
        assert audited(site, borealis) == []
        order = [location.rpartition("/c-")[2][0] for location in site.published(acme)]
        assert order[0] == "0"  # the oldest is the probe
        assert site.artifacts("open") == site.artifacts("sealed") == []
        assert {event["detail"]["recordingStatus"] for event in site.events(acme)} == {
            "INITIATED", "COMPLETED", "PUBLISHED",
        }  # fmt: skip
        check_no_plaintext(site.state)


async def test_a_key_that_is_to_be_deleted_is_a_hold_and_not_a_loss(tmp_path: Path) -> None:
    async with forgetful(tmp_path) as (site, keys, proxy):
        proxy.closed = True
        async with node(site) as caller:
            await send(caller, site.acme, 0, 1)
            keys.schedule_deletion(key_id(site.acme.instance.kms_key_arn))
            await until(lambda: hold(site, site.acme, "keys"))
            assert hold(site, site.acme, "keys") == "KEY_PENDING_DELETION"
            proxy.closed = False
            keys.enable(key_id(site.acme.instance.kms_key_arn))
            await whole(site, site.acme, 1)


async def test_a_body_that_is_coming_in_is_sealed_within_the_grace(tmp_path: Path) -> None:
    """With a grace, what was begun before KMS refused is finished; what is new waits."""
    async with forgetful(tmp_path) as (site, keys, _):
        site.settings = replace(site.settings, keys=replace(site.settings.keys, seal_grace=timedelta(seconds=60)))
        async with node(site) as caller:
            keys_were_disabled = False

            async def body() -> AsyncIterator[bytes]:
                nonlocal keys_were_disabled
                yield BODY[:1000]
                await until(lambda: site.artifacts("open"))
                keys.disable(key_id(site.acme.instance.kms_key_arn))
                refused = None
                while refused is None or refused.status == 201:  # until the key in memory is asked for again
                    await anyio.sleep(0.05)
                    refused = await caller.put(site.acme, "c-new", "voice.wav", BODY)
                assert (refused.status, refused.json["reason"]) == (503, "KEY_DISABLED")
                keys_were_disabled = True
                yield BODY[1000:] + bytes([0])

            answer = await caller.put(site.acme, "c-0", "voice.wav", body())
            assert keys_were_disabled
            assert answer.status == 201
            await until(lambda: hold(site, site.acme, "keys"))
            assert not [location for location in site.published(site.acme) if "/c-0_" in location]
            keys.enable(key_id(site.acme.instance.kms_key_arn))
            await until(lambda: [location for location in site.published(site.acme) if "/c-0_" in location])
        [stored] = [each.body for key, each in (await site.objects(site.acme)).items() if "/c-0_" in key]
        assert stored == BODY + bytes([0])


async def test_a_missing_bucket_holds_its_lane_until_it_is_made(tmp_path: Path) -> None:
    async with key_server_site(tmp_path) as (site, _):
        storage = {
            kind: replace(each, bucket="not-made-yet") if kind is Kind.SCREEN else each
            for kind, each in site.acme.instance.storage.items()
        }
        site.reconfigure(replace(site.acme.instance, storage=storage))
        async with node(site) as caller, open_client("s3", site.reader) as s3:
            answer = await caller.put(site.acme, "c-film", "screen.mp4", BODY)
            assert answer.status == 201
            await until(lambda: hold(site, site.acme, "screen"))
            assert hold(site, site.acme, "screen") == "DESTINATION_MISSING"
            await send(caller, site.acme, 0, 2)
            await whole(site, site.acme, 2)  # another lane of the same instance
            await s3.create_bucket(Bucket="not-made-yet")
            await until(lambda: len(site.published(site.acme)) == 3)
            stored = await s3.get_object(Bucket="not-made-yet", Key=(await _keys(s3, "not-made-yet"))[0])
            assert await stored["Body"].read() == BODY
            assert hold(site, site.acme, "screen") is None


@pytest.mark.slow
async def test_a_disabled_key_of_a_bucket_is_named_and_waited_for(tmp_path: Path) -> None:
    """SeaweedFS says only that something went wrong; KMS is asked what."""
    async with seaweedfs_site(tmp_path) as (site, keys):
        bucket_key = key_id(site.acme.instance.storage[Kind.VOICE].kms_key_arn)
        async with node(site) as caller:
            keys.disable(bucket_key)
            await send(caller, site.acme, 0, 3)
            await send(caller, site.borealis, 0, 2)
            await whole(site, site.borealis, 2)
            await until(lambda: hold(site, site.acme, "voice"))
            assert hold(site, site.acme, "voice") == "KEY_DISABLED"
            assert site.published(site.acme) == []
            keys.enable(bucket_key)
            await whole(site, site.acme, 3)
            assert hold(site, site.acme, "voice") is None


async def _keys(s3: object, bucket: str) -> list[str]:
    answer = await s3.list_objects_v2(Bucket=bucket)  # type: ignore[attr-defined]  # an S3 client of any kind
    return [each["Key"] for each in answer["Contents"] if not each["Key"].startswith("audit/")]
