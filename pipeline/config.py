"""The configuration directory on disk: instance files, what probes answered, the store's id.

Every file is written aside, synced and renamed, readable by its owner only. Nothing here follows the store: whoever
can write to the store can't choose a KMS key. Synchronous: callers choose the thread.
"""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipeline.errors import RefuseError
from pipeline.ids import InstanceId, Kind
from pipeline.instances import Instance, file_name, parse, render

INSTANCES = "instances"
STORE_ID = "store-id"
SERVICE_KEY = "service-key"
MAX_FILE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class LoadedInstances:
    """What the instance files say, and which of them can't be used."""

    instances: Mapping[InstanceId, Instance]
    problems: Mapping[Path, RefuseError]
    """By file; who has an earlier version of such an instance keeps it in force."""
    is_there: bool = True
    """Whether there is such a directory. One that is gone removes no instance: its volume may not be mounted."""


def load_instances(config_dir: PurePath) -> LoadedInstances:
    """Read every instance file. One that is bad or unreadable becomes a problem and hides no other."""
    instances: dict[InstanceId, Instance] = {}
    problems: dict[Path, RefuseError] = {}
    is_there = Path(config_dir, INSTANCES).is_dir()
    for path in sorted(Path(config_dir, INSTANCES).glob("[!.]*.toml")):
        try:
            instance = parse(_read_text(path), name=path.name)
            instances[instance.instance_id] = instance
        except RefuseError as error:
            problems[path] = error
    return LoadedInstances(instances, problems, is_there)


def save_instance(config_dir: PurePath, instance: Instance) -> None:
    """Write an instance's file. Raises `RefuseError` for one that would not be read again."""
    text, name = render(instance), file_name(instance.instance_id)
    parse(text, name=name)
    write_private(Path(config_dir, INSTANCES, name), text.encode())


def remove_instance(config_dir: PurePath, instance_id: InstanceId) -> None:
    """Remove an instance's file and what its probes answered; nothing happens if there is none."""
    directory = Path(config_dir, INSTANCES)
    if not directory.is_dir():
        return
    for name in [file_name(instance_id), *(_probe_name(instance_id, kind) for kind in Kind)]:
        (directory / name).unlink(missing_ok=True)
    sync_directory(directory)


def save_probe(config_dir: PurePath, instance_id: InstanceId, kind: Kind, answer: bytes) -> None:
    """Keep what the probe of a destination answered (JSON)."""
    write_private(Path(config_dir, INSTANCES, _probe_name(instance_id, kind)), answer)


def load_probe(config_dir: PurePath, instance_id: InstanceId, kind: Kind) -> bytes | None:
    """Give back what the last probe answered; None if there was none."""
    with contextlib.suppress(FileNotFoundError):
        return Path(config_dir, INSTANCES, _probe_name(instance_id, kind)).read_bytes()
    return None


def save_store_id(config_dir: PurePath, store_id: str) -> None:
    """Remember which store belongs to this configuration."""
    write_private(Path(config_dir, STORE_ID), f"{store_id}\n".encode())


def load_store_id(config_dir: PurePath) -> str | None:
    """Say which store belongs to this configuration; None before the first."""
    with contextlib.suppress(FileNotFoundError):
        return Path(config_dir, STORE_ID).read_text(encoding="utf-8").strip()
    return None


def save_service_key(config_dir: PurePath, key_arn: str) -> None:
    """Remember the KMS key of the service's own that was made for it."""
    write_private(Path(config_dir, SERVICE_KEY), f"{key_arn}\n".encode())


def load_service_key(config_dir: PurePath) -> str | None:
    """Give the KMS key that was made for the service; None if it was given one by its settings, or none."""
    with contextlib.suppress(FileNotFoundError):
        return Path(config_dir, SERVICE_KEY).read_text(encoding="utf-8").strip()
    return None


def new_token() -> tuple[str, str]:
    """Make a token: the token, to be shown once, and its hex SHA-256, to be kept."""
    token = f"rp_{secrets.token_urlsafe(32)}"
    return token, token_hash(token)


def token_hash(token: str) -> str:
    """Give what an instance's file has of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def write_private(path: Path, content: bytes) -> None:
    """Put a file of this owner only (0600) in place: all of it or nothing, durable when this returns."""
    make_private_directory(path.parent)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        Path(aside).rename(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_new_private(path: Path, content: bytes) -> bool:
    """Do the same unless there is a file already; tell whether it was this call that made it."""
    make_private_directory(path.parent)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        path.hardlink_to(aside)
    except FileExistsError:
        return False
    finally:
        Path(aside).unlink(missing_ok=True)
    sync_directory(path.parent)
    return True


def make_private_directory(path: Path) -> None:
    """Make a directory of this owner only (0700) and its missing parents, their entries durable."""
    if path.is_dir():
        return
    make_private_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _probe_name(instance_id: InstanceId, kind: Kind) -> str:
    return f"{instance_id}.{kind}.probe.json"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RefuseError(f"The file can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise RefuseError("The file is too large for an instance's")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise RefuseError("The file is not UTF-8") from None
