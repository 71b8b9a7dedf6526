"""Who may use a key: key policies with their conditions, and the callers' own permissions."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.kms_server import ACCOUNT, IDENTITIES, OTHER_ACCOUNT, code_of, new_key, running_key_server

if TYPE_CHECKING:
    from pathlib import Path


ROOT = f"arn:aws:iam::{ACCOUNT}:root"
BARE = IDENTITIES["bare"].principal
SERVICE = IDENTITIES["service"].principal
SERVICE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/pipeline"
CONTEXT = {"pipeline:instanceId": "a", "pipeline:dataClass": "recordings_interim"}
DENIED = "AccessDeniedException"


def statement(principal: Any, action: Any = "kms:*", effect: str = "Allow", **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Principal": principal, "Action": action, "Resource": "*", **more}


def policy(*statements: dict[str, Any]) -> str:
    """Give a policy that lets the account's administrators in, and says what is given besides."""
    return json.dumps({"Version": "2012-10-17", "Statement": [statement({"AWS": ROOT}), *statements]})


# --- the callers' own permissions


async def test_the_default_policy_leaves_it_to_the_accounts_own_permissions(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("service") as service:
        key = await new_key(admin)
        stated = json.loads((await admin.get_key_policy(KeyId=key))["Policy"])
        assert stated["Statement"][0]["Principal"] == {"AWS": ROOT}
        await service.encrypt(KeyId=key, Plaintext=b"x")
        for name in ("bare", "stranger"):
            async with server.client(name) as kms:
                assert await code_of(kms.encrypt(KeyId=key, Plaintext=b"x")) == DENIED
                assert await code_of(kms.describe_key(KeyId=key)) == DENIED
        async with server.client("bare") as bare:
            assert await code_of(bare.create_key()) == DENIED
            assert await code_of(bare.list_keys()) == DENIED


async def test_a_refusal_names_caller_action_and_key(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        key = await new_key(admin)
        with pytest.raises(ClientError) as refused:
            await bare.decrypt(CiphertextBlob=(await admin.encrypt(KeyId=key, Plaintext=b"x"))["CiphertextBlob"])
    message = refused.value.response["Error"]["Message"]
    assert message == f"User: {BARE} is not authorized to perform: kms:Decrypt on resource: {key}"


# --- key policies

CASES: list[tuple[str, bool, dict[str, Any]]] = [
    ("role", True, statement({"AWS": BARE})),
    ("lists", True, statement({"AWS": [SERVICE, BARE]}, ["kms:Encrypt", "kms:Describe*"])),
    ("everyone", True, statement("*")),
    ("actions-ignore-case", True, statement({"AWS": BARE}, "KMS:encrypt")),
    ("wildcard", True, statement({"AWS": BARE}, "kms:Enc*")),
    ("other-action", False, statement({"AWS": BARE}, "kms:Decrypt")),
    ("other-role", False, statement({"AWS": SERVICE_ROLE})),
    ("account-without-own-permission", False, statement({"AWS": ACCOUNT})),
    ("service", False, statement({"Service": "s3.amazonaws.com"})),
    ("other-resource", False, statement({"AWS": BARE}, Resource="arn:aws:kms:*:*:key/other")),
    (
        "context-equals",
        True,
        statement({"AWS": BARE}, Condition={"StringEquals": {"kms:EncryptionContext:pipeline:instanceId": "a"}}),
    ),
    (
        "context-differs",
        False,
        statement({"AWS": BARE}, Condition={"StringEquals": {"kms:EncryptionContext:pipeline:instanceId": ["b", "c"]}}),
    ),
    (
        "context-like",
        True,
        statement(
            {"AWS": BARE}, Condition={"StringLike": {"kms:EncryptionContext:pipeline:dataClass": "rec*_int?rim"}}
        ),
    ),
    (
        "all-context-keys",
        True,
        statement(
            {"AWS": BARE},
            Condition={
                "ForAllValues:StringEquals": {
                    "kms:EncryptionContextKeys": ["pipeline:instanceId", "pipeline:dataClass", "more"]
                }
            },
        ),
    ),
    (
        "not-all-context-keys",
        False,
        statement(
            {"AWS": BARE}, Condition={"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": "pipeline:instanceId"}}
        ),
    ),
    (
        "any-context-key",
        True,
        statement(
            {"AWS": BARE}, Condition={"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": "pipeline:instanceId"}}
        ),
    ),
    ("account", True, statement({"AWS": BARE}, Condition={"StringEquals": {"kms:CallerAccount": ACCOUNT}})),
    (
        "principal-arn",
        True,
        statement({"AWS": "*"}, Condition={"ArnLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/b*"}}),
    ),
    (
        "arn-wildcards-stay-in-their-part",
        False,
        statement({"AWS": "*"}, Condition={"ArnLike": {"aws:PrincipalArn": "arn:aws:*:role/bare"}}),
    ),
    (
        "not-by-way-of-a-service",
        False,
        statement({"AWS": BARE}, Condition={"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}}),
    ),
    ("null", True, statement({"AWS": BARE}, Condition={"Null": {"kms:ViaService": "true"}})),
    ("if-exists", True, statement({"AWS": BARE}, Condition={"StringEqualsIfExists": {"kms:ViaService": "s3"}})),
]


async def test_a_policy_statement_lets_in_whom_it_means(tmp_path: "Path") -> None:
    got = {}
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        key = await new_key(admin)
        for name, _, added in CASES:
            await admin.put_key_policy(KeyId=key, Policy=policy(added))
            got[name] = await code_of(bare.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=CONTEXT))
    assert got == {name: None if allowed else DENIED for name, allowed, _ in CASES}


async def test_a_role_in_a_policy_means_its_sessions(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("service") as service:
        key = await new_key(admin)
        await admin.put_key_policy(
            KeyId=key, Policy=policy(statement({"AWS": SERVICE_ROLE}, "kms:Encrypt", effect="Deny"))
        )
        assert await code_of(service.encrypt(KeyId=key, Plaintext=b"x")) == DENIED
        await service.generate_data_key(KeyId=key, KeySpec="AES_256")


async def test_an_explicit_deny_beats_every_allow_and_every_grant(tmp_path: "Path") -> None:
    deny = statement("*", "kms:Encrypt", effect="Deny", Condition={"Null": {"kms:EncryptionContextKeys": "true"}})
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        key = await new_key(admin)
        await admin.put_key_policy(KeyId=key, Policy=policy(statement({"AWS": BARE}), deny))
        grant = await admin.create_grant(KeyId=key, GranteePrincipal=BARE, Operations=["Encrypt"])
        token = [grant["GrantToken"]]
        assert await code_of(bare.encrypt(KeyId=key, Plaintext=b"x", GrantTokens=token)) == DENIED
        assert await code_of(admin.encrypt(KeyId=key, Plaintext=b"x")) == DENIED
        await bare.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=CONTEXT)


async def test_a_service_is_told_apart_by_the_way_it_calls(tmp_path: "Path") -> None:
    only_s3 = {"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com", "kms:CallerAccount": ACCOUNT}}
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("store") as store:
        key = await new_key(admin)
        assert await code_of(store.generate_data_key(KeyId=key, KeySpec="AES_256")) == DENIED
        await admin.put_key_policy(KeyId=key, Policy=policy(statement({"AWS": "*"}, Condition=only_s3)))
        await store.generate_data_key(KeyId=key, KeySpec="AES_256")
        assert server.trail()[-1]["userIdentity"]["invokedBy"] == "s3.eu-central-1.amazonaws.com"


async def test_another_account_needs_the_key_policy_and_its_own(tmp_path: "Path") -> None:
    other_root = {"AWS": f"arn:aws:iam::{OTHER_ACCOUNT}:root"}
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("stranger") as stranger:
        key = await new_key(admin)
        assert await code_of(stranger.encrypt(KeyId=key, Plaintext=b"x")) == DENIED
        await admin.put_key_policy(KeyId=key, Policy=policy(statement(other_root)))
        await stranger.encrypt(KeyId=key, Plaintext=b"x")
        record = server.trail()[-1]
        assert record["recipientAccountId"] == OTHER_ACCOUNT
        assert record["resources"][0]["accountId"] == ACCOUNT
        assert record["sharedEventID"]
        # What AWS offers within the account only.
        assert await code_of(stranger.disable_key(KeyId=key)) == DENIED
        assert await code_of(stranger.get_key_policy(KeyId=key)) == DENIED


BROKEN = [
    "no json",
    "[]",
    json.dumps({"Version": "2012-10-17"}),
    json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow"}]}),
    policy({"Effect": "Maybe", "Principal": "*", "Action": "kms:*", "Resource": "*"}),
    policy(statement({"AWS": "someone"})),
    policy(statement({"Federated": "x"})),
    policy(statement("*", Condition={"NumericEquals": {"kms:ViaService": "1"}})),
    policy(statement("*", effect="Deny", Condition={"StringEquals": {"aws:PrincipalTag/a": "b"}})),
    policy({"Effect": "Deny", "NotPrincipal": {"AWS": BARE}, "Action": "kms:*", "Resource": "*"}),
    policy(statement("*", NotAction="kms:*")),
]


async def test_a_policy_that_can_not_be_enforced_is_refused(tmp_path: "Path") -> None:
    malformed = "MalformedPolicyDocumentException"
    async with running_key_server(tmp_path) as server, server.client() as admin:
        key = await new_key(admin)
        before = (await admin.get_key_policy(KeyId=key))["Policy"]
        for text in BROKEN:
            assert await code_of(admin.put_key_policy(KeyId=key, Policy=text)) == malformed, text
            assert await code_of(admin.create_key(Policy=text)) == malformed, text
        assert (await admin.get_key_policy(KeyId=key))["Policy"] == before
        assert len((await admin.list_keys())["Keys"]) == 1


async def test_a_policy_that_locks_its_author_out_needs_an_explicit_word(tmp_path: "Path") -> None:
    only_bare = json.dumps({"Statement": [statement({"AWS": BARE})]})
    async with running_key_server(tmp_path) as server, server.client() as admin:
        key = await new_key(admin)
        assert await code_of(admin.put_key_policy(KeyId=key, Policy=only_bare)) == "MalformedPolicyDocumentException"
        assert await code_of(admin.create_key(Policy=only_bare)) == "MalformedPolicyDocumentException"
        await admin.put_key_policy(KeyId=key, Policy=only_bare, BypassPolicyLockoutSafetyCheck=True)
        assert await code_of(admin.describe_key(KeyId=key)) == DENIED
        assert await code_of(admin.put_key_policy(KeyId=key, Policy="{}", PolicyName="x")) == "ValidationException"


async def test_a_policy_can_limit_which_grants_are_made(tmp_path: "Path") -> None:
    limited = statement(
        {"AWS": BARE},
        "kms:CreateGrant",
        Condition={
            "StringEquals": {"kms:GranteePrincipal": SERVICE},
            "ForAllValues:StringEquals": {"kms:GrantOperations": ["Decrypt", "DescribeKey"]},
            "Bool": {"kms:GrantIsForAWSResource": "false"},
        },
    )
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        key = await new_key(admin)
        await admin.put_key_policy(KeyId=key, Policy=policy(limited))
        await bare.create_grant(KeyId=key, GranteePrincipal=SERVICE, Operations=["Decrypt"])
        wide = bare.create_grant(KeyId=key, GranteePrincipal=SERVICE, Operations=["Decrypt", "Encrypt"])
        assert await code_of(wide) == DENIED
        assert await code_of(bare.create_grant(KeyId=key, GranteePrincipal=BARE, Operations=["Decrypt"])) == DENIED
