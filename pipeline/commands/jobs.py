"""Jobs, as the commands that ask for them see them: asked for on disk, done by the service or here, looked at."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import Site
from pipeline.commands.running import tell_service
from pipeline.errors import HaltError

if TYPE_CHECKING:
    from pipeline.ids import InstanceId
    from pipeline.jobs import Ask, JobFolder, Report

LOOKED_AT_EVERY_S = 0.1
PATIENCE_S = 10.0
"""How long a job that waits for something is looked on at, before the command leaves it to the service."""


def carry_out(
    site: Site, verb: str, instance: "InstanceId", details: Mapping[str, Any], *, reason: str, what: str
) -> "Report":
    """Ask for a job and see it through; a bar on a terminal shows how far it is.

    The running service does it, and goes on if this command is ended. Without one it is done here. The same job asked
    for again while it is under way is looked on at, not done twice.

    Raises:
        HaltError: the store can't be used.
        DeferError: it could not be asked for.

    """
    import anyio

    folder = _folder(site)
    ask = anyio.run(_asked, site, folder, verb, instance, details, reason)
    if not tell_service(site):
        try:
            return anyio.run(_done_here, site, folder, ask, what)
        except HaltError:
            if not tell_service(site):  # none was started meanwhile, either
                raise
    return _looked_on(site, folder, ask, what)


def end(report: "Report") -> None:
    """End a command as its job did. Raises `typer.Exit` unless that is well."""
    from pipeline.jobs import JobStatus

    match report.status:
        case JobStatus.COMPLETED:
            return
        case JobStatus.FAILED:
            screen.note(f"pipeline: {report.message}")
            raise typer.Exit(ExitCode.REFUSED if report.refused else ExitCode.FOUND)
        case _:
            why = report.message or "the service has not come to it yet"
            screen.note(f"pipeline: {why}. The service goes on with it by itself; ask again to see")
            raise typer.Exit(ExitCode.WAITING)


# --- inside


def _folder(site: Site) -> "JobFolder":
    from pipeline.adapters.disk import Disk
    from pipeline.jobs import JobFolder

    return JobFolder(f"{site.root}/jobs", Disk())


async def _asked(
    site: Site, folder: "JobFolder", verb: str, instance: "InstanceId", details: Mapping[str, Any], reason: str
) -> "Ask":
    from pipeline.commands.access import open_access
    from pipeline.jobs import new_ask

    async with open_access(site.settings) as access:
        ask = new_ask(verb, instance, details, asked_by=access.actor.name, reason=reason, now=access.clock.now())
        line = access.trail.changed(
            instance, "JobAsked", jobId=str(ask.job_id), job=verb, details=dict(details), reason=reason
        )
        await access.record(line)
        return folder.ask(ask)


async def _done_here(site: Site, folder: "JobFolder", ask: "Ask", what: str) -> "Report":
    import sys
    from dataclasses import replace

    import anyio

    from pipeline import logs, running
    from pipeline.process import harden

    if folder.report(ask).status.is_over:
        return folder.report(ask)
    harden()
    logs.configure(replace(site.settings.log, level="WARNING"), sys.stderr)

    async def show() -> None:
        while True:
            report = folder.report(ask)
            bar(report.done, report.total)
            await anyio.sleep(LOOKED_AT_EVERY_S)

    with screen.progress(what, is_bytes=False) as bar:
        async with anyio.create_task_group() as group:
            group.start_soon(show, name="progress")
            report = await running.perform(site.settings, ask)
            group.cancel_scope.cancel()
    return report


def _looked_on(site: Site, folder: "JobFolder", ask: "Ask", what: str) -> "Report":
    """Follow a job until it is over, waits for something that takes long, or nobody is there to do it."""
    from pipeline.adapters.disk import holder

    patient_until: float | None = None
    with screen.progress(what, is_bytes=False) as bar:
        while not (report := folder.report(ask)).status.is_over:
            bar(report.done, report.total)
            now = time.monotonic()
            if report.message is None:
                patient_until = None
            else:
                patient_until = patient_until or now + PATIENCE_S
                if now > patient_until:
                    break
            if holder(f"{site.root}/lock") is None:
                break
            time.sleep(LOOKED_AT_EVERY_S)
    return folder.report(ask)
