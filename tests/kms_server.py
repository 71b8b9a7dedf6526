"""A key server in the test's own process, on a free loopback port, with one client per identity."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from pipeline.kms.authority import Authority, open_authority
from pipeline.kms.config import KmsConfig, RootKeySource
from pipeline.kms.principals import Identity
from pipeline.kms.records import Key, KeyState
from pipeline.kms.server import serve_authority

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

_SESSION = get_session()
"""One for all: it keeps the API model, which takes longer to read than a server to start."""
REGION = "eu-central-1"
ACCOUNT = "111122223333"
OTHER_ACCOUNT = "444455556666"


def _identity(name: str, principal: str, allow: tuple[str, ...] = ("kms:*",), **more: Any) -> Identity:
    return Identity(
        access_key=f"AK{name.upper()}",
        secret_key=f"secret-of-{name}-0123456789",
        principal=principal,
        account_id=principal.split(":")[4],
        allow=allow,
        **more,
    )


IDENTITIES = {
    "admin": _identity("admin", f"arn:aws:iam::{ACCOUNT}:user/admin"),
    "root": _identity("root", f"arn:aws:iam::{ACCOUNT}:root"),
    "service": _identity("service", f"arn:aws:sts::{ACCOUNT}:assumed-role/pipeline/node-1"),
    "bare": _identity("bare", f"arn:aws:iam::{ACCOUNT}:role/bare", allow=()),
    "store": _identity(
        "store", f"arn:aws:iam::{ACCOUNT}:role/store", allow=(), via_service=f"s3.{REGION}.amazonaws.com"
    ),
    "stranger": _identity("stranger", f"arn:aws:iam::{OTHER_ACCOUNT}:role/stranger"),
}
"""`bare` and `store` have no permissions of their own: only key policies and grants give them any."""


async def code_of(call: Awaitable[Any]) -> str | None:
    """Give the error code that a call ends with, or None if it succeeds."""
    try:
        await call
    except ClientError as error:
        return error.response["Error"]["Code"]
    return None


async def new_key(kms: "KMSClient") -> str:
    """Make a key and give its ARN."""
    return (await kms.create_key())["KeyMetadata"]["Arn"]


class MovableClock:
    """The real time, plus what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class RunningKeyServer:
    url: str
    config: KmsConfig
    authority: Authority
    clock: MovableClock
    """The keys' time (grants, deletion); signatures and the trail go by the real one."""

    @contextlib.asynccontextmanager
    async def client(self, name: str = "admin", **more: Any) -> AsyncIterator["KMSClient"]:
        """Open a KMS client for one of the identities."""
        identity = next(one for one in self.config.identities if one.access_key == f"AK{name.upper()}")
        keys = {"aws_access_key_id": identity.access_key, "aws_secret_access_key": identity.secret_key}
        config = AioConfig(retries={"total_max_attempts": 1})
        # Nothing is sent by TLS here, and the certificates for it would take longer to load than most tests take.
        options = {"endpoint_url": self.url, "region_name": REGION, "config": config, "verify": False, **keys, **more}
        async with _SESSION.create_client("kms", **options) as client:
            yield client

    def key(self, key_id: str) -> Key:
        """Give the server's own record of a key."""
        key = self.authority.vault.key(key_id)
        assert key is not None
        return key

    def disable(self, key_id: str) -> None:
        self.authority.vault.set_state(self.key(key_id), KeyState.DISABLED)

    def enable(self, key_id: str) -> None:
        self.authority.vault.set_state(self.key(key_id), KeyState.ENABLED)

    def schedule_deletion(self, key_id: str, days: int = 7) -> None:
        self.authority.vault.set_state(self.key(key_id), KeyState.PENDING_DELETION, timedelta(days=days))

    def trail(self) -> list[dict[str, Any]]:
        """Read every record of the trail."""
        files = sorted((self.config.data_dir / "trail").glob("*.jsonl"))
        return [
            json.loads(line) for file in files for line in file.read_text().rpartition("\n")[0].splitlines() if line
        ]


def key_server_config(directory: Path, **overrides: Any) -> KmsConfig:
    """Give a configuration that keeps everything below `directory`."""
    config = KmsConfig(
        region=REGION,
        account_id=ACCOUNT,
        data_dir=directory / "kms",
        root_key=RootKeySource(file=directory / "root.key", create=True),
        identities=tuple(IDENTITIES.values()),
    )
    return replace(config, **overrides)


@contextlib.asynccontextmanager
async def running_key_server(directory: Path, **overrides: Any) -> AsyncIterator[RunningKeyServer]:
    """Serve until the block ends; fields of `KmsConfig` can be given."""
    config = key_server_config(directory, **overrides)
    clock = MovableClock()
    stop, up = anyio.Event(), anyio.Event()
    urls: list[str] = []

    def started(url: str) -> None:
        urls.append(url)
        up.set()

    async def serve(authority: Authority) -> None:
        await serve_authority(authority, config.host, config.port, stop=stop, started=started)

    with open_authority(config) as authority:
        authority.vault.now = clock
        async with anyio.create_task_group() as tg:
            tg.start_soon(serve, authority, name="key-server")
            await up.wait()
            try:
                yield RunningKeyServer(urls[0], config, authority, clock)
            finally:
                stop.set()
