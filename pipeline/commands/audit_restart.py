"""`pipeline audit restart`: let a log go on that is broken, was cut, or came back from a backup."""

from typing import Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.audit_logs import NODE, chosen
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import RefuseError

EXAMPLE = 'Example: pipeline audit restart acme --reason "disk replaced, log restored as far as it was"'


def restart(
    instance: Annotated[str, typer.Argument(metavar="ALIAS|ID|node", help="Whose log.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why: it stands in the log.")],
    aside: Annotated[
        bool, typer.Option("--set-aside", help="Begin an empty log; the broken one goes to lost+found/.")
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an audit log go on under a new key, after a person has looked at why it refuses. The service must be stopped.

    First try to bring back what is missing: then nothing of this is needed. The first record of the new series says who
    did it and why, and what the old key had signed; key, checkpoints and digests of before are kept. A log whose lines
    do not follow each other can't go on: use --set-aside.
    """
    import anyio

    site = open_site(config, state_dir)
    answer = anyio.run(_restart, site, instance, reason, aside)
    if as_json:
        screen.emit(answer)
    else:
        screen.say(f"the log goes on under a new key; keep it apart from this machine: {answer['key']}")


async def _restart(site: Site, wanted: str, reason: str, aside: bool) -> dict[str, Any]:
    from uuid import UUID

    import anyio.to_thread

    from pipeline.adapters.disk import holder
    from pipeline.audit.series import begin_series, set_aside
    from pipeline.audit.signing import SigningKeys
    from pipeline.commands.access import open_access
    from pipeline.ids import InstanceId

    if holder(f"{site.root}/lock") is not None:
        raise RefuseError("the service is running, and keeps the log open. Stop it first")
    keys = SigningKeys(site.settings.config_dir)
    async with open_access(site.settings) as access:
        [log] = chosen(site, access.files, wanted)
        directory = f"{site.root}/audit/{log}"
        details: dict[str, Any] = {"reason": reason}
        if aside and access.files.names(directory):
            place = f"{site.root}/lost+found/audit-{log}-{keys.verifier(log).key_id}"
            details["setAside"] = await anyio.to_thread.run_sync(set_aside, directory, access.files, place)
        details |= await anyio.to_thread.run_sync(begin_series, directory, access.files, keys)
        if log == NODE:
            line = access.trail.on_node("AuditLogRestarted", **details)
        else:
            line = access.trail.changed(InstanceId(UUID(log)), "AuditLogRestarted", **details)
        await access.record(line)
    return {"log": log, "key": str(keys.verifier(log)), **details}
