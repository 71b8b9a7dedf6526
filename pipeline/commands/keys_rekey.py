"""`pipeline keys rekey`: other data keys for what is sealed under some that may be known."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.jobs import carry_out, end
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.instances import Instance

EXAMPLE = (
    "Example: pipeline keys rekey acme --data-key 5c86bb9f-5151-4dca-8318-8ceefc7f43e4 --reason 'disk image was copied'"
)


def rekey(
    wanted: Annotated[str, typer.Argument(metavar="INSTANCE", help="Alias or id.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; is recorded.")],
    data_key: Annotated[
        UUID | None,
        typer.Option("--data-key", metavar="ID", show_default=False, help="This data key; without it all of them."),
    ] = None,
    drop_lost: Annotated[
        bool,
        typer.Option("--drop-lost", help="Remove pieces in lost+found/ that do not open; they never will again."),
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Seal everything held under a data key again under a new one, and destroy it: for one that may be known.

    What is being received or delivered is waited for; a running service goes on by itself when it can. Copies of the
    ring file in backups are not reached.

    Exit code 1 if some of it does not open and needs a person, 4 if it has to wait.
    """
    site = open_site(config, state_dir)
    instance = site.configured(wanted)
    keys = _chosen(site, instance, data_key)
    details = {"dataKeys": [str(key) for key in keys], "dropLost": drop_lost}
    report = carry_out(site, _verb(), instance.instance_id, details, reason=reason, what="sealing again")
    answer = {
        "instanceId": str(instance.instance_id),
        "status": report.status,
        "destroyed": report.outcome.get("destroyed", []),
        "damaged": report.outcome.get("damaged", []),
        "message": report.message,
    }
    if as_json:
        screen.emit(answer)
    else:
        for key in answer["destroyed"]:
            screen.say(f"destroyed data key {key}: nothing that is held needs it. Backups may still hold it")
        for name in answer["damaged"]:
            screen.say(f"does not open: {name}")
    end(report)


# --- inside


def _verb() -> str:
    from pipeline.rekey import VERB

    return VERB


def _chosen(site: Site, instance: "Instance", data_key: UUID | None) -> list[UUID]:
    """Give the data keys to be replaced, oldest name first. Raises `RefuseError` if there is none such."""
    from pipeline.adapters.disk import Disk
    from pipeline.crypt.ringdirectory import RingDirectory

    found = sorted(RingDirectory(Disk(), f"{site.root}/keys/{instance.instance_id}").read())
    if data_key is None and found:
        return list(found)
    if data_key is None or data_key not in found:
        raise RefuseError("the instance has no such data key; see `pipeline keys status`", field="--data-key")
    return [data_key]
