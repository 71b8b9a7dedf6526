"""Jobs: done once, one after another, by whoever holds the store; taken up again after a crash."""

import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import anyio
import pytest

from pipeline.audit.records import Actor
from pipeline.errors import KeyBusyError, RefuseError
from pipeline.interim.commit import GroupCommit
from pipeline.interim.logs import whole_lines
from pipeline.jobs import KEPT, Ask, Handler, JobFailedError, JobFolder, Jobs, JobStatus, Progress, Report, new_ask
from pipeline.trail import Trail
from tests.model_disk import ModelDisk
from tests.node import until
from tests.unit.keyring_fakes import A, B, FakeClock

ROOT = "/state"


@dataclass
class Bench:
    disk: ModelDisk = field(default_factory=ModelDisk)
    clock: FakeClock = field(default_factory=FakeClock)

    def ask(self, verb: str = "count", **details: Any) -> Ask:
        wanted = new_ask(verb, A, details, asked_by="ann", reason="because", now=self.clock.now())
        self.clock.advance(0.01)
        return self.folder.ask(wanted)

    @property
    def folder(self) -> JobFolder:
        return JobFolder(f"{ROOT}/jobs", self.disk)

    @asynccontextmanager
    async def jobs(self, **handlers: Handler) -> AsyncIterator[Jobs]:
        commits = GroupCommit(self.disk)
        trail = Trail(ROOT, actor=Actor("Service", "test"), clock=self.clock)
        async with anyio.create_task_group() as group:
            group.start_soon(commits.run)
            try:
                yield Jobs(
                    f"{ROOT}/jobs",
                    files=self.disk,
                    commits=commits,
                    trail=trail,
                    clock=self.clock,
                    handlers=handlers,
                )
            finally:
                commits.stop()

    def audit(self) -> list[Any]:
        logs = [raw for path, raw in self.disk.tree().items() if "/audit/" in path]
        return [json.loads(line) for raw in logs for line in whole_lines(raw)]


@dataclass
class Counting:
    """A handler that counts its calls, and raises what it is given to raise."""

    raises: list[Exception] = field(default_factory=list)
    calls: list[Ask] = field(default_factory=list)

    async def __call__(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        self.calls.append(ask)
        await progress(1, 2)
        if self.raises:
            raise self.raises.pop(0)
        await progress(2, 2)
        return {"counted": len(self.calls)}


async def test_a_job_is_done_once_and_tells_what_came_of_it() -> None:
    bench, count = Bench(), Counting()
    ask = bench.ask(to=3)
    async with bench.jobs(count=count) as jobs:
        await jobs.once()
        await jobs.once()
    assert [each.details for each in count.calls] == [{"to": 3}]
    report = bench.folder.report(ask)
    assert (report.status, report.done, report.total, report.outcome) == (JobStatus.COMPLETED, 2, 2, {"counted": 1})
    (ended,) = bench.audit()
    assert ended["eventName"] == "JobEnded"
    assert ended["requestParameters"]["askedBy"] == "ann"
    assert ended["requestParameters"]["status"] == "COMPLETED"


async def test_the_oldest_job_is_first_and_the_same_is_not_asked_for_twice() -> None:
    bench, count = Bench(), Counting()
    first, second = bench.ask(n=1), bench.ask(n=2)
    assert bench.ask(n=1) == first
    async with bench.jobs(count=count) as jobs:
        await jobs.once()
        assert count.calls == [first, second]
        again = bench.ask(n=1)
        assert again != first  # that one is over
        await jobs.once()
    assert count.calls == [first, second, again]


async def test_a_job_that_has_to_wait_stops_no_other_and_is_tried_again() -> None:
    bench = Bench()
    waits, other = Counting([KeyBusyError("no answer"), KeyBusyError("no answer")]), Counting()
    first = bench.ask("waits")
    second = bench.ask("other")
    async with bench.jobs(waits=waits, other=other) as jobs:
        wait_s = await jobs.once()
        assert bench.folder.report(second).status is JobStatus.COMPLETED
        report = bench.folder.report(first)
        assert (report.status, report.message, report.done) == (JobStatus.WAITING, "no answer", 1)
        await jobs.once()
        assert len(waits.calls) == 1
        bench.clock.advance(wait_s)
        assert await jobs.once() > wait_s, "the pause grows"
        assert len(waits.calls) == 2
        jobs.look()
        await jobs.once()
    assert bench.folder.report(first).status is JobStatus.COMPLETED


@pytest.mark.parametrize(
    ("error", "outcome", "refused"),
    [(JobFailedError("mend it", {"side": "old"}), {"side": "old"}, False), (RefuseError("mend it"), {}, True)],
)
async def test_a_job_that_needs_a_person_is_over(error: Exception, outcome: dict[str, str], refused: bool) -> None:
    bench, count = Bench(), Counting([error])
    ask = bench.ask()
    async with bench.jobs(count=count) as jobs:
        await jobs.once()
        await jobs.once()
    report = bench.folder.report(ask)
    assert (report.status, report.message, report.outcome) == (JobStatus.FAILED, "mend it", outcome)
    assert report.refused is refused
    assert len(count.calls) == 1


async def test_a_fault_of_the_program_lets_its_job_wait() -> None:
    bench, count = Bench(), Counting([ZeroDivisionError()])
    ask = bench.ask()
    async with bench.jobs(count=count) as jobs:
        await jobs.once()
        assert bench.folder.report(ask).status is JobStatus.WAITING
        jobs.look()
        await jobs.once()
    assert bench.folder.report(ask).status is JobStatus.COMPLETED


async def test_what_can_not_be_read_or_is_not_known_hurts_nobody() -> None:
    bench, count = Bench(), Counting()
    unknown, known = bench.ask("from a newer version"), bench.ask()
    for name in (f"{'0' * 32}.ask.json", "stranger", f"{known.job_id.hex}.report.json"):
        handle = bench.disk.create(f"{ROOT}/jobs/{name}")
        bench.disk.append(handle, [b"{"])
    async with bench.jobs(count=count) as jobs:
        await jobs.once()
    assert bench.folder.report(unknown).status is JobStatus.FAILED
    assert bench.folder.report(known).status is JobStatus.COMPLETED
    assert f"{ROOT}/jobs/{'0' * 32}.ask.json" in bench.disk.tree()


async def test_what_is_over_is_forgotten_after_a_time() -> None:
    bench = Bench()
    ask, waiting = bench.ask(), bench.ask("waits")
    async with bench.jobs(count=Counting(), waits=Counting([KeyBusyError("x")])) as jobs:
        await jobs.once()
        bench.clock.advance((KEPT - timedelta(seconds=60)).total_seconds())
        waits = Counting([KeyBusyError("x")])
        assert bench.folder.asked() == [ask, waiting]
    async with bench.jobs(waits=waits) as jobs:
        bench.clock.advance(120)
        await jobs.once()
    assert bench.folder.asked() == [waiting]


async def test_the_stage_takes_up_what_is_asked_for_when_it_is_told() -> None:
    bench, count = Bench(), Counting()
    async with bench.jobs(count=count) as jobs, anyio.create_task_group() as group:
        group.start_soon(jobs.run)
        await anyio.wait_all_tasks_blocked()
        ask = bench.ask()
        jobs.look()
        await until(lambda: bench.folder.report(ask).status is JobStatus.COMPLETED)
        group.cancel_scope.cancel()
    assert count.calls == [ask]


async def test_no_crash_loses_a_job_and_an_end_is_recorded_before_it_is_told() -> None:
    """Whatever a crash leaves: once asked for, a job is done; its report never says so without the audit record."""
    bench, asked = Bench(), False
    moments: list[tuple[ModelDisk, bool]] = []
    bench.disk.before = lambda *_: moments.append((bench.disk.snapshot(), asked))
    bench.ask()
    asked = True
    async with bench.jobs(count=Counting()) as jobs:
        await jobs.once()
    bench.disk.before = lambda *_: None
    chance, seen = random.Random(1), 0
    for disk, was_asked in [*moments, (bench.disk.snapshot(), True)]:
        for fates in disk.choices(chance, samples=2):
            left, count = Bench(disk.crash(fates), bench.clock), Counting()
            if any(report.status.is_over for report in reports(left)):
                assert [each["eventName"] for each in left.audit()] == ["JobEnded"]
            async with left.jobs(count=count) as jobs:
                await jobs.once()
            assert bool(left.folder.asked()) or not was_asked
            assert all(each.status is JobStatus.COMPLETED for each in reports(left))
            seen += 1
    assert seen > 50


def reports(bench: Bench) -> list[Report]:
    return [bench.folder.report(ask) for ask in bench.folder.asked()]


async def test_jobs_of_two_instances_are_two() -> None:
    bench, count = Bench(), Counting()
    ask = bench.ask()
    other = bench.folder.ask(new_ask("count", B, {}, asked_by="ann", reason="because", now=bench.clock.now()))
    async with bench.jobs(count=count) as jobs:
        await jobs.once()
    assert [each.instance for each in count.calls] == [A, B]
    assert ask != other
