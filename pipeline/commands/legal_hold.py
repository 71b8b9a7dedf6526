"""`pipeline legal-hold`: what must not be removed, whoever asks and with whatever option.

Each is recorded in the audit trail before it is in force, or lifted.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

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
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.ids import InstanceId
    from pipeline.legalholds import LegalHold

EXAMPLES = {
    "add": "Example: pipeline legal-hold add acme --contact c-42 --reason 'Smith v. Acme'",
    "release": "Example: pipeline legal-hold release 5b0c4e2a-93f1-4a5e-8f51-0d6c1f1b7a90 --reason 'case closed'",
    "list": "Example: pipeline legal-hold list",
}


def add(
    instance: Annotated[str, typer.Argument(metavar="ALIAS|ID", help="The instance.")],
    reason: ReasonOption,
    contact: Annotated[
        str | None, typer.Option("--contact", metavar="CONTACT", show_default=False, help="Only this contact of it.")
    ] = None,
    recording: Annotated[
        UUID | None,
        typer.Option("--recording", metavar="ID", show_default=False, help="Only this recording, or artifact, of it."),
    ] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Place a legal hold on an instance, on a contact of it or on a recording: nothing of it may be removed here.

    Recordings go on being taken in and delivered. Once one is delivered, its bucket is where to keep it.
    """
    import anyio

    from pipeline.intake.contacts import object_contact

    site = open_site(config, state_dir)
    instance_id = site.find(instance)
    assert instance_id is not None
    if contact is not None and recording is not None:
        raise RefuseError("a hold is on a contact or on a recording; place two", field="--recording")
    if contact == "":
        raise RefuseError("the contact's id is expected", field="--contact")
    safe = None if contact is None else object_contact(contact, instance_id)[0]
    hold = anyio.run(_add, site, instance_id, safe, recording, checked_reason(reason))
    _answer(site, "placed", hold, as_json=as_json)


def release(
    hold_id: Annotated[UUID, typer.Argument(metavar="HOLD", help="The hold's id, as listed.")],
    reason: ReasonOption,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lift a legal hold. Other holds on the same stay in force."""
    import anyio

    from pipeline.legalholds import load_legal_holds

    site = open_site(config, state_dir)
    known = {hold.hold_id: hold for hold in load_legal_holds(site.settings.config_dir).holds}
    if hold_id not in known:
        raise RefuseError("there is no such legal hold; see `pipeline legal-hold list`", field="HOLD")
    anyio.run(_release, site, known[hold_id], checked_reason(reason))
    _answer(site, "released", known[hold_id], as_json=as_json)


def list_holds(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: InstanceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the legal holds in force. Exit code 1 if there are any, else 0."""
    from pipeline.legalholds import load_legal_holds

    site = open_site(config, state_dir)
    wanted = site.find(instance)
    holds = load_legal_holds(site.settings.config_dir).holds
    rows = [_row(site, hold) for hold in holds if wanted in {None, hold.instance_id}]
    if as_json:
        screen.emit({"legalHolds": rows})
    else:
        columns = ("hold", "instance", "on", "placed", "by", "reason")
        cells = [
            (row["holdId"], row["instance"], row["on"], row["placedAt"], row["placedBy"], row["reason"]) for row in rows
        ]
        screen.table(f"legal holds: {len(rows)}", columns, cells)
    if rows:
        raise typer.Exit(ExitCode.FOUND)


# --- inside


async def _add(
    site: Site, instance: "InstanceId", contact: str | None, recording: UUID | None, reason: str
) -> "LegalHold":
    import anyio.to_thread

    from pipeline.commands.access import open_access
    from pipeline.legalholds import LegalHold, place

    async with open_access(site.settings) as access:
        hold = LegalHold(
            hold_id=uuid4(),
            instance_id=instance,
            contact=contact,
            recording_id=recording,
            reason=reason,
            placed_by=access.actor.name,
            placed_at=datetime.now(UTC),
        )
        await access.record(access.trail.changed(instance, "LegalHoldPlaced", **_details(hold), reason=reason))
        await anyio.to_thread.run_sync(place, site.settings.config_dir, hold)
        return hold


async def _release(site: Site, hold: "LegalHold", reason: str) -> None:
    import anyio.to_thread

    from pipeline.commands.access import open_access
    from pipeline.ids import InstanceId
    from pipeline.legalholds import release

    async with open_access(site.settings) as access:
        instance = InstanceId(hold.instance_id)
        details = {**_details(hold), "placedFor": hold.reason, "placedBy": hold.placed_by, "reason": reason}
        await access.record(access.trail.changed(instance, "LegalHoldReleased", **details))
        await anyio.to_thread.run_sync(release, site.settings.config_dir, hold)


def _details(hold: "LegalHold") -> dict[str, Any]:
    return {
        "holdId": str(hold.hold_id),
        "contact": hold.contact,
        "recordingId": None if hold.recording_id is None else str(hold.recording_id),
    }


def _row(site: Site, hold: "LegalHold") -> dict[str, Any]:
    from pipeline.ids import InstanceId

    on = "all of it"
    if hold.contact is not None:
        on = f"contact {hold.contact}"
    if hold.recording_id is not None:
        on = f"recording {hold.recording_id}"
    return {
        **_details(hold),
        "instanceId": str(hold.instance_id),
        "instance": site.alias(InstanceId(hold.instance_id)),
        "on": on,
        "reason": hold.reason,
        "placedBy": hold.placed_by,
        "placedAt": hold.placed_at.isoformat(timespec="seconds"),
    }


def _answer(site: Site, verb: str, hold: "LegalHold", *, as_json: bool) -> None:
    row = _row(site, hold)
    if as_json:
        screen.emit({verb: row})
    else:
        screen.say(f"{verb}: legal hold {row['holdId']} on {row['instance']}, {row['on']}")
