"""The key server's settings and its root key: what is taken, what is refused, and what is never repeated."""

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.errors import HaltError
from pipeline.kms import rootkey
from pipeline.kms.authority import open_authority
from pipeline.kms.config import KmsConfig, RootKeySource, load
from tests.kms_server import key_server_config

SECRET = "secret-that-is-long-enough"
HEAD = """
region = "eu-central-1"
account_id = "111122223333"
data_dir = "data"
port = 8998
grant_propagation_s = 2.5
"""
ROOT_KEY = '[root_key]\nfile = "root.key"\ncreate = true\n'
IDENTITY = f"""
[[identities]]
access_key = "AKADMIN"
secret_key = "{SECRET}"
principal = "arn:aws:iam::111122223333:role/admin"
"""


def written(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "kms.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(HaltError) as refused:
        load(path)
    assert SECRET not in str(refused.value)
    return str(refused.value)


def test_a_whole_file_is_read_relative_to_itself(tmp_path: Path) -> None:
    config = load(written(tmp_path, HEAD + ROOT_KEY + IDENTITY))
    assert isinstance(config, KmsConfig)
    assert config.data_dir == tmp_path / "data"
    assert config.root_key == RootKeySource(file=tmp_path / "root.key", create=True)
    assert (config.host, config.port) == ("127.0.0.1", 8998)
    assert config.grant_propagation == timedelta(seconds=2.5)
    [identity] = config.identities
    assert identity.account_id == "111122223333"
    assert identity.allow == ("kms:*",)
    assert SECRET not in repr(config)


@pytest.mark.parametrize("name", ["identities.toml", "identities.json"])
def test_identities_may_stand_in_a_file_of_their_own(tmp_path: Path, name: str) -> None:
    text = IDENTITY
    if name.endswith("json"):
        entry = f'"access_key":"AKADMIN","secret_key":"{SECRET}","principal":"arn:aws:iam::111122223333:role/admin"'
        text = '{"identities":[{' + entry + "}]}"
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o600)
    main = written(tmp_path, HEAD + f'identities_file = "{name}"\n' + ROOT_KEY, mode=0o644)
    assert [identity.access_key for identity in load(main).identities] == ["AKADMIN"]
    (tmp_path / name).chmod(0o640)
    assert "chmod 600" in refusal(main)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "regoin = 1\n" + ROOT_KEY + IDENTITY, "Did you mean 'region'?"),
        (HEAD + ROOT_KEY + "crate = true\n" + IDENTITY, "Did you mean 'create'?"),
        (HEAD + ROOT_KEY + IDENTITY + 'acces_key = "x"\n', "Did you mean 'access_key'?"),
        (HEAD + ROOT_KEY, "exactly one of [[identities]] and identities_file"),
        (HEAD + IDENTITY, "[root_key]"),
        (HEAD + '[root_key]\nfile = "a"\ncredential = "b"\n' + IDENTITY, "exactly one of command"),
        (HEAD + ROOT_KEY + IDENTITY + IDENTITY, "the same access_key"),
        (HEAD + ROOT_KEY + IDENTITY.replace("role/admin", "admin"), "principal"),
        (HEAD + ROOT_KEY + IDENTITY.replace(SECRET, "short"), "secret_key"),
        (HEAD + ROOT_KEY + IDENTITY + 'account_id = "444455556666"\n', "account_id"),
        (HEAD.replace("8998", "99999") + ROOT_KEY + IDENTITY, "port"),
        (HEAD + 'host = "0.0.0.0"\n' + ROOT_KEY + IDENTITY, "loopback"),
        (HEAD + 'host = "0.0.0.0"\nallow_remote = "yes"\n' + ROOT_KEY + IDENTITY, "loopback"),
        (HEAD + ROOT_KEY + IDENTITY + f"broken = {SECRET}", "is not valid TOML"),
        ("\x00", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_the_name_of_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(written(tmp_path, text))


def test_a_remote_address_needs_an_explicit_word(tmp_path: Path) -> None:
    head = HEAD + 'host = "0.0.0.0"\nallow_remote = true\n'
    assert load(written(tmp_path, head + ROOT_KEY + IDENTITY)).host == "0.0.0.0"


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    assert "chmod 600" in refusal(written(tmp_path, HEAD + ROOT_KEY + IDENTITY, mode=0o644))


# --- the root key


def test_the_root_key_file_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    source = RootKeySource(file=tmp_path / "deep" / "root.key", create=True)
    assert source.file is not None
    first = rootkey.read(source)
    assert source.file.stat().st_mode & 0o777 == 0o600
    assert rootkey.read(source) == first
    assert rootkey.read(replace(source, create=False)) == first
    source.file.chmod(0o640)
    with pytest.raises(HaltError, match="chmod 600"):
        rootkey.read(source)


def test_a_missing_root_key_file_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(HaltError, match="can't be read"):
        rootkey.read(RootKeySource(file=tmp_path / "root.key"))
    assert list(tmp_path.iterdir()) == []


def test_every_source_gives_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "0123456789abcdef" * 4
    (tmp_path / "root").write_text(text + "\n")
    (tmp_path / "root").chmod(0o600)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    raw = f"import sys; sys.stdout.buffer.write(bytes.fromhex('{text}'))"
    keys = [
        rootkey.read(RootKeySource(file=tmp_path / "root")),
        rootkey.read(RootKeySource(credential="root")),
        rootkey.read(RootKeySource(command=(sys.executable, "-c", raw))),
        rootkey.derive(bytes.fromhex(text)),
    ]
    assert keys == keys[:1] * 4
    assert len({keys[0].sealing, keys[0].tokens, keys[0].check, bytes.fromhex(text)}) == 4


@pytest.mark.parametrize("program", ["print('canary')", "raise SystemExit(3)", "print('z' * 64)"])
def test_a_command_that_gives_no_key_is_refused_without_its_output(program: str) -> None:
    with pytest.raises(HaltError) as refused:
        rootkey.read(RootKeySource(command=(sys.executable, "-c", program)))
    assert "canary" not in str(refused.value)


def test_a_credential_outside_systemd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(HaltError, match="CREDENTIALS_DIRECTORY"):
        rootkey.read(RootKeySource(credential="root"))


def test_another_root_key_is_refused_at_start(tmp_path: Path) -> None:
    config = key_server_config(tmp_path)
    with open_authority(config):
        pass
    other = replace(config, root_key=RootKeySource(file=tmp_path / "other.key", create=True))
    with pytest.raises(HaltError, match="not the one"), open_authority(other):
        pass
    with open_authority(config):
        pass


def test_one_process_at_a_time_has_the_data(tmp_path: Path) -> None:
    config = key_server_config(tmp_path)
    with open_authority(config), pytest.raises(HaltError, match="Another process"), open_authority(config):
        pass


def test_everything_it_makes_is_for_its_owner_alone(tmp_path: Path) -> None:
    config = key_server_config(tmp_path)
    with open_authority(config):
        modes = {path.name: path.stat().st_mode & 0o777 for path in config.data_dir.rglob("*")}
        assert config.data_dir.stat().st_mode & 0o777 == 0o700
    assert modes.pop("trail") == 0o700
    assert set(modes.values()) == {0o600}
    config.data_dir.chmod(0o755)
    with pytest.raises(HaltError, match="chmod 700"), open_authority(config):
        pass


def test_a_root_key_beside_the_data_is_warned_of(tmp_path: Path) -> None:
    config = key_server_config(tmp_path)
    with open_authority(config):
        [concern] = rootkey.concerns(config)
        assert "same volume" in concern
        assert rootkey.concerns(replace(config, root_key=RootKeySource(credential="root"))) == ()
