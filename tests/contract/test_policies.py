"""The policies that are shipped: the linter, and on the key server, that they are enough and not more than that."""

import contextlib
import copy
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from botocore.exceptions import ClientError

from pipeline.adapters.aws import open_client
from pipeline.adapters.kms import AwsKeyService
from pipeline.crypt.grants import terms
from pipeline.errors import HoldCode, KeyUnavailableError, RefuseError
from pipeline.ids import RECORDINGS_CLASS, InstanceId, Kind
from pipeline.instances import Instance, KeyAccess, Storage
from pipeline.keyports import KmsCall
from pipeline.policies import Beside, Document, documents, session_policy
from pipeline.records.scopes import ScopeConfig
from pipeline.settings import Credentials, Endpoint
from tests.kms_server import ACCOUNT, IDENTITIES, REGION, RunningKeyServer, running_key_server

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

ROLE = f"arn:aws:iam::{ACCOUNT}:role/recordings"
ADMIN = IDENTITIES["admin"].principal
INSTANCE_ID = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001"))
BUCKET = "acme-recordings"
BESIDE = Beside(
    queues_in=[f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/contact-events"],
    queue_out=f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/status-events",
    bus="recordings",
    region=REGION,
    canary=True,
)
DATA_KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/11111111-0000-4000-8000-00000000000a"
BUCKET_KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/22222222-0000-4000-8000-00000000000b"


def instance(access: KeyAccess, data_key: str = DATA_KEY, bucket_key: str = BUCKET_KEY, **more: Any) -> Instance:
    return Instance(
        instance_id=INSTANCE_ID,
        alias="acme",
        account_id=ACCOUNT,
        region=REGION,
        kms_key_arn=data_key,
        key_access=access,
        storage={
            kind: Storage(
                association_id=str(kind),
                bucket=BUCKET,
                prefix=f"connect/acme/{kind}",
                kms_key_arn=bucket_key,
                bucket_owner=ACCOUNT,
            )
            for kind in (Kind.VOICE, Kind.SCREEN, Kind.CHAT)
        },
        **more,
    )


FORMER_KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/44444444-0000-4000-8000-00000000000e"
RECORD_KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/33333333-0000-4000-8000-00000000000d"
DOMAIN = f"arn:aws:profile:{REGION}:{ACCOUNT}:domains/acme"
RECORDS = (
    ScopeConfig(data_class="campaigns", kms_key_arn=RECORD_KEY),
    ScopeConfig(data_class="profiles_domain", name="acme", arn=DOMAIN, expiration_days=30, kms_key_arn=RECORD_KEY),
)

# --- the linter

ACTION = re.compile(r"(kms|s3|sqs|events|sts):[A-Z][A-Za-z]+")
OBJECTS = re.compile(r"arn:aws:s3:::[a-z0-9.-]+/[A-Za-z0-9/_.=:-]+(/|-)\*")
RESOURCE = re.compile(r"arn:aws:[a-z0-9]+:[a-z0-9-]*:\d*:[A-Za-z0-9/_.-]+")
LOOKS_ONLY = {"kms:DescribeKey", "kms:ListGrants"}


def problems(document: Document) -> Iterator[str]:
    """Say what is wrong with a policy of ours."""
    sids = [each.get("Sid", "") for each in document.statements]
    if len(set(sids)) < len(sids) or not all(re.fullmatch("[A-Za-z0-9]+", sid) for sid in sids):
        yield "a Sid is missing, repeated or not of its form"
    for each in document.statements:
        if each["Effect"] != "Allow" or set(each) & {"NotAction", "NotResource", "NotPrincipal"}:
            yield "only what is named is allowed"
        if document.kind != "iam-policy" and (each["Principal"] == "*" or "*" in str(each["Principal"])):
            yield "a principal is not named"
        if not all(ACTION.fullmatch(action) for action in each["Action"]):
            yield "an action is not named"
        given = each["Resource"] if document.kind != "trust-policy" else []
        for resource in [given] if isinstance(given, str) else given:
            if not (RESOURCE.fullmatch(resource) or OBJECTS.fullmatch(resource)):
                yield f"a resource is not named: {resource}"
        yield from _condition_problems(each)


def _condition_problems(statement: dict[str, Any]) -> Iterator[str]:
    kms = {action for action in statement["Action"] if action.startswith("kms:")}
    conditions = statement.get("Condition", {})
    equal = conditions.get("StringEquals", {})
    if any("*" in str(value) for value in conditions.values()):
        yield "a condition holds a wildcard"
    if not kms:
        return
    if kms <= LOOKS_ONLY:
        if "kms:CallerAccount" not in equal:
            yield "whoever looks at a key is not bound to an account"
        return
    context = {name for name in equal if name.startswith("kms:EncryptionContext:")}
    if "kms:ViaService" in equal:
        if context != {"kms:EncryptionContext:aws:s3:arn"}:
            yield "the use of a bucket's key is not bound to the bucket"
        return
    no_more = conditions.get("ForAllValues:StringEquals", {}).get("kms:EncryptionContextKeys", [])
    if not context or context != {f"kms:EncryptionContext:{name}" for name in no_more}:
        yield "the use of a key is not bound to the encryption context"


SHAPES = [
    pytest.param(instance(KeyAccess.GRANT), BESIDE, id="grant"),
    pytest.param(instance(KeyAccess.POLICY), BESIDE, id="policy"),
    pytest.param(
        instance(KeyAccess.GRANT, previous_kms_key_arn=BUCKET_KEY[:-1] + "c"), Beside(), id="a key that changes"
    ),
    pytest.param(
        instance(KeyAccess.GRANT, former_bucket_key_arns=(FORMER_KEY,)), BESIDE, id="objects under another key still"
    ),
    pytest.param(instance(KeyAccess.GRANT, records=RECORDS), BESIDE, id="records by grant"),
    pytest.param(instance(KeyAccess.POLICY, records=RECORDS), BESIDE, id="records by policy"),
]


@pytest.mark.parametrize(("subject", "beside"), SHAPES)
def test_no_policy_of_ours_says_more_than_it_must(subject: Instance, beside: Beside) -> None:
    made = documents(subject, ROLE, beside)
    assert [(each.name, problem) for each in made for problem in problems(each)] == []
    assert {each.kind for each in made} == {"key-policy-statements", "iam-policy"}
    keys = {subject.kms_key_arn, BUCKET_KEY} | {subject.previous_kms_key_arn} - {None}
    keys |= {each.kms_key_arn for each in subject.records} | set(subject.former_bucket_key_arns)
    assert {each.belongs_to for each in made} == keys | {ROLE}


def test_with_a_role_of_its_own_keys_and_buckets_are_that_ones_and_the_service_may_take_it_on() -> None:
    theirs = f"arn:aws:iam::{ACCOUNT}:role/acme"
    made = documents(instance(KeyAccess.GRANT, role_arn=theirs, external_id="e-1"), ROLE, BESIDE)
    assert [(each.name, problem) for each in made for problem in problems(each)] == []
    by_name = {each.name: each for each in made}
    assert by_name["instance-role"].belongs_to == by_name["trust"].belongs_to == theirs
    taken_on, *rest = by_name["service-role"].statements
    asked = {"StringEquals": {"sts:ExternalId": "e-1"}}
    assert taken_on == {
        "Sid": "TakeOnRole", "Effect": "Allow", "Action": ["sts:AssumeRole"], "Resource": theirs, "Condition": asked
    }  # fmt: skip
    assert {each["Sid"] for each in rest} == {"EventsIn", "EventsOut", "EventBus"}
    (trust,) = by_name["trust"].statements
    assert (trust["Principal"], trust["Condition"]) == ({"AWS": ROLE}, asked)
    for name in ("data-key", "delivery-key"):
        assert {each["Principal"]["AWS"] for each in by_name[name].statements} == {theirs}


def test_a_key_of_records_is_permitted_for_each_scope_with_its_own_context_and_operations() -> None:
    subject = instance(KeyAccess.GRANT, records=RECORDS)
    (document,) = [each for each in documents(subject, ROLE, BESIDE) if each.name == "record-key"]
    _, *granting = document.statements
    places = [place for _, place in sorted(subject.places.items()) if place.kms_key_arn]
    for place, statement in zip(places, granting, strict=True):
        equal = statement["Condition"]["StringEquals"]
        bound = {name.removeprefix("kms:EncryptionContext:"): value for name, value in equal.items()}
        assert {name: bound[name] for name in place.scope.context} == place.scope.context
        operations = statement["Condition"]["ForAllValues:StringEquals"]["kms:GrantOperations"]
        assert set(operations) == place.scope.policy.grant_operations
    assert len(granting) == len(RECORDS)


def test_a_session_of_a_role_may_use_the_instances_things_and_is_as_short_as_sts_asks() -> None:
    subject = instance(KeyAccess.GRANT, role_arn=ROLE)
    policy = json.loads(session_policy(subject, canary=True))
    resources = [each["Resource"] for each in policy["Statement"]]
    assert resources[0] == sorted([DATA_KEY, BUCKET_KEY])
    left = json.loads(session_policy(replace(subject, former_bucket_key_arns=(FORMER_KEY,)), canary=True))
    assert left["Statement"][0]["Resource"] == sorted([DATA_KEY, BUCKET_KEY, FORMER_KEY])
    assert all(f"arn:aws:s3:::{BUCKET}" in str(each) for each in resources[1:])
    longest = {kind: replace(each, prefix=f"{kind}/{'p' * 100}") for kind, each in subject.storage.items()}
    session_policy(replace(subject, storage=longest), canary=True)
    spread = {kind: replace(each, prefix="p" * 128, bucket=kind * 12) for kind, each in subject.storage.items()}
    with pytest.raises(RefuseError, match="2048"):
        session_policy(replace(subject, storage=spread), canary=True)


@pytest.mark.parametrize(
    "spoil",
    [
        {"Action": ["kms:*"]},
        {"Action": ["*"]},
        {"Resource": "*"},
        {"Principal": "*"},
        {"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:role/*"}},
        {"Condition": {}},
        {"Condition": {"StringEquals": {"kms:CallerAccount": ACCOUNT}}},
        {"Effect": "Deny"},
        {"NotAction": "kms:CreateGrant"},
        {"Sid": "AskingHere"},
    ],
)
def test_the_linter_finds_what_it_is_for(spoil: dict[str, Any]) -> None:
    document = documents(instance(KeyAccess.GRANT), ROLE, BESIDE)[0]
    document.statements[0]["Sid"] = "AskingHere"
    document.statements[1].update(spoil)
    assert list(problems(document)) != []


# --- enough, and least


@dataclass
class Bench:
    server: RunningKeyServer
    admin: "KMSClient"
    us: AwsKeyService
    through_s3: "KMSClient"
    """S3, asking KMS on our behalf."""
    instance: Instance

    async def put(self, key_arn: str, statements: list[dict[str, Any]]) -> None:
        """Give a key the policy of its administrator and these statements, and take all grants from it."""
        administration = {"Sid": "Admin", "Effect": "Allow", "Principal": {"AWS": ADMIN}, "Action": "kms:*"}
        document = {"Version": "2012-10-17", "Statement": [administration | {"Resource": "*"}, *statements]}
        await self.admin.put_key_policy(KeyId=key_arn, PolicyName="default", Policy=json.dumps(document))
        for grant in (await self.admin.list_grants(KeyId=key_arn))["Grants"]:
            await self.admin.revoke_grant(KeyId=key_arn, GrantId=grant["GrantId"])


@contextlib.asynccontextmanager
async def bench(tmp_path: Path, access: KeyAccess) -> AsyncIterator[Bench]:
    session = replace(
        IDENTITIES["bare"], principal=f"arn:aws:sts::{ACCOUNT}:assumed-role/recordings/node-1", access_key="AKUS"
    )
    s3 = replace(session, access_key="AKS3", via_service=f"s3.{REGION}.amazonaws.com")
    identities = (*IDENTITIES.values(), session, s3)
    async with (
        running_key_server(tmp_path, identities=identities, grant_propagation=timedelta(seconds=200)) as server,
        server.client("admin") as admin,
        server.client("s3") as through_s3,
        open_client("kms", _endpoint(server, session.access_key, session.secret_key)) as ours,
    ):
        data_key, bucket_key, former = [(await admin.create_key())["KeyMetadata"]["Arn"] for _ in range(3)]
        us = AwsKeyService(ours, _untold)
        subject = instance(access, data_key, bucket_key, former_bucket_key_arns=(former,))
        yield Bench(server, admin, us, through_s3, subject)


def _endpoint(server: RunningKeyServer, access_key: str, secret_key: str) -> Endpoint:
    return Endpoint(region=REGION, url=server.url, credentials=Credentials(access_key, secret_key))


async def _untold(_: KmsCall) -> None:
    """Nobody listens."""


async def data_key_journey(at: Bench) -> None:
    """Ask all that the service asks of the KMS key of data keys, from adding an instance to removing it."""
    key, context, tokens, made = at.instance.kms_key_arn, at.instance.recordings_context, [], None
    await at.us.describe(key)
    if at.instance.key_access is KeyAccess.GRANT:
        made = await at.us.create_grant(key, terms(str(INSTANCE_ID), RECORDINGS_CLASS, context, ROLE))
        tokens = [made.token]
        await at.us.list_grants(key)
    new = await at.us.generate_data_key(key, context, tokens)
    await at.us.decrypt(key, new.wrapped, context, tokens)
    await at.us.decrypt(key, await at.us.re_encrypt(key, key, new.wrapped, context, tokens), context, tokens)
    if made is not None:
        await at.us.retire_grant(key, made.grant_id)


async def delivery_journey(at: Bench) -> None:
    """Ask what delivery asks of a bucket's KMS key, through S3; and its state, when the bucket does not answer."""
    key = at.instance.storage[Kind.VOICE].kms_key_arn
    context = {"aws:s3:arn": f"arn:aws:s3:::{BUCKET}"}
    await at.us.describe(key)
    new = await at.through_s3.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=context)
    await at.through_s3.decrypt(KeyId=key, CiphertextBlob=new["CiphertextBlob"], EncryptionContext=context)
    # As UpdateObjectEncryption does: the object's data key is wrapped again.
    await at.through_s3.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)
    await at.through_s3.re_encrypt(
        CiphertextBlob=new["CiphertextBlob"],
        SourceKeyId=key,
        SourceEncryptionContext=context,
        DestinationKeyId=key,
        DestinationEncryptionContext=context,
    )


async def former_journey(at: Bench) -> None:
    """Ask what reading and encrypting anew asks of the KMS key that objects lie under still, through S3."""
    (key,) = at.instance.former_bucket_key_arns
    to, permitted = statements_of(at, "delivery-key")
    await at.put(to, permitted)
    context = {"aws:s3:arn": f"arn:aws:s3:::{BUCKET}"}
    made = await at.admin.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=context)
    await at.through_s3.decrypt(KeyId=key, CiphertextBlob=made["CiphertextBlob"], EncryptionContext=context)
    await at.through_s3.re_encrypt(
        CiphertextBlob=made["CiphertextBlob"],
        SourceKeyId=key,
        SourceEncryptionContext=context,
        DestinationKeyId=to,
        DestinationEncryptionContext=context,
    )


def statements_of(at: Bench, name: str) -> tuple[str, list[dict[str, Any]]]:
    document = next(each for each in documents(at.instance, ROLE, BESIDE) if each.name == name)
    return document.belongs_to, [dict(each) for each in document.statements]


def lessened(statements: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Leave one thing out, each in turn: an action, or an operation that may be granted."""
    for number, statement in enumerate(statements):
        for action in statement["Action"]:
            less = copy.deepcopy(statements)
            less[number]["Action"] = [each for each in statement["Action"] if each != action]
            yield action, [each for each in less if each["Action"]]
        every = statement["Condition"].get("ForAllValues:StringEquals", {}).get("kms:GrantOperations", [])
        for operation in every:
            less = copy.deepcopy(statements)
            condition = less[number]["Condition"]["ForAllValues:StringEquals"]
            condition["kms:GrantOperations"] = [each for each in every if each != operation]
            yield f"grant of {operation}", less


JOURNEYS = [
    pytest.param(KeyAccess.GRANT, "data-key", data_key_journey, id="grant"),
    pytest.param(KeyAccess.POLICY, "data-key", data_key_journey, id="policy"),
    pytest.param(KeyAccess.GRANT, "delivery-key", delivery_journey, id="delivery"),
    pytest.param(KeyAccess.GRANT, "former-bucket-key", former_journey, id="former key of a bucket"),
]
Journey = Callable[[Bench], Awaitable[None]]


@pytest.mark.parametrize(("access", "name", "journey"), JOURNEYS)
async def test_the_key_policy_is_enough_and_nothing_of_it_is_too_much(
    access: KeyAccess, name: str, journey: Journey, tmp_path: Path
) -> None:
    async with bench(tmp_path, access) as at:
        key_arn, statements = statements_of(at, name)
        await at.put(key_arn, statements)
        await journey(at)
        left_out = []
        for what, less in lessened(statements):
            await at.put(key_arn, less)
            assert await is_denied(journey(at)), what
            left_out.append(what)
        assert len(left_out) == len(set(left_out)) >= 2


async def is_denied(work: Awaitable[Any]) -> bool:
    try:
        await work
    except KeyUnavailableError as error:
        return error.code is HoldCode.KEY_ACCESS_DENIED
    except ClientError as error:
        return error.response["Error"]["Code"] == "AccessDeniedException"
    return False


async def test_a_grant_can_be_made_for_this_instance_and_this_service_alone(tmp_path: Path) -> None:
    async with bench(tmp_path, KeyAccess.GRANT) as at:
        key_arn, statements = statements_of(at, "data-key")
        await at.put(key_arn, statements)
        context = at.instance.recordings_context
        good = terms(str(INSTANCE_ID), RECORDINGS_CLASS, context, ROLE)
        await at.us.create_grant(key_arn, good)
        for wrong in (
            replace(good, grantee=f"arn:aws:iam::{ACCOUNT}:role/another"),
            replace(good, operations=(*good.operations, "CreateGrant")),
            replace(good, operations=("Encrypt",)),
            replace(good, context={**context, "pipeline:instanceId": str(UUID(int=7))}),
            replace(good, context={"pipeline:instanceId": str(INSTANCE_ID)}),
            replace(good, context={**context, "more": "x"}),
        ):
            assert await is_denied(at.us.create_grant(key_arn, wrong)), wrong
        assert await is_denied(at.us.generate_data_key(key_arn, context))  # the policy itself permits no use
        subset: Any = {"EncryptionContextSubset": context}
        unbound = at.us._client.create_grant(
            KeyId=key_arn, GranteePrincipal=ROLE, RetiringPrincipal=ROLE, Operations=["Decrypt"], Constraints=subset
        )
        assert await is_denied(unbound)


async def test_a_key_is_used_for_this_instance_and_a_buckets_through_s3_alone(tmp_path: Path) -> None:
    async with bench(tmp_path, KeyAccess.POLICY) as at:
        for name in ("data-key", "delivery-key"):
            await at.put(*statements_of(at, name))
        key, context = at.instance.kms_key_arn, at.instance.recordings_context
        other = {**context, "pipeline:instanceId": str(UUID(int=7))}
        for wrong in (other, {**context, "more": "x"}, {}):
            assert await is_denied(at.us.generate_data_key(key, wrong))
        bucket_key = at.instance.storage[Kind.VOICE].kms_key_arn
        bucket = {"aws:s3:arn": f"arn:aws:s3:::{BUCKET}"}
        assert await is_denied(at.us.generate_data_key(bucket_key, bucket))  # not through S3
        foreign = {"aws:s3:arn": "arn:aws:s3:::another"}
        assert await is_denied(
            at.through_s3.generate_data_key(KeyId=bucket_key, KeySpec="AES_256", EncryptionContext=foreign)
        )
