"""The whole service with its instances: in this process, or as a process of its own that can be killed."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import anyio

import pipeline
from pipeline import running
from tests.log_guard import WATCH
from tests.sites import Party, Site

START_S = 30


@dataclass(frozen=True)
class Answer:
    """What the service said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Caller:
    """A client of a running service."""

    url: str
    http: aiohttp.ClientSession

    async def put(
        self, party: Party, contact: str, recording: str, body: bytes | AsyncIterable[bytes], **headers: str
    ) -> Answer:
        """Send a recording. Underscores of header names become hyphens."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask("PUT", party.path(contact, recording), party, data=body, headers=given)

    async def head(self, party: Party, contact: str, recording: str) -> Answer:
        return await self.ask("HEAD", party.path(contact, recording), party)

    async def offset(self, party: Party, contact: str, recording: str) -> int | None:
        """Tell how much of an unfinished body is durable; None if there is none."""
        answer = await self.head(party, contact, recording)
        assert answer.status in {200, 404}, answer
        return int(answer.headers["Upload-Offset"]) if answer.status == 200 else None

    async def post(self, party: Party, events: Any) -> Answer:
        return await self.ask("POST", "/v1/events", party, json=events)

    async def ask(
        self, method: str, path: str, party: Party | None, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Answer:
        given = {**(party.headers if party else {}), **(headers or {})}
        async with self.http.request(method, self.url + path, headers=given, **more) as answer:
            return Answer(answer.status, answer.headers, await answer.read())


@contextlib.asynccontextmanager
async def node(site: Site) -> AsyncIterator[Caller]:
    """Run the service in this process until the block ends; give a client of it."""
    stop, up = anyio.Event(), anyio.Event()
    urls: list[str] = []

    def started(url: str) -> None:
        urls.append(url)
        up.set()

    async with anyio.create_task_group() as group:
        group.start_soon(running.run, site.settings, stop, started, name="service")
        with anyio.fail_after(START_S):
            await up.wait()
        try:
            async with _session() as http:
                yield Caller(urls[0], http)
        finally:
            stop.set()


@dataclass
class ProcessNode:
    """The service as a process. It can be killed, and started again on what it left."""

    site: Site
    caller: Caller
    log: Path
    environ: Mapping[str, str]
    lives: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.lives[-1].pid

    async def start(self) -> None:
        """Start it, and wait until it says where it listens. What it logs must tell no secret: see `log_guard`."""
        if WATCH.guard is not None:
            WATCH.guard.watch(self.log)
        said = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "pipeline", "serve", "--config", str(self.site.write_settings())]
        with self.log.open("ab") as log:
            self.lives.append(_started(command, log, self.environ))
        with anyio.fail_after(START_S):
            while (url := self._url(said)) is None:
                assert self.lives[-1].poll() is None, self.log.read_text()
                await anyio.sleep(0.05)
        self.caller.url = url

    def kill(self) -> None:
        """End it as a power cut would: nothing of it runs after this."""
        self.lives[-1].kill()
        self.lives[-1].wait()

    async def stop(self) -> int:
        """Ask it to end; give its exit code."""
        self.lives[-1].terminate()
        return await anyio.to_thread.run_sync(self.lives[-1].wait)

    def events(self) -> list[dict[str, Any]]:
        """Everything that it logged."""
        return [json.loads(line) for line in self.log.read_bytes().rpartition(b"\n")[0].splitlines()]

    def _url(self, said: int) -> str | None:
        with self.log.open("rb") as log:
            log.seek(said)
            for line in log.read().splitlines(keepends=True):
                if b"service.started" in line and line.endswith(b"\n"):
                    url: str = json.loads(line)["url"]
                    return url
        return None


def _started(command: list[str], log: BinaryIO, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(environ))


@contextlib.asynccontextmanager
async def process_node(site: Site) -> AsyncIterator[ProcessNode]:
    """Run the service as a process; whatever is left of it at the end of the block is killed."""
    temporary = site.directory / "temporary"
    temporary.mkdir()
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(pipeline.__file__).parents[1])}
    async with _session() as http:
        running = ProcessNode(site, Caller("", http), site.directory / "service.log", environ)
        try:
            await running.start()
            yield running
        finally:
            for life in running.lives:
                life.kill()
                life.wait()


async def until(true: Callable[[], Any], seconds: float = 20) -> None:
    """Wait for what others do."""
    with anyio.fail_after(seconds):
        while not true():  # noqa: ASYNC110 - others are watched, in other processes too
            await anyio.sleep(0.05)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120), connector=aiohttp.TCPConnector(limit=0))
