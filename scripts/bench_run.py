"""Measure the service beside `aws s3 cp --recursive` of the same bytes, to the same bucket server, with SSE-KMS.

Ours is counted from the first byte of the first PUT to the last receipt: in over HTTP, sealed, synced, out to the
bucket, proven. The peer only sends files that lie there already. Wall time, the processor time of the service's process
(of the peer's) and the peak of its memory, in turn within each round; what counts are the ratios.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from progress import say

from pipeline.config import load_instances
from pipeline.embedded import Embedded, attached
from pipeline.ids import Kind
from pipeline.provision import demo_token_file
from pipeline.settings import load

MIB = 2**20
SENDERS = 32
TICK = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run took."""

    wall_s: float
    processor_s: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: so many bodies of that size."""

    name: str
    count: int
    size_bytes: int


class Node:
    """A service with its embedded servers, in a state directory of its own."""

    def __init__(self, state: Path, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.state = state
        self.process = process
        self.port = port
        environ = {"PIPELINE_STATE_DIR": str(state), "HOME": str(state)}
        settings = load(None, environ, base=Path("/"))
        self.embedded: Embedded = attached(settings)
        (self.instance,) = load_instances(settings.config_dir).instances.values()
        self.token = demo_token_file(self.embedded).read_text().strip()
        self._events = state / "events" / f"{self.instance.instance_id}.jsonl"
        self._published, self._read_bytes = 0, 0

    @property
    def published(self) -> int:
        """How many deliveries were proven so far. Reads what is new only: the machine is busy with what is measured."""
        if self._events.exists():
            with self._events.open("rb") as log:
                log.seek(self._read_bytes)
                whole = log.read().rpartition(b"\n")[0]
            self._published += whole.count(b'"PUBLISHED"')
            self._read_bytes += len(whole)
        return self._published

    def processor_s(self) -> float:
        """Processor time of the service's own process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory_mb(self) -> float:
        """Peak of its resident memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextlib.contextmanager
def running(state: Path) -> Iterator[Node]:
    """Run the service until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {
        **os.environ,
        "PIPELINE_STATE_DIR": str(state),
        "PIPELINE_HTTP_PORT": str(port),
        "PIPELINE_LOG_LEVEL": "WARNING",
    }
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "serve"], env=environ, stderr=subprocess.DEVNULL)
    try:
        await_ready(port, process)
        yield Node(state, process, port)
    finally:
        process.terminate()
        process.wait(60)


def await_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until requests are taken."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as asked:
            asked.sendall(b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            if b" 200 " in asked.recv(64):
                return
        time.sleep(0.1)
    raise SystemExit("the service did not start")


def send(node: Node, run: str, load: Load, source: Path) -> None:
    """PUT every body, `SENDERS` at a time, each sender over one connection."""
    waiting = iter(sorted(source.iterdir()))
    turn = threading.Lock()
    failures: list[str] = []

    def work() -> None:
        with socket.create_connection(("127.0.0.1", node.port)) as link, link.makefile("rb") as answers:
            while True:
                with turn:
                    path = next(waiting, None)
                if path is None or failures:
                    return
                link.sendall(head(node, f"{run}-{path.stem}", load.size_bytes))
                with path.open("rb") as body:
                    link.sendfile(body)
                status = answers.readline()
                if b" 201 " not in status:
                    failures.append(status.decode(errors="replace"))
                    return
                length = 0
                while (line := answers.readline()) != b"\r\n":
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                answers.read(length)

    threads = [threading.Thread(target=work) for _ in range(min(SENDERS, load.count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"a recording was not taken: {failures[0]}")


def head(node: Node, contact: str, size_bytes: int) -> bytes:
    """Write the head of one PUT."""
    path = f"/v1/instances/{node.instance.instance_id}/contacts/{contact}/voice.wav"
    lines = (
        f"PUT {path} HTTP/1.1",
        "Host: bench",
        f"Authorization: Bearer {node.token}",
        f"Content-Length: {size_bytes}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def ours(node: Node, run: str, load: Load, source: Path) -> Figures:
    """Send all of a load and wait until all of it is proven."""
    wanted = node.published + load.count
    began, used = time.monotonic(), node.processor_s()
    send(node, run, load, source)
    while node.published < wanted:
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit("not everything was delivered in time")
        time.sleep(0.02)
    return Figures(time.monotonic() - began, node.processor_s() - used, node.memory_mb())


def peer(node: Node, run: str, source: Path) -> Figures:
    """Copy the same files by the AWS command line."""
    storage = node.instance.storage[Kind.VOICE]
    endpoint = node.embedded.s3(node.embedded.secrets.s3_operator)
    assert endpoint.credentials is not None
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(node.state),
        "AWS_ACCESS_KEY_ID": endpoint.credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": endpoint.credentials.secret_key,
        "AWS_DEFAULT_REGION": endpoint.region,
    }
    command = [
        str(Path(".venv-bench/bin/aws").absolute()), "s3", "cp", "--recursive", "--only-show-errors", str(source),
        f"s3://{storage.bucket}/peer-{run}/", "--endpoint-url", str(endpoint.url),
        "--sse", "aws:kms", "--sse-kms-key-id", storage.kms_key_arn,
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, env=environ, check=True)
    wall_s = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Figures(wall_s, processor_s, after.ru_maxrss / 1024)


def make_files(folder: Path, load: Load) -> Path:
    """Make the bodies of a load: random bytes."""
    target = folder / load.name
    target.mkdir()
    for number in range(load.count):
        with (target / f"{number:06}.wav").open("wb") as file:
            for at in range(0, load.size_bytes, MIB):
                file.write(os.urandom(min(MIB, load.size_bytes - at)))
    return target


def measure(loads: list[Load], rounds: int, folder: Path) -> dict[str, list[tuple[Figures, Figures]]]:
    """Run ours and the peer in turn."""
    found: dict[str, list[tuple[Figures, Figures]]] = {load.name: [] for load in loads}
    sources = {load.name: make_files(folder, load) for load in loads}
    with running(folder / "state") as node:
        for number in range(1, rounds + 1):
            for load in loads:
                run = f"{load.name}-{number}"
                mine = ours(node, run, load, sources[load.name])
                others = peer(node, run, sources[load.name])
                found[load.name].append((mine, others))
                say(
                    f"round {number} {load.name}: wall {mine.wall_s:.1f} s to {others.wall_s:.1f}, "
                    f"processor {mine.processor_s:.1f} s to {others.processor_s:.1f}, memory {mine.memory_mb:.0f} MB"
                )
    return found


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", type=int, default=1000, help="recordings of 64 KiB")
    parser.add_argument("--large-mib", type=int, default=1024, help="MiB of the one large recording")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    loads = [Load("small", chosen.small, 64 * 1024), Load("large", 1, chosen.large_mib * MIB)]
    folder = Path(tempfile.mkdtemp(prefix="pipeline-bench-"))
    try:
        found = measure(loads, chosen.rounds, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = [summary(load, found[load.name]) for load in loads]
    if chosen.json:
        rounds = {name: [{"ours": asdict(a), "peer": asdict(b)} for a, b in pairs] for name, pairs in found.items()}
        print(json.dumps({"loads": report, "rounds": rounds}))
        return
    print(f"{'load':<22}{'wall':>8}{'processor':>11}{'memory MB':>11}   (wall and processor: ours / peer, median)")
    for row in report:
        print(f"{row['load']:<22}{row['wallRatio']:>8.2f}{row['processorRatio']:>11.2f}{row['memoryMb']:>11.0f}")


def summary(load: Load, pairs: list[tuple[Figures, Figures]]) -> dict[str, str | float]:
    """Give the medians of the ratios, round by round."""
    return {
        "load": f"{load.count} x {load.size_bytes // 1024} KiB",
        "wallRatio": round(statistics.median(mine.wall_s / other.wall_s for mine, other in pairs), 3),
        "processorRatio": round(statistics.median(mine.processor_s / other.processor_s for mine, other in pairs), 3),
        "memoryMb": round(max(mine.memory_mb for mine, _ in pairs), 1),
    }


if __name__ == "__main__":
    main()
