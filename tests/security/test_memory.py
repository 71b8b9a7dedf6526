"""S-12: once an instance is sealed off no live object holds its data key; what freed memory keeps is counted."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
_PIECE = 2**22

Record = Callable[[str, object], None]


@contextmanager
def process() -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    command = [sys.executable, "-m", "tests.security.sealed_off"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        yield running, running.stdin, running.stdout
    finally:
        running.kill()
        running.wait()
        running.stdin.close()
        running.stdout.close()


def occurrences(pid: int, secrets: dict[str, bytes]) -> dict[str, int]:
    """Count each secret in all memory of a process that can be read (proc(5))."""
    found = dict.fromkeys(secrets, 0)
    overlap = max(map(len, secrets.values())) - 1
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            addresses, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            start, end = (int(each, 16) for each in addresses.split("-"))
            before = b""
            for at in range(start, end, _PIECE):
                try:
                    memory.seek(at)
                    piece = memory.read(min(_PIECE, end - at))
                except (OSError, ValueError):
                    break
                whole = before + piece
                for name, secret in secrets.items():
                    found[name] += whole.count(secret)
                before = whole[-overlap:]
    return found


def test_no_live_object_holds_the_key_of_an_instance_that_is_sealed_off(record_property: Record) -> None:
    """Residues in freed memory can't be overwritten from Python: they are counted and printed, and gated by nothing."""
    secret = os.urandom(32)
    with process() as (running, told, says):
        told.write(hashlib.sha256(secret).hexdigest().encode() + b"\n")
        told.write(json.dumps({"Plaintext": base64.b64encode(secret).decode()}).encode() + b"\n")
        told.flush()
        answer = json.loads(says.readline())
        found = occurrences(running.pid, {"raw": secret, "base64": base64.b64encode(secret)})
    assert "DataKey" in answer["before"]  # the search finds a key that is there
    assert answer["after"] == []
    assert answer["refused"] == "KEY_NOT_FOUND"
    record_property(
        "counted", f"copies of the data key in freed memory: {found['raw']} raw, {found['base64']} in base64"
    )


def test_the_search_in_memory_finds_what_is_there() -> None:
    """What was never sealed off: the same process, looked at while it has read the key and nothing else."""
    secret = os.urandom(32)
    program = "import sys; held = bytes.fromhex(sys.stdin.readline()); print('ready', flush=True); sys.stdin.readline()"
    running = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        running.stdin.write(secret.hex().encode() + b"\n")
        running.stdin.flush()
        running.stdout.readline()
        assert occurrences(running.pid, {"raw": secret})["raw"] >= 1
    finally:
        running.kill()
        running.wait()
        running.stdin.close()
        running.stdout.close()
