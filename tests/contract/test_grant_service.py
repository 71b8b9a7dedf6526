"""What `GrantService` does over the AWS KMS API; and, on the server that enforces grants, what one is worth."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.adapters.aws import open_client
from pipeline.adapters.kms import AwsKeyService
from pipeline.errors import GrantTokenError, HoldCode, KeyUnavailableError, RefuseError
from pipeline.keyports import GrantTerms
from pipeline.settings import Credentials, Endpoint
from tests.contract.test_key_service import ALL, CONTEXT, Heard, Opener, kms_error
from tests.kms_server import IDENTITIES, REGION, RunningKeyServer, running_key_server
from tests.wire import wire

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

BARE = IDENTITIES["bare"].principal
TERMS = GrantTerms(
    name="pipeline:test:recordings_interim:v1",
    grantee=BARE,
    operations=("Decrypt", "DescribeKey", "GenerateDataKey", "ReEncryptFrom", "ReEncryptTo", "RetireGrant"),
    context=CONTEXT,
)
OTHER_CONTEXT = {**CONTEXT, "pipeline:dataClass": "cases"}


@pytest.mark.parametrize("opener", ALL)
async def test_a_grant_is_made_told_listed_and_ended(opener: Opener, tmp_path: Path) -> None:
    async with opener(tmp_path) as bench:
        made = await bench.service.create_grant(bench.key_arn, TERMS)
        assert made.token not in repr(made)
        (listed,) = await bench.service.list_grants(bench.key_arn)
        assert (listed.grant_id, listed.name, listed.grantee) == (made.grant_id, TERMS.name, BARE)
        assert (sorted(listed.operations), listed.context) == (sorted(TERMS.operations), CONTEXT)

        await bench.service.revoke_grant(bench.key_arn, made.grant_id)
        assert await bench.service.list_grants(bench.key_arn) == []
        created, _, revoked, _ = bench.heard.calls
        assert (created.name, created.grant_id, created.context) == ("CreateGrant", made.grant_id, {})
        assert created.asked["constraints"] == {"encryptionContextEquals": CONTEXT}
        assert created.asked["granteePrincipal"] == created.asked["retiringPrincipal"] == BARE
        assert (revoked.name, revoked.asked) == ("RevokeGrant", {"grantId": made.grant_id})
        assert not any(made.token in repr(call) for call in bench.heard.calls)


@dataclass
class Sides:
    """A key server whose grants take minutes to be known; the one who may use keys by a grant only, and an admin."""

    server: RunningKeyServer
    admin: "KMSClient"
    granter: AwsKeyService
    grantee: AwsKeyService
    heard: Heard
    key_arn: str


@contextlib.asynccontextmanager
async def sides(tmp_path: Path) -> AsyncIterator[Sides]:
    async with (
        running_key_server(tmp_path, grant_propagation=timedelta(seconds=240)) as server,
        server.client("admin") as admin,
        open_client("kms", endpoint(server, "bare")) as bare,
    ):
        key_arn = (await admin.create_key())["KeyMetadata"]["Arn"]
        heard = Heard()
        yield Sides(server, admin, AwsKeyService(admin, heard), AwsKeyService(bare, heard), heard, key_arn)


def endpoint(server: RunningKeyServer, name: str) -> Endpoint:
    identity = IDENTITIES[name]
    return Endpoint(region=REGION, url=server.url, credentials=Credentials(identity.access_key, identity.secret_key))


async def test_a_repeat_gives_the_first_grant_and_another_token(tmp_path: Path) -> None:
    async with sides(tmp_path) as at:
        first = await at.granter.create_grant(at.key_arn, TERMS)
        again = await at.granter.create_grant(at.key_arn, TERMS)
        assert (again.grant_id, again.token == first.token) == (first.grant_id, False)
        (listed,) = await at.granter.list_grants(at.key_arn)
        assert listed.created_at is not None
        other = await at.granter.create_grant(at.key_arn, replace(TERMS, name="another"))
        assert other.grant_id != first.grant_id


async def test_a_new_grant_works_with_its_token_at_once_and_without_later(tmp_path: Path) -> None:
    async with sides(tmp_path) as at:
        made = await at.granter.create_grant(at.key_arn, TERMS)
        assert await denied(at.grantee, at.key_arn) is HoldCode.KEY_ACCESS_DENIED
        tokens = [made.token]
        key = await at.grantee.generate_data_key(at.key_arn, CONTEXT, tokens)
        assert await at.grantee.decrypt(at.key_arn, key.wrapped, CONTEXT, tokens) == key.plaintext
        assert (await at.grantee.describe(at.key_arn, tokens)).state == "Enabled"
        again = await at.grantee.re_encrypt(at.key_arn, at.key_arn, key.wrapped, CONTEXT, tokens)
        assert await at.grantee.decrypt(at.key_arn, again, CONTEXT, tokens) == key.plaintext
        with pytest.raises(KeyUnavailableError) as caught:
            await at.grantee.generate_data_key(at.key_arn, OTHER_CONTEXT, tokens)
        assert caught.value.code is HoldCode.KEY_ACCESS_DENIED

        at.server.clock.ahead += at.server.config.grant_propagation
        await at.grantee.decrypt(at.key_arn, key.wrapped, CONTEXT)
        await at.grantee.retire_grant(at.key_arn, made.grant_id)
        await at.grantee.retire_grant(at.key_arn, made.grant_id)  # gone already
        assert await denied(at.grantee, at.key_arn) is HoldCode.KEY_ACCESS_DENIED
        with pytest.raises(GrantTokenError):
            await at.grantee.decrypt(at.key_arn, key.wrapped, CONTEXT, tokens)


async def denied(service: AwsKeyService, key_arn: str) -> HoldCode:
    with pytest.raises(KeyUnavailableError) as caught:
        await service.generate_data_key(key_arn, CONTEXT)
    assert caught.value.key_arn == key_arn
    return caught.value.code


async def test_grants_of_several_pages_are_all_listed(tmp_path: Path) -> None:
    async with sides(tmp_path) as at:
        for number in range(51):
            await at.granter.create_grant(at.key_arn, replace(TERMS, name=f"number-{number}"))
        listed = await at.granter.list_grants(at.key_arn)
        assert {grant.name for grant in listed} == {f"number-{number}" for number in range(51)}
        assert at.heard.names.count(("ListGrants", None)) == 2


async def test_a_disabled_key_gives_no_grant_and_still_loses_them(tmp_path: Path) -> None:
    async with sides(tmp_path) as at:
        made = await at.granter.create_grant(at.key_arn, TERMS)
        at.server.disable(at.key_arn.rpartition("/")[2])
        with pytest.raises(KeyUnavailableError) as caught:
            await at.granter.create_grant(at.key_arn, replace(TERMS, name="another"))
        assert caught.value.code is HoldCode.KEY_DISABLED
        assert [grant.grant_id for grant in await at.granter.list_grants(at.key_arn)] == [made.grant_id]
        await at.granter.revoke_grant(at.key_arn, made.grant_id)
        assert await at.granter.list_grants(at.key_arn) == []


@pytest.mark.parametrize(
    ("code", "field"),
    [("LimitExceededException", None), ("InvalidArnException", "kms.principal_arn")],
)
async def test_a_grant_that_can_not_be_made_is_refused_and_not_tried_again(code: str, field: str | None) -> None:
    heard = Heard()
    async with wire(kms_error(code)) as told, open_client("kms", told.endpoint) as client:
        with pytest.raises(RefuseError) as caught:
            await AwsKeyService(client, heard).create_grant("arn:aws:kms:eu-central-1:111122223333:key/k", TERMS)
    assert caught.value.field == field
    assert heard.names == [("CreateGrant", code)]
