"""Who the service is, as STS says it: the name that grants and policies take."""

from pathlib import Path

import pytest

from pipeline.adapters.aws import open_client
from pipeline.adapters.sts import own_principal
from pipeline.errors import KeyBusyError, RefuseError
from pipeline.settings import Credentials, Endpoint
from tests.kms_server import ACCOUNT, IDENTITIES, REGION, running_key_server
from tests.servers import localstack, moto
from tests.wire import RESET, http, wire


@pytest.mark.parametrize(
    ("name", "principal"),
    [
        ("bare", IDENTITIES["bare"].principal),
        ("service", f"arn:aws:iam::{ACCOUNT}:role/pipeline"),  # of a session: its role
        ("admin", IDENTITIES["admin"].principal),
        ("root", f"arn:aws:iam::{ACCOUNT}:root"),
    ],
)
async def test_the_key_server_tells_whom_it_knows(name: str, principal: str, tmp_path: Path) -> None:
    async with running_key_server(tmp_path) as server:
        identity = IDENTITIES[name]
        credentials = Credentials(identity.access_key, identity.secret_key)
        async with open_client("sts", Endpoint(region=REGION, url=server.url, credentials=credentials)) as sts:
            assert await own_principal(sts) == principal
        assert server.trail() == []  # no key was used


async def test_the_key_server_tells_nobody_who_signs_wrongly_or_asks_for_more(tmp_path: Path) -> None:
    async with running_key_server(tmp_path) as server:
        endpoint = Endpoint(region=REGION, url=server.url, credentials=Credentials("AKADMIN", "a wrong secret"))
        async with open_client("sts", endpoint) as sts:
            with pytest.raises(RefuseError) as caught:
                await own_principal(sts)
            assert caught.value.field == "kms.principal_arn"
        admin = IDENTITIES["admin"]
        endpoint = Endpoint(region=REGION, url=server.url, credentials=Credentials(admin.access_key, admin.secret_key))
        async with open_client("sts", endpoint) as sts:
            with pytest.raises(sts.exceptions.ClientError, match="InvalidAction"):
                await sts.assume_role(RoleArn=IDENTITIES["bare"].principal, RoleSessionName="x")


async def test_moto_tells_it_too() -> None:
    async with moto() as endpoint, open_client("sts", endpoint) as sts:
        assert await own_principal(sts) == "arn:aws:iam::123456789012:user/moto"


@pytest.mark.aws
@pytest.mark.slow
async def test_localstack_tells_it_too(tmp_path: Path) -> None:
    async with localstack(tmp_path) as endpoint, open_client("sts", endpoint) as sts:
        await sts.get_caller_identity()  # the first call waits for the service to be loaded
        assert await own_principal(sts) == "arn:aws:iam::000000000000:root"


def answering(arn: str) -> bytes:
    body = (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
        f"<Arn>{arn}</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>"
    )
    return http(200, body.encode(), Content_Type="text/xml")


@pytest.mark.parametrize("answer", [answering("someone"), answering("")])
async def test_a_name_that_is_none_has_to_be_set(answer: bytes) -> None:
    async with wire(answer) as told, open_client("sts", told.endpoint) as sts:
        with pytest.raises(RefuseError) as caught:
            await own_principal(sts)
    assert caught.value.field == "kms.principal_arn"


@pytest.mark.parametrize("answer", [RESET, http(200, b"junk")])
async def test_no_answer_is_a_matter_of_time(answer: bytes) -> None:
    async with wire(answer) as told, open_client("sts", told.endpoint) as sts:
        with pytest.raises(KeyBusyError):
            await own_principal(sts)
