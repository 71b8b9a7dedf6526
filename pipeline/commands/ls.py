"""`pipeline ls`: what the store holds, from names alone."""

from collections.abc import Iterator, Mapping
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
from pipeline.errors import PipelineError

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
    as_json: JsonOption = False,
) -> None:
    """List recordings that are held here, and the receipts of those delivered lately. Opens nothing."""
    site = open_site(config, state_dir)
    wanted = site.find(instance)
    rows = [
        row
        for name, row in _rows(site)
        if (wanted is None or name.instance_id == wanted)
        and (state is None or row["state"] == state)
        and (kind is None or name.kind == kind.value)
    ]
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
        yield name, {key: value for key, value in row.items() if value is not None}


def _remark(row: Mapping[str, Any]) -> str:
    if "bucket" in row:
        return f"s3://{row['bucket']}/{row['key']}"
    if "heldReason" in row:
        return f"held: {row['heldReason']}"
    return str(row.get("poison") or row.get("problem") or "")
