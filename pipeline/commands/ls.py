"""`pipeline ls`: what the store holds, from names and receipts alone, unless flags are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.options import (
    ConfigOption,
    InstanceOption,
    JsonOption,
    KindOption,
    Site,
    StateDirOption,
    open_site,
)
from pipeline.errors import PipelineError, RefuseError

if TYPE_CHECKING:
    from pipeline.interim.states import ArtifactName

EXAMPLE = "Example: pipeline ls --state sealed --kind voice"


class Shown(StrEnum):
    """States as they are shown."""

    OPEN = "open"
    SEALED = "sealed"
    DELIVERED = "delivered"
    POISON = "poison"


def ls(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: InstanceOption = None,
    state: Annotated[Shown | None, typer.Option(show_default=False, help="This state only.")] = None,
    kind: KindOption = None,
    flags: Annotated[
        bool, typer.Option("--flags", help="Open the manifests of sealed ones, for what is odd about them.")
    ] = False,
    contact: Annotated[
        str | None, typer.Option(metavar="ID", show_default=False, help="Recordings of this contact only.")
    ] = None,
    number: Annotated[
        bool, typer.Option("--number", help="Of contacts that have the number on standard input: it is personal.")
    ] = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Add what is known of each one's contact, but for numbers and names.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", show_default=False, help="Why contacts are opened: is recorded.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List recordings that are held here, and the receipts of those delivered lately. Opens nothing by itself.

    --flags, --contact, --number and --metadata do. While a KMS key can't be used everything is still listed that its
    name tells, with the reason. A receipt says what was odd about its recording, as SUSPECT_EMPTY; a sealed artifact
    only in its manifest.
    """
    site = open_site(config, state_dir)
    wanted = site.find(instance)
    found = [
        (name, row)
        for name, row in _rows(site)
        if (wanted is None or name.instance_id == wanted)
        and (state is None or row["state"] == state)
        and (kind is None or name.kind == kind.value)
    ]
    if flags:
        _add_flags(site, found)
    if contact is not None or number or metadata:
        found = _joined(site, found, contact, metadata=metadata, reason=reason, by_number=number)
    rows = [row for _, row in found]
    if as_json:
        for row in rows:
            screen.emit(row)
        return
    columns = ("artifact", "instance", "kind", "state", "gen", "size", "age", "where, or why not")
    screen.table(
        f"artifacts: {len(rows)}",
        columns,
        [
            (
                row["artifactId"],
                row["instance"],
                row["kind"],
                row["state"],
                row["generation"],
                screen.size(row.get("sizeBytes")),
                screen.age(row["ageS"]),
                _remark(row),
            )
            for row in rows
        ],
        right=("gen", "size", "age"),
    )


def shown(name: "ArtifactName") -> Shown:
    """Tell the state of an artifact as it is shown."""
    return Shown.DELIVERED if name.standing == "done" else Shown(name.standing.value)


def _rows(site: Site) -> "Iterator[tuple[ArtifactName, dict[str, Any]]]":
    from pipeline.adapters.disk import Disk
    from pipeline.commands.receipts import receipt_of
    from pipeline.delivery.holds import read_holds, scopes_of
    from pipeline.interim.states import State
    from pipeline.interim.survey import begun, survey

    files = Disk()
    now = datetime.now(UTC)
    holds = {(hold.instance_id, hold.scope): hold.code for hold in read_holds(f"{site.root}/holds", files)}
    for name in survey(site.root, files).names:
        row: dict[str, Any] = {
            "artifactId": str(name.artifact_id),
            "instanceId": str(name.instance_id),
            "instance": site.alias(name.instance_id),
            "kind": name.kind,
            "state": shown(name),
            "generation": name.generation,
            "sizeBytes": name.size_bytes,
            "begun": begun(name).isoformat(timespec="milliseconds"),
            "ageS": round((now - begun(name)).total_seconds(), 3),
            "poison": name.poison,
        }
        if name.standing is State.SEALED:
            found = (holds.get((name.instance_id, scope)) for scope in scopes_of(name))
            row["heldReason"] = next((code for code in found if code is not None), None)
        if name.standing is State.DELIVERED:
            try:
                receipt = receipt_of(site.root, files, name)
            except PipelineError as error:
                row["problem"] = str(error)
            else:
                row |= {"recordingId": str(receipt.recording_id), "bucket": receipt.bucket, "key": receipt.key}
                row["quality"] = receipt.quality or None
        yield name, {key: value for key, value in row.items() if value is not None}


def _add_flags(site: Site, found: "Sequence[tuple[ArtifactName, dict[str, Any]]]") -> None:
    import anyio

    from pipeline.commands.flags import flags_of

    sealed = {name: row for name, row in found if row["state"] is Shown.SEALED}
    for name, quality in anyio.run(flags_of, site, sealed).items():
        if isinstance(quality, PipelineError):
            sealed[name]["problem"] = str(quality)
        elif quality:
            sealed[name]["quality"] = quality


def _joined(
    site: Site,
    found: "list[tuple[ArtifactName, dict[str, Any]]]",
    contact: str | None,
    *,
    metadata: bool,
    reason: str | None,
    by_number: bool,
) -> "list[tuple[ArtifactName, dict[str, Any]]]":
    import anyio

    from pipeline.commands.contacts import joined
    from pipeline.commands.options import standard_input

    number = None
    if by_number:
        number = standard_input().read1(4096).decode(errors="replace").strip()
        if not number:
            raise RefuseError("a number is expected on standard input", field="--number")

    async def join() -> "tuple[list[tuple[ArtifactName, dict[str, Any]]], int]":
        return await joined(site, found, contact=contact, number=number, metadata=metadata, reason=reason)

    kept, untold = anyio.run(join)
    if untold:
        screen.note(f"{untold} more may be among them: their contacts can't be told now")
    return kept


def _contact(row: Mapping[str, Any]) -> str:
    known = row.get("metadata", {})
    said = [row.get("contact"), known.get("eventType"), known.get("initiationMethod"), known.get("initiationTimestamp")]
    problem = row.get("metadataProblem") or row.get("contactProblem")
    return " ".join([str(each) for each in said if each] + ([f"({problem})"] if problem else []))


def _remark(row: Mapping[str, Any]) -> str:
    flags = " ".join(row.get("quality", ()))
    if "bucket" in row:
        where = f"s3://{row['bucket']}/{row['key']}"
    elif "heldReason" in row:
        where = f"held: {row['heldReason']}"
    else:
        where = str(row.get("poison") or row.get("problem") or "")
    return " ".join(filter(None, (where, flags, _contact(row))))
