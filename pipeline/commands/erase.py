"""`pipeline erase`: an instance by destroying its data keys, or what is held of one recording; with a receipt."""

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.options import (
    ConfigOption,
    JsonOption,
    ReasonOption,
    Site,
    StateDirOption,
    checked_reason,
    open_site,
)
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.erasure.progress import Erasure
    from pipeline.ids import InstanceId
    from pipeline.jobs import Report

EXAMPLES = {
    "instance": "Example: pipeline erase instance acme --reason 'contract ended' --yes",
    "recording": "Example: pipeline erase recording 019b0c3e-7d1a-7c22-9f5e-2a4b6c8d0e1f --reason 'GDPR 17' --yes",
}
SureOption = Annotated[bool, typer.Option("--yes", help="Needed: what is erased can't be had back.")]


def instance(
    wanted: Annotated[str, typer.Argument(metavar="ALIAS|ID", help="The instance.")],
    reason: ReasonOption,
    sure: SureOption = False,
    force: Annotated[bool, typer.Option("--force", help="Erase it although undelivered recordings are held.")] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase an instance: destroy its data keys, so that nothing sealed under them opens any more, then remove it all.

    Refused under a legal hold, and with undelivered recordings unless --force is given. Delivered objects stay in the
    bucket; the receipt names them, and the backups made here that hold copies. If it breaks off, the same command, or
    the service, goes on with it.
    """
    from pipeline.commands.jobs import carry_out, end
    from pipeline.commands.removal import refuse_for_instance
    from pipeline.erasure.instance import VERB

    site = open_site(config, state_dir)
    begun = _begun(site, wanted)
    instance_id = _instance_id(site, wanted, begun)
    checked = checked_reason(reason)
    if begun is None:
        refuse_for_instance(site, instance_id)
        held = _undelivered(site, instance_id)
        if held and not force:
            raise RefuseError(f"{held} undelivered recordings of it are held. Deliver them first, or give --force")
    if not sure:
        raise RefuseError("nothing of it can be opened any more then. Give --yes if that is meant", field="--yes")
    details = {"force": force if begun is None else begun.forced}
    report = carry_out(site, VERB, instance_id, details, reason=checked, what="erasing")
    _answer(report, as_json=as_json)
    end(report)


def recording(
    wanted: Annotated[UUID, typer.Argument(metavar="ID", help="The recording's id, or that of one of its artifacts.")],
    reason: ReasonOption,
    sure: SureOption = False,
    generation: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="This generation only; else all of them.")
    ] = None,
    shred: Annotated[
        bool,
        typer.Option("--shred", help="Also destroy its data keys; everything else under them is sealed anew before."),
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase what is held here of one recording: its artifacts, and what was cut of them.

    Refused under a legal hold. A delivered object stays in its bucket, and the receipt names it. Whoever kept a copy of
    the file and may use the KMS key could open it until its data key is destroyed: --shred does that at once. The same
    source may send again: that is a new recording.
    """
    from pipeline.commands.jobs import carry_out, end
    from pipeline.erasure.recording import VERB

    site = open_site(config, state_dir)
    checked = checked_reason(reason)
    details = {"id": str(wanted), "generation": generation, "shred": shred}
    instance_id = _whose(site, wanted, details)
    if not sure:
        raise RefuseError("what is erased can't be had back. Give --yes if that is meant", field="--yes")
    report = carry_out(site, VERB, instance_id, details, reason=checked, what="erasing")
    _answer(report, as_json=as_json)
    end(report)


# --- inside


def _begun(site: Site, wanted: str) -> "Erasure | None":
    """Find an erasure of that instance that was begun and has not ended: it may be configured no more."""
    from pipeline.adapters.disk import Disk
    from pipeline.erasure.progress import Erasures

    for erasure in reversed(Erasures(str(site.settings.config_dir), Disk()).all()):
        if (
            erasure.what == "instance"
            and erasure.ended_at is None
            and wanted in {erasure.alias, str(erasure.instance_id)}
        ):
            return erasure
    return None


def _instance_id(site: Site, wanted: str, begun: "Erasure | None") -> "InstanceId":
    from pipeline.ids import InstanceId

    if begun is not None:
        return InstanceId(begun.instance_id)
    found = site.find(wanted)
    assert found is not None
    return found


def _undelivered(site: Site, instance_id: "InstanceId") -> int:
    from pipeline.adapters.disk import Disk
    from pipeline.interim.survey import survey

    return len(survey(site.root, Disk()).undelivered(instance_id))


def _whose(site: Site, wanted: UUID, details: dict[str, Any]) -> "InstanceId":
    """Tell whose recording it is; also when the job that erases it has removed it already. Raises `RefuseError`."""
    from pipeline.adapters.disk import Disk
    from pipeline.erasure.found import instance_of
    from pipeline.erasure.recording import VERB
    from pipeline.jobs import JobFolder

    folder = JobFolder(f"{site.root}/jobs", Disk())
    for ask in folder.asked():
        if (ask.verb, ask.details) == (VERB, details) and not folder.report(ask).status.is_over:
            return ask.instance
    instance_id = instance_of(site.root, Disk(), wanted)
    if instance_id is None:
        raise RefuseError("nothing of that recording is here; see `pipeline ls`", field="ID")
    return instance_id


def _answer(report: "Report", *, as_json: bool) -> None:
    outcome = report.outcome
    if as_json:
        screen.emit({"status": report.status, "message": report.message, **outcome})
        return
    if not outcome:
        return
    screen.say(f"erased, by {outcome['method']} ({outcome['guideline']}); receipt: {outcome['receipt']}")
    for copy in outcome["copies"]:
        screen.say(f"still there: {copy['place']}: {copy['holds']}, until {copy['until']}")
