"""What the service says of itself."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from structlog.testing import capture_logs

from pipeline.delivery.holds import KEYS, Holds
from pipeline.errors import DestinationHeldError, HoldCode, KeyUnavailableError
from pipeline.health import Health, Line, Mark, Report, Watched
from pipeline.ids import ArtifactId, Kind
from pipeline.intake.unrepeated import Unrepeated
from pipeline.settings import HealthSettings
from tests.fault.test_f16_clock import world_at
from tests.intake_server import serving
from tests.intake_server import world_at as intake_world
from tests.store_fixture import Node, node, source
from tests.unit.keyring_fakes import ARN, A, refusal
from tests.unit.test_event_intake import started, take
from tests.unit.test_publisher import Sink, publisher, tell
from tests.watching import missing_watch

HOUR = timedelta(hours=1)


@dataclass
class Asked:
    """The health of a node, and what of it a test changes."""

    health: Health
    watched: Watched
    holds: Holds
    phase: list[str | None] = field(default_factory=lambda: [None])

    def line(self, part: str) -> Line:
        [line] = [each for each in self.health.report().lines if each.part == part]
        return line


async def asked(process: Node, **changes: object) -> Asked:
    holds = Holds(f"{process.world.root}/holds", process.files, process.commits, process.trail)
    holds.load()
    watch = missing_watch(process)
    await watch.once()
    watched = Watched(
        store=process.store,
        tenants=process.tenants,
        holds=holds,
        recorder=process.recorder,
        missing=watch,
        publishers=(),
        canary=None,
        clock=process.world.clock,
        refused_files=lambda: 0,
        audit=dict,
        servers_up=None,
        unrepeated=Unrepeated(),
    )
    watched = replace(watched, **changes)  # type: ignore[arg-type]
    phase: list[str | None] = [None]
    return Asked(Health(watched, HealthSettings(), lambda: phase[0]), watched, holds, phase)


async def test_a_service_that_is_well_says_ok_of_every_part(tmp_path: Path) -> None:
    world, _ = world_at(tmp_path)
    async with node(world) as process:
        report = (await asked(process)).health.report()
        assert report.is_ready
        assert {line.mark for line in report.lines} == {Mark.OK}
        first, *lines, last, nothing = report.text().split("\n")
        assert (first, last, nothing) == ("oldest undelivered: none", "readyz check passed", "")
        assert all(line.startswith("[+]") for line in lines)
        said = {line.partition("]")[2].partition(":")[0] for line in lines}
        assert said == {
            "service",
            "store",
            "room",
            "keys",
            "destinations",
            "journal",
            "missing",
            "configuration",
            "audit",
        } | {
            "clock",
            "log",
            "tasks",
        }


async def test_the_age_of_the_oldest_undelivered_recording_comes_first(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        health = (await asked(process)).health
        await process.upload(source("call-1"), b"bytes")
        clock.advance(100)
        await process.upload(source("call-2"), b"bytes")
        clock.advance(50)
        report = health.report()
        assert report.oldest_undelivered_s == 150
        assert report.text().startswith("oldest undelivered: 150.0 s\n")
        assert next(iter(report.document().items())) == ("oldestUndeliveredS", 150.0)
        await process.store.reject(process.sealed[0], "integrity", ())
        assert health.report().oldest_undelivered_s == 50
        clock.jump(-timedelta(days=1))
        assert health.report().oldest_undelivered_s == 0


async def test_the_oldest_is_found_among_many_that_came_and_went(tmp_path: Path) -> None:
    world, _ = world_at(tmp_path)
    async with node(world) as process:
        await process.upload(source("first"), b"bytes")
        [name] = process.store.index
        index = process.store.index
        for number in range(1, 5000):
            other = msgspec.structs.replace(name, artifact_id=ArtifactId(UUID(int=name.artifact_id.int + number)))
            index.put(other)
            index.put(other.delivered())
            index.remove(other.artifact_id)
        assert index.oldest_waiting() == name.artifact_id
        assert len(index._waiting) < 2000
        index.put(name.delivered())
        assert index.oldest_waiting() is None


@pytest.mark.parametrize("phase", ["starting", "stopping"])
async def test_a_service_that_does_not_serve_is_not_ready(tmp_path: Path, phase: str) -> None:
    world, _ = world_at(tmp_path)
    async with node(world) as process:
        made = await asked(process)
        made.phase[0] = phase
        report = made.health.report()
        assert not report.is_ready
        assert f"[-]service: {phase}" in report.text()
        assert report.text().endswith("readyz check failed\n")


async def test_a_full_disk_makes_the_node_not_ready_until_there_is_room(tmp_path: Path) -> None:
    world, _ = world_at(tmp_path)
    world.free_bytes = 2**20
    async with node(world) as process:
        made = await asked(process)
        process.files.free = 0
        assert not made.health.report().is_ready
        assert str(made.line("room")) == "[-]room: refusing intake, store-full"
        process.files.free = 2**40
        assert made.health.report().is_ready


async def test_an_instance_that_is_held_does_not_make_the_node_unready(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        made = await asked(process)
        world.kms.refuses[ARN] = refusal(HoldCode.KEY_DISABLED)
        clock.advance(1000)
        with pytest.raises(KeyUnavailableError):
            await process.a.ring.active()
        error = DestinationHeldError(HoldCode.DESTINATION_MISSING, "there is no such bucket")
        await made.holds.begin(A, Kind.VOICE, error, clock.now())
        report = made.health.report()
        assert report.is_ready
        assert str(made.line("keys")) == "[!]keys: 1 usable, 1 KEY_DISABLED"
        assert str(made.line("destinations")) == "[!]destinations: 1 holds of 1 instances, 1 DESTINATION_MISSING"
        assert str(A) not in report.text() + str(report.document())


async def test_other_troubles_are_said_and_leave_the_node_ready(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        await tell(process, "1")
        sender = publisher(process, Sink(refuses=b"1"))
        sender.failures = 3
        made = await asked(
            process,
            publishers=(("sqs", sender),),
            refused_files=lambda: 2,
            servers_up=lambda: False,
            audit=lambda: {"acme": "it is gone"},
        )
        clock.jump(timedelta(minutes=2))
        await process.upload(source(), b"bytes")
        await process.store.reject(process.sealed[0], "integrity", ())
        warned = [str(line) for line in made.health.report().lines if line.mark is Mark.WARNS]
        assert warned == [
            "[!]store: 0 open (0 in memory), 0 sealed, 1 poison, 0 delivered",
            "[!]events out to sqs: 3 refusals in a row",
            "[!]children: being started again",
            "[!]configuration: 2 instance files can't be used",
            "[!]audit: 1 audit logs can't be written to, or are broken",
            "[!]clock: +120.0 s since the start",
        ]
        assert made.health.report().is_ready


async def test_numbers_of_everything_that_could_grow_are_told(tmp_path: Path) -> None:
    world, _ = world_at(tmp_path)
    async with node(world) as process:
        made = await asked(process)
        await take(process, started(source_id="awaited"))
        await process.break_off(source(), b"bytes")
        numbers = made.health.report().document()["numbers"]
        assert numbers["open"] == numbers["receptions"] == numbers["awaited"] == 1
        assert numbers["tasks"] >= 2


async def test_the_log_says_the_same_at_intervals(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        made = await asked(process)
        await process.upload(source(), b"bytes")
        clock.advance(7)
        with capture_logs() as logged:
            made.health.say()
        [line] = logged
        assert (line["event"], line["log_level"], line["oldest_undelivered_s"]) == ("service.health", "info", 7.0)
        assert (line["sealed"], line["ready"], line["troubles"]) == (1, True, [])


async def test_what_waits_or_is_held_for_an_hour_is_an_alarm_once_an_hour(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        made = await asked(process)
        await made.holds.begin(A, KEYS, refusal(), clock.now())
        await process.upload(source(), b"bytes")
        told = []
        for _ in range(14):
            clock.advance(HOUR.total_seconds() / 6)
            with capture_logs() as logged:
                made.health.say()
            told.append([each["event"] for each in logged if each["log_level"] == "error"])
        assert [bool(each) for each in told] == [False] * 6 + [True] + [False] * 5 + [True, False]
        assert told[6] == ["delivery.late", "hold.long"]


async def test_a_jump_of_the_clock_is_no_alarm_and_a_hold_that_ended_neither(tmp_path: Path) -> None:
    world, clock = world_at(tmp_path)
    async with node(world) as process:
        made = await asked(process)
        await made.holds.begin(A, KEYS, refusal(), clock.now())
        clock.jump(timedelta(days=1))
        with capture_logs() as logged:
            made.health.say()
            await made.holds.end(A, KEYS)
            clock.advance(2 * HOUR.total_seconds())
            made.health.say()
        assert [each["event"] for each in logged] == ["service.health"] * 2


def test_a_report_is_ready_if_nothing_fails() -> None:
    lines = (Line("a", Mark.OK, "ok"), Line("b", Mark.WARNS, "hm"))
    assert Report(oldest_undelivered_s=None, lines=lines, numbers={}).is_ready
    failing = Report(oldest_undelivered_s=1.0, lines=(*lines, Line("c", Mark.FAILS, "no")), numbers={"tasks": 3})
    assert not failing.is_ready
    assert failing.document() == {
        "oldestUndeliveredS": 1.0,
        "ready": False,
        "numbers": {"tasks": 3},
        "parts": [
            {"part": "a", "mark": "ok", "detail": "ok"},
            {"part": "b", "mark": "warns", "detail": "hm"},
            {"part": "c", "mark": "fails", "detail": "no"},
        ],
    }


async def test_anybody_may_ask_and_is_answered_as_they_ask(tmp_path: Path) -> None:
    async with serving(intake_world(tmp_path)) as server:
        for is_ready, status, mark in ((True, 200, "+"), (False, 503, "-")):
            server.ready[0] = is_ready
            plain = await server.ask("GET", "/readyz", token=None)
            assert (plain.status, plain.body) == (status, b"ok\n" if is_ready else b"not ready\n")
            lines = await server.ask("GET", "/readyz?verbose", token=None)
            assert (lines.status, lines.body.decode().splitlines()[1]) == (status, f"[{mark}]service: told")
            document = await server.ask("GET", "/readyz", headers={"Accept": "application/json"}, token=None)
            assert (document.status, document.json["ready"]) == (status, is_ready)
            assert document.headers["content-type"] == "application/json"
            assert {each.headers["cache-control"] for each in (plain, lines, document)} == {"no-store"}
            assert (await server.ask("GET", "/livez", token=None)).body == b"ok\n"


# --- holds that last


async def held_for(process: Node, days: float) -> Asked:
    """Have a hold on the instance's key that began so long ago."""
    test = await asked(process)
    now = process.world.clock.now()
    await test.holds.begin(A, KEYS, refusal(HoldCode.KEY_DISABLED), now - timedelta(days=days))
    return test


async def test_after_an_hour_the_alarm_names_the_key_what_is_safe_and_what_to_do(tmp_path: Path) -> None:
    world, _ = world_at(tmp_path)
    async with node(world) as process:
        test = await held_for(process, days=2 / 24)
        test.watched.unrepeated.refused(A, "FreeSWITCH")
        test.watched.unrepeated.refused(A, "FreeSWITCH")
        test.watched.unrepeated.refused(A, None)
        with capture_logs() as logs:
            test.health.say()
        (alarm,) = [each for each in logs if each["event"] == "hold.long"]
        assert alarm["lost_uploads"] == {"FreeSWITCH": 2}
        assert all(word in alarm["detail"] for word in ("KEY_DISABLED", "safe", "enable the KMS key", "since"))
        lost = test.line("lost uploads")
        assert (lost.mark, lost.detail.endswith("FreeSWITCH 2")) == (Mark.WARNS, True)

        await test.holds.end(A, KEYS)
        test.health.say()
        assert "lost uploads" not in {line.part for line in test.health.report().lines}


async def test_after_seven_days_an_operator_is_asked_to_decide_and_the_node_stays_ready(tmp_path: Path) -> None:
    world, _ = world_at(tmp_path)
    async with node(world) as process:
        test = await held_for(process, days=8)
        with capture_logs() as logs:
            test.health.say()
        (alarm,) = [each for each in logs if each["event"] == "hold.decision_needed"]
        assert alarm["decision"].startswith("decide:")
        assert test.line("decisions").mark is Mark.WARNS
        assert test.health.report().is_ready
