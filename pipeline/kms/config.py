"""The key server's settings: one TOML file, and the identities in it or in a file of their own.

Unknown keys are refused with the nearest known name. A file that holds secrets must be readable by its owner only.
No environment variable is read here, except the one that systemd puts its credentials' directory in (`rootkey`).
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import HaltError
from pipeline.kms.principals import ACCOUNT, PRINCIPAL, Identity

_TOP = (
    "region", "account_id", "data_dir", "host", "port", "allow_remote", "root_key", "grant_propagation_s",
    "identities", "identities_file",
)  # fmt: skip
_ROOT_KEY = ("command", "credential", "file", "create")
_IDENTITY = ("access_key", "secret_key", "principal", "account_id", "allow", "via_service")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class RootKeySource:
    """Where the root key comes from: exactly one of the three."""

    command: tuple[str, ...] | None = None
    """A command whose standard output is the key."""
    credential: str | None = None
    """A systemd credential's name (`LoadCredential=`)."""
    file: Path | None = None
    create: bool = False
    """Make the file at the first start if it is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KmsConfig:
    """All of it."""

    region: str
    account_id: str
    """The account of identities that name none."""
    data_dir: Path
    root_key: RootKeySource
    identities: tuple[Identity, ...]
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes any free port."""
    grant_propagation: timedelta = timedelta(0)
    """How long a new grant is not effective without its token (AWS: usually under five minutes)."""


def load(path: Path) -> KmsConfig:
    """Read the settings. Relative paths in the file are relative to it.

    Raises: HaltError naming the file and the key, never a value.
    """
    table = _toml(path)
    _known(table, _TOP, str(path))
    account_id = _text(table, "account_id", ACCOUNT, "000000000000")
    config = KmsConfig(
        region=_text(table, "region", _REGION),
        account_id=account_id,
        data_dir=path.parent / _text(table, "data_dir"),
        root_key=_root_key(table, path),
        identities=_identities(table, path, account_id),
        host=_text(table, "host", None, "127.0.0.1"),
        port=_whole(table, "port", 0, most=65535),
        grant_propagation=timedelta(seconds=_number(table, "grant_propagation_s", 0.0, most=300.0)),
    )
    if not _loopback(config.host) and table.get("allow_remote") is not True:
        raise HaltError(f"{path}: host is not a loopback address; the API is plain HTTP. Set allow_remote to insist.")
    return config


def _toml(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".json":
            return dict(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HaltError(f"{path} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.MsgspecError):
        # The parser's own message may quote a line, and with it a secret.
        raise HaltError(f"{path} is not valid {path.suffix.removeprefix('.').upper() or 'TOML'}.") from None


def _root_key(table: Mapping[str, Any], path: Path) -> RootKeySource:
    source = table.get("root_key")
    if not isinstance(source, dict):
        raise HaltError(f"{path}: a [root_key] table with command, credential or file is needed.")
    _known(source, _ROOT_KEY, f"{path}, [root_key]")
    if len({"command", "credential", "file"} & set(source)) != 1:
        raise HaltError(f"{path}, [root_key]: give exactly one of command, credential and file.")
    command = source.get("command")
    if command is not None and (not isinstance(command, list) or not command or not _all_text(command)):
        raise HaltError(f"{path}, [root_key]: command must be a list of strings.")
    return RootKeySource(
        command=None if command is None else tuple(command),
        credential=_text(source, "credential", re.compile(r"[\w.@-]+")) if "credential" in source else None,
        file=path.parent / _text(source, "file") if "file" in source else None,
        create=source.get("create") is True,
    )


def _identities(table: Mapping[str, Any], path: Path, account_id: str) -> tuple[Identity, ...]:
    if ("identities" in table) == ("identities_file" in table):
        raise HaltError(f"{path}: give exactly one of [[identities]] and identities_file.")
    where = path if "identities" in table else path.parent / _text(table, "identities_file")
    listed = table if "identities" in table else _toml(where)
    if where.stat().st_mode & 0o077:
        raise HaltError(f"{where} holds secret keys and others may read it: chmod 600.")
    if where != path:
        _known(listed, ("identities",), str(where))
    entries = listed.get("identities")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise HaltError(f"{where}: at least one [[identities]] table is needed.")
    identities = tuple(_identity(entry, f"{where}, identity {n}", account_id) for n, entry in enumerate(entries, 1))
    if len({identity.access_key for identity in identities}) != len(identities):
        raise HaltError(f"{where}: two identities have the same access_key.")
    return identities


def _identity(entry: Mapping[str, Any], where: str, account_id: str) -> Identity:
    _known(entry, _IDENTITY, where)
    principal = _text(entry, "principal", PRINCIPAL)
    allow = entry.get("allow", ["kms:*"])
    if not isinstance(allow, list) or not _all_text(allow):
        raise HaltError(f"{where}: allow must be a list of action patterns like kms:Decrypt.")
    match = PRINCIPAL.fullmatch(principal)
    own_account = match[1] if match else account_id
    if entry.get("account_id", own_account) != own_account:
        raise HaltError(f"{where}: account_id is not the account of principal.")
    return Identity(
        access_key=_text(entry, "access_key", re.compile(r"\w{4,128}")),
        secret_key=_text(entry, "secret_key", re.compile(r"\S{16,}")),
        principal=principal,
        account_id=own_account,
        allow=tuple(allow),
        via_service=_text(entry, "via_service") if "via_service" in entry else None,
    )


def _known(table: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0)
            raise HaltError(f"{where}: unknown key {name!r}. Did you mean {near[0]!r}?")


def _all_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _text(table: Mapping[str, Any], name: str, form: re.Pattern[str] | None = None, default: str | None = None) -> str:
    value = table.get(name, default)
    if not isinstance(value, str) or not value or (form is not None and form.fullmatch(value) is None):
        raise HaltError(f"{name} is missing or not of its form.")
    return value


def _whole(table: Mapping[str, Any], name: str, default: int, *, most: int) -> int:
    value = table.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise HaltError(f"{name} must be a whole number from 0 to {most}.")
    return value


def _number(table: Mapping[str, Any], name: str, default: float, *, most: float) -> float:
    value = table.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise HaltError(f"{name} must be a number from 0 to {most:g}.")
    return float(value)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
