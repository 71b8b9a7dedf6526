"""The audit logs as the commands reach them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import Site
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.ports import FileSystem

LogOption = Annotated[
    str | None,
    typer.Option(
        "--instance", metavar="ALIAS|ID|node", show_default=False, help="The log of this instance only, or the node's."
    ),
]
NODE = "node"


def chosen(site: Site, files: "FileSystem", wanted: str | None) -> list[str]:
    """Name the logs that are meant: the one that is asked for, or of every instance that was ever here, and the node's.

    Raises:
        RefuseError: there is none of that name.

    """
    from pipeline.audit.reading import logs_in

    there = logs_in(files, f"{site.root}/audit")
    if wanted is None:
        configured = {str(instance) for instance in site.loaded.instances}
        return sorted({*there, *(name for name in configured if _has_signed(site, name))})
    name = wanted if wanted == NODE else str(site.find(wanted))
    if name not in there and not _has_signed(site, name):
        raise RefuseError("there is no audit log of that instance yet", field="--instance")
    return [name]


def title(site: Site, log: str) -> str:
    """Name a log for a person."""
    from uuid import UUID

    from pipeline.ids import InstanceId

    return log if log == NODE else f"{site.alias(InstanceId(UUID(log)))} ({log})"


def described(log: str, verdict: Any) -> dict[str, Any]:
    """Give what was found of a log, as JSON has it."""
    return {
        "log": log,
        "ok": verdict.is_ok,
        "records": verdict.records,
        "covered": verdict.covered,
        "firstBad": verdict.first_bad,
        "missing": verdict.missing,
        "gap": verdict.gap,
        "invalid": verdict.invalid,
        "unacknowledgedBytes": verdict.tail_bytes,
        "problems": verdict.problems,
    }


def _has_signed(site: Site, log: str) -> bool:
    """Tell whether a log was there once, though its folder may be gone."""
    from pipeline.audit.signing import SigningKeys

    return SigningKeys(site.settings.config_dir).kept(log) is not None
