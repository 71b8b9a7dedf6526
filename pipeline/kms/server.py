"""The key server's HTTP side: loopback by default, raw bodies only, one thread.

`GET /healthz` answers 200 once calls are served. Everything else is `POST /`. Calls are answered on the event loop
itself: they take a fraction of a millisecond, less than a hop to a thread and back.
"""

import contextlib
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread
import uvloop
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.errors import HaltError
from pipeline.kms import config as configuration
from pipeline.kms import rootkey, whoami
from pipeline.kms.authority import INTERNAL, Answer, Authority, open_authority, refused
from pipeline.kms.config import KmsConfig
from pipeline.kms.refusal import KmsRefusalError
from pipeline.kms.signature import HttpCall
from pipeline.kms.trail import sync_descriptor
from pipeline.listening import listening, url_of
from pipeline.listening import serve as serve_http
from pipeline.process import harden

BODY_BYTES = 1024 * 1024
_BODY_S = 30
_CONNECTIONS = 512
_UPKEEP_S = 1
_TOO_LARGE = KmsRefusalError("RequestEntityTooLargeException", "A request body has at most 1 MiB.", status=413)
_TOO_SLOW = KmsRefusalError("RequestTimeoutException", "The request body did not arrive in time.", status=408)
WHAT = (
    "recording-pipeline key server: the AWS KMS API for machines without AWS and for tests; it is no AWS KMS and no HSM"
)


async def serve(config: KmsConfig, *, stop: anyio.Event, started: Callable[[str], None] | None = None) -> None:
    """Serve the data directory of `config` until `stop`; then answer what is in hand.

    Args:
        started: called with the URL when calls are served.

    Raises: HaltError if the root key, the data directory or the address can't be used, or the trail not be synced.
    """
    # Opened here and not in a thread: nothing is served yet that could be kept waiting.
    with open_authority(config) as authority:
        await serve_authority(authority, config.host, config.port, stop=stop, started=started)


async def serve_authority(
    authority: Authority, host: str, port: int, *, stop: anyio.Event, started: Callable[[str], None] | None = None
) -> None:
    """Serve an open authority at an address until `stop`."""
    ended = anyio.Event()
    failures: list[OSError] = []
    with listening(host, port) as listener:

        def tell() -> None:
            if started is not None:
                started(url_of(listener))

        async with anyio.create_task_group() as tg:
            tg.start_soon(_upkeep, authority, ended, failures, name="kms-upkeep")
            tg.start_soon(_pass_on, stop, ended, name="kms-stop")
            await serve_http(_application(authority), listener, ended, started=tell, connections=_CONNECTIONS)
            tg.cancel_scope.cancel()
    if failures:
        raise HaltError("The key server's trail can't be synced; nothing more is served.") from failures[0]


async def _pass_on(stop: anyio.Event, ended: anyio.Event) -> None:
    await stop.wait()
    ended.set()


async def _upkeep(authority: Authority, ended: anyio.Event, failures: list[OSError]) -> None:
    """Every second, sync the trail and destroy the keys that are due. A trail that can't be synced ends the server."""
    while True:
        await anyio.sleep(_UPKEEP_S)
        # What the disk refuses now is tried again; a key that is due is not used meanwhile either.
        with contextlib.suppress(sqlite3.Error):
            authority.vault.destroy_due()
        descriptor = authority.trail.unsynced()
        if descriptor is None:
            continue
        try:
            await anyio.to_thread.run_sync(sync_descriptor, descriptor)
        except OSError as error:
            failures.append(error)
            ended.set()
            return


def _application(authority: Authority) -> Starlette:
    async def call(request: Request) -> Response:
        try:
            with anyio.fail_after(_BODY_S):
                body = await _body(request)
        except TimeoutError:
            return _response(authority.answer(_http_call(request, b""), broken=_TOO_SLOW))
        if body is None:
            return _response(authority.answer(_http_call(request, b""), broken=_TOO_LARGE))
        http = _http_call(request, body)
        if whoami.is_for_sts(http):
            status, xml = authority.answer_sts(http)
            return Response(xml, status, {"Cache-Control": "no-store"}, whoami.CONTENT_TYPE)
        return _response(authority.answer(http))

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def failed(_: Request, __: Exception) -> Response:
        return _response(refused(INTERNAL, str(uuid4())))

    async def gone(_: Request, __: Exception) -> Response:
        # Nobody is there to read it; starlette wants an answer all the same.
        return Response(status_code=400)

    return Starlette(
        routes=[Route("/", call, methods=["POST"]), Route("/healthz", health, methods=["GET"])],
        exception_handlers={ClientDisconnect: gone, Exception: failed},
    )


async def _body(request: Request) -> bytes | None:
    """Read the body; None if it is too large."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _http_call(request: Request, body: bytes) -> HttpCall:
    scope = request.scope
    return HttpCall(
        method=scope["method"],
        path=scope["raw_path"].decode("latin-1"),
        query=scope["query_string"].decode("latin-1"),
        headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]),
        body=body,
        source=scope["client"][0] if scope["client"] else "",
    )


def _response(answer: Answer) -> Response:
    headers = {"x-amzn-RequestId": answer.request_id, "Cache-Control": "no-store"}
    return Response(answer.body, answer.status, headers, "application/x-amz-json-1.1")


# --- the command


def run(config_path: Path) -> int:
    """Run the server until SIGTERM or SIGINT; says on standard error what it is and where it listens."""
    try:
        config = configuration.load(config_path)
        harden()
        uvloop.run(_serve_until_signal(config))
    except HaltError as error:
        _say(str(error))
        return 1
    return 0


async def _serve_until_signal(config: KmsConfig) -> None:
    stop = anyio.Event()

    def started(url: str) -> None:
        _say(f"{WHAT}.")
        for concern in rootkey.concerns(config):
            _say(f"warning: {concern}")
        _say(f"listening on {url} ({config.region}), keys in {config.data_dir}")

    async def watch() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                stop.set()

    failure: HaltError | None = None
    async with anyio.create_task_group() as tg:
        tg.start_soon(watch, name="kms-signals")
        try:
            await serve(config, stop=stop, started=started)
        except HaltError as error:
            failure = error
        tg.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command's own output
