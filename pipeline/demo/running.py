"""The service of the demo: `pipeline serve` as a child with nothing configured, and its instances.

Its state is below one directory, its settings come from nowhere else, and it ends with this process in every case.
"""

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

import pipeline
from pipeline import embedded
from pipeline.adapters import children
from pipeline.adapters.children import Child, Program
from pipeline.client import Client, LinkError, Server, connected
from pipeline.config import make_private_directory, write_private
from pipeline.demo.fixture import Tenant
from pipeline.errors import DeferError
from pipeline.instances import Instance
from pipeline.provision import provision_instance
from pipeline.settings import Settings, load

START_S = 60.0
STARTS = 3
"""Times that the service is started before the demo gives up on it."""
TELL_S = 15.0
_UNAUTHORIZED = 401
_PATH = str(Path(pipeline.__file__).parents[1])
_NOT_OURS = ("PIPELINE_", "AWS_")
"""Beginnings of variables that would change what the service does."""


class NotServingError(DeferError):
    """The demo's service did not do its part in the time that it had."""

    reason = "not-serving"


@dataclass(frozen=True, slots=True)
class Running:
    """The service while it runs."""

    directory: Path
    url: str
    child: Child

    @property
    def log(self) -> Path:
        """What the service printed."""
        return self.child.program.log

    @property
    def settings(self) -> Settings:
        """Its settings."""
        return load(None, {"PIPELINE_STATE_DIR": str(self.directory)}, base=self.directory)

    @property
    def servers(self) -> embedded.Embedded:
        """The servers that it has as children."""
        return embedded.attached(self.settings)


@dataclass(frozen=True, slots=True)
class Tenancy:
    """An instance of the demo, and how to speak for it."""

    instance: Instance
    server: Server
    token_file: Path


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Running]:
    """Run the service until the block ends.

    Raises:
        NotServingError: it was not ready in time.

    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    temporary = directory / "tmp"
    make_private_directory(temporary)
    variables = {
        "PIPELINE_STATE_DIR": str(directory),
        "PIPELINE_HTTP_PORT": str(port),
        "PIPELINE_LOG_FORMAT": "json",
        "TMPDIR": str(temporary),  # so that what any process of it leaves there is searched and removed, too
    }
    program = Program(
        name="service",
        argv=lambda: command("serve"),
        environ=environ() | variables,
        directory=directory,
        log=directory / "service.log",
        healthy=lambda: children.answers(f"{url}/readyz"),
    )
    child, stop = Child(program), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(child.run, stop, name="service")
        try:
            with anyio.move_on_after(START_S):
                while not child.ready.is_set() and child.starts < STARTS:  # noqa: ASYNC110 - the child counts them
                    await anyio.sleep(0.05)
            if not child.ready.is_set():
                raise NotServingError("the service did not become ready")
            yield Running(directory, url, child)
        finally:
            stop.set()


async def add_instance(running: Running, tenant: Tenant) -> Tenancy:
    """Make an instance with keys and a bucket of its own; its token is kept in a file (0600)."""
    instance, token = await provision_instance(
        running.servers, running.settings.config_dir, tenant.alias, instance_id=tenant.instance_id
    )
    token_file = running.directory / "config" / "tokens" / tenant.alias
    await anyio.to_thread.run_sync(write_private, token_file, f"{token}\n".encode())
    return Tenancy(instance, Server(running.url, token), token_file)


async def reload(running: Running, tenancies: list[Tenancy]) -> None:
    """Tell the service of new instances and wait until it knows their tokens.

    Raises:
        NotServingError: it does not know them in time.

    """
    assert running.child.pid is not None
    os.kill(running.child.pid, signal.SIGHUP)
    with anyio.move_on_after(TELL_S):
        for tenancy in tenancies:
            async with connected(tenancy.server) as client:
                while not await _is_known(client):  # noqa: ASYNC110 - another process is asked
                    await anyio.sleep(0.05)
        return
    raise NotServingError(f"the service did not know its instances' tokens within {TELL_S:.0f} s")


def command(*arguments: str) -> list[str]:
    """Make the command line of one of the project's commands."""
    return [sys.executable, "-P", "-m", "pipeline", *arguments]


def environ() -> dict[str, str]:
    """Give the environment of the project's commands: without anybody's settings or credentials."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    return kept | {"PYTHONPATH": _PATH, "PYTHONUNBUFFERED": "1"}


async def _is_known(client: Client) -> bool:
    try:
        return (await client.head("/v1", {})).status != _UNAUTHORIZED
    except LinkError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
