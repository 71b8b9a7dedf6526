"""Running the service: the store held, adapters chosen, the parts connected, signals followed, until it is to stop."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from pipeline import config, listening
from pipeline.adapters.disk import locked
from pipeline.adapters.eventbridge import EventBridgeSink
from pipeline.adapters.sqlite import SqliteEngine
from pipeline.adapters.sqs import SqsQueue, SqsSink
from pipeline.compose import connect
from pipeline.intake.http import HttpIntake
from pipeline.interim.store import InterimStore
from pipeline.jobs import Ask, Report
from pipeline.node import Clients, Node
from pipeline.permissions import open_to_others_in
from pipeline.ports import EventSink
from pipeline.process import harden, settle
from pipeline.service import Listen, Service
from pipeline.settings import Settings
from pipeline.surroundings import ServersUp, Surroundings, surroundings

log = structlog.get_logger()


@asynccontextmanager
async def assembled(
    settings: Settings, servers_up: ServersUp | None = None
) -> AsyncIterator[tuple[Service, Node, str]]:
    """Assemble the service that `settings` describe, holding its store and its address; give its URL, too.

    Raises:
        HaltError: the store, its lock or the address can't be used.

    """
    async with _holding_store(settings) as stack:
        listener = stack.enter_context(listening.listening(settings.http.host, settings.http.port))
        service, node = await _assemble(
            settings, stack, lambda app, end: listening.serve(app, listener, end), servers_up
        )
        yield service, node, listening.url_of(listener)


@asynccontextmanager
async def _holding_store(settings: Settings) -> AsyncIterator[AsyncExitStack]:
    state = Path(settings.state_dir)
    config.make_private_directory(state)
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(f"{state}/lock"))
        yield stack


async def _assemble(
    settings: Settings, stack: AsyncExitStack, listen: Listen, servers_up: ServersUp | None
) -> tuple[Service, Node]:
    clients = Clients(stack, settings)
    node = Node(settings, clients)
    store = InterimStore(
        node.root,
        node.files,
        node.commits,
        free_bytes=settings.store.free_bytes,
        volume=node.volume,
        quota_of=node.quota_of,
    )
    known = config.load_store_id(settings.config_dir)
    store_id = store.open(known)
    if store_id != known:
        config.save_store_id(settings.config_dir, store_id)
    await node.configure()
    sinks: dict[str, EventSink] = {}
    if settings.events_out.queue_url is not None:
        sinks["sqs"] = SqsSink(await clients.get("sqs"), settings.events_out.queue_url)
    if settings.events_out.bus_name is not None:
        sinks["bus"] = EventBridgeSink(await clients.get("events"), settings.events_out.bus_name)
    queues = [(SqsQueue(await clients.get("sqs"), source.queue_url), source) for source in settings.queues]
    engine = SqliteEngine(f"{node.root}/records/records.db")
    stack.callback(engine.close)
    return connect(node, store, listen, sinks, queues, servers_up, engine), node


async def run(settings: Settings, stop: anyio.Event, started: Callable[[str], None]) -> None:
    """Serve until `stop`; tell the URL when everything is up.

    Raises:
        HaltError: it can't be served safely.

    """
    async with surroundings(settings) as given:
        await _serve(given, stop, started)


async def perform(settings: Settings, ask: Ask) -> Report:
    """Do one job on a store that no service runs on, and nothing else.

    Raises:
        HaltError: the store can't be used, or a service holds it after all.
        DeferError: not even its report can be written.

    """
    async with surroundings(settings) as given, _holding_store(given.settings) as stack:
        service, node = await _assemble(given.settings, stack, _deaf, given.are_up)
        await given.prepare()
        await node.configure()
        return await service.perform(ask)


async def _deaf(_app: HttpIntake, _end: anyio.Event) -> None:
    """Listen to nobody."""


async def _serve(given: Surroundings, stop: anyio.Event, started: Callable[[str], None]) -> None:
    async with (
        assembled(given.settings, given.are_up) as (service, node, url),
        anyio.create_task_group() as group,
    ):

        async def prepared() -> None:
            await given.prepare()
            await node.begin_telling()
            await node.configure()

        group.start_soon(_reload_on_hangup, service, node, name="reload")
        is_up = anyio.Event()
        group.start_soon(_look_at_permissions, Path(given.settings.state_dir), is_up, name="permissions")

        def tell() -> None:
            is_up.set()
            started(url)

        await service.run(stop, prepared, tell)
        group.cancel_scope.cancel()


async def _look_at_permissions(state: Path, is_up: anyio.Event) -> None:
    """Say once which of what is held others of this machine may read: what is made here never is.

    Only when the service is up: looking at a hundred thousand files would keep the start waiting.
    """
    await is_up.wait()
    found = await anyio.to_thread.run_sync(lambda: list(open_to_others_in(state)), abandon_on_cancel=True)
    if found:
        some = ", ".join(str(path) for path in found[:3])
        log.error("permissions.open", paths=len(found), some=some, detail="chmod -R go= on the state directory")


async def _reload_on_hangup(service: Service, node: Node) -> None:
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            await node.configure()
            await service.configured()


async def _stop_on_signal(stop: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("service.signal", signal=number.name)
            stop.set()


def _started(url: str) -> None:
    settle()
    log.info("service.started", url=url)


async def _main(settings: Settings) -> None:
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_stop_on_signal, stop, name="signals")
        await run(settings, stop, _started)
        group.cancel_scope.cancel()


def serve(settings: Settings) -> int:
    """Run the service until it is told to stop; give the exit code. What `pipeline serve` does."""
    harden()
    # Until the handler is there a reload means nothing: the configuration is about to be read anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    anyio.run(_main, settings, backend_options={"use_uvloop": True})
    return 0
