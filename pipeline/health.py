"""What the service says of itself: one line for each part, and before all else how long the oldest recording waits.

Only counts: whoever may not call the service may still ask whether it is well. A part that fails makes the node not
ready; one that only warns, such as an instance whose key is held, does not. Says it at intervals in the log, too, and
raises the alarm for what waits or is held for too long.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any

import anyio
import structlog

from pipeline import holdwords, logs
from pipeline.canary import Canary
from pipeline.delivery.holds import KEYS, Hold, Holds
from pipeline.delivery.publisher import Publisher
from pipeline.ids import ArtifactId, InstanceId
from pipeline.intake.missing import MissingWatch
from pipeline.intake.recorder import Recorder
from pipeline.intake.unrepeated import Unrepeated
from pipeline.interim.states import State
from pipeline.interim.store import InterimStore
from pipeline.ports import Clock
from pipeline.settings import HealthSettings
from pipeline.steady import Steady
from pipeline.tenants import Tenants

log = structlog.get_logger()

_DRIFT_S = 60.0
"""A wall clock that moved by more than this has jumped."""


class Mark(StrEnum):
    """How a part is."""

    OK = "ok"
    WARNS = "warns"
    FAILS = "fails"


_SIGNS = {Mark.OK: "+", Mark.WARNS: "!", Mark.FAILS: "-"}


@dataclass(frozen=True, slots=True)
class Line:
    """One part."""

    part: str
    mark: Mark
    detail: str

    def __str__(self) -> str:
        return f"[{_SIGNS[self.mark]}]{self.part}: {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All of it."""

    oldest_undelivered_s: float | None
    """Age of the oldest recording that is sealed and not delivered; None if there is none."""
    lines: tuple[Line, ...]
    numbers: Mapping[str, int]
    """What a program watches: they go back to where they were, or something leaks."""

    @property
    def is_ready(self) -> bool:
        """Whether recordings may be sent here."""
        return all(line.mark is not Mark.FAILS for line in self.lines)

    def text(self) -> str:
        """Tell it line by line."""
        age = "none" if self.oldest_undelivered_s is None else f"{self.oldest_undelivered_s:.1f} s"
        verdict = "passed" if self.is_ready else "failed"
        return "\n".join([f"oldest undelivered: {age}", *map(str, self.lines), f"readyz check {verdict}", ""])

    def document(self) -> dict[str, Any]:
        """Tell it as JSON."""
        return {
            "oldestUndeliveredS": self.oldest_undelivered_s,
            "ready": self.is_ready,
            "numbers": dict(self.numbers),
            "parts": [{"part": line.part, "mark": line.mark, "detail": line.detail} for line in self.lines],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """The parts that are asked."""

    store: InterimStore
    tenants: Tenants
    holds: Holds
    recorder: Recorder
    missing: MissingWatch
    publishers: Sequence[tuple[str, Publisher]]
    canary: Canary | None
    clock: Clock
    refused_files: Callable[[], int]
    """How many instance files can't be used."""
    audit: Callable[[], Mapping[str, str]]
    """What is wrong with audit logs, by their names."""
    servers_up: Callable[[], bool] | None
    """Whether the embedded servers are there; None where others' are used."""
    unrepeated: Unrepeated


class Health:
    """Asks all parts."""

    def __init__(self, watched: Watched, settings: HealthSettings, phase: Callable[[], str | None]) -> None:
        """`phase` tells what the service is doing besides serving, if anything: it is not ready then."""
        self._watched = watched
        self._settings = settings
        self._phase = phase
        self._steady = Steady(watched.clock)
        self._alarmed: dict[object, float] = {}

    async def run(self) -> None:
        """Say it in the log, and raise the alarm, until cancelled."""
        while True:
            self.say()
            await anyio.sleep(self._settings.log_every.total_seconds())

    def report(self) -> Report:
        """Ask all parts now."""
        return Report(oldest_undelivered_s=self._oldest_s(), lines=tuple(self._lines()), numbers=self._numbers())

    def say(self) -> None:
        """Write one line to the log, and one more for everything that is overdue."""
        report = self.report()
        log.info(
            "service.health",
            oldest_undelivered_s=report.oldest_undelivered_s,
            ready=report.is_ready,
            **report.numbers,
            troubles=[line.part for line in report.lines if line.mark is not Mark.OK],
        )
        self._alarm(report)
        self._forget_unrepeated()

    # --- inside

    def _numbers(self) -> dict[str, int]:
        index = self._watched.store.index
        return {
            "open": index.count(State.OPEN),
            "sealed": index.count(State.SEALED),
            "poison": index.count(State.POISON),
            "delivered": index.count(State.DELIVERED),
            "receptions": len(self._watched.recorder.receptions()),
            "holds": len(self._watched.holds.all()),
            "awaited": self._watched.missing.awaited,
            "missing": len(self._watched.missing),
            # A count that grows is a leak.
            "tasks": len(asyncio.all_tasks()),
        }

    def _oldest_s(self) -> float | None:
        oldest: ArtifactId | None = self._watched.store.index.oldest_waiting()
        if oldest is None:
            return None
        age = (self._watched.clock.now() - datetime.fromtimestamp((oldest.int >> 80) / 1000, UTC)).total_seconds()
        return round(max(0.0, age), 1)

    def _alarm(self, report: Report) -> None:
        limit_s = self._settings.alarm_after.total_seconds()
        overdue: dict[object, Callable[[], None]] = {}
        oldest_s = report.oldest_undelivered_s
        if oldest_s is not None and oldest_s > limit_s:
            overdue[None] = lambda: log.error("delivery.late", oldest_undelivered_s=oldest_s)
        for hold in self._watched.holds.all():
            held_s = self._held_s(hold)
            if held_s > limit_s:
                overdue[hold.instance_id, hold.scope] = partial(self._tell_hold, hold, held_s)
        now = self._watched.clock.monotonic()
        self._alarmed = {what: at for what, at in self._alarmed.items() if what in overdue}
        for what, tell in overdue.items():
            if now - self._alarmed.get(what, -limit_s) >= limit_s:
                self._alarmed[what] = now
                tell()

    def _held_s(self, hold: Hold) -> float:
        return (self._steady.now() - hold.inaccessible_since).total_seconds()

    def _needs_decision(self, hold: Hold) -> bool:
        return self._held_s(hold) > self._settings.decide_after.total_seconds()

    def _tell_hold(self, hold: Hold, held_s: float) -> None:
        instance = InstanceId(hold.instance_id)
        tenant = self._watched.tenants.get(instance)
        decide = self._needs_decision(hold)
        log.error(
            "hold.decision_needed" if decide else "hold.long",
            instance=str(instance),
            scope=hold.scope,
            code=hold.code,
            key=hold.kms_key_arn,
            held_s=round(held_s),
            detail=holdwords.told(hold, None if tenant is None else tenant.instance),
            reason=hold.message,
            lost_uploads=dict(self._watched.unrepeated.of(instance)),
            **({"decision": holdwords.DECISION} if decide else {}),
        )

    def _forget_unrepeated(self) -> None:
        held = {hold.instance_id for hold in self._watched.holds.all()}
        for instance in self._watched.unrepeated.instances():
            tenant = self._watched.tenants.get(instance)
            if instance not in held and (tenant is None or tenant.ring.state.code is None):
                self._watched.unrepeated.forget(instance)

    def _lines(self) -> Iterator[Line]:
        watched, numbers, phase = self._watched, self._numbers(), self._phase()
        yield Line("service", Mark.FAILS if phase else Mark.OK, phase or "serving")
        yield _store(numbers)
        refusal = watched.store.room.refusal
        yield Line("room", Mark.FAILS if refusal else Mark.OK, f"refusing intake, {refusal}" if refusal else "ok")
        yield self._keys()
        yield self._destinations()
        yield from self._overdue()
        yield self._journal()
        for name, publisher in watched.publishers:
            yield _counted(f"events out to {name}", publisher.failures, "refusals in a row", "following")
        if watched.servers_up is not None:
            up = watched.servers_up()
            yield Line("children", Mark.OK if up else Mark.WARNS, "up" if up else "being started again")
        waited = f"none; {numbers['awaited']} awaited"
        yield _counted("missing", numbers["missing"], "announced recordings have not come", waited)
        yield _counted("configuration", watched.refused_files(), "instance files can't be used", "ok")
        yield _counted("audit", len(watched.audit()), "audit logs can't be written to, or are broken", "ok")
        if watched.canary is not None:
            late, detail = watched.canary.state()
            yield Line("canary", Mark.WARNS if late else Mark.OK, detail)
        drift = self._steady.jumped_s()
        yield Line("clock", Mark.WARNS if abs(drift) > _DRIFT_S else Mark.OK, f"{drift:+.1f} s since the start")
        yield _counted("log", logs.dropped(), "lines were dropped", "ok")
        yield Line("tasks", Mark.OK, str(numbers["tasks"]))

    def _keys(self) -> Line:
        states = [tenant.ring.state.code for tenant in self._watched.tenants]
        unusable = sum(len(tenant.ring.unusable) for tenant in self._watched.tenants)
        refused = Counter(str(code) for code in states if code is not None)
        detail = f"{states.count(None)} usable{_listed(refused)}"
        if unusable:
            detail += f", {unusable} ring files not used"
        return Line("keys", Mark.WARNS if refused or unusable else Mark.OK, detail)

    def _destinations(self) -> Line:
        holds = self._watched.holds.all()
        held = Counter(str(hold.code) for hold in holds if hold.scope != KEYS)
        instances = len({hold.instance_id for hold in holds})
        detail = f"{len(holds)} holds of {instances} instances{_listed(held)}" if holds else "none held"
        return Line("destinations", Mark.WARNS if holds else Mark.OK, detail)

    def _overdue(self) -> Iterator[Line]:
        """Tell what somebody must decide, and what was lost already, where there is any."""
        undecided = sum(map(self._needs_decision, self._watched.holds.all()))
        if undecided:
            days = self._settings.decide_after.days
            yield Line("decisions", Mark.WARNS, f"{undecided} holds for more than {days} days: an operator must decide")
        lost: Counter[str] = Counter()
        for instance in self._watched.unrepeated.instances():
            lost.update(self._watched.unrepeated.of(instance))
        if lost:
            sources = ", ".join(f"{source} {count}" for source, count in sorted(lost.items()))
            yield Line("lost uploads", Mark.WARNS, f"refused for held keys, and not sent again: {sources}")

    def _journal(self) -> Line:
        unread = sum(not self._watched.missing.is_replayed(tenant) for tenant in self._watched.tenants)
        return _counted("journal", unread, "instances' not read yet", "ok")


def _store(numbers: Mapping[str, int]) -> Line:
    detail = "{open} open ({receptions} in memory), {sealed} sealed, {poison} poison, {delivered} delivered"
    return Line("store", Mark.WARNS if numbers["poison"] else Mark.OK, detail.format(**numbers))


def _counted(part: str, count: int, trouble: str, well: str) -> Line:
    return Line(part, Mark.WARNS, f"{count} {trouble}") if count else Line(part, Mark.OK, well)


def _listed(counts: Counter[str]) -> str:
    return "".join(f", {count} {code}" for code, count in sorted(counts.items()))
