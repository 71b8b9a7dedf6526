"""A job asked for by a command: done by the service if one runs, else by the command under the store's lock."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import typer

from pipeline import compose
from pipeline.commands.exits import ExitCode
from pipeline.commands.jobs import carry_out, end
from pipeline.commands.options import Site as CommandSite
from pipeline.commands.options import open_site
from pipeline.errors import KeyBusyError
from pipeline.jobs import Ask, JobFailedError, JobStatus, Progress
from tests.node import node
from tests.sites import Site, moto_site


class Handlers:
    """What the verbs of these tests do, and who did it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, *_: Any) -> dict[str, Any]:
        return {"greet": self.greet, "stall": self.stall, "fail": self.fail}

    async def greet(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        self.calls.append((ask.verb, ask.reason))
        await progress(1, 1)
        return {"greeted": ask.details["name"]}

    async def stall(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        raise KeyBusyError("the key service does not answer")

    async def fail(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        raise JobFailedError("mend it first")


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Handlers:
    made = Handlers()
    monkeypatch.setattr(compose, "handlers", made)
    monkeypatch.setattr("pipeline.process.harden", lambda: None)  # of the test's own process
    monkeypatch.setattr("pipeline.logs.configure", lambda *_: None)
    monkeypatch.setattr("pipeline.commands.jobs.PATIENCE_S", 0.0)
    return made


def commands(site: Site) -> CommandSite:
    return open_site(site.write_settings(), None)


@pytest.mark.aws
async def test_without_a_service_the_command_does_it(handlers: Handlers, tmp_path: Path) -> None:
    async with moto_site(tmp_path) as site:
        at, instance = commands(site), site.acme.instance.instance_id

        def ask(verb: str) -> Any:
            return carry_out(at, verb, instance, {"name": "ann"}, reason="because", what="greeting")

        report = await anyio.to_thread.run_sync(ask, "greet")
        assert (report.status, report.outcome) == (JobStatus.COMPLETED, {"greeted": "ann"})
        assert handlers.calls == [("greet", "because")]
        end(report)
        for verb, code in (("stall", ExitCode.WAITING), ("fail", ExitCode.FOUND)):
            with pytest.raises(typer.Exit) as caught:
                end(await anyio.to_thread.run_sync(ask, verb))
            assert caught.value.exit_code == code
        events = [each["eventName"] for each in site.audit(site.acme)]
        assert events.count("JobAsked") == 3
        assert events.count("JobEnded") == 2


@pytest.mark.aws
async def test_a_running_service_does_it_and_one_that_starts_takes_up_what_was_left(
    handlers: Handlers, tmp_path: Path
) -> None:
    async with moto_site(tmp_path) as site:
        at, instance = commands(site), site.acme.instance.instance_id

        def ask(verb: str) -> Any:
            return carry_out(at, verb, instance, {"name": "ann"}, reason="because", what="greeting")

        left = await anyio.to_thread.run_sync(ask, "stall")
        assert left.status is JobStatus.WAITING
        handlers.stall = handlers.greet  # type: ignore[method-assign]
        async with node(site):
            report = await anyio.to_thread.run_sync(ask, "greet")
            assert (report.status, report.outcome) == (JobStatus.COMPLETED, {"greeted": "ann"})
            assert ("stall", "because") in handlers.calls
            assert (await anyio.to_thread.run_sync(ask, "fail")).message == "mend it first"
