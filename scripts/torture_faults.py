"""What goes wrong around the service: its servers, the network between, its configuration, its own process.

Each fault lasts a few seconds and mends itself. Between the service and the bucket stand two proxies: one breaks
connections, the other (microburst) answers as AWS does when it is in trouble.
"""

import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio
import pytest
from aiohttp import web
from microburst import forward
from microburst.app import make_app
from microburst.core.pipeline import Microburst
from torture_ground import Ground, Server

from pipeline.settings import Endpoint
from tests.proxy import Proxy, proxied
from tests.servers import free_port

LASTS_S = (0.5, 3.0)
AWS_SHAPED: tuple[dict[str, Any], ...] = (
    {"probability": 0.8, "error": {"code": "SlowDown", "status": 503}},
    {"probability": 0.5, "error": {"code": "InternalError", "status": 500}},
    {"probability": 0.5, "error": {"code": "RequestTimeTooSkewed", "status": 403}},
    {"probability": 0.5, "error": {"code": "ExpiredToken", "status": 403}},
    {"error": {"code": "AccessDenied", "status": 403}},
    {"probability": 0.5, "reset": True},
    {"latency": {"min": 100, "max": 1500}},
    {"probability": 0.3, "timeout_ms": 2000},
    {"probability": 0.5, "request": {"cut_upload": {"after_frac": 0.5}}},
    {"request": {"slow_upload": {"rate_kbps": 256}}},
    {"probability": 0.5, "response": {"truncate_frac": 0.5}},
    {"probability": 0.5, "response": {"corrupt_bytes": 3}},
    {"operation": "PutObject", "response": {"set_headers": {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}}},
    {"probability": 0.5, "response": {"strip_headers": ["ETag", "x-amz-server-side-encryption"]}},
    {"operation": "CompleteMultipartUpload", "response": {"abort_frac": 0.1}},
)
"""Rules as microburst reads them."""
FULL_BYTES = 2**49
"""Kept free by a service that is to find its store full."""


Fault = Callable[[random.Random], Awaitable[None]]
Card = TypeVar("Card")


def dealt(chance: random.Random, cards: Sequence[Card]) -> Iterator[Card]:
    """Give all in a random order, then all in another, for ever."""
    while True:
        yield from chance.sample(cards, len(cards))


@dataclass(frozen=True, slots=True)
class Faults:
    """All that can be broken."""

    here: Ground
    aws: Microburst
    s3: Proxy
    kms: Proxy
    rules: Iterator[dict[str, Any]]
    """What microburst is told next."""

    def deck(self, *, deadly: bool) -> list[Fault]:
        """Give all that may go wrong; `deadly`: the service itself is ended, too, and started again."""
        deck: list[Fault] = [
            self._aws_trouble, self._aws_trouble, self._aws_trouble, self._network, self._network, self._server_killed,
            self._server_frozen, self._frozen, self._bad_configuration,
        ]  # fmt: skip
        return [*deck, self._killed, self._killed, self._killed, self._stopped, self._full] if deadly else deck

    # --- the servers, and the way to them

    async def _aws_trouble(self, chance: random.Random) -> None:
        self.aws.engine.set_rules([{"service": "*", **next(self.rules)}])
        try:
            await _a_while(chance)
        finally:
            self.aws.engine.set_rules([])

    async def _network(self, chance: random.Random) -> None:
        """Drop connections, answers, or nearly all of the bandwidth, to the bucket or to the key server."""
        proxy = chance.choice([self.s3, self.kms])
        name, value = chance.choice([("closed", True), ("keeps_answers", True), ("bytes_per_s", 200_000.0)])
        before = getattr(proxy, name)
        setattr(proxy, name, value)
        try:
            await _a_while(chance)
        finally:
            setattr(proxy, name, before)

    async def _server_killed(self, chance: random.Random) -> None:
        self.here.signal(_server(chance), signal.SIGKILL)
        await _a_while(chance)

    async def _server_frozen(self, chance: random.Random) -> None:
        server = _server(chance)
        self.here.signal(server, signal.SIGSTOP)
        try:
            await _a_while(chance)
        finally:
            self.here.signal(server, signal.SIGCONT)

    # --- the service

    async def _frozen(self, chance: random.Random) -> None:
        process = self.here.node.lives[-1]
        process.send_signal(signal.SIGSTOP)
        try:
            await _a_while(chance)
        finally:
            process.send_signal(signal.SIGCONT)

    async def _bad_configuration(self, chance: random.Random) -> None:
        """Spoil an instance's file, and have it read."""
        party = chance.choice(self.here.site.parties)
        path = anyio.Path(self.here.site.settings.config_dir) / "instances" / f"{party.instance.instance_id}.toml"
        good = await path.read_bytes()
        try:
            await path.write_bytes(chance.choice([b"", b"kms_key_arn = 7\n", good + b"\nspoilt = [", b"\xff\xfe["]))
            self.here.node.lives[-1].send_signal(signal.SIGHUP)
            await _a_while(chance)
        finally:
            await path.write_bytes(good)
            self.here.node.lives[-1].send_signal(signal.SIGHUP)

    async def _killed(self, _: random.Random) -> None:
        self.here.node.kill()
        await self.here.node.start()

    async def _stopped(self, _: random.Random) -> None:
        await self.here.node.stop()
        await self.here.node.start()

    async def _full(self, chance: random.Random) -> None:
        """Let it find no room in its store."""
        site, settings = self.here.site, self.here.site.settings
        site.settings = replace(settings, store=replace(settings.store, free_bytes=FULL_BYTES))
        try:
            await self._stopped(chance)
            await _a_while(chance)
        finally:
            site.settings = settings
        await self._stopped(chance)


@asynccontextmanager
async def broken_between(s3: Endpoint, kms: Endpoint) -> AsyncIterator[tuple[Microburst, Proxy, Proxy]]:
    """Stand between the service and its servers until the block ends."""
    async with _aws_shaped(s3) as (aws, endpoint), proxied(endpoint) as first, proxied(kms) as second:
        yield aws, first, second


@asynccontextmanager
async def _aws_shaped(s3: Endpoint) -> AsyncIterator[tuple[Microburst, Endpoint]]:
    """Run microburst before the bucket's server."""

    @web.middleware
    async def keep_host(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        # What was signed names the host that the client asked; SeaweedFS looks for it here.
        return await handler(request.clone(headers={**request.headers, "X-Forwarded-Host": request.host}))

    aws = Microburst(s3.url or "", resign=False)
    app = make_app(aws)
    app.middlewares.append(keep_host)
    runner, port = web.AppRunner(app), free_port()
    with pytest.MonkeyPatch.context() as patch:
        # It would drop lengths, of which an answer to HEAD consists.
        patch.setattr(forward, "HOP_BY_HOP", forward.HOP_BY_HOP - {"content-length"})
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield aws, replace(s3, url=f"http://127.0.0.1:{port}")
        finally:
            await runner.cleanup()


def _server(chance: random.Random) -> Server:
    return "bucket" if chance.random() < 0.5 else "keys"


async def _a_while(chance: random.Random) -> None:
    await anyio.sleep(chance.uniform(*LASTS_S))
