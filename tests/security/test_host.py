"""S-11, S-13, S-16: what the process and its files leave to others of the same machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from pipeline.commands import machine
from pipeline.commands.machine import Level
from pipeline.permissions import open_to_others_in
from tests.e2e.journey import contact_event, message, wav
from tests.node import node, until
from tests.sites import moto_site

HARDENED = """
import ctypes, os, resource
from pipeline.process import harden
harden()
open("made", "w").close()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), oct(os.stat("made").st_mode))
"""


def test_a_hardened_process_leaves_no_core_and_opens_its_memory_and_files_to_nobody(tmp_path: Path) -> None:
    """S-11. What `pipeline serve` does first; PR_GET_DUMPABLE is 3."""
    said = subprocess.run(
        [sys.executable, "-c", HARDENED],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(machine.__file__).parents[2])},
    )
    assert said.stdout.split("\n")[0] == "(0, 0) 0 0o100600"


def test_serving_begins_by_hardening(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-11. Before anything is read or opened."""
    from pipeline import running

    order: list[str] = []
    monkeypatch.setattr(running, "harden", lambda: order.append("harden"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("anyio.run", lambda *_, **__: order.append("run"))
    running.serve(None)  # type: ignore[arg-type]
    assert order == ["harden", "run"]


@pytest.mark.parametrize(
    ("swaps", "limit", "level"),
    [("Filename\n", None, Level.OK), ("Filename\n/swap\n", "0", Level.OK), ("Filename\n/swap\n", "max", Level.WARN)],
)
def test_doctor_warns_of_swap_that_is_not_off_for_the_service(
    monkeypatch: pytest.MonkeyPatch, swaps: str, limit: str | None, level: Level
) -> None:
    """S-13."""
    read = Path.read_text

    def told(path: Path, *arguments: object, **more: object) -> str:
        if str(path) == "/proc/swaps":
            return swaps
        if path.name == "cgroup":
            return "0::/system.slice/pipeline.service\n"
        if path.name == "memory.swap.max" and limit is not None:
            return f"{limit}\n"
        return read(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", told)
    found = {check.name: check for check in machine.memory(1)}
    assert found["swap"].level is level
    assert "core dumps" in found or any("core" in name for name in found)


@pytest.mark.aws
async def test_what_is_made_is_its_owners_alone_and_what_is_not_is_told_at_start(tmp_path: Path) -> None:
    """S-16."""
    async with moto_site(tmp_path) as site:
        async with node(site) as caller:
            events = [contact_event(site.acme, "c-1"), message(site.acme, "c-2", "i", "hello", final=True)]
            assert (await caller.post(site.acme, events)).status == 202
            assert (await caller.put(site.acme, "c-1", "voice.wav", wav(20_000))).status == 201
            await until(lambda: len(site.published(site.acme)) == 2)
        assert list(open_to_others_in(site.state)) == []
        loosened = next(site.state.glob("keys/*/*.json"))
        loosened.chmod(0o644)
        loosened.parent.chmod(0o755)
        with structlog.testing.capture_logs() as said:
            async with node(site):
                await until(lambda: any(each["event"] == "permissions.open" for each in said))
        (told,) = [each for each in said if each["event"] == "permissions.open"]
        assert (told["paths"], told["log_level"]) == (2, "error")
        assert loosened.stat().st_mode & 0o777 == 0o644  # seen, and left for a person


def test_a_look_at_permissions_follows_no_link_and_stays_out_of_a_buckets_data(tmp_path: Path) -> None:
    """S-16. What another program writes into a closed folder is its own business."""
    state, outside = tmp_path / "state", tmp_path / "outside"
    for folder in (state, outside, state / "a", state / "a" / "b", state / "bucket", state / "bucket" / "data"):
        folder.mkdir(mode=0o700)
    for file in (
        state / "a" / "b" / "open",
        state / "a" / "closed",
        state / "bucket" / "data" / "open",
        outside / "open",
    ):
        file.touch()
        file.chmod(0o600 if file.name == "closed" else 0o644)
    (state / "link").symlink_to(outside)
    (state / "nowhere").symlink_to(state / "gone")
    assert list(open_to_others_in(state)) == [state / "a" / "b" / "open"]
    state.chmod(0o750)
    assert set(open_to_others_in(state)) == {state, state / "a" / "b" / "open"}
