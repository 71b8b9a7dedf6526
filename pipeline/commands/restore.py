"""`pipeline restore`: a backup becomes a store again, in an empty state directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import HaltError, RefuseError

if TYPE_CHECKING:
    from pipeline.backup.manifest import Manifest

EXAMPLE = "Example: pipeline restore /backups/2026-11-23 --config /etc/pipeline/pipeline.toml"


def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="The backup.")],
    config_to: Annotated[
        Path | None,
        typer.Option(
            "--config-to",
            metavar="DIR",
            show_default=False,
            help="Restore only the configuration that is in the backup, to this new directory; the store comes next.",
        ),
    ] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into an empty state directory, comparing every file. Then start `pipeline serve`.

    It goes on as after a crash: delivers what is undelivered, and recognises what was delivered since. The KMS keys
    that the backup's key ring needs are listed: they must be usable, and configured as current or previous.
    """
    import anyio

    from pipeline.adapters.disk import Disk
    from pipeline.backup.manifest import read_manifest

    folder = str(directory.absolute())
    manifest = read_manifest(Disk(), folder)
    if config_to is not None:
        from pipeline.backup.restore import bring_back_config

        bring_back_config(Disk(), folder, manifest, str(config_to.absolute()))
        answer: dict[str, Any] = {"backupId": str(manifest.beginning.backup_id), "config": str(config_to.absolute())}
        screen.emit(answer) if as_json else screen.say(f"the configuration is in {answer['config']}")
        return
    site = open_site(config, state_dir)
    _bring_back(site, folder, manifest)
    answer = {
        "backupId": str(manifest.beginning.backup_id),
        "begunAt": manifest.beginning.begun_at.isoformat(timespec="seconds"),
        "files": len(manifest.files),
        "kmsKeys": _keys(site),
    }
    anyio.run(_record, site, answer)
    if as_json:
        screen.emit(answer)
    else:
        screen.say(f"restored what was acknowledged before {answer['begunAt']}; start `pipeline serve`")
        for row in answer["kmsKeys"]:
            state = "configured" if row["configured"] else "NOT CONFIGURED: name it as the instance's previous key"
            screen.say(f"{row['instance']} needs {row['kmsKeyArn']} for {row['dataKeys']} data keys: {state}")


# --- inside


def _bring_back(site: Site, folder: str, manifest: "Manifest") -> None:
    from pipeline.adapters.disk import Disk, locked
    from pipeline.backup.restore import bring_back, refuse_filled
    from pipeline.config import load_store_id, make_private_directory

    state, config = Path(site.root).absolute(), Path(site.settings.config_dir).absolute()
    known = load_store_id(config)
    if known not in {None, manifest.beginning.store_id}:
        raise RefuseError(
            "the configuration knows another store than the backup's. If this backup is to take its place, remove the"
            " file store-id beside the configuration"
        )
    inside = frozenset({config.relative_to(state).parts[0]} if config.is_relative_to(state) else ())
    make_private_directory(state)
    refuse_filled(Disk(), str(state), inside)
    try:
        with locked(f"{state}/lock"), screen.progress("restoring", is_bytes=False) as bar:
            bring_back(Disk(), folder, manifest, str(state), lambda done: bar(done, len(manifest.files)))
    except HaltError as error:
        raise RefuseError(f"the state directory is in use: {error}") from error


def _keys(site: Site) -> list[dict[str, Any]]:
    """List the KMS keys that the restored ring needs, by instance: told from its files, of which none is believed."""
    from collections import Counter

    import msgspec

    from pipeline.adapters.disk import Disk
    from pipeline.crypt.ringdirectory import RingDirectory
    from pipeline.crypt.ringfile import RingFile

    files, needed = Disk(), Counter[tuple[str, str]]()
    for instance in files.names(f"{site.root}/keys"):
        for raw in RingDirectory(files, f"{site.root}/keys/{instance}").read().values():
            try:
                ring = msgspec.json.decode(raw, type=RingFile)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            needed.update((instance, wrapped.kms_key_arn) for wrapped in ring.wrapped)
    configured = {
        (str(each.instance_id), arn)
        for each in site.loaded.instances.values()
        for arn in (each.kms_key_arn, each.previous_kms_key_arn)
    }
    return [
        {"instance": instance, "kmsKeyArn": arn, "dataKeys": count, "configured": (instance, arn) in configured}
        for (instance, arn), count in sorted(needed.items())
    ]


async def _record(site: Site, answer: dict[str, Any]) -> None:
    """Record it in every log, each in a new series: what was signed since the backup is not there any more."""
    import anyio.to_thread

    from pipeline.audit.series import begin_series
    from pipeline.audit.signing import SigningKeys
    from pipeline.commands.access import open_access
    from pipeline.commands.audit_logs import NODE

    keys = SigningKeys(site.settings.config_dir)
    async with open_access(site.settings) as access:
        details = {"backupId": answer["backupId"], "begunAt": answer["begunAt"], "files": answer["files"]}
        for instance in (None, *site.loaded.instances):
            directory = f"{site.root}/audit/{instance or NODE}"
            facts = await anyio.to_thread.run_sync(begin_series, directory, access.files, keys) | details
            if instance is None:
                await access.record(access.trail.on_node("BackupRestored", **facts))
            else:
                await access.record(access.trail.changed(instance, "BackupRestored", **facts))
