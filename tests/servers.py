"""AWS-shaped servers on free loopback ports, each for the length of a block.

moto runs in this process and forgets; SeaweedFS encrypts with the project's own key server; LocalStack runs where
TEST_LOCALSTACK names the Python of an environment that has it.
"""

import contextlib
import functools
import os
import random
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import anyio
import anyio.to_thread
import pytest
from moto.backends import list_of_moto_modules
from moto.kms.utils import generate_private_key
from moto.moto_server.werkzeug_app import create_backend_app
from moto.server import ThreadedMotoServer

from pipeline.adapters import children, seaweed
from pipeline.adapters.aws import open_client
from pipeline.instances import Storage
from pipeline.settings import Credentials, Endpoint
from tests.kms_server import ACCOUNT, IDENTITIES, REGION, RunningKeyServer, running_key_server

LOCALSTACK = "TEST_LOCALSTACK"
LOCALSTACK_LAUNCHER = Path(__file__).with_name("localstack_launch.py")
BUCKET = "acme-recordings"
PREFIX = "connect/acme/CallRecordings"
_one_private_key = functools.cache(generate_private_key)
"""moto makes an RSA key for every KMS key, the symmetric ones too; one will do for all that never use it."""
_one_app = functools.cache(create_backend_app)
"""moto puts the routes of a service together for each server, which takes longer than most tests ask it anything."""
_moto_modules = tuple(list_of_moto_modules())
"""moto asks the disk for them at every request."""


@dataclass(frozen=True)
class Bucket:
    """A bucket with its KMS key, and where its APIs are spoken."""

    storage: Storage
    s3: Endpoint
    kms: Endpoint


@contextlib.asynccontextmanager
async def moto() -> AsyncIterator[Endpoint]:
    """Serve moto: S3, KMS, SQS and EventBridge at one address, empty."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moto.kms.models.generate_private_key", _one_private_key)
        patch.setattr("moto.moto_server.threaded_moto_server.create_backend_app", _one_app)
        patch.setattr("moto.backends.list_of_moto_modules", lambda: _moto_modules)
        await anyio.to_thread.run_sync(server.start)
        try:
            host, port = server.get_host_and_port()
            url = f"http://{host}:{port}"
            # Its state belongs to the process, not to the server.
            await anyio.to_thread.run_sync(_post, f"{url}/moto-api/reset")
            yield Endpoint(region="us-east-1", url=url, credentials=Credentials("testing", "testing"))
        finally:
            await anyio.to_thread.run_sync(server.stop)


def _post(url: str) -> None:
    with urlopen(Request(url, method="POST"), timeout=10):
        pass


@contextlib.asynccontextmanager
async def moto_bucket() -> AsyncIterator[Bucket]:
    async with moto() as endpoint, open_client("kms", endpoint) as kms:
        key = await kms.create_key()
        storage = _storage(key["KeyMetadata"]["Arn"], "123456789012")
        await make_bucket(endpoint)
        yield Bucket(storage, endpoint, endpoint)


@contextlib.asynccontextmanager
async def seaweedfs(directory: Path, kms: Endpoint) -> AsyncIterator[Endpoint]:
    """Serve SeaweedFS; SSE-KMS calls the KMS API at `kms`."""
    base = _free_base()
    owner = seaweed.Identity(
        name="owner", credentials=Credentials("AKOWNER", "secret-of-owner"), actions=("Admin", "Read", "Write", "List")
    )
    data, config = directory / "seaweedfs", directory / "s3.json"
    data.mkdir()
    config.write_bytes(seaweed.config([owner], kms))
    argv = seaweed.server_argv(base, data=data, config=config)
    environ, health = {**os.environ, **seaweed.ENVIRONMENT}, seaweed.health_url(base)
    try:
        async with _running(argv, health, directory / "weed.log", environ):
            yield Endpoint(region="us-east-1", url=seaweed.url(base), credentials=owner.credentials)
    finally:
        for left in seaweed.sockets(base):
            left.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def seaweedfs_bucket(directory: Path) -> AsyncIterator[tuple[Bucket, RunningKeyServer]]:
    """Make a bucket on SeaweedFS under a key of the project's own key server."""
    async with running_key_server(directory) as keys, keys.client("admin") as admin:
        key = await admin.create_key()
        identity = IDENTITIES["service"]
        kms = Endpoint(region=REGION, url=keys.url, credentials=Credentials(identity.access_key, identity.secret_key))
        async with seaweedfs(directory, kms) as s3:
            await make_bucket(s3)
            yield Bucket(_storage(key["KeyMetadata"]["Arn"], ACCOUNT), s3, kms), keys


@contextlib.asynccontextmanager
async def localstack(directory: Path) -> AsyncIterator[Endpoint]:
    """Serve LocalStack; the test is skipped where it is not installed."""
    python = os.environ.get(LOCALSTACK)
    if not python:
        pytest.skip(f"LocalStack is not installed ({LOCALSTACK} names no Python that has it)")
    port = free_port()
    argv = [python, str(LOCALSTACK_LAUNCHER), str(port), str(directory)]
    url = f"http://127.0.0.1:{port}"
    async with _running(argv, f"{url}/_localstack/health", directory / "localstack.log", os.environ):
        yield Endpoint(region="us-east-1", url=url, credentials=Credentials("test", "test"))


@contextlib.asynccontextmanager
async def localstack_bucket(directory: Path) -> AsyncIterator[Bucket]:
    async with localstack(directory) as endpoint, open_client("kms", endpoint) as kms:
        key = await kms.create_key()
        await make_bucket(endpoint)
        yield Bucket(_storage(key["KeyMetadata"]["Arn"], "000000000000"), endpoint, endpoint)


async def make_bucket(endpoint: Endpoint, name: str = BUCKET) -> None:
    async with open_client("s3", endpoint) as client:
        await client.create_bucket(Bucket=name)


def _storage(key_arn: str, owner: str) -> Storage:
    return Storage(association_id="voice-1", bucket=BUCKET, prefix=PREFIX, kms_key_arn=key_arn, bucket_owner=owner)


@contextlib.asynccontextmanager
async def _running(
    argv: list[str], health: str, log: Path, environ: "os._Environ[str] | dict[str, str]"
) -> AsyncIterator[None]:
    """Run a server until the block ends."""

    async def healthy() -> bool:
        return await children.answers(health)

    program = children.Program(
        name=Path(argv[0]).name,
        argv=lambda: argv,
        environ=dict(environ),
        directory=log.parent,
        log=log,
        healthy=healthy,
    )
    child, stop = children.Child(program), anyio.Event()
    async with anyio.create_task_group() as tg:
        tg.start_soon(child.run, stop, name=program.name)
        try:
            with anyio.fail_after(45):
                await child.ready.wait()
            yield
        finally:
            stop.set()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _free_base() -> int:
    """Find a base port all of whose ports are free."""
    for _ in range(100):
        base = random.randrange(seaweed.LOWEST_PORT, seaweed.HIGHEST_PORT)
        if _all_free(seaweed.ports(base)):
            return base
    raise AssertionError("no free ports")


def _all_free(ports: Iterable[int]) -> bool:
    with contextlib.ExitStack() as stack:
        for port in ports:
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
