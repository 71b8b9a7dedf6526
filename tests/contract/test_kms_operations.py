"""The key server's operations, asked through AWS' own client: states, names, contexts, limits, rotation, deletion."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.kms_server import (
    ACCOUNT,
    IDENTITIES,
    OTHER_ACCOUNT,
    REGION,
    RunningKeyServer,
    code_of,
    new_key,
    running_key_server,
)

if TYPE_CHECKING:
    from pathlib import Path

    from types_aiobotocore_kms import KMSClient

CONTEXT = {"pipeline:instanceId": "a", "pipeline:dataClass": "recordings_interim"}
DISABLED, PENDING, OK = "DisabledException", "KMSInvalidStateException", None


class Prepared:
    """A key in some state, with a ciphertext, a grant and a second key, made while it was still enabled."""

    def __init__(self, kms: "KMSClient", key: str, other: str, blob: bytes, grant: str) -> None:
        self.kms, self.key, self.other, self.blob, self.grant = kms, key, other, blob, grant


async def _re_encrypt_to(prepared: Prepared) -> None:
    blob = (await prepared.kms.encrypt(KeyId=prepared.other, Plaintext=b"y"))["CiphertextBlob"]
    await prepared.kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=prepared.key)


async def _put_same_policy(prepared: Prepared) -> None:
    policy = (await prepared.kms.get_key_policy(KeyId=prepared.key))["Policy"]
    await prepared.kms.put_key_policy(KeyId=prepared.key, Policy=policy, PolicyName="default")


Attempt = Callable[[Prepared], Awaitable[Any]]
MATRIX: list[tuple[str, Attempt, str | None, str | None, str | None]] = [
    # operation, how, when enabled, when disabled, when pending deletion
    ("DescribeKey", lambda p: p.kms.describe_key(KeyId=p.key), OK, OK, OK),
    ("EnableKey", lambda p: p.kms.enable_key(KeyId=p.key), OK, OK, PENDING),
    ("DisableKey", lambda p: p.kms.disable_key(KeyId=p.key), OK, OK, PENDING),
    ("Schedule", lambda p: p.kms.schedule_key_deletion(KeyId=p.key, PendingWindowInDays=7), OK, OK, PENDING),
    ("Cancel", lambda p: p.kms.cancel_key_deletion(KeyId=p.key), PENDING, PENDING, OK),
    ("Rotate", lambda p: p.kms.rotate_key_on_demand(KeyId=p.key), OK, DISABLED, PENDING),
    ("CreateAlias", lambda p: p.kms.create_alias(AliasName="alias/new", TargetKeyId=p.key), OK, OK, PENDING),
    ("DeleteAlias", lambda p: p.kms.delete_alias(AliasName="alias/old"), OK, OK, OK),
    ("ListAliases", lambda p: p.kms.list_aliases(KeyId=p.key), OK, OK, OK),
    ("ListKeys", lambda p: p.kms.list_keys(), OK, OK, OK),
    ("GetKeyPolicy", lambda p: p.kms.get_key_policy(KeyId=p.key), OK, OK, OK),
    ("GenerateDataKey", lambda p: p.kms.generate_data_key(KeyId=p.key, KeySpec="AES_256"), OK, DISABLED, PENDING),
    (
        "GenerateDataKeyWithoutPlaintext",
        lambda p: p.kms.generate_data_key_without_plaintext(KeyId=p.key, KeySpec="AES_256"),
        OK,
        DISABLED,
        PENDING,
    ),
    ("Encrypt", lambda p: p.kms.encrypt(KeyId=p.key, Plaintext=b"x"), OK, DISABLED, PENDING),
    ("Decrypt", lambda p: p.kms.decrypt(CiphertextBlob=p.blob), OK, DISABLED, PENDING),
    ("DecryptNamed", lambda p: p.kms.decrypt(CiphertextBlob=p.blob, KeyId=p.key), OK, DISABLED, PENDING),
    (
        "ReEncryptFrom",
        lambda p: p.kms.re_encrypt(CiphertextBlob=p.blob, DestinationKeyId=p.other),
        OK,
        DISABLED,
        PENDING,
    ),
    ("ReEncryptTo", _re_encrypt_to, OK, DISABLED, PENDING),
    (
        "CreateGrant",
        lambda p: p.kms.create_grant(
            KeyId=p.key, GranteePrincipal=IDENTITIES["bare"].principal, Operations=["Decrypt"]
        ),
        OK,
        DISABLED,
        PENDING,
    ),
    ("ListGrants", lambda p: p.kms.list_grants(KeyId=p.key), OK, OK, OK),
    ("RevokeGrant", lambda p: p.kms.revoke_grant(KeyId=p.key, GrantId=p.grant), OK, OK, OK),
    ("RetireGrant", lambda p: p.kms.retire_grant(KeyId=p.key, GrantId=p.grant), OK, OK, OK),
    ("PutKeyPolicy", _put_same_policy, OK, OK, OK),
]


async def _prepare(kms: "KMSClient") -> Prepared:
    key, other = await new_key(kms), await new_key(kms)
    blob = (await kms.encrypt(KeyId=key, Plaintext=b"x"))["CiphertextBlob"]
    admin = IDENTITIES["admin"].principal
    grant = await kms.create_grant(KeyId=key, GranteePrincipal=admin, RetiringPrincipal=admin, Operations=["Decrypt"])
    await kms.create_alias(AliasName="alias/old", TargetKeyId=key)
    return Prepared(kms, key, other, blob, grant["GrantId"])


def _bring_to(server: RunningKeyServer, prepared: Prepared, state: str) -> None:
    key_id = prepared.key.rpartition("/")[2]
    if state == "Disabled":
        server.disable(key_id)
    if state == "PendingDeletion":
        server.schedule_deletion(key_id)


def _as_prepared(server: RunningKeyServer, prepared: Prepared, state: str) -> bool:
    """Whether the last attempt left everything as it was."""
    key = server.key(prepared.key.rpartition("/")[2])
    alias = server.authority.vault.alias(ACCOUNT, "alias/old")
    return key.state == state and prepared.grant in key.grants and alias is not None


@pytest.mark.parametrize("state", ["Enabled", "Disabled", "PendingDeletion"])
async def test_each_operation_meets_each_state_as_aws_documents(tmp_path: "Path", state: str) -> None:
    got, wanted = {}, {}
    async with running_key_server(tmp_path) as server, server.client() as kms:
        prepared = None
        for name, attempt, enabled, disabled, pending in MATRIX:
            if prepared is None or not _as_prepared(server, prepared, state):
                await code_of(kms.delete_alias(AliasName="alias/old"))
                prepared = await _prepare(kms)
                _bring_to(server, prepared, state)
            got[name] = await code_of(attempt(prepared))
            wanted[name] = {"Enabled": enabled, "Disabled": disabled, "PendingDeletion": pending}[state]
    assert got == wanted


async def test_the_messages_of_a_key_that_cannot_be_used_say_why(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        await kms.disable_key(KeyId=key)
        with pytest.raises(ClientError, match=rf"{key} is disabled\."):
            await kms.encrypt(KeyId=key, Plaintext=b"x")
        await kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
        with pytest.raises(ClientError, match=rf"{key} is pending deletion\."):
            await kms.encrypt(KeyId=key, Plaintext=b"x")


async def test_an_encryption_context_is_bound_whatever_its_order(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        made = await kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
        turned = dict(reversed(CONTEXT.items()))
        opened = await kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=turned)
        assert opened["Plaintext"] == made["Plaintext"]
        assert len(made["Plaintext"]) == 32
        wrong: list[dict[str, str]] = [
            {},
            {"pipeline:instanceId": "a"},
            {**CONTEXT, "more": "x"},
            {**CONTEXT, "pipeline:instanceId": "b"},
            {**CONTEXT, "pipeline:instanceId": "A"},
        ]
        for context in wrong:
            refused = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=context)
            assert await code_of(refused) == "InvalidCiphertextException", context


async def test_pairs_cannot_be_moved_between_names_and_values(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        blob = (await kms.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"a": "bc"}))["CiphertextBlob"]
        refused = kms.decrypt(CiphertextBlob=blob, EncryptionContext={"ab": "c"})
        assert await code_of(refused) == "InvalidCiphertextException"


async def test_every_flipped_bit_of_a_ciphertext_is_refused(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        blob = (await kms.encrypt(KeyId=key, Plaintext=b"x"))["CiphertextBlob"]
        for position in range(len(blob)):
            changed = bytearray(blob)
            changed[position] ^= 1
            # A changed key id names a key that is not there.
            wanted = "AccessDeniedException" if 1 <= position <= 16 else "InvalidCiphertextException"
            assert await code_of(kms.decrypt(CiphertextBlob=bytes(changed))) == wanted, position
        for junk in (b"x", blob[:60], blob + b"x"):
            assert await code_of(kms.decrypt(CiphertextBlob=junk)) == "InvalidCiphertextException"


async def test_decrypt_uses_the_key_that_is_named_and_no_other(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key, other = await new_key(kms), await new_key(kms)
        blob = (await kms.encrypt(KeyId=key, Plaintext=b"x"))["CiphertextBlob"]
        assert await code_of(kms.decrypt(CiphertextBlob=blob, KeyId=other)) == "IncorrectKeyException"
        moved = kms.re_encrypt(CiphertextBlob=blob, SourceKeyId=other, DestinationKeyId=key)
        assert await code_of(moved) == "IncorrectKeyException"


async def test_re_encrypt_changes_key_and_context(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        old, new = await new_key(kms), await new_key(kms)
        blob = (await kms.encrypt(KeyId=old, Plaintext=b"secret", EncryptionContext=CONTEXT))["CiphertextBlob"]
        moved = await kms.re_encrypt(
            CiphertextBlob=blob,
            SourceKeyId=old,
            SourceEncryptionContext=CONTEXT,
            DestinationKeyId=new,
            DestinationEncryptionContext={"now": "other"},
        )
        assert (moved["SourceKeyId"], moved["KeyId"]) == (old, new)
        await kms.disable_key(KeyId=old)
        opened = await kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"now": "other"})
        assert opened["Plaintext"] == b"secret"
        wrong = kms.re_encrypt(CiphertextBlob=moved["CiphertextBlob"], DestinationKeyId=new)
        assert await code_of(wrong) == "InvalidCiphertextException"


async def test_keys_are_named_as_each_operation_allows(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms, server.client("stranger") as stranger:
        arn = await new_key(kms)
        key_id = arn.rpartition("/")[2]
        await kms.create_alias(AliasName="alias/a/b", TargetKeyId=key_id)
        alias_arn = f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/a/b"
        for name in (arn, key_id, "alias/a/b", alias_arn):
            assert (await kms.encrypt(KeyId=name, Plaintext=b"x"))["KeyId"] == arn
        for name in ("alias/a/b", alias_arn):
            assert await code_of(kms.disable_key(KeyId=name)) == "NotFoundException"
        missing = "00000000-0000-4000-8000-000000000000"
        absent = [missing, arn.replace(key_id, missing), "alias/none", "no-key", arn.replace(ACCOUNT, OTHER_ACCOUNT)]
        absent.append(arn.replace(REGION, "us-east-1"))
        for name in absent:
            assert await code_of(kms.describe_key(KeyId=name)) == "NotFoundException", name
        assert await code_of(kms.describe_key(KeyId="arn:aws:kms:nonsense")) == "InvalidArnException"
        # A bare id or alias means the caller's own account.
        assert await code_of(stranger.describe_key(KeyId=key_id)) == "NotFoundException"
        assert await code_of(stranger.describe_key(KeyId="alias/a/b")) == "NotFoundException"
        assert (await kms.list_aliases())["Aliases"][0]["TargetKeyId"] == key_id


async def test_aliases_are_checked(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        await kms.create_alias(AliasName="alias/one", TargetKeyId=key)
        again = kms.create_alias(AliasName="alias/one", TargetKeyId=key)
        assert await code_of(again) == "AlreadyExistsException"
        assert await code_of(kms.create_alias(AliasName="one", TargetKeyId=key)) == "ValidationException"
        reserved = kms.create_alias(AliasName="alias/aws/s3", TargetKeyId=key)
        assert await code_of(reserved) == "InvalidAliasNameException"
        assert await code_of(kms.delete_alias(AliasName="alias/two")) == "NotFoundException"


async def test_only_symmetric_keys_are_made(tmp_path: "Path") -> None:
    wanted: list[dict[str, Any]] = [
        {"KeySpec": "RSA_2048"},
        {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
        {"KeyUsage": "SIGN_VERIFY"},
        {"Origin": "EXTERNAL"},
        {"MultiRegion": True},
        {"Tags": [{"TagKey": "a", "TagValue": "b"}]},
    ]
    async with running_key_server(tmp_path) as server, server.client() as kms:
        for parameters in wanted:
            assert await code_of(kms.create_key(**parameters)) == "UnsupportedOperationException", parameters
        assert (await kms.list_keys())["Keys"] == []


async def test_lists_come_in_pages(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms, server.client("stranger") as stranger:
        keys = {await new_key(kms) for _ in range(5)}
        seen: list[str] = []
        page = await kms.list_keys(Limit=2)
        while True:
            seen += [entry["KeyArn"] for entry in page["Keys"]]
            if not page["Truncated"]:
                break
            page = await kms.list_keys(Limit=2, Marker=page["NextMarker"])
        assert len(seen) == 5
        assert set(seen) == keys
        assert (await stranger.list_keys())["Keys"] == []
        assert await code_of(kms.list_keys(Marker="!")) == "InvalidMarkerException"


async def test_sizes_are_limited(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        most = await kms.encrypt(KeyId=key, Plaintext=b"p" * 4096)
        assert (await kms.decrypt(CiphertextBlob=most["CiphertextBlob"]))["Plaintext"] == b"p" * 4096
        assert len((await kms.generate_data_key(KeyId=key, NumberOfBytes=1024))["Plaintext"]) == 1024
        assert len((await kms.generate_data_key(KeyId=key, KeySpec="AES_128"))["Plaintext"]) == 16
        both = kms.generate_data_key(KeyId=key, NumberOfBytes=32, KeySpec="AES_256")
        assert await code_of(both) == "ValidationException"
        assert await code_of(kms.generate_data_key(KeyId=key)) == "ValidationException"
        long = {"n": "v" * 9000}
        assert await code_of(kms.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=long)) == "ValidationException"
        for days in (6, 31):
            refused = kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=days)
            assert await code_of(refused) == "ValidationException"


async def test_a_rotated_key_opens_what_its_old_materials_sealed(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        first = await kms.generate_data_key(KeyId=key, KeySpec="AES_256")
        await kms.rotate_key_on_demand(KeyId=key)
        second = await kms.generate_data_key(KeyId=key, KeySpec="AES_256")
        assert first["KeyMaterialId"] != second["KeyMaterialId"]
        described = (await kms.describe_key(KeyId=key))["KeyMetadata"]
        assert described["CurrentKeyMaterialId"] == second["KeyMaterialId"]
        for made in (first, second):
            opened = await kms.decrypt(CiphertextBlob=made["CiphertextBlob"])
            assert (opened["Plaintext"], opened["KeyMaterialId"]) == (made["Plaintext"], made["KeyMaterialId"])
        moved = await kms.re_encrypt(CiphertextBlob=first["CiphertextBlob"], DestinationKeyId=key)
        assert moved["SourceKeyMaterialId"] == first["KeyMaterialId"]
        assert moved["DestinationKeyMaterialId"] == second["KeyMaterialId"]
        for _ in range(24):
            await kms.rotate_key_on_demand(KeyId=key)
        assert await code_of(kms.rotate_key_on_demand(KeyId=key)) == "LimitExceededException"


async def test_a_key_is_destroyed_when_its_waiting_period_is_over(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        blob = (await kms.encrypt(KeyId=key, Plaintext=b"x"))["CiphertextBlob"]
        await kms.create_alias(AliasName="alias/gone", TargetKeyId=key)
        grant = await kms.create_grant(KeyId=key, GranteePrincipal=IDENTITIES["bare"].principal, Operations=["Decrypt"])
        answer = await kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
        assert (answer["KeyState"], answer["PendingWindowInDays"]) == ("PendingDeletion", 7)
        server.clock.ahead = timedelta(days=7) - timedelta(minutes=1)
        assert (await kms.describe_key(KeyId=key))["KeyMetadata"]["DeletionDate"] == answer["DeletionDate"]
        server.clock.ahead = timedelta(days=7)
        assert await code_of(kms.describe_key(KeyId=key)) == "NotFoundException"
        assert await code_of(kms.cancel_key_deletion(KeyId=key)) == "NotFoundException"
        assert await code_of(kms.decrypt(CiphertextBlob=blob)) == "AccessDeniedException"
        assert await code_of(kms.describe_key(KeyId="alias/gone")) == "NotFoundException"
        assert await code_of(kms.retire_grant(GrantToken=grant["GrantToken"])) == "InvalidGrantTokenException"
        assert (await kms.list_keys())["Keys"] == []
    left = b"".join(file.read_bytes() for file in (tmp_path / "kms").glob("keys.sqlite*"))
    assert key.rpartition("/")[2].encode() not in left


async def test_a_cancelled_deletion_leaves_the_key_disabled(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client() as kms:
        key = await new_key(kms)
        await kms.schedule_key_deletion(KeyId=key)
        await kms.cancel_key_deletion(KeyId=key)
        described = (await kms.describe_key(KeyId=key))["KeyMetadata"]
        assert described["KeyState"] == "Disabled"
        assert "DeletionDate" not in described
        await kms.enable_key(KeyId=key)
        server.clock.ahead = timedelta(days=60)
        await kms.encrypt(KeyId=key, Plaintext=b"x")


def _dry_runs(key: str, blob: bytes, grant: str) -> "list[Callable[[KMSClient], Awaitable[Any]]]":
    grantee = IDENTITIES["bare"].principal
    return [
        lambda kms: kms.generate_data_key(KeyId=key, KeySpec="AES_256", DryRun=True),
        lambda kms: kms.generate_data_key_without_plaintext(KeyId=key, KeySpec="AES_256", DryRun=True),
        lambda kms: kms.encrypt(KeyId=key, Plaintext=b"x", DryRun=True),
        lambda kms: kms.decrypt(CiphertextBlob=blob, DryRun=True),
        lambda kms: kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=key, DryRun=True),
        lambda kms: kms.create_grant(KeyId=key, GranteePrincipal=grantee, Operations=["Decrypt"], DryRun=True),
        lambda kms: kms.revoke_grant(KeyId=key, GrantId=grant, DryRun=True),
        lambda kms: kms.retire_grant(KeyId=key, GrantId=grant, DryRun=True),
    ]


async def test_a_dry_run_says_that_it_would_work_and_changes_nothing(tmp_path: "Path") -> None:
    async with running_key_server(tmp_path) as server, server.client("root") as kms, server.client("bare") as bare:
        key = await new_key(kms)
        blob = (await kms.encrypt(KeyId=key, Plaintext=b"x"))["CiphertextBlob"]
        service = IDENTITIES["service"].principal
        grant = (await kms.create_grant(KeyId=key, GranteePrincipal=service, Operations=["Decrypt"]))["GrantId"]
        for attempt in _dry_runs(key, blob, grant):
            assert await code_of(attempt(kms)) == "DryRunOperationException"
            assert await code_of(attempt(bare)) == "AccessDeniedException"
        assert [one["GrantId"] for one in (await kms.list_grants(KeyId=key))["Grants"]] == [grant]
        await kms.disable_key(KeyId=key)
        assert await code_of(kms.encrypt(KeyId=key, Plaintext=b"x", DryRun=True)) == "DisabledException"
