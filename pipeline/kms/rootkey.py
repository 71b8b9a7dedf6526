"""The root key: 32 bytes under which every key material is sealed, and which never lies in the data directory's files.

Its source gives 64 hexadecimal digits or 32 raw bytes. Lost, it takes every key of this server with it: keep a copy
apart from this machine.
"""

import contextlib
import os
import secrets
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from pipeline.errors import HaltError
from pipeline.kms.config import KmsConfig, RootKeySource

_BYTES = 32
_COMMAND_S = 60
_NONCE = 12


@dataclass(frozen=True, slots=True)
class RootKey:
    """The keys derived from the root key, one for each use; the root key itself is let go."""

    sealing: bytes = field(repr=False)
    tokens: bytes = field(repr=False)
    check: bytes = field(repr=False)
    """Tells whether a data directory belongs to this root key; gives nothing away about it."""

    def seal(self, secret: bytes, name: bytes) -> bytes:
        """Seal a material for the disk, bound to its name."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + AESGCM(self.sealing).encrypt(nonce, secret, name)

    def unseal(self, sealed: bytes, name: bytes) -> bytes:
        """Open a material from the disk.

        Raises: HaltError if it was changed.
        """
        try:
            return AESGCM(self.sealing).decrypt(sealed[:_NONCE], sealed[_NONCE:], name)
        except InvalidTag:
            raise HaltError("A key material on disk was changed. Restore the data directory from a backup.") from None


def derive(root: bytes) -> RootKey:
    """Derive the keys for each use (HKDF-Expand, RFC 5869; the root key is uniform already)."""

    def expand(use: bytes) -> bytes:
        return HKDFExpand(SHA256(), _BYTES, b"recording-pipeline/kms/1/" + use).derive(root)

    return RootKey(sealing=expand(b"sealing"), tokens=expand(b"tokens"), check=expand(b"check"))


def read(source: RootKeySource) -> RootKey:
    """Get the root key from where the configuration says.

    Raises: HaltError if it is missing, malformed, or readable by others.
    """
    if source.command is not None:
        return derive(_parsed(_from_command(source.command), "The root key command's output"))
    if source.credential is not None:
        return derive(_parsed(_from_credential(source.credential), "The root key credential"))
    assert source.file is not None
    if source.create and not source.file.exists():
        _create(source.file)
    return derive(_parsed(_from_file(source.file), str(source.file)))


def concerns(config: KmsConfig) -> tuple[str, ...]:
    """Say what an operator should be told about where the root key lies."""
    file = config.root_key.file
    if file is None or not file.exists() or not config.data_dir.exists():
        return ()
    if file.stat().st_dev != config.data_dir.stat().st_dev:
        return ()
    warning = (
        f"The root key ({file}) lies on the same volume as the keys it seals ({config.data_dir}): whoever takes that "
        "disk, or a backup of both, can open everything. Use a root_key command or a systemd credential instead."
    )
    return (warning,)


def _from_command(command: tuple[str, ...]) -> bytes:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=_COMMAND_S, check=False)  # noqa: S603 - operator's own
    except (OSError, subprocess.TimeoutExpired):
        # The error is not chained: it may hold the output.
        raise HaltError("The root key command can't be run, or did not end in time.") from None
    if done.returncode != 0:
        raise HaltError(f"The root key command ended with exit code {done.returncode}.")
    return done.stdout


def _from_credential(name: str) -> bytes:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory is None:
        raise HaltError("The root key is a systemd credential, but CREDENTIALS_DIRECTORY is not set.")
    try:
        return (Path(directory) / name).read_bytes()
    except OSError as error:
        raise HaltError(f"The root key credential can't be read: {error.strerror}.") from error


def _from_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & 0o077 or not stat.S_ISREG(status.st_mode) or status.st_uid not in {0, os.geteuid()}:
                raise HaltError(f"The root key file {path} must be a file of its owner alone: chmod 600.")
            return file.read(4 * _BYTES)
    except OSError as error:
        raise HaltError(f"The root key file {path} can't be read: {error.strerror}.") from error


def _create(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(_BYTES).encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        sync_directory(path.parent)
    except OSError as error:
        raise HaltError(f"The root key file {path} can't be made: {error.strerror}.") from error


def sync_directory(path: Path) -> None:
    """Make the directory's own entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(raw: bytes, where: str) -> bytes:
    if len(raw) == _BYTES:
        return raw
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(raw.decode("ascii").strip())
        if len(key) == _BYTES:
            return key
    raise HaltError(f"{where} is no root key: 64 hexadecimal digits or 32 raw bytes are needed.")
