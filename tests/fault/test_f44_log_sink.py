"""F44: the log's sink blocks, closes or is full. The data path goes on; what is lost of the log is counted."""

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import anyio
import anyio.to_thread
import pytest
import structlog

import pipeline
from pipeline.logs import configure, dropped
from pipeline.logsink import WAITING_BYTES, LogSink
from pipeline.settings import LogSettings
from tests.node import Caller, until
from tests.sites import moto_site

BODY = b"RIFF" + bytes(2000)
LINE = "x" * 8_000
ROOT = str(Path(pipeline.__file__).parents[1])


@contextmanager
def sink(descriptor: int) -> Iterator[tuple[LogSink, logging.Logger]]:
    made = LogSink(descriptor, lambda count: f"dropped {count}")
    logger = logging.Logger("sink")  # noqa: LOG001 - of this test alone
    logger.addHandler(made)
    try:
        yield made, logger
    finally:
        made.close()


def drained(reader: int) -> list[str]:
    """Read everything that comes until the other end is closed."""
    with open(reader, "rb") as pipe:
        return pipe.read().decode().splitlines()


def test_a_pipe_that_nobody_reads_stops_nobody_and_memory_is_bounded() -> None:
    reader, writer = os.pipe()
    with sink(writer) as (made, logger):
        count = 3 * WAITING_BYTES // len(LINE)
        for number in range(count):
            logger.warning("%d %s", number, LINE)
        assert made.dropped > count / 2
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.extend(drained(reader)))
        thread.start()
        made.close()
        os.close(writer)
        thread.join()
    told = [int(line.split()[0]) for line in got if not line.startswith("dropped")]
    assert told == sorted(set(told))
    assert len(told) == count - made.dropped
    assert sum(int(line.split()[1]) for line in got if line.startswith("dropped")) == made.dropped


@pytest.mark.parametrize("broken", ["closed", "no reader", "full"])
def test_a_sink_that_takes_nothing_costs_lines_and_nothing_else(broken: str) -> None:
    reader, writer = os.pipe()
    if broken == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    with sink(writer) as (made, logger):
        if broken == "closed":
            os.close(writer)
        elif broken == "no reader":
            os.close(reader)
        for _ in range(10):
            logger.warning("line")
        made.close()
        assert made.dropped == 10


def test_a_sink_that_fails_once_is_told_how_many_it_missed(tmp_path: Path) -> None:
    """A disk full of logs: lines are lost while it is, and the first that fits says how many."""
    good = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    full = os.open("/dev/full", os.O_WRONLY)
    descriptor = os.dup(full)
    with sink(descriptor) as (made, logger):
        logger.warning("lost")
        logger.warning("lost, too")
        while made.dropped < 2:
            time.sleep(0.001)
        os.dup2(good, descriptor)
        logger.warning("there")
        made.close()
    assert (tmp_path / "log").read_text().splitlines() == ["dropped 2", "there"]
    for each in (good, full, descriptor):
        os.close(each)


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    full = os.open("/dev/full", os.O_WRONLY)
    good = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    with sink(writer) as (made, logger):
        logger.warning("y" * 100_000)  # more than a pipe holds: half of it is written
        select.select([reader], [], [])
        os.dup2(full, writer)
        while made.dropped < 1:
            time.sleep(0.001)
        os.dup2(good, writer)
        logger.warning("next")
        made.close()
    assert (tmp_path / "log").read_text() == "\ndropped 1\nnext\n"
    for each in (reader, writer, full, good):
        os.close(each)


def test_a_line_that_can_not_be_made_is_one_line_less(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    with sink(descriptor) as (made, logger):
        logger.warning("%d", "no number")
        logger.warning("there")
        made.close()
        assert made.dropped == 1
    assert (tmp_path / "log").read_text().splitlines()[-1] == "there"
    os.close(descriptor)


def test_the_process_logs_through_such_a_sink(tmp_path: Path) -> None:
    before = logging.getLogger().handlers[:]
    try:
        with (tmp_path / "log").open("w") as stream:
            configure(LogSettings(format="json"), stream)
            structlog.get_logger().info("it.happened", n=1)
            [handler] = logging.getLogger().handlers
            assert isinstance(handler, LogSink)
            handler.close()
        assert json.loads((tmp_path / "log").read_text())["event"] == "it.happened"
        assert dropped() == 0
    finally:
        logging.getLogger().handlers[:] = before
        structlog.reset_defaults()


def test_a_process_ends_though_its_log_blocks() -> None:
    code = (
        "import sys, structlog\n"
        "from pipeline.logs import configure\n"
        "from pipeline.settings import LogSettings\n"
        "configure(LogSettings(format='json'), sys.stderr)\n"
        "for _ in range(1000): structlog.get_logger().warning('x' * 1000)\n"
        "print('done', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PYTHONPATH": ROOT}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"
        assert process.wait(timeout=20) == 0


@pytest.mark.aws
@pytest.mark.slow
async def test_a_service_whose_log_nobody_reads_takes_and_delivers(tmp_path: Path) -> None:
    """Its standard error is a full pipe: what is said at start already does not fit."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {"PYTHONPATH": ROOT, "PATH": os.environ["PATH"], "PIPELINE_HTTP_PORT": str(port)}
    async with moto_site(tmp_path) as site, aiohttp.ClientSession() as http:
        command = [sys.executable, "-m", "pipeline", "serve", "--config", str(site.write_settings())]
        with _started(command, writer, environ) as process:
            try:
                caller = Caller(f"http://127.0.0.1:{port}", http)
                while (await _ready(caller)) != 200:  # noqa: ASYNC110 - another process is watched
                    await anyio.sleep(0.05)
                assert (await caller.put(site.acme, "c-1", "voice", BODY)).status == 201
                await until(lambda: len(site.published(site.acme)) == 1)
                process.terminate()
                assert await anyio.to_thread.run_sync(process.wait) == 0
            finally:
                process.kill()
    os.close(reader)
    os.close(writer)


def _started(command: list[str], stderr: int, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr, env=environ)


async def _ready(caller: Caller) -> int | None:
    try:
        return (await caller.ask("GET", "/readyz", None)).status
    except OSError:
        return None
