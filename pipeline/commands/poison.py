"""`pipeline poison`: what no retry could help. See it, give it back to delivery, or remove it for good.

Both are recorded, with the reason that a person gives, before they are done.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import (
    ConfigOption,
    InstanceOption,
    JsonOption,
    ReasonOption,
    Site,
    StateDirOption,
    checked_reason,
    open_site,
)
from pipeline.commands.running import tell_service
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.interim.states import ArtifactName

ADVICE: Mapping[str, str] = {
    "integrity": "its file is damaged: restore it from a backup of the store, then requeue it",
    "destination-conflict": "other objects hold its keys: move them away in the bucket, then requeue it",
    "destination-refused": "the bucket refuses it: mend what it names in the log, then requeue it",
}
"""What a person can do, by why it is poison."""

EXAMPLES = {
    "list": "Example: pipeline poison list --instance acme",
    "requeue": "Example: pipeline poison requeue 01a208b9-9dc0-7e08-9d5a-3f1c8e2b6a90 --reason 'bucket cleared'",
    "discard": "Example: pipeline poison discard 01a208b9-9dc0-7e08-9d5a-3f1c8e2b6a90 --reason 'test call' --yes",
}

ArtifactsArgument = Annotated[
    list[UUID] | None, typer.Argument(metavar="[ARTIFACT]...", show_default=False, help="Artifact ids, as listed.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All that --instance and --code leave, and that can be.")]
CodeOption = Annotated[
    str | None, typer.Option("--code", metavar="CODE", show_default=False, help="Poison of this code only.")
]


def list_poison(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: InstanceOption = None,
    code: CodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what waits for a person, with what can be done. Opens nothing.

    Exit code 1 if there is any, else 0.
    """
    site = open_site(config, state_dir)
    rows = [_row(site, name) for name in _chosen(site, None, instance, code)]
    if as_json:
        for row in rows:
            screen.emit(row)
    else:
        columns = ("artifact", "instance", "kind", "gen", "size", "age", "code", "what to do")
        cells = [
            (
                row["artifactId"],
                row["instance"],
                row["kind"],
                row["generation"],
                screen.size(row["sizeBytes"]),
                screen.age(row["ageS"]),
                row["code"],
                row["action"],
            )
            for row in rows
        ]
        screen.table(f"poison: {len(rows)}", columns, cells, right=("gen", "size", "age"))
    if rows:
        raise typer.Exit(ExitCode.FOUND)


def requeue(
    reason: ReasonOption,
    artifacts: ArtifactsArgument = None,
    take_all: AllOption = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: InstanceOption = None,
    code: CodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give poison back to delivery, when what made it poison is mended. A running service takes it up at once."""
    import anyio

    site = open_site(config, state_dir)
    names = _wanted(site, artifacts, instance, code, take_all=take_all)
    if take_all:
        names = [name for name in names if name.size_bytes is not None]
    elif any(name.size_bytes is None for name in names):
        raise RefuseError("what was damaged before it was sealed can't be delivered, only kept or discarded")
    anyio.run(_requeue, site, names, checked_reason(reason))
    _answer(site, "requeued", names, as_json=as_json)


def discard(
    reason: ReasonOption,
    artifacts: ArtifactsArgument = None,
    take_all: AllOption = False,
    sure: Annotated[bool, typer.Option("--yes", help="Needed: its bytes are removed and can't be had back.")] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: InstanceOption = None,
    code: CodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove poison for good. What it was, why and by whom is kept in `discards/` and in the audit trail.

    Refused for all of them if one is under a legal hold.
    """
    import anyio

    site = open_site(config, state_dir)
    names = _wanted(site, artifacts, instance, code, take_all=take_all)
    checked = checked_reason(reason)
    if not sure:
        raise RefuseError(f"{len(names)} recordings would be lost for good. Give --yes if that is meant", field="--yes")
    anyio.run(_discard, site, names, checked)
    _answer(site, "discarded", names, as_json=as_json)


# --- inside


def _chosen(
    site: Site, artifacts: Sequence[UUID] | None, instance: str | None, code: str | None
) -> "list[ArtifactName]":
    from pipeline.adapters.disk import Disk
    from pipeline.interim.states import State
    from pipeline.interim.survey import survey

    of_instance = site.find(instance)
    return [
        name
        for name in survey(site.root, Disk()).standing(State.POISON)
        if artifacts is None or name.artifact_id in artifacts
        if of_instance is None or name.instance_id == of_instance
        if code is None or name.poison == code
    ]


def _wanted(
    site: Site, artifacts: Sequence[UUID] | None, instance: str | None, code: str | None, *, take_all: bool
) -> "list[ArtifactName]":
    """Give what was asked for, all or nothing. Raises `RefuseError`."""
    if bool(artifacts) == take_all:
        raise RefuseError("name artifacts, or give --all", field="ARTIFACT")
    names = _chosen(site, artifacts or None, instance, code)
    missing = set(artifacts or ()) - {name.artifact_id for name in names}
    if missing:
        raise RefuseError(f"{len(missing)} of them are no such poison; see `pipeline poison list`", field="ARTIFACT")
    return names


async def _requeue(site: Site, names: "Sequence[ArtifactName]", reason: str) -> None:
    from pipeline.commands.access import open_access
    from pipeline.interim.poison import requeue

    async with open_access(site.settings) as access:
        for name in names:
            await _record(access, name, "ArtifactRequeued", reason)
            requeue(site.root, access.files, name)


async def _discard(site: Site, names: "Sequence[ArtifactName]", reason: str) -> None:
    import msgspec

    from pipeline.commands.access import open_access
    from pipeline.commands.removal import refuse_for_artifacts
    from pipeline.interim.logs import LogLine
    from pipeline.interim.poison import Discarded, digest_of, discard

    async with open_access(site.settings) as access:
        await refuse_for_artifacts(site, access, names)
        for name in names:
            now = access.clock.now()
            size, digest = digest_of(site.root, access.files, name)
            trace = Discarded(
                artifact_id=name.artifact_id,
                instance_id=name.instance_id,
                kind=name.kind,
                generation=name.generation,
                data_key_id=name.key_id,
                size_bytes=name.size_bytes,
                poison=name.poison,
                file_bytes=size,
                file_sha256=digest,
                reason=reason,
                discarded_by=access.actor.name,
                discarded_at=now,
            )
            path = f"{site.root}/discards/{name.instance_id}/{now:%Y-%m-%d}.{access.writer}.jsonl"
            await access.record(LogLine(path, msgspec.json.encode(trace)))
            await _record(access, name, "ArtifactDiscarded", reason, fileBytes=size, fileSha256=digest)
            discard(site.root, access.files, name)


async def _record(access: "Access", name: "ArtifactName", verb: str, reason: str, **more: Any) -> None:
    from pipeline.ids import RecordingId

    recording_id = RecordingId(name.artifact_id)
    await access.record(access.trail.moved(name, recording_id, verb, poison=name.poison, reason=reason, **more))


def _row(site: Site, name: "ArtifactName") -> dict[str, Any]:
    from pipeline.interim.survey import begun

    return {
        "artifactId": str(name.artifact_id),
        "instanceId": str(name.instance_id),
        "instance": site.alias(name.instance_id),
        "kind": name.kind,
        "generation": name.generation,
        "sizeBytes": name.size_bytes,
        "ageS": round((datetime.now(UTC) - begun(name)).total_seconds(), 3),
        "code": name.poison,
        "was": name.state,
        "action": ADVICE.get(name.poison or "", "see the log for why; requeue it when that is mended"),
    }


def _answer(site: Site, verb: str, names: "Sequence[ArtifactName]", *, as_json: bool) -> None:
    told = tell_service(site)
    if as_json:
        screen.emit({verb: [str(name.artifact_id) for name in names], "serviceTold": told})
    else:
        screen.say(f"{verb}: {len(names)}")
