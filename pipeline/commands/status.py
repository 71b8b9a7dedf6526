"""`pipeline status`: what waits, for how long, and why."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from pipeline import holdwords
from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.ls import Shown, shown
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site

if TYPE_CHECKING:
    from pipeline.delivery.holds import Hold
    from pipeline.ids import InstanceId
    from pipeline.interim.states import ArtifactName
    from pipeline.ports import FileSystem

EXAMPLE = "Example: pipeline status --json"
MOST_MISSING = 1_000
SHOWN_MISSING = 10
"""Of the missing recordings that are told, the latest."""


def status(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Say how long the oldest undelivered recording has waited; then counts, and what is held and why.

    Exit code 4 if anything is held, else 1 if a recording needs a person (poison, or announced and missing), else 0.
    """
    facts = _facts(open_site(config, state_dir))
    if as_json:
        screen.emit(facts)
    else:
        _show(facts)
    if facts["holds"]:
        raise typer.Exit(ExitCode.WAITING)
    if facts["poison"]["count"] or facts["missing"]["count"]:
        raise typer.Exit(ExitCode.FOUND)


def _facts(site: Site) -> dict[str, Any]:
    from pipeline.adapters.disk import Disk, holder
    from pipeline.delivery.holds import read_holds
    from pipeline.interim.states import State
    from pipeline.interim.survey import survey

    files = Disk()
    now = datetime.now(UTC)
    found = survey(site.root, files)
    waiting, opened, poison = (found.standing(state) for state in (State.SEALED, State.OPEN, State.POISON))
    pid = holder(f"{site.root}/lock")
    return {
        "oldestUndelivered": _oldest(site, waiting, now),
        "oldestOpen": _oldest(site, opened, now),
        "open": {"count": len(opened), "bytes": _on_disk(site, opened)},
        "sealed": {"count": len(waiting), "bytes": sum(name.size_bytes or 0 for name in waiting)},
        "poison": {"count": len(poison), "bytes": _on_disk(site, poison)},
        "delivered": {"count": len(found.standing(State.DELIVERED))},
        "missing": _missing(site, files),
        "instances": _by_instance(site, found.names),
        "holds": [_hold(site, hold, now) for hold in read_holds(f"{site.root}/holds", files)],
        "strangers": len(found.strangers),
        "canary": _canary(site, files, now),
        "service": {"running": pid is not None, "pid": pid},
        "configurationProblems": len(site.loaded.problems),
    }


def _oldest(site: Site, names: "list[ArtifactName]", now: datetime) -> dict[str, Any] | None:
    from pipeline.interim.survey import begun

    if not names:
        return None
    name = names[0]
    return {
        "ageS": round((now - begun(name)).total_seconds(), 3),
        "begun": begun(name).isoformat(timespec="milliseconds"),
        "artifactId": str(name.artifact_id),
        "instance": site.alias(name.instance_id),
        "kind": name.kind,
    }


def _on_disk(site: Site, names: "Iterable[ArtifactName]") -> int:
    """Add up what files take; one that has moved on meanwhile is passed over."""
    from pathlib import Path

    total = 0
    for name in names:
        try:
            total += Path(site.root, "artifacts", name.path).lstat().st_size
        except FileNotFoundError:
            continue
    return total


def _by_instance(site: Site, names: "Iterable[ArtifactName]") -> list[dict[str, Any]]:
    counts: defaultdict[InstanceId, Counter[str]] = defaultdict(Counter)
    for instance_id in site.loaded.instances:
        counts[instance_id] = Counter()
    for name in names:
        counts[name.instance_id][shown(name)] += 1
    return [
        {"instance": site.alias(instance_id), "instanceId": str(instance_id)}
        | {state.value: count[state] for state in Shown}
        for instance_id, count in counts.items()
    ]


def _missing(site: Site, files: "FileSystem") -> dict[str, Any]:
    """Tell what was announced and did not come, the latest first, not all of a long list."""
    from pipeline.ids import InstanceId
    from pipeline.intake.missinglog import read_missing

    found = sorted(read_missing(f"{site.root}/missing", files), key=lambda each: each.given_up, reverse=True)
    return {
        "count": len(found),
        "latest": [
            {
                "recordingId": str(each.recording_id),
                "instance": site.alias(InstanceId(each.instance_id)),
                "kind": each.kind,
                "contact": each.contact,
                "announced": each.announced.isoformat(timespec="seconds"),
                "givenUp": each.given_up.isoformat(timespec="seconds"),
            }
            for each in found[:MOST_MISSING]
        ],
    }


def _canary(site: Site, files: "FileSystem", now: datetime) -> dict[str, Any] | None:
    from pipeline.canary import read_arrival

    last = read_arrival(f"{site.root}/canary.json", files)
    if last is None:
        return None
    return {
        "arrived": last.at.isoformat(timespec="seconds"),
        "ageS": round((now - last.at).total_seconds(), 3),
        "latencyS": last.latency_s,
    }


def _hold(site: Site, hold: "Hold", now: datetime) -> dict[str, Any]:
    from pipeline.ids import InstanceId

    instance = site.loaded.instances.get(InstanceId(hold.instance_id))
    held_s = (now - hold.inaccessible_since).total_seconds()
    return {
        "instance": site.alias(InstanceId(hold.instance_id)),
        "instanceId": str(hold.instance_id),
        "scope": hold.scope,
        "code": hold.code,
        "kmsKeyArn": hold.kms_key_arn,
        "since": hold.inaccessible_since.isoformat(timespec="seconds"),
        "heldS": round(held_s),
        "message": hold.message,
        "safe": holdwords.safe(hold),
        "action": holdwords.action(hold, instance),
        "told": holdwords.told(hold, instance),
        "decisionNeeded": held_s > site.settings.health.decide_after.total_seconds(),
    }


def _show(facts: Mapping[str, Any]) -> None:
    oldest = facts["oldestUndelivered"]
    if oldest is None:
        screen.say("oldest undelivered: none, everything sealed is delivered")
    else:
        screen.say(
            f"oldest undelivered: {screen.age(oldest['ageS'])}"
            f" ({oldest['kind']} of {oldest['instance']}, {oldest['artifactId']})"
        )
    service = facts["service"]
    screen.say(f"service: running, process {service['pid']}" if service["running"] else "service: not running")
    if (canary := facts["canary"]) is not None:
        screen.say(f"canary: last arrived {screen.age(canary['ageS'])} ago, in {canary['latencyS']:.1f} s")
    for state in ("open", "sealed", "poison"):
        screen.say(f"{state}: {facts[state]['count']}, {screen.size(facts[state]['bytes'])}")
    if facts["strangers"]:
        screen.say(f"{facts['strangers']} files among the artifacts are not ours; the service moves them aside")
    if facts["configurationProblems"]:
        screen.say(f"{facts['configurationProblems']} instance files can't be used; see `pipeline instance list`")
    states = [state.value for state in Shown]
    rows = [[each["instance"], *(each[state] for state in states)] for each in facts["instances"]]
    screen.table("", ("instance", *states), rows, right=states)
    for hold in facts["holds"]:
        screen.say(f"held: {hold['instance']} ({hold['scope']}): {hold['told']}")
        screen.say(f"  as it answered: {hold['message']}")
        if hold["decisionNeeded"]:
            screen.say(f"  held for {screen.age(hold['heldS'])}: {holdwords.DECISION}")
    if facts["poison"]["count"]:
        screen.say("what is poison waits for a person, its bytes kept; see `pipeline ls --state poison`")
    _show_missing(facts["missing"])


def _show_missing(missing: Mapping[str, Any]) -> None:
    if not missing["count"]:
        return
    screen.say(f"missing: {missing['count']} announced recordings have not come; see to their recorders")
    for each in missing["latest"][:SHOWN_MISSING]:
        screen.say(
            f"  {each['kind']} of {each['instance']}, contact {each['contact']}, announced {each['announced']}"
            f" ({each['recordingId']})"
        )
