"""`pipeline backup`: the store with its key ring, sealed as it lies, beside a running service or without one.

`pipeline backup DIRECTORY` is short for `pipeline backup create DIRECTORY`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import typer
from typer.core import TyperGroup

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import (
    ConfigOption,
    JsonOption,
    ReasonOption,
    Site,
    StateDirOption,
    checked_reason,
    open_site,
)
from pipeline.errors import HaltError, RefuseError

if TYPE_CHECKING:
    from pipeline.backup.copies import Copies
    from pipeline.backup.made import Made
    from pipeline.backup.manifest import Manifest
    from pipeline.commands.access import Access

EXAMPLES = {
    "create": "Example: pipeline backup create /backups/2026-11-23",
    "verify": "Example: pipeline backup verify /backups/2026-11-23",
    "list": "Example: pipeline backup list",
    "forget": "Example: pipeline backup forget 5b0c4e2a-93f1-4a5e-8f51-0d6c1f1b7a90 --reason 'disk shredded'",
}


class BackupCommands(TyperGroup):
    """Takes a directory in place of a command for one to be created."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["create", *args])


def create(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to; made, or empty.")],
    with_config: Annotated[
        bool,
        typer.Option(
            "--with-config",
            help="Copy the configuration directory too, with whatever secrets stand in it. Guard such a backup as you"
            " guard that directory.",
        ),
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back the store up: artifacts, key ring, journal, receipts, audit trail, events, and all else but the ballast.

    Everything acknowledged before it began is in it, sealed as it lies: without the KMS keys it opens nothing. Not in
    it: the KMS keys, the buckets, and the embedded servers, if they are used. Exit code 1 if the disk did not give all
    of it back.
    """
    import anyio

    site = open_site(config, state_dir)
    _check_target(site, directory.absolute())
    with _alone(site):
        made, unread = anyio.run(_create, site, directory.absolute(), with_config)
    answer = _row(made) | {"unread": unread}
    if as_json:
        screen.emit(answer)
    else:
        screen.say(f"{made.files} files, {screen.size(made.size_bytes)} in {made.folder}")
        screen.say(f"SHA-256 of its manifest: {made.manifest_sha256}")
        for path in unread:
            screen.say(f"not copied, the disk does not give it back: {path}")
    if unread:
        raise typer.Exit(ExitCode.FOUND)


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="The backup.")], as_json: JsonOption = False
) -> None:
    """Compare every file of a backup with its manifest. Exit code 1 if anything differs, 3 if it is half of one."""
    from pipeline.adapters.disk import Disk
    from pipeline.backup.manifest import read_manifest
    from pipeline.backup.restore import check

    folder = str(directory.absolute())
    manifest = read_manifest(Disk(), folder)
    with screen.progress("verifying", is_bytes=False) as bar:
        troubles = check(Disk(), folder, manifest, lambda done: bar(done, len(manifest.files)))
    beginning = manifest.beginning
    if as_json:
        screen.emit(
            {
                "backupId": str(beginning.backup_id),
                "begunAt": beginning.begun_at.isoformat(),
                "files": len(manifest.files),
                "bytes": manifest.size_bytes,
                "unread": list(beginning.unread),
                "problems": [{"path": each.path, "problem": each.what} for each in troubles],
            }
        )
    else:
        screen.say(
            f"backup {beginning.backup_id} of {beginning.begun_at:%Y-%m-%d %H:%M:%S}: {len(manifest.files)} files,"
            f" {screen.size(manifest.size_bytes)}; {len(troubles)} problems"
        )
        for each in troubles:
            screen.say(f"{each.path}: {each.what}")
    if troubles:
        raise typer.Exit(ExitCode.FOUND)


def list_made(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """List the backups that were made here and not forgotten: what erase receipts name as places of copies."""
    from pipeline.backup.made import all_made

    site = open_site(config, state_dir)
    rows = [_row(made) for made in all_made(site.settings.config_dir)]
    if as_json:
        screen.emit({"backups": rows})
        return
    columns = ("backup", "begun", "files", "size", "by", "where to")
    cells = [
        (row["backupId"], row["begunAt"], row["files"], screen.size(row["bytes"]), row["madeBy"], row["folder"])
        for row in rows
    ]
    screen.table(f"backups: {len(rows)}", columns, cells, right=("files", "size"))


def forget(
    backup_id: Annotated[UUID, typer.Argument(metavar="BACKUP", help="The backup's id, as listed.")],
    reason: ReasonOption,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a backup off the list, once every copy of it is destroyed. Removes no file."""
    import anyio

    from pipeline.backup.made import all_made

    site = open_site(config, state_dir)
    made = next((each for each in all_made(site.settings.config_dir) if each.backup_id == backup_id), None)
    if made is None:
        raise RefuseError("there is no such backup; see `pipeline backup list`", field="BACKUP")
    anyio.run(_forget, site, made, checked_reason(reason))
    if as_json:
        screen.emit({"forgotten": _row(made)})
    else:
        screen.say(f"forgotten: backup {backup_id} in {made.folder}")


# --- inside


def _check_target(site: Site, target: Path) -> None:
    for kept in (Path(site.root).absolute(), Path(site.settings.config_dir).absolute()):
        if target.resolve().is_relative_to(kept.resolve()):
            raise RefuseError("a backup lies outside of what it is a backup of", field="DIRECTORY")
    if not Path(site.root).is_dir():
        raise RefuseError("there is no state directory to back up")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RefuseError("a new or empty directory is expected", field="DIRECTORY")


@contextmanager
def _alone(site: Site) -> Iterator[None]:
    """Keep other backups, and whatever destroys keys, away meanwhile."""
    from pipeline.adapters.disk import locked
    from pipeline.backup.store import LOCK

    try:
        with locked(f"{site.root}/{LOCK}"):
            yield
    except HaltError as error:
        raise RefuseError("another backup, or an erasure, is under way; wait for its end") from error


async def _create(site: Site, target: Path, with_config: bool) -> "tuple[Made, list[str]]":
    from pipeline.adapters.disk import Disk
    from pipeline.backup.copies import Copies
    from pipeline.backup.made import Made, remember
    from pipeline.backup.manifest import Beginning
    from pipeline.commands.access import open_access
    from pipeline.interim.marker import read_marker

    files, begun = Disk(), datetime.now(UTC)
    marker = read_marker(files, site.root)
    if marker is None:
        raise RefuseError("there is no store in the state directory")
    files.make_directory(str(target))
    with screen.progress("copying", is_bytes=True) as bar:
        copies = Copies(files, str(target), lambda done: bar(done, None))
        _copy(site, copies, f"{target}/records.moment", with_config=with_config)
    async with open_access(site.settings) as access:
        beginning = Beginning(
            backup_id=uuid4(),
            store_id=marker.store_id,
            begun_at=begun,
            ended_at=datetime.now(UTC),
            made_by=access.actor.name,
            config=with_config,
            unread=tuple(copies.unread),
        )
        manifest = await _vouched(site, access, target, beginning, copies)
        made = Made(
            backup_id=beginning.backup_id,
            store_id=beginning.store_id,
            folder=str(target),
            begun_at=begun,
            ended_at=beginning.ended_at,
            made_by=beginning.made_by,
            files=len(manifest.files),
            size_bytes=manifest.size_bytes,
            manifest_sha256=manifest.sha256,
            config=with_config,
        )
        remember(site.settings.config_dir, made)
    return made, copies.unread


def _copy(site: Site, copies: "Copies", moment: str, *, with_config: bool) -> None:
    from pipeline.adapters.sqlite import snapshot
    from pipeline.backup.restore import CONFIG
    from pipeline.backup.store import copy_store

    state, config = Path(site.root).absolute(), Path(site.settings.config_dir).absolute()
    inside = frozenset({config.relative_to(state).parts[0]} if config.is_relative_to(state) else ())
    try:
        copy_store(copies, site.root, without=inside, snapshot=lambda path: snapshot(path, moment))
    finally:
        Path(moment).unlink(missing_ok=True)
    if with_config:
        around = {state.relative_to(config).parts[0]} if state.is_relative_to(config) else set()
        copies.folder(str(config), CONFIG, around)


async def _vouched(site: Site, access: "Access", target: Path, beginning: Any, copies: "Copies") -> "Manifest":
    """Record the backup in every instance's audit trail, and then write what makes it one."""
    from pipeline.backup.manifest import write_manifest

    details = {"backupId": str(beginning.backup_id), "files": len(copies.copied), "config": beginning.config}
    await access.record(access.trail.on_node("BackupMade", **details, folder=str(target)))
    for instance in site.loaded.instances:
        await access.record(access.trail.changed(instance, "BackupMade", **details))
    return write_manifest(access.files, str(target), beginning, copies.copied.values())


async def _forget(site: Site, made: "Made", reason: str) -> None:
    from pipeline.backup.made import forget as forget_made
    from pipeline.commands.access import open_access

    async with open_access(site.settings) as access:
        details = {"backupId": str(made.backup_id), "folder": made.folder, "reason": reason}
        await access.record(access.trail.on_node("BackupForgotten", **details))
        forget_made(site.settings.config_dir, made.backup_id)


def _row(made: "Made") -> dict[str, Any]:
    return {
        "backupId": str(made.backup_id),
        "folder": made.folder,
        "begunAt": made.begun_at.isoformat(timespec="seconds"),
        "endedAt": made.ended_at.isoformat(timespec="seconds"),
        "madeBy": made.made_by,
        "files": made.files,
        "bytes": made.size_bytes,
        "manifestSha256": made.manifest_sha256,
        "config": made.config,
    }
