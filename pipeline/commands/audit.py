"""`pipeline audit verify` and `key`: whether the audit logs are what was written, and the keys that say so."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.audit_logs import LogOption, chosen, described, title
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import DeferError, RefuseError

if TYPE_CHECKING:
    from pipeline.audit.digests import SignedDigest
    from pipeline.commands.access import Access

EXAMPLES = {
    "verify": "Example: pipeline audit verify --instance acme --bucket",
    "key": "Example: pipeline audit key --instance acme",
}

Kept = tuple[list[str], "list[SignedDigest]"]


def verify(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: LogOption = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            show_default=False,
            help="Compare with this checkpoint too, which was kept elsewhere. May be given again.",
        ),
    ] = None,
    bucket: Annotated[
        bool, typer.Option("--bucket", help="Compare with every checkpoint and digest in the instance's bucket.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every record, checkpoint and digest of the audit logs. Changes nothing.

    Says which record is the first bad one, and tells apart what is missing (proven to have been there, and gone), what
    is a gap (the numbering jumps, and nothing says why) and what is invalid (not what was written). With --json the
    last line is the sum. Exit code 1 if anything is wrong, else 4 if something could not be read now, else 0.
    """
    import anyio

    site = open_site(config, state_dir)
    notes = [_note(file) for file in checkpoint or ()]
    rows = anyio.run(_verify, site, instance, notes, bucket)
    total = _total(rows)
    for row in rows if as_json else ():
        screen.emit(row)
    if as_json:
        screen.emit(total)
    else:
        _show(site, rows, total)
    if not total["ok"]:
        raise typer.Exit(ExitCode.FOUND)
    if any("unread" in row for row in rows):
        raise typer.Exit(ExitCode.WAITING)


def key(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the public keys that the audit logs' checkpoints are signed with, one a line (C2SP signed-note).

    Keep them apart from this machine: who has one can check every checkpoint, digest and proof without it.
    """
    from pipeline.adapters.disk import Disk
    from pipeline.audit.signing import SigningKeys

    site = open_site(config, state_dir)
    keys = SigningKeys(site.settings.config_dir)
    found = {log: str(keys.verifier(log)) for log in chosen(site, Disk(), instance)}
    if as_json:
        screen.emit({"keys": [{"log": log, "key": text} for log, text in found.items()]})
        return
    for text in found.values():
        screen.say(text)


# --- inside


async def _verify(site: Site, wanted: str | None, notes: list[str], bucket: bool) -> list[dict[str, Any]]:
    from pipeline.commands.access import open_access

    rows = []
    async with open_access(site.settings) as access:
        names = chosen(site, access.files, wanted)
        if notes and len(names) > 1:
            names = [name for name in names if any(note.split("\n", 1)[0].endswith(f"/{name}") for note in notes)]
            if not names:
                raise RefuseError("the checkpoint is of no log that is here", field="--checkpoint")
        with screen.progress("verifying", is_bytes=False) as moved:
            for done, name in enumerate(names, start=1):
                rows.append(await _judged(site, access, name, notes, bucket))
                moved(done, len(names))
    return rows


async def _judged(site: Site, access: "Access", log: str, notes: list[str], bucket: bool) -> dict[str, Any]:
    """Judge one log; tell of what can't be read now."""
    from functools import partial

    import anyio.to_thread

    from pipeline.audit.signing import SigningKeys
    from pipeline.audit.verifying import verify_log

    keys = SigningKeys(site.settings.config_dir)
    here = keys.kept(log)
    kept = [*notes, *([] if here is None else [here])]
    digests: list[SignedDigest] = []
    unread: str | None = None
    try:
        if bucket:
            more, digests = await _from_bucket(site, access, log)
            kept += more
    except DeferError as error:
        unread = str(error)
    work = partial(verify_log, f"{site.root}/audit/{log}", access.files, keys.verifier(log), kept=kept, digests=digests)
    try:
        row = described(log, (await anyio.to_thread.run_sync(work)).verdict)
    except DeferError as error:
        row, unread = {"log": log, "ok": True, "records": 0}, str(error)
    return row if unread is None else row | {"unread": unread}


async def _from_bucket(site: Site, access: "Access", log: str) -> Kept:
    """Fetch what the instance's bucket has of its log; nothing for the node, and for instances that are gone."""
    from uuid import UUID

    from pipeline.audit import bucket
    from pipeline.audit.hourly import Place, prefix_of
    from pipeline.audit.keeper import audit_storage
    from pipeline.audit.signing import SigningKeys
    from pipeline.commands.audit_logs import NODE
    from pipeline.ids import InstanceId

    instance = None if log == NODE else site.loaded.instances.get(InstanceId(UUID(log)))
    storage = None if instance is None else audit_storage(instance)
    if instance is None or storage is None:
        return [], []
    verifier = SigningKeys(site.settings.config_dir).verifier(log)
    place = Place(instance.account_id, storage.bucket, prefix_of(log, verifier.key_id))
    destination = await access.destination(instance, storage)
    return await bucket.checkpoints(destination, place), await bucket.digests(destination, place)


def _note(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RefuseError("the checkpoint can't be read", field="--checkpoint") from None


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    bad = next((row for row in rows if row.get("firstBad") is not None), None)
    return {
        "ok": all(row["ok"] for row in rows),
        "records": sum(row["records"] for row in rows),
        "firstBad": None if bad is None else {"log": bad["log"], "index": bad["firstBad"]},
        **{kind: sum(row.get(kind, 0) for row in rows) for kind in ("missing", "gap", "invalid")},
    }


def _show(site: Site, rows: list[dict[str, Any]], total: dict[str, Any]) -> None:
    for row in rows:
        name = title(site, row["log"])
        if "unread" in row:
            screen.say(f"{name}: not read: {row['unread']}")
        if "covered" not in row:
            continue
        state = "whole" if row["ok"] else f"{row['missing']} missing, {row['gap']} gap, {row['invalid']} invalid"
        screen.say(f"{name}: {row['records']} records, {row['covered']} signed: {state}")
        for problem in row["problems"]:
            screen.say(f"  {problem}")
        if row["unacknowledgedBytes"]:
            screen.say(f"  {row['unacknowledgedBytes']} bytes behind the last record were never acknowledged")
    screen.say("all whole" if total["ok"] else f"first bad record: {total['firstBad'] or 'none: see above'}")
