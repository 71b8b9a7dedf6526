"""Who may use a key: key policies with conditions, the callers' own permissions, grants and their tokens."""

import json
from collections.abc import Awaitable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.kms_server import ACCOUNT, IDENTITIES, OTHER_ACCOUNT, running_key_server

if TYPE_CHECKING:
    from pathlib import Path

    from types_aiobotocore_kms import KMSClient

ROOT = f"arn:aws:iam::{ACCOUNT}:root"
BARE = IDENTITIES["bare"].principal
SERVICE = IDENTITIES["service"].principal
SERVICE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/pipeline"
STRANGER = IDENTITIES["stranger"].principal
CONTEXT = {"pipeline:instanceId": "a", "pipeline:dataClass": "recordings_interim"}
DENIED = "AccessDeniedException"


async def code_of(call: Awaitable[Any]) -> str | None:
    try:
        await call
    except ClientError as error:
        return error.response["Error"]["Code"]
    return None


async def new_key(kms: "KMSClient") -> str:
    return (await kms.create_key())["KeyMetadata"]["Arn"]


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


# --- grants


async def test_a_grant_permits_its_operations_to_its_grantee(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        key = await new_key(admin)
        blob = (await admin.encrypt(KeyId=key, Plaintext=b"x"))["CiphertextBlob"]
        grant = await admin.create_grant(KeyId=key, GranteePrincipal=BARE, Operations=["Decrypt", "DescribeKey"])
        assert (await bare.decrypt(CiphertextBlob=blob))["Plaintext"] == b"x"
        await bare.describe_key(KeyId=key)
        assert await code_of(bare.encrypt(KeyId=key, Plaintext=b"x")) == DENIED
        async with server.client("store") as store:
            token = [grant["GrantToken"]]
            assert await code_of(store.decrypt(CiphertextBlob=blob, GrantTokens=token)) == DENIED
        await admin.revoke_grant(KeyId=key, GrantId=grant["GrantId"])
        assert await code_of(bare.decrypt(CiphertextBlob=blob)) == DENIED
        gone = bare.decrypt(CiphertextBlob=blob, GrantTokens=[grant["GrantToken"]])
        assert await code_of(gone) == "InvalidGrantTokenException"
        assert await code_of(admin.revoke_grant(KeyId=key, GrantId=grant["GrantId"])) == "NotFoundException"


CONSTRAINED: list[tuple[Any, dict[str, str], bool]] = [
    ({"EncryptionContextEquals": CONTEXT}, CONTEXT, True),
    ({"EncryptionContextEquals": CONTEXT}, {**CONTEXT, "more": "x"}, False),
    ({"EncryptionContextEquals": CONTEXT}, {"pipeline:instanceId": "a"}, False),
    ({"EncryptionContextEquals": CONTEXT}, {}, False),
    ({"EncryptionContextEquals": {}}, {}, True),
    ({"EncryptionContextSubset": {"pipeline:instanceId": "a"}}, CONTEXT, True),
    ({"EncryptionContextSubset": {"PIPELINE:INSTANCEID": "a"}}, CONTEXT, True),
    ({"EncryptionContextSubset": {"pipeline:instanceId": "A"}}, CONTEXT, False),
    ({"EncryptionContextSubset": {"pipeline:instanceId": "b"}}, CONTEXT, False),
    ({"EncryptionContextSubset": {"pipeline:instanceId": "a"}}, {}, False),
]


async def test_a_constraint_binds_the_grant_to_a_context(tmp_path: "Path") -> None:
    operations: Any = ["GenerateDataKey", "DescribeKey"]
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        key = await new_key(admin)
        for constraint, context, allowed in CONSTRAINED:
            wanted: Any = {"GranteePrincipal": BARE, "Operations": operations, "Constraints": constraint}
            grant = await admin.create_grant(KeyId=key, **wanted)
            attempt = bare.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=context)
            assert await code_of(attempt) == (None if allowed else DENIED), (constraint, context)
            # The constraint does not apply where there is no context.
            await bare.describe_key(KeyId=key)
            await admin.revoke_grant(KeyId=key, GrantId=grant["GrantId"])


async def test_re_encrypt_needs_a_grant_on_both_keys(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        old, new = await new_key(admin), await new_key(admin)
        blob = (await admin.encrypt(KeyId=old, Plaintext=b"x"))["CiphertextBlob"]
        await admin.create_grant(KeyId=old, GranteePrincipal=BARE, Operations=["ReEncryptFrom"])
        assert await code_of(bare.re_encrypt(CiphertextBlob=blob, DestinationKeyId=new)) == DENIED
        await admin.create_grant(KeyId=new, GranteePrincipal=BARE, Operations=["ReEncryptTo"])
        await bare.re_encrypt(CiphertextBlob=blob, DestinationKeyId=new)
        assert await code_of(bare.re_encrypt(CiphertextBlob=blob, DestinationKeyId=old)) == DENIED


async def test_a_new_grant_needs_its_token_until_it_has_spread(tmp_path: "Path") -> None:
    delay = timedelta(minutes=5)
    async with (
        running_key_server(tmp_path, grant_propagation=delay) as server,
        server.client() as admin,
        server.client("bare") as bare,
    ):
        key = await new_key(admin)
        grant = await admin.create_grant(KeyId=key, GranteePrincipal=BARE, Operations=["Encrypt"])
        assert await code_of(bare.encrypt(KeyId=key, Plaintext=b"x")) == DENIED
        await bare.encrypt(KeyId=key, Plaintext=b"x", GrantTokens=[grant["GrantToken"]])
        server.clock.ahead = delay
        await bare.encrypt(KeyId=key, Plaintext=b"x")
        forged = bare.encrypt(KeyId=key, Plaintext=b"x", GrantTokens=["AAAA"])
        assert await code_of(forged) == "InvalidGrantTokenException"


async def test_a_named_grant_is_made_once_and_its_tokens_all_work(tmp_path: "Path") -> None:
    wanted: Any = {
        "GranteePrincipal": BARE,
        "RetiringPrincipal": BARE,
        "Operations": ["Encrypt", "Decrypt"],
        "Constraints": {"EncryptionContextEquals": CONTEXT},
        "Name": "pipeline:a:recordings_interim:v1",
    }
    async with (
        running_key_server(tmp_path, grant_propagation=timedelta(minutes=5)) as server,
        server.client() as admin,
        server.client("bare") as bare,
    ):
        key = await new_key(admin)
        first = await admin.create_grant(KeyId=key, **wanted)
        turned = {**wanted, "Operations": ["Decrypt", "Encrypt"]}
        second = await admin.create_grant(KeyId=key, **turned)
        assert first["GrantId"] == second["GrantId"]
        assert first["GrantToken"] != second["GrantToken"]
        for made in (first, second):
            tokens = [made["GrantToken"]]
            await bare.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=CONTEXT, GrantTokens=tokens)
        other = await admin.create_grant(KeyId=key, **{**wanted, "Operations": ["Decrypt"]})
        assert other["GrantId"] != first["GrantId"]
        unnamed = {name: value for name, value in wanted.items() if name != "Name"}
        ids = {(await admin.create_grant(KeyId=key, **unnamed))["GrantId"] for _ in range(2)}
        assert len(ids) == 2
        assert len((await admin.list_grants(KeyId=key))["Grants"]) == 4
        listed = (await admin.list_grants(KeyId=key, GrantId=first["GrantId"]))["Grants"][0]
        assert listed["Constraints"] == {"EncryptionContextEquals": CONTEXT}
        assert listed["IssuingAccount"] == ROOT
        assert set(listed["Operations"]) == {"Encrypt", "Decrypt"}


async def test_a_grant_is_retired_by_those_it_names(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        key = await new_key(admin)

        async def made(**more: Any) -> dict[str, Any]:
            return dict(await admin.create_grant(KeyId=key, **{"Operations": ["Encrypt"], **more}))

        by_token = await made(GranteePrincipal=SERVICE, RetiringPrincipal=BARE)
        await bare.retire_grant(GrantToken=by_token["GrantToken"])
        by_id = await made(GranteePrincipal=SERVICE, RetiringPrincipal=BARE)
        await bare.retire_grant(KeyId=key, GrantId=by_id["GrantId"])
        as_grantee = await made(GranteePrincipal=BARE, Operations=["Encrypt", "RetireGrant"])
        await bare.retire_grant(GrantToken=as_grantee["GrantToken"])
        mere_grantee = await made(GranteePrincipal=BARE, RetiringPrincipal=SERVICE)
        assert await code_of(bare.retire_grant(GrantToken=mere_grantee["GrantToken"])) == DENIED
        # A policy alone does not help, kms:* neither; the issuing account itself may.
        assert await code_of(admin.retire_grant(GrantToken=mere_grantee["GrantToken"])) == DENIED
        async with server.client("root") as root:
            await root.retire_grant(GrantToken=mere_grantee["GrantToken"])
        assert (await admin.list_grants(KeyId=key))["Grants"] == []
        assert await code_of(bare.retire_grant(GrantToken="AAAA")) == "InvalidGrantTokenException"
        assert await code_of(bare.retire_grant(KeyId=key)) == "ValidationException"
        retired = [record for record in server.trail() if record["eventName"] == "RetireGrant"]
        assert retired[0]["requestParameters"] is None
        assert retired[0]["additionalEventData"] == {"grantId": by_token["GrantId"]}


async def test_a_grant_made_by_right_of_a_grant_is_no_wider(tmp_path: "Path") -> None:
    bound: Any = {"EncryptionContextSubset": {"pipeline:instanceId": "a"}}
    async with running_key_server(tmp_path) as server, server.client() as admin, server.client("bare") as bare:
        key = await new_key(admin)
        await admin.create_grant(
            KeyId=key, GranteePrincipal=BARE, Operations=["CreateGrant", "Decrypt"], Constraints=bound
        )

        async def child(**more: Any) -> str | None:
            return await code_of(bare.create_grant(**{"KeyId": key, "GranteePrincipal": SERVICE, **more}))

        assert await child(Operations=["Decrypt"], Constraints=bound) is None
        assert await child(Operations=["Decrypt"], Constraints={"EncryptionContextEquals": CONTEXT}) is None
        assert await child(Operations=["Encrypt"], Constraints=bound) == DENIED
        assert await child(Operations=["Decrypt"]) == DENIED
        looser = {"EncryptionContextSubset": {"pipeline:dataClass": "recordings_interim"}}
        assert await child(Operations=["Decrypt"], Constraints=looser) == DENIED


WRONG: list[tuple[Any, str]] = [
    ({"Operations": ["Sign"]}, "ValidationException"),
    ({"Operations": []}, "ValidationException"),
    ({"GranteePrincipal": "someone"}, "InvalidArnException"),
    ({"Constraints": {"EncryptionContextEquals": {}, "EncryptionContextSubset": {}}}, "ValidationException"),
    ({"Constraints": {"EncryptionContextSubset": {str(n): "x" for n in range(9)}}}, "ValidationException"),
    ({"Constraints": {"EncryptionContextSubset": {"a": "x" * 385}}}, "ValidationException"),
    ({"Constraints": {"SourceArn": "arn:aws:s3:::some-bucket"}}, "UnsupportedOperationException"),
    ({"KeyId": "alias/a"}, "NotFoundException"),
]


async def test_a_grant_that_can_not_be_is_refused(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as admin:
        key = await new_key(admin)
        await admin.create_alias(AliasName="alias/a", TargetKeyId=key)
        for wrong, code in WRONG:
            wanted = {"KeyId": key, "GranteePrincipal": BARE, "Operations": ["Decrypt"], **wrong}
            assert await code_of(admin.create_grant(**wanted)) == code, wrong
        assert (await admin.list_grants(KeyId=key))["Grants"] == []
