"""A role of its own for each instance: each one's keys and buckets are asked with its session, never with another's."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from moto.backends import get_backend

from pipeline.adapters import aws
from tests.e2e.journey import wav
from tests.node import node, until
from tests.sites import Party, Site, moto_site

pytestmark = pytest.mark.aws
ACCOUNT = "123456789012"
BODY = wav(2_000)


def role_of(party: Party) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{party.instance.alias}"


def names_of(party: Party) -> set[str]:
    """Give what a request names if it is about this party: its buckets and KMS keys."""
    storages = party.instance.storage.values()
    return {party.instance.kms_key_arn} | {each.kms_key_arn for each in storages} | {each.bucket for each in storages}


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Watch what is sent: by access key, the requests that were signed with it."""
    seen: defaultdict[str, list[str]] = defaultdict(list)
    original = aws._OneHop.request

    def request(self: Any, method: str, **options: Any) -> Any:
        headers = {str(name).lower(): str(value) for name, value in dict(options["headers"]).items()}
        authorization = headers.get("authorization", "")
        access_key = authorization.partition("Credential=")[2].partition("/")[0]
        body = options.get("data")
        text = body.decode("latin-1") if isinstance(body, bytes) and "kms" in authorization else ""
        token = "x-amz-security-token" in headers
        seen[access_key].append(f"{token} {options['url']} {text}")
        return original(self, method, **options)

    monkeypatch.setattr(aws._OneHop, "request", request)
    return seen


def with_roles(site: Site) -> None:
    for party in site.parties:
        site.reconfigure(replace(party.instance, role_arn=role_of(party), external_id=f"{party.instance.alias}-ext"))


def sessions(site: Site) -> dict[str, Any]:
    """Give what STS was asked for, by role."""
    taken = get_backend("sts")[ACCOUNT]["aws"].assumed_roles
    found = {each.role_arn: each for each in taken}
    assert len(found) == len(taken) == len(site.parties), "one session for each instance, for keys and buckets alike"
    return found


async def test_every_request_about_an_instance_is_signed_with_its_own_session(
    tmp_path: Path, signed: dict[str, list[str]]
) -> None:
    async with moto_site(tmp_path) as site:
        with_roles(site)
        signed.clear()
        async with node(site) as caller:
            for party in site.parties:
                assert (await caller.put(party, "c-1", "voice.wav", BODY)).status == 201
            await until(lambda: all(len(site.published(party)) == 1 for party in site.parties))
        taken = sessions(site)
        for party in site.parties:
            mine = taken[role_of(party)]
            others = [each for each in signed if each != mine.access_key_id]
            about_it = [each for each in signed[mine.access_key_id] if any(name in each for name in names_of(party))]
            assert len(about_it) == len(signed[mine.access_key_id]) >= 2  # GenerateDataKey, and a put
            assert all(each.startswith("True ") for each in about_it)
            assert not [each for key in others for each in signed[key] if any(name in each for name in names_of(party))]


def allowed(policy: Any) -> Iterator[str]:
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not any(action.endswith("*") for action in statement["Action"])
        resource = statement["Resource"]
        yield from [resource] if isinstance(resource, str) else resource


async def test_a_session_is_asked_for_with_the_external_id_and_for_the_instances_things_alone(tmp_path: Path) -> None:
    async with moto_site(tmp_path) as site:
        with_roles(site)
        async with node(site) as caller:
            for party in site.parties:
                assert (await caller.put(party, "c-1", "voice.wav", BODY)).status == 201
        for party in site.parties:
            session = sessions(site)[role_of(party)]
            assert session.external_id == f"{party.instance.alias}-ext"
            assert session.session_name == f"pipeline-{party.instance.instance_id.hex}"
            resources = set(allowed(json.loads(session.policy)))
            foreign = [other for other in site.parties if other is not party]
            assert all(any(name in resource for name in names_of(party)) for resource in resources)
            assert not any(name in resource for other in foreign for name in names_of(other) for resource in resources)
