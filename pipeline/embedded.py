"""The servers of a machine without AWS: a key server and SeaweedFS, children of the service, on loopback.

All of theirs lies in `embedded/` of the state directory: secrets and ports are chosen once and kept, data is durable.
It is real encryption, but the key server's root key lies on the same volume as everything it protects: whoever takes
the whole disk can open it. See `concerns`.
"""

import contextlib
import fcntl
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec
import tomli_w

from pipeline.adapters import children, seaweed
from pipeline.adapters.children import Child, Program
from pipeline.config import make_private_directory, write_private
from pipeline.errors import HaltError, RefuseError
from pipeline.settings import EMBEDDED_REGION, Credentials, Endpoint, Settings

T = TypeVar("T")

HOST = "127.0.0.1"
REGION = EMBEDDED_REGION
ACCOUNT = "000000000000"
"""The account of every key, bucket and instance here."""
SERVICE = f"arn:aws:iam::{ACCOUNT}:user/service"
BUCKET_SERVER = f"arn:aws:iam::{ACCOUNT}:user/bucket-server"
OPERATOR = f"arn:aws:iam::{ACCOUNT}:user/operator"
PORT_PATIENCE_S = 5.0
"""For what an earlier process left to let its ports go."""
_SETTLE_S = 0.2
_ENVIRON = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")
"""What children see of the environment: no credentials, and nothing that would change their settings."""


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Who may call the embedded servers: an access key for each of us at each server."""

    kms_service: Credentials
    kms_bucket: Credentials
    kms_operator: Credentials
    s3_service: Credentials
    s3_operator: Credentials


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Where the embedded servers listen."""

    kms: int
    seaweed: int
    """The first of several, see `adapters.seaweed`."""

    def all(self) -> tuple[int, ...]:
        """Every port that is used."""
        return (self.kms, *seaweed.ports(self.seaweed))


@dataclass(frozen=True, slots=True)
class Embedded:
    """What is known of the embedded servers, whether or not they run."""

    directory: Path
    secrets: Secrets
    ports: Ports

    @property
    def kms_url(self) -> str:
        """Where the key server is."""
        return f"http://{HOST}:{self.ports.kms}"

    @property
    def bucket_data(self) -> Path:
        """Where SeaweedFS keeps its data."""
        return self.directory / "bucket" / "data"

    def kms(self, credentials: Credentials) -> Endpoint:
        """Name the key server, for one of its callers."""
        return Endpoint(region=REGION, url=self.kms_url, credentials=credentials)

    def s3(self, credentials: Credentials) -> Endpoint:
        """Name the bucket server, for one of its callers."""
        return Endpoint(region=REGION, url=seaweed.url(self.ports.seaweed), credentials=credentials)

    def settings(self, settings: Settings) -> Settings:
        """Point the service's settings at these servers."""
        return replace(
            settings,
            kms=self.kms(self.secrets.kms_service),
            s3=self.s3(self.secrets.s3_service),
            principal_arn=SERVICE,
            delivery=replace(settings.delivery, settle_volume=self.bucket_data),
        )


def concerns(embedded: Embedded) -> tuple[str, ...]:
    """Say what an operator should know before recordings that matter are kept this way."""
    root_key = embedded.directory / "kms" / "root.key"
    return (
        f"{root_key} lies on the same volume as all that is sealed under it: who takes that disk can open everything.",
        "SeaweedFS trusts every user of this machine on its own ports: objects can't be read there, but removed.",
    )


# --- on disk


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Embedded]:
    """Take the embedded servers' directory, making it on the first start, for the one process that runs them.

    Raises `HaltError` if another process runs them, or if what lies there can't be used.
    """
    directory = _directory(settings)
    try:
        make_private_directory(directory)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HaltError(f"{directory} can't be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise HaltError(f"Another process runs the embedded servers of {directory}. Stop it first") from None
    try:
        embedded = Embedded(directory, _kept_secrets(directory), _kept_ports(directory))
        _write_key_server(embedded)
        _write_bucket_server(embedded)
        yield embedded
    finally:
        os.close(lock)


def attached(settings: Settings) -> Embedded:
    """Read what a service that runs the embedded servers has chosen. Raises `RefuseError` if none ever did."""
    directory = _directory(settings)
    known, ports = _read(directory / "secrets.json", Secrets), _read(directory / "ports.json", Ports)
    if known is None or ports is None:
        raise RefuseError("No service has started its embedded servers in this state directory yet", field="state_dir")
    return Embedded(directory, known, ports)


def _directory(settings: Settings) -> Path:
    return Path(settings.state_dir).absolute() / "embedded"


def _kept_secrets(directory: Path) -> Secrets:
    known = _read(directory / "secrets.json", Secrets)
    if known is None:
        made = {name: Credentials(f"RP{secrets.token_hex(9).upper()}", secrets.token_hex(20))
                for name in Secrets.__struct_fields__}  # fmt: skip
        known = Secrets(**made)
        write_private(directory / "secrets.json", msgspec.json.encode(known))
    return known


def _kept_ports(directory: Path) -> Ports:
    """Take the ports of last time, others if somebody else has taken one: nothing outside depends on them."""
    ports = _read(directory / "ports.json", Ports)
    deadline = time.monotonic() + PORT_PATIENCE_S
    while ports is not None:
        if _are_free(ports):
            return ports
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    ports = _new_ports()
    write_private(directory / "ports.json", msgspec.json.encode(ports))
    return ports


def _new_ports() -> Ports:
    """Choose free ports. Raises `HaltError` if there seem to be none."""
    for _ in range(200):
        base, kms = (random.randrange(seaweed.LOWEST_PORT, seaweed.HIGHEST_PORT) for _ in range(2))  # noqa: S311 - no secret
        ports = Ports(kms=kms, seaweed=base)
        if kms not in seaweed.ports(base) and _are_free(ports):
            return ports
    raise HaltError(f"No free ports from {seaweed.LOWEST_PORT} to {seaweed.HIGHEST_PORT} for the embedded servers")


def _are_free(ports: Ports) -> bool:
    try:
        with contextlib.ExitStack() as taken:
            for port in ports.all():
                taken.enter_context(socket.create_server((HOST, port)))
    except OSError:
        return False
    return True


def _write_key_server(embedded: Embedded) -> None:
    known = embedded.secrets
    via = f"s3.{REGION}.amazonaws.com"
    use = ["kms:GenerateDataKey*", "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:DescribeKey"]
    document = {
        "region": REGION,
        "account_id": ACCOUNT,
        "data_dir": "data",
        "host": HOST,
        "port": embedded.ports.kms,
        "root_key": {"file": "root.key", "create": True},
        "identities": [
            _identity(known.kms_service, SERVICE, use),
            _identity(known.kms_bucket, BUCKET_SERVER, use) | {"via_service": via},
            _identity(known.kms_operator, OPERATOR, ["kms:*"]),
        ],
    }
    write_private(embedded.directory / "kms" / "server.toml", tomli_w.dumps(document).encode())


def _identity(credentials: Credentials, principal: str, allow: list[str]) -> dict[str, Any]:
    return {
        "access_key": credentials.access_key,
        "secret_key": credentials.secret_key,
        "principal": principal,
        "allow": allow,
    }


def _write_bucket_server(embedded: Embedded) -> None:
    known = embedded.secrets
    identities = [
        seaweed.Identity(name="service", credentials=known.s3_service, actions=("Read", "Write", "List")),
        seaweed.Identity(name="operator", credentials=known.s3_operator, actions=("Admin",)),
    ]
    make_private_directory(embedded.bucket_data)
    write_private(embedded.directory / "bucket" / "s3.json", seaweed.config(identities, embedded.kms(known.kms_bucket)))


def _read(path: Path, shape: type[T]) -> T | None:
    """Read one of our own files; None if there is none. Raises `HaltError` for one that can't be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=shape)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError):
        raise HaltError(f"{path} can't be read. Restore it from a backup: it is not made again") from None


# --- running


@dataclass(slots=True)
class Servers:
    """The two servers, as children of this process."""

    embedded: Embedded
    ready: anyio.Event = field(default_factory=anyio.Event)
    """Set when both are ready for the first time."""
    keys: Child = field(init=False)
    bucket: Child = field(init=False)

    def __post_init__(self) -> None:
        self.keys = Child(_key_server(self.embedded))
        self.bucket = Child(_bucket_server(self.embedded))

    @property
    def up(self) -> bool:
        """Whether both are ready now. If not, what they are asked fails for a while."""
        return self.keys.up and self.bucket.up

    async def run(self, stop: anyio.Event) -> None:
        """Run the key server, then SeaweedFS, until `stop` or cancellation; return when both have ended."""
        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(self.keys.run, stop, name="key server")
                await _either(self.keys.ready, stop)
                tg.start_soon(self.bucket.run, stop, name="bucket server")
                await _either(self.bucket.ready, stop)
                if not stop.is_set():
                    self.ready.set()
        finally:
            for path in seaweed.sockets(self.embedded.ports.seaweed):
                path.unlink(missing_ok=True)


def _key_server(embedded: Embedded) -> Program:
    directory = embedded.directory / "kms"
    package = str(Path(__file__).parents[1])
    return Program(
        name="key server",
        argv=lambda: [sys.executable, "-P", "-m", "pipeline.kms", str(directory / "server.toml")],
        environ=_environ() | {"PYTHONPATH": package, "PYTHONUNBUFFERED": "1"},
        directory=directory,
        log=embedded.directory / "key-server.log",
        healthy=lambda: children.answers(f"{embedded.kms_url}/healthz"),
    )


def _bucket_server(embedded: Embedded) -> Program:
    base = embedded.ports.seaweed
    directory = embedded.directory / "bucket"
    temporary = directory / "tmp"
    make_private_directory(temporary)
    environ = {**_environ(), **seaweed.ENVIRONMENT, "TMPDIR": str(temporary)}

    async def ask(command: bytes) -> bytes:
        return await children.answer(seaweed.shell_argv(base), command, environ=environ, directory=directory)

    async def sync_every_put() -> None:
        while not seaweed.rules_sync(await ask(seaweed.SHOW_RULES)):
            await ask(seaweed.APPLY_FSYNC)
            await anyio.sleep(_SETTLE_S)

    return Program(
        name="bucket server",
        argv=lambda: seaweed.server_argv(base, data=embedded.bucket_data, config=directory / "s3.json"),
        environ=environ,
        directory=directory,
        log=embedded.directory / "bucket-server.log",
        healthy=lambda: children.answers(seaweed.health_url(base)),
        settled=sync_every_put,
    )


def _environ() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRON if name in os.environ}


async def _either(one: anyio.Event, other: anyio.Event) -> None:
    """Wait for the first of two."""

    async def wait(event: anyio.Event) -> None:
        await event.wait()
        tg.cancel_scope.cancel()

    async with anyio.create_task_group() as tg:
        tg.start_soon(wait, one)
        tg.start_soon(wait, other)
