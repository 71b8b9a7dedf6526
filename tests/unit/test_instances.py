"""Instance files: what is written is read again, and what is wrong is named by its place without its value."""

import hashlib
from pathlib import Path
from uuid import UUID

import pytest

from pipeline.config import (
    load_instances,
    load_probe,
    load_store_id,
    new_token,
    remove_instance,
    save_instance,
    save_probe,
    save_store_id,
)
from pipeline.errors import RefuseError
from pipeline.ids import InstanceId, Kind
from pipeline.instances import Colon, Discriminator, Instance, KeyAccess, Limits, Storage, parse, render

ID = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001"))
OTHER = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000002"))
NAME = f"{ID}.toml"
KEY = "arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000002"
OLD_KEY = "arn:aws:kms:eu-central-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef"

TEXT = f"""
instance_id = "{ID}"
alias = "acme"
account_id = "111122223333"
region = "eu-central-1"
kms_key_arn = "{KEY}"
token_sha256 = ["{"ab" * 32}"]

[limits]
burst = 7

[[storage]]
AssociationId = "voice-1"
ResourceType = "CALL_RECORDINGS"
bucket_owner = "444455556666"

[storage.StorageConfig]
StorageType = "S3"

[storage.StorageConfig.S3Config]
BucketName = "acme-recordings"
BucketPrefix = "connect/acme/CallRecordings"

[storage.StorageConfig.S3Config.EncryptionConfig]
EncryptionType = "KMS"
KeyId = "{KEY}"
"""
VOICE = TEXT[TEXT.index("[[storage]]") :]


def instance(instance_id: InstanceId = ID) -> Instance:
    storage = Storage(
        association_id="a", bucket="b-1", prefix="p/q", kms_key_arn=KEY, bucket_owner="444455556666", colon=Colon.DASH
    )
    return Instance(
        instance_id=instance_id,
        alias="acme",
        account_id="111122223333",
        region="eu-central-1",
        kms_key_arn=KEY,
        previous_kms_key_arn=OLD_KEY,
        key_access=KeyAccess.GRANT,
        role_arn="arn:aws:iam::111122223333:role/recordings/acme",
        external_id="acme:7/f",
        token_sha256=("0" * 64, "f" * 64),
        storage={Kind.VOICE: storage, Kind.CHAT: storage},
        limits=Limits(requests_per_s=0.5, held_bytes=10**12),
        expects=("voice.wav", "screen/desk-1.mp4", "chat"),
    )


def test_a_file_in_the_shape_of_a_storage_configuration_is_read() -> None:
    read = parse(TEXT, name=NAME)
    assert read.instance_id == ID
    assert read.limits == Limits(burst=7)
    assert read.storage == {
        Kind.VOICE: Storage(
            association_id="voice-1",
            bucket="acme-recordings",
            prefix="connect/acme/CallRecordings",
            kms_key_arn=KEY,
            bucket_owner="444455556666",
            discriminator=Discriminator.ON_COLLISION,
            colon=Colon.KEEP,
        )
    }


def test_what_is_written_is_read_again() -> None:
    assert parse(render(instance()), name=NAME) == instance()


S3 = "storage[0].StorageConfig.S3Config"
REFUSED = [
    pytest.param(('"acme"', '"acme corp 666"'), "alias", id="alias"),
    pytest.param(('"111122223333"\nregion', '"1111666"\nregion'), "account_id", id="account"),
    pytest.param(('"111122223333"\nregion', '"111122223333\\n"\nregion'), "account_id", id="account and line feed"),
    pytest.param(('"444455556666"', '"44445555666x"'), "storage[0].bucket_owner", id="owner"),
    pytest.param((f'"{KEY}"\ntoken', '"alias/k666"\ntoken'), "kms_key_arn", id="alias of a key"),
    pytest.param(
        (f'KeyId = "{KEY}"', f'KeyId = "{KEY[:40]}:alias/k666"'), f"{S3}.EncryptionConfig.KeyId", id="alias ARN"
    ),
    pytest.param((f'KeyId = "{KEY}"', 'KeyId = "bbbb666"'), f"{S3}.EncryptionConfig.KeyId", id="bare key id"),
    pytest.param(('"KMS"', '"AES666"'), f"{S3}.EncryptionConfig.EncryptionType", id="encryption type"),
    pytest.param((VOICE[VOICE.index("[storage.StorageConfig.S3Config.E") :], ""), S3, id="no encryption"),
    pytest.param(('Type = "S3"', 'Type = "KINESIS_666"'), "storage[0].StorageConfig.StorageType", id="storage type"),
    pytest.param(("CALL_RECORDINGS", "ATTACHMENTS"), "storage[0].ResourceType", id="not served"),
    pytest.param((VOICE, VOICE + VOICE), "storage[1].ResourceType", id="two of one type"),
    pytest.param(('"acme-recordings"', '"Acme_666"'), f"{S3}.BucketName", id="bucket name"),
    pytest.param(('"acme-recordings"', '"10.0.0.666"'), f"{S3}.BucketName", id="bucket like an address"),
    pytest.param(("connect/acme", "connect//acme"), f"{S3}.BucketPrefix", id="empty segment"),
    pytest.param(("connect/acme", "connect/../666"), f"{S3}.BucketPrefix", id="dots"),
    pytest.param(("connect/acme", "/connect"), f"{S3}.BucketPrefix", id="leading slash"),
    pytest.param(("connect/acme", "c" * 128), f"{S3}.BucketPrefix", id="too long"),
    pytest.param(("burst", "brust"), "limits.brust", id="unknown key"),
    pytest.param(("bucket_owner", "bucket_woner"), "storage[0]", id="missing key"),
    pytest.param(("burst = 7", "burst = 0"), "limits.burst", id="bound"),
    pytest.param(("burst = 7", "burst = '666'"), "limits.burst", id="type"),
    pytest.param(("ab" * 32, "666"), "token_sha256[0]", id="token hash"),
    pytest.param(("[limits]", 'expects = ["voice.wav", "fax"]\n[limits]'), "expects[1]", id="expects"),
    pytest.param(("token_sha256", "key_access = '666'\ntoken_sha256"), "key_access", id="key access"),
    pytest.param(("token_sha256", "role_arn = 'arn:aws:iam::666:role/x'\ntoken_sha256"), "role_arn", id="role"),
    pytest.param(("token_sha256", "external_id = 'a666'\ntoken_sha256"), "external_id", id="external id of no role"),
    pytest.param(
        ("token_sha256", "role_arn = 'arn:aws:iam::111122223333:role/x'\nexternal_id = '6'\ntoken_sha256"),
        "external_id",
        id="external id",
    ),
    pytest.param((str(ID), str(OTHER)), "instance_id", id="another file's name"),
    pytest.param((str(ID), "666"), "instance_id", id="no id"),
    pytest.param(("burst = 7", "burst = 666 = 7"), None, id="not TOML"),
]


@pytest.mark.parametrize(("change", "field"), REFUSED)
def test_what_is_wrong_is_named_by_its_place_and_not_repeated(change: tuple[str, str], field: str | None) -> None:
    assert change[0] in TEXT
    with pytest.raises(RefuseError) as caught:
        parse(TEXT.replace(*change), name=NAME)
    assert caught.value.field is None if field is None else (caught.value.field or "").startswith(field)
    assert "666" not in str(caught.value)


# --- the directory


def test_a_bad_file_hides_no_other(tmp_path: Path) -> None:
    save_instance(tmp_path, instance())
    bad = tmp_path / "instances" / f"{OTHER}.toml"
    bad.write_text(TEXT)
    loaded = load_instances(tmp_path)
    assert loaded.instances == {ID: instance()}
    assert {path: error.field for path, error in loaded.problems.items()} == {bad: "instance_id"}


def test_a_file_that_is_not_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances" / NAME).write_bytes(b"\xff")
    assert len(load_instances(tmp_path).problems) == 1


def test_no_directory_is_no_instance(tmp_path: Path) -> None:
    assert load_instances(tmp_path / "none").instances == {}


def test_instance_files_are_for_their_owner_only_and_nothing_is_left_aside(tmp_path: Path) -> None:
    save_instance(tmp_path, instance())
    save_instance(tmp_path, instance())
    directory = tmp_path / "instances"
    assert [path.name for path in directory.iterdir()] == [NAME]
    assert (directory / NAME).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_an_instance_that_would_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RefuseError, match="alias"):
        save_instance(
            tmp_path,
            Instance(instance_id=ID, alias="a", account_id="1" * 12, region="eu-west-1", kms_key_arn="alias/k"),
        )
    assert not list(tmp_path.iterdir())


def test_an_instance_goes_with_what_its_probes_answered(tmp_path: Path) -> None:
    save_instance(tmp_path, instance())
    save_probe(tmp_path, ID, Kind.VOICE, b"{}")
    assert load_probe(tmp_path, ID, Kind.VOICE) == b"{}"
    assert load_probe(tmp_path, ID, Kind.CHAT) is None
    assert load_instances(tmp_path).problems == {}
    remove_instance(tmp_path, ID)
    assert list((tmp_path / "instances").iterdir()) == []
    remove_instance(tmp_path / "none", ID)


def test_the_store_id_is_kept(tmp_path: Path) -> None:
    assert load_store_id(tmp_path) is None
    save_store_id(tmp_path, "0123abcd")
    assert load_store_id(tmp_path) == "0123abcd"


def test_a_token_is_known_by_its_hash() -> None:
    token, digest = new_token()
    assert token.startswith("rp_")
    assert len(token) == 46
    assert digest == hashlib.sha256(token.encode()).hexdigest()
    assert token != new_token()[0]
