"""An instance whose KMS key permits this service only what `--policies` prints: granted, used, revoked, removed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.config import load_instances
from pipeline.ids import RECORDINGS
from pipeline.instances import KeyAccess
from pipeline.settings import Credentials, Endpoint
from tests.e2e.test_commands import answered, cli, records, settings_file
from tests.kms_server import ACCOUNT, IDENTITIES, REGION, RunningKeyServer, running_key_server
from tests.servers import Bucket, moto_bucket

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

pytestmark = pytest.mark.aws
ID = "aaaa1111-0000-4000-8000-000000000001"
US = IDENTITIES["bare"]
"""An identity that may do what a key's policy or a grant permits, and nothing by itself."""


@dataclass
class Bench:
    server: RunningKeyServer
    admin: "KMSClient"
    bucket: Bucket
    key_arn: str
    state: Path
    config: Path

    async def run(self, *arguments: str, code: int = 0) -> Any:
        return answered(await cli(*arguments, "--config", str(self.config), "--json"), code)

    async def add(self, *more: str, code: int = 0) -> Any:
        result = await cli("instance", "add", "acme", *self.options(), *more, "--config", str(self.config), "--json")
        return answered(result) if code == 0 else (result.exit_code, result.stderr)

    def options(self) -> list[str]:
        storage = self.bucket.storage
        return [
            *("--account", ACCOUNT, "--region", REGION, "--kms-key", self.key_arn, "--id", ID),
            *("--bucket", storage.bucket, "--bucket-key", storage.kms_key_arn, "--owner", storage.bucket_owner),
        ]

    async def put_policy(self, statements: list[Any]) -> None:
        admin: dict[str, Any] = {"Sid": "Admin", "Effect": "Allow", "Action": "kms:*", "Resource": "*"}
        admin["Principal"] = {"AWS": IDENTITIES["admin"].principal}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [admin, *statements]})
        await self.admin.put_key_policy(KeyId=self.key_arn, PolicyName="default", Policy=policy)

    async def grants(self) -> list[Any]:
        return (await self.admin.list_grants(KeyId=self.key_arn))["Grants"]

    async def asked_policy(self, *more: str) -> list[Any]:
        """Have the policies of an instance to be printed before it is added; give the data key's."""
        printed = await self.add("--policies", *more)
        assert printed["instanceId"] == ID
        (document,) = [each for each in printed["policies"] if each["name"] == "data-key"]
        assert document["belongsTo"] == self.key_arn
        statements: list[Any] = document["document"]
        return statements


@asynccontextmanager
async def site(tmp_path: Path) -> AsyncIterator[Bench]:
    minutes = timedelta(minutes=4)
    async with (
        moto_bucket() as bucket,
        running_key_server(tmp_path, grant_propagation=minutes) as server,
        server.client("admin") as admin,
    ):
        endpoint = Endpoint(region=REGION, url=server.url, credentials=Credentials(US.access_key, US.secret_key))
        state = tmp_path / "state"
        config = settings_file(tmp_path / "config", state, endpoint, bucket.s3)
        key_arn = (await admin.create_key())["KeyMetadata"]["Arn"]
        yield Bench(server, admin, bucket, key_arn, state, config)


async def test_an_instance_is_granted_its_key_and_nothing_else_and_gives_the_grant_back(tmp_path: Path) -> None:
    async with site(tmp_path) as test:
        assert (await test.add(code=4))[0] == 4  # not even asking is permitted yet
        await test.put_policy(await test.asked_policy())
        await test.add()
        (grant,) = await test.grants()
        assert (grant["Name"], grant["GranteePrincipal"]) == (f"pipeline:{ID}:recordings_interim:v1", US.principal)
        context = {"pipeline:accountId": ACCOUNT, "pipeline:instanceId": ID, "pipeline:dataClass": "recordings_interim"}
        assert grant["Constraints"] == {"EncryptionContextEquals": context}
        (kept,) = (test.state / "keys" / ID).glob("*.grant")
        assert kept.stat().st_mode & 0o777 == 0o600
        (instance,) = load_instances(test.config.parent).instances.values()
        assert instance.key_access is KeyAccess.GRANT

        (row,) = (await test.run("grants", "list"))["instances"]
        assert (row["state"], [each["grantId"] for each in row["grants"]]) == ("GRANTED", [grant["GrantId"]])
        assert row["grants"][0]["isThisInstances"]
        assert (await test.run("instance", "probe", "acme"))["key"] is None  # the token survives this process's end
        assert (await test.run("grants", "create", "acme"))["grantId"] == grant["GrantId"]

        removed = await test.run("instance", "remove", "acme")
        assert (removed["grantsRetired"], await test.grants()) == (1, [])
        names = [each["eventName"] for each in records(test.state)]
        assert (names.count("CreateGrant"), names.count("RetireGrant")) == (2, 1)
        assert names[-1] == "InstanceRemoved"


@pytest.mark.slow
async def test_a_revoked_grant_is_missing_until_it_is_made_again(tmp_path: Path) -> None:
    async with site(tmp_path) as test:
        await test.put_policy(await test.asked_policy())
        await test.add()
        (grant,) = await test.grants()
        assert (await test.run("grants", "revoke", "acme", "--reason", "x"))["revoked"] == [grant["GrantId"]]
        assert await test.grants() == []
        assert (await test.run("grants", "list", code=1))["instances"][0]["state"] == "MISSING"
        assert (await test.run("instance", "probe", "acme", code=4))["key"] is not None
        assert (await test.run("grants", "revoke", "acme", "--reason", "x", code=1))["revoked"] == []
        await test.run("grants", "create", "acme")
        assert (await test.run("instance", "probe", "acme"))["key"] is None
        told = [each for each in records(test.state) if each["eventName"] == "GrantRevoked"]
        assert [each["requestParameters"]["reason"] for each in told] == ["x"]


async def test_where_the_policy_permits_the_use_no_grant_is_made(tmp_path: Path) -> None:
    async with site(tmp_path) as test:
        statements = await test.asked_policy("--no-grant")
        await test.put_policy(statements)
        code, said = await test.add(code=3)
        assert (code, "--no-grant" in said) == (3, True)
        await test.add("--no-grant")
        assert await test.grants() == []
        assert (await test.run("grants", "list", code=4))["instances"][0]["keyAccess"] == "policy"
        shown = await test.run("policy", "show", "acme")
        assert [each["document"] for each in shown["policies"] if each["name"] == "data-key"] == [statements]
        assert (await test.run("instance", "remove", "acme"))["grantsRetired"] == 0


async def test_nothing_stays_of_a_grant_whose_instance_was_not_added(tmp_path: Path) -> None:
    async with site(tmp_path) as test:
        await test.put_policy(await test.asked_policy())
        options = [each if each != test.bucket.storage.bucket else "no-such-bucket" for each in test.options()]
        result = await cli("instance", "add", "acme", *options, "--config", str(test.config))
        assert result.exit_code == 4
        assert (await test.grants(), list((test.state / "keys" / ID).glob("*.grant"))) == ([], [])


async def test_policies_name_every_kind_of_storage(tmp_path: Path) -> None:
    async with site(tmp_path) as test:
        printed = await test.add("--policies")
        (iam,) = [each for each in printed["policies"] if each["kind"] == "iam-policy"]
        assert iam["belongsTo"] == US.principal
        objects = next(each for each in iam["document"]["Statement"] if each["Sid"].startswith("Objects"))
        assert len(objects["Resource"]) == len(RECORDINGS) + 1  # and the audit log's own
