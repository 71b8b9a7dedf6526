"""`pipeline keys`: the data keys of each instance, and which KMS keys they need."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from pipeline import holdwords
from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.keys_change import described, show
from pipeline.commands.options import ConfigOption, InstanceOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import KeyUnavailableError

if TYPE_CHECKING:
    from pipeline.crypt.ringfile import RingFile
    from pipeline.delivery.holds import Hold
    from pipeline.ids import InstanceId, KeyId
    from pipeline.instances import Instance
    from pipeline.interim.keyuse import KeyUse
    from pipeline.ports import FileSystem

    Uses = Mapping[tuple[InstanceId, KeyId], KeyUse]

EXAMPLE = "Example: pipeline keys status --instance acme"


def status(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: InstanceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each instance's KMS key and data keys: their states, ages, counts and shares of each limit.

    Told from files and their names alone: no key is asked for. Exit code 4 if an instance's KMS key is held, else 1 if
    a data key can't be used, else 0.
    """
    site = open_site(config, state_dir)
    rows = _rows(site, instance)
    if as_json:
        screen.emit({"instances": rows})
    else:
        for row in rows:
            _show(row)
    if any(row["state"] == "HELD" for row in rows):
        raise typer.Exit(ExitCode.WAITING)
    if any(key["state"] == "UNUSABLE" for row in rows for key in row["dataKeys"]):
        raise typer.Exit(ExitCode.FOUND)


def _rows(site: Site, wanted: str | None) -> list[dict[str, Any]]:
    from pipeline.adapters.disk import Disk
    from pipeline.delivery.holds import KEYS, SEALING, read_holds
    from pipeline.interim.keyuse import key_uses
    from pipeline.interim.survey import survey

    files, now = Disk(), datetime.now(UTC)
    uses = key_uses(site.root, files, survey(site.root, files))
    found = [hold for hold in read_holds(f"{site.root}/holds", files) if hold.scope in {KEYS, SEALING}]
    holds = {hold.instance_id: hold for hold in sorted(found, key=lambda hold: hold.scope == KEYS)}
    served = [site.configured(wanted)] if wanted is not None else list(site.loaded.instances.values())
    return [_row(site, files, each, uses, holds.get(each.instance_id), now) for each in served]


def _row(
    site: Site, files: "FileSystem", instance: "Instance", uses: "Uses", hold: "Hold | None", now: datetime
) -> dict[str, Any]:
    keys = _data_keys(site, files, instance, uses, now)
    delivery = {str(kind): storage.kms_key_arn for kind, storage in sorted(instance.storage.items())}
    return {
        "instance": instance.alias,
        "instanceId": str(instance.instance_id),
        "kmsKeyArn": instance.kms_key_arn,
        "previousKmsKeyArn": instance.previous_kms_key_arn,
        "state": "IN_USE" if hold is None else "HELD",
        "heldReason": None if hold is None else hold.code,
        "inaccessibleEncryptionDateTime": None if hold is None else hold.inaccessible_since.isoformat(),
        "message": None if hold is None else holdwords.told(hold, instance),
        "deliveryKmsKeyArns": delivery,
        "change": _change(site, instance),
        "neededKmsKeyArns": sorted(
            {instance.kms_key_arn, *delivery.values(), *instance.former_bucket_key_arns} | _needed(keys)
        ),
        "dataKeys": keys,
    }


def _change(site: Site, instance: "Instance") -> dict[str, Any] | None:
    """Tell of a change of the KMS key that is under way, or was the last one."""
    from pipeline.adapters.disk import Disk
    from pipeline.jobs import JobFolder
    from pipeline.keychange import VERB, read_change

    files = Disk()
    change = read_change(site.root, files, instance.instance_id)
    if change is None and instance.previous_kms_key_arn is None:
        return None
    folder = JobFolder(f"{site.root}/jobs", files)
    asks = [ask for ask in folder.asked() if ask.verb == VERB and ask.instance == instance.instance_id]
    return described(site, instance, change, folder.report(asks[-1]) if asks else None)


def _data_keys(
    site: Site, files: "FileSystem", instance: "Instance", uses: "Uses", now: datetime
) -> list[dict[str, Any]]:
    """Describe the data keys of a ring, the newest first; those without a ring file that something names come last."""
    from pipeline.crypt import ringfile
    from pipeline.crypt.duty import Duty
    from pipeline.crypt.ringdirectory import RingDirectory
    from pipeline.ids import RECORDINGS_CLASS
    from pipeline.interim.keyuse import KeyUse

    found = RingDirectory(files, f"{site.root}/keys/{instance.instance_id}").read()
    arns = [arn for arn in (instance.kms_key_arn, instance.previous_kms_key_arn) if arn is not None]
    rings: dict[KeyId, RingFile] = {}
    reasons: dict[KeyId, str] = {}
    for key_id, raw in found.items():
        try:
            rings[key_id] = ringfile.parse(
                raw, key_id, instance.instance_id, RECORDINGS_CLASS, instance.recordings_context, arns
            )
        except KeyUnavailableError as error:
            reasons[key_id] = str(error)
    for instance_id, key_id in uses:
        if instance_id == instance.instance_id and key_id not in found and uses[instance_id, key_id].is_needed:
            reasons[key_id] = "the ring has no file of it: restore keys/ from a backup"
    rows, is_first = [], True
    for key_id in sorted(rings, key=lambda each: (rings[each].created_at, each), reverse=True):
        ring, use = rings[key_id], uses.get((instance.instance_id, key_id), KeyUse())
        duty = Duty(now - ring.created_at, use.artifacts, use.size_bytes)
        is_active = is_first and not duty.is_over and ring.wrapped_under(instance.kms_key_arn) is not None
        is_first = is_first and not is_active
        rows.append(
            {
                "keyId": str(key_id),
                "state": "ACTIVE" if is_active else "RETIRED",
                "createdAt": ring.created_at.isoformat(),
                "ageS": round(duty.age.total_seconds()),
                **_counts(use),
                "limits": {name: round(share, 6) for name, share in duty.shares.items()},
                "wrappedUnder": [wrapped.kms_key_arn for wrapped in ring.wrapped],
            }
        )
    for key_id, why in reasons.items():
        use = uses.get((instance.instance_id, key_id), KeyUse())
        rows.append({"keyId": str(key_id), "state": "UNUSABLE", **_counts(use), "wrappedUnder": [], "why": why})
    return rows


def _counts(use: "KeyUse") -> dict[str, int]:
    return {
        "artifacts": use.artifacts,
        "bytes": use.size_bytes,
        "held": use.held,
        "journal": use.journal,
        "lostAndFound": use.lost,
    }


def _needed(keys: list[dict[str, Any]]) -> set[str]:
    """Tell which KMS keys something here needs: data keys that are in use, and can be had under no other."""
    return {
        key["wrappedUnder"][0]
        for key in keys
        if len(key["wrappedUnder"]) == 1 and (key["held"] or key["journal"] or key["lostAndFound"])
    }


def _show(row: Mapping[str, Any]) -> None:
    screen.say(f"{row['instance']} ({row['instanceId']})")
    screen.say(f"KMS key {row['kmsKeyArn']}: {row['state'].lower().replace('_', ' ')}")
    if row["message"] is not None:
        screen.say(f"  {row['heldReason']} since {row['inaccessibleEncryptionDateTime']}: {row['message']}")
    if row["change"] is not None:
        show(row["change"])
    others = [arn for arn in row["neededKmsKeyArns"] if arn != row["kmsKeyArn"]]
    for arn in others:
        screen.say(f"also needed: {arn}")
    cells = [
        (
            key["keyId"],
            key["state"].lower(),
            screen.age(key["ageS"]) if "ageS" in key else "-",
            key["artifacts"],
            screen.size(key["bytes"]),
            key["held"],
            " ".join(f"{name} {share:.0%}" for name, share in key.get("limits", {}).items()) or key.get("why", ""),
        )
        for key in row["dataKeys"]
    ]
    columns = ("data key", "state", "age", "artifacts", "bytes", "held", "of its limits")
    screen.table(f"data keys: {len(cells)}", columns, cells, right=("age", "artifacts", "bytes", "held"))
    screen.say("")
