"""Two instances on one node: neither sees, reads, fills or delays the other."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.crypt.artifact import HEADER_SIZE
from pipeline.ids import InstanceId, Kind
from tests.e2e import journey
from tests.e2e.journey import contact_event, message, wav
from tests.node import Caller, node, until
from tests.proxy import proxied
from tests.sites import Party, Site, moto_site

pytestmark = pytest.mark.aws

BODY = wav(40_000)


@asynccontextmanager
async def undelivered(directory: Path) -> AsyncIterator[Site]:
    """Leave a sealed recording of each instance in the store, with the service down and the buckets there."""
    async with moto_site(directory) as site, proxied(site.settings.s3) as proxy:
        proxy.closed = True
        bucket = site.settings.s3
        site.settings = replace(site.settings, s3=proxy.endpoint)
        async with node(site) as caller:
            for party in site.parties:
                answer = await caller.put(party, f"c-{party.instance.alias}", "voice.wav", BODY)
                assert answer.status == 201
        site.settings = replace(site.settings, s3=bucket)
        yield site


def sealed(site: Site, party: Party) -> Path:
    """Give the file of a party's only sealed artifact."""
    [path] = [path for path in site.artifacts("sealed") if f".{party.instance.instance_id.hex}." in path.name]
    return path


def ring_file(site: Site, party: Party) -> Path:
    [path] = (site.state / "keys" / str(party.instance.instance_id)).glob("*.json")
    return path


def holds(site: Site, party: Party) -> list[dict[str, Any]]:
    """Give what waits of a party, and why."""
    paths = (site.state / "holds").glob(f"{party.instance.instance_id}.*.json")
    return [json.loads(path.read_bytes()) for path in sorted(paths)]


def key_of(path: Path) -> str:
    return path.name.split(".")[3]


async def nothing_of(site: Site, contact: str) -> None:
    """No bucket has anything of a contact, and no file holds plaintext."""
    for party in site.parties:
        assert not [key for key in await site.versions(party) if contact in key]
    journey.check_no_plaintext(site.state)


async def delivered(site: Site, party: Party) -> None:
    """Check that a party's own recording has arrived as it was sent, in its own bucket."""
    [stored] = (await site.objects(party)).values()
    assert stored.body == BODY
    assert stored.kms_key_arn == party.instance.storage[Kind.VOICE].kms_key_arn


# --- over HTTP


async def test_a_token_opens_its_own_instance_and_gives_no_hint_of_others(tmp_path: Path) -> None:
    """What is another's is answered as what does not exist, to the byte; a wrong token as a missing one."""
    async with moto_site(tmp_path) as site, node(site) as caller:
        acme, borealis = site.parties
        assert (await caller.put(acme, "c-1", "voice.wav", BODY)).status == 201
        unknown = replace(acme, instance=replace(acme.instance, instance_id=InstanceId(uuid4())))
        for method, recording in (
            ("PUT", "voice.wav"),
            ("PUT", "chat/a.json"),
            ("HEAD", "voice.wav"),
            ("GET", "voice"),
        ):
            others = await caller.ask(method, acme.path("c-1", recording), borealis)
            nobodys = await caller.ask(method, unknown.path("c-1", recording), borealis)
            nothing = await caller.ask(method, "/v1/nothing", borealis)
            assert others.status == nobodys.status == nothing.status == 404
            assert others.body == nobodys.body == nothing.body
        own = await caller.ask("HEAD", borealis.path("c-1", "voice.wav"), borealis)
        assert own.status == 404
        await _check_events_of_others(caller, acme, borealis, unknown)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"}, {"Authorization": "rp_x"}):
            for method, path in (("PUT", acme.path("c-1", "voice")), ("POST", "/v1/events"), ("HEAD", "/v1/nothing")):
                answer = await caller.ask(method, path, None, headers=headers)
                assert answer.status == 401
                assert "WWW-Authenticate" in answer.headers
                assert acme.token.encode() not in answer.body
        await until(lambda: site.published(acme))
        assert await site.objects(borealis) == {}
        assert not [path for path in site.state.rglob(f"*{borealis.instance.instance_id.hex}*") if path.is_file()]


async def _check_events_of_others(caller: Caller, acme: Party, borealis: Party, unknown: Party) -> None:
    bodies = []
    for party in (acme, unknown):
        for event in (contact_event(party, "c-1"), message(party, "c-1", "i-1", "hello")):
            answer = await caller.post(borealis, [contact_event(borealis, "c-2"), event])
            assert answer.status == 404
            assert str(party.instance.instance_id).encode() not in answer.body
            bodies.append(answer.body)
    assert len(set(bodies)) == 1


# --- in the store


async def test_a_ring_file_of_another_instance_opens_nothing(tmp_path: Path) -> None:
    """Their recordings wait as they are; neither key is used for the other's; put back, all goes out."""
    async with undelivered(tmp_path) as site:
        paths = [ring_file(site, party) for party in site.parties]
        content = [path.read_bytes() for path in paths]
        for path, other, raw in zip(paths, reversed(paths), reversed(content), strict=True):
            path.unlink()
            path.with_name(other.name).write_bytes(raw)
        async with node(site):
            await until(
                lambda: all(holds(site, party) for party in site.parties) or len(site.artifacts("integrity")) == 2
            )
        for party in site.parties:
            await nothing_of(site, f"c-{party.instance.alias}")


@pytest.mark.slow
async def test_a_ring_file_rewritten_for_another_instance_is_not_used(tmp_path: Path) -> None:
    """Whoever can write to the store gives one tenant's wrapped key the other's names: only what needs it waits."""
    async with undelivered(tmp_path) as site:
        acme, borealis = site.parties
        waiting = sealed(site, borealis)
        target, stolen = ring_file(site, borealis), json.loads(ring_file(site, acme).read_bytes())
        known = json.loads(target.read_bytes())
        target.write_text(json.dumps({**stolen, "keyId": known["keyId"], "instanceId": known["instanceId"]}))
        async with node(site) as caller:
            await until(lambda: holds(site, borealis))
            answer = await caller.put(borealis, "c-new", "voice.wav", BODY)  # under a fresh data key
            assert answer.status == 201
            await until(lambda: site.published(acme) and site.published(borealis))
            assert [hold["code"] for hold in holds(site, borealis)] == ["KEY_MISMATCH"]
            assert holds(site, acme) == []
        assert waiting.exists()
        await nothing_of(site, "c-borealis")
        for party in site.parties:
            await delivered(site, party)


async def test_an_artifact_that_bears_another_instances_names_is_put_aside(tmp_path: Path) -> None:
    """By its name alone, by name and data key, and with a forged header: never opened for it, never delivered."""
    async with undelivered(tmp_path) as site:
        acme, borealis = site.parties
        original, other = sealed(site, acme), sealed(site, borealis)
        ours, theirs = acme.instance.instance_id, borealis.instance.instance_id
        renamed = original.name.replace(ours.hex, theirs.hex)
        content = original.read_bytes()
        original.with_name(renamed).write_bytes(content)
        with_key = renamed.replace(key_of(original), key_of(other))
        _copy(original, with_key, 1, content)
        header = content[:HEADER_SIZE].replace(ours.bytes, theirs.bytes)
        header = header.replace(bytes.fromhex(key_of(original)), bytes.fromhex(key_of(other)))
        _copy(original, with_key, 2, header + content[HEADER_SIZE:])
        original.unlink()
        async with node(site):
            await until(lambda: len(site.artifacts("integrity")) == 3 and site.published(borealis))
        await nothing_of(site, "c-acme")
        await delivered(site, borealis)
        statuses = [event["detail"] for event in site.events(borealis)]
        failed = [each["failureInfo"]["code"] for each in statuses if each["recordingStatus"] == "FAILED"]
        assert failed == ["INTEGRITY"] * 3
        assert {path.read_bytes()[HEADER_SIZE:] for path in site.artifacts("integrity")} == {content[HEADER_SIZE:]}


@pytest.mark.slow
async def test_instances_that_change_names_lose_no_recording_to_each_other(tmp_path: Path) -> None:
    """Every file of the store that bears one tenant's id gets the other's, its folder too."""
    async with undelivered(tmp_path) as site:
        acme, borealis = site.parties
        for path in site.artifacts("sealed"):
            path.rename(path.with_name(_swapped(path.name, site)))
        folders = [site.state / "keys" / str(party.instance.instance_id) for party in site.parties]
        folders[0].rename(site.state / "aside")
        folders[1].rename(folders[0])
        (site.state / "aside").rename(folders[1])
        async with node(site):
            await until(
                lambda: all(holds(site, party) for party in site.parties) or len(site.artifacts("integrity")) == 2
            )
        for party in (acme, borealis):
            await nothing_of(site, f"c-{party.instance.alias}")
            assert await site.objects(party) == {}


def _copy(original: Path, name: str, change: int, content: bytes) -> None:
    """Write another artifact beside the original, whose id differs in digits that don't choose the folder."""
    changed = f"{int(name[10:12], 16) ^ change:02x}"
    original.with_name(name[:10] + changed + name[12:]).write_bytes(content)


def _swapped(name: str, site: Site) -> str:
    ours, theirs = (party.instance.instance_id.hex for party in site.parties)
    return name.replace(ours, "*").replace(theirs, ours).replace("*", theirs)
