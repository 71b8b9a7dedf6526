"""Grants: their operations, constraints, tokens and names; who retires them, who may make more."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tests.kms_server import ACCOUNT, IDENTITIES, code_of, new_key, running_key_server

if TYPE_CHECKING:
    from pathlib import Path


ROOT = f"arn:aws:iam::{ACCOUNT}:root"
BARE = IDENTITIES["bare"].principal
SERVICE = IDENTITIES["service"].principal
CONTEXT = {"pipeline:instanceId": "a", "pipeline:dataClass": "recordings_interim"}
DENIED = "AccessDeniedException"


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
