"""`pipeline keys reencrypt`: what is delivered already, under the configured KMS key in its bucket."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.commands.running import tell_service

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.delivery.bucketpass import Counts, Place
    from pipeline.delivery.reencrypt import Seen, Ways
    from pipeline.instances import Instance

EXAMPLE = "Example: pipeline keys reencrypt acme --rate 100"
_PER_S = 50.0


def reencrypt(
    wanted: Annotated[str, typer.Argument(metavar="INSTANCE", help="Alias or id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look and count only; write nothing.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Name each object that is under another key.")] = False,
    rate: Annotated[
        float, typer.Option("--rate", metavar="N", min=0.01, help="Look at so many objects a second at most.")
    ] = _PER_S,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encrypt what an instance's buckets hold anew under its configured KMS key, and count what needs another one.

    Can be broken off and given again: what is done is found done. Older versions and delete markers are counted and
    never rewritten. What the audit log and the canary brought there is part of it. Ends what a recording waits for
    whose object lay under another key (DESTINATION_WRONG_KEY).

    Exit code 1 if some objects could not be encrypted anew.
    """
    import anyio

    site = open_site(config, state_dir)
    instance = site.configured(wanted)
    answer = anyio.run(_run, site, instance, rate, dry_run, listed, as_json)
    if not dry_run:
        answer["ServiceTold"] = tell_service(site)
    if as_json:
        screen.emit(answer)
    else:
        _show(answer)
    if answer["Left"] and not dry_run:
        raise typer.Exit(ExitCode.FOUND)


# --- inside


async def _run(
    site: Site, instance: "Instance", rate: float, dry_run: bool, listed: bool, as_json: bool
) -> dict[str, Any]:
    from pipeline.commands.access import open_access
    from pipeline.delivery.bucketpass import BucketPass, Pace, Watch

    async with open_access(site.settings) as access:
        places = await _places(access, instance)
        record = _Recorder(access, instance)

        def left(place: "Place", seen: "Seen", why: str) -> None:
            if listed:
                _list(place, seen, why, as_json=as_json)

        with screen.progress("objects", is_bytes=False) as bar:
            watch = Watch(before=record.before, after=record.after, left=left, progress=lambda count: bar(count, None))
            run = BucketPass(places, watch, Pace(rate, access.clock), rewrites=not dry_run)
            counts = await run.run()
        change = _remembered(site, access, instance, counts)
    if not dry_run and counts.under_other_key == 0:
        await _let_go(site, instance)
    return {
        "InstanceId": str(instance.instance_id),
        "OldKmsKeyId": change,
        "KmsKeyIds": {str(kind): place.kms_key_arn for kind, place in sorted(instance.storage.items())},
        "Ways": sorted({str(ways.way) for ways in run.used.values()}),
        **_told(counts),
    }


def _told(counts: "Counts") -> dict[str, Any]:
    from pipeline.delivery.reencrypt import Standing

    return {
        "Reencrypted": counts.rewritten,
        "Bytes": counts.bytes,
        "UnderConfiguredKey": counts.seen[Standing.CONFIGURED] + counts.rewritten,
        "Left": counts.left,
        "OlderVersions": counts.seen[Standing.OLDER],
        "DeleteMarkers": counts.seen[Standing.MARKER],
        "NotOurs": counts.seen[Standing.FOREIGN],
        "OtherKeys": dict(sorted(counts.keys.items())),
        "DeliveredUnderOldKey": counts.under_other_key,
    }


class _Recorder:
    """Keeps an audit record of each object: that it is about to be written, and that it was."""

    def __init__(self, access: "Access", instance: "Instance") -> None:
        self._access = access
        self._instance = instance

    async def before(self, place: "Place", seen: "Seen", ways: "Ways") -> None:
        await self._record("ObjectReencryptionBegun", place, seen, ways)

    async def after(self, place: "Place", seen: "Seen", ways: "Ways") -> None:
        await self._record("ObjectReencrypted", place, seen, ways)

    async def _record(self, verb: str, place: "Place", seen: "Seen", ways: "Ways") -> None:
        facts = seen.facts
        assert facts is not None
        line = self._access.trail.changed(
            self._instance.instance_id,
            verb,
            bucket=place.storage.bucket,
            key=facts.key,
            versionId=facts.version_id,
            recordingId=facts.metadata.get("rid"),
            sizeBytes=facts.size_bytes,
            crc64nvme=facts.crc64nvme,
            fromKmsKeyArn=facts.kms_key_arn,
            toKmsKeyArn=place.storage.kms_key_arn,
            way=str(ways.way),
        )
        await self._access.record(line)


async def _places(access: "Access", instance: "Instance") -> "list[Place]":
    """Give every prefix that the instance's objects lie below: its recordings', the canary's, its audit log's."""
    from pipeline.audit.hourly import OBJECTS
    from pipeline.audit.keeper import audit_storage
    from pipeline.delivery.bucketpass import Place
    from pipeline.delivery.reencrypt import AUDITED
    from pipeline.ids import Kind
    from pipeline.intake.sealing import CANARY_PREFIX

    found = []
    for kind, storage in sorted(instance.storage.items()):
        destination = await access.destination(instance, storage)
        found.append(Place(destination, storage, f"{storage.prefix}/"))
        if kind is Kind.VOICE:
            found.append(Place(destination, storage, f"{CANARY_PREFIX}/"))
    if (audits := audit_storage(instance)) is not None:
        destination = await access.destination(instance, audits)
        found.append(Place(destination, audits, f"{OBJECTS}{instance.instance_id}/", AUDITED))
    return found


def _remembered(site: Site, access: "Access", instance: "Instance", counts: "Counts") -> str | None:
    """Keep what was counted with the last change of the instance's KMS key; give the key that was left by it."""
    import msgspec

    from pipeline.keychange import read_change, write_change

    change = read_change(site.root, access.files, instance.instance_id)
    if change is None:
        return None
    counted = msgspec.structs.replace(
        change, delivered_under_old_key=counts.under_other_key, counted_at=access.clock.now()
    )
    write_change(site.root, access.files, counted)
    return change.old_kms_key_arn


async def _let_go(site: Site, instance: "Instance") -> None:
    """Let the configuration forget the bucket keys that nothing needs any more; others may have come meanwhile."""
    import anyio.to_thread

    from pipeline.config import load_instances, save_instance

    now = load_instances(site.settings.config_dir).instances.get(instance.instance_id)
    if now is not None and instance.former_bucket_key_arns:
        left = [arn for arn in now.former_bucket_key_arns if arn not in instance.former_bucket_key_arns]
        changed = replace(now, former_bucket_key_arns=tuple(left))
        await anyio.to_thread.run_sync(save_instance, site.settings.config_dir, changed)


def _list(place: "Place", seen: "Seen", why: str, *, as_json: bool) -> None:
    assert seen.facts is not None
    row = {
        "bucket": place.storage.bucket,
        "key": seen.version.key,
        "versionId": seen.version.version_id,
        "isLatest": seen.version.is_latest,
        "kmsKeyArn": seen.facts.kms_key_arn,
        "why": why,
    }
    if as_json:
        screen.emit(row)
    else:
        screen.say(f"s3://{row['bucket']}/{row['key']} ({row['versionId'] or '-'}): {row['kmsKeyArn']}; {why}")


def _show(answer: dict[str, Any]) -> None:
    by = f", by {' and '.join(answer['Ways'])}" if answer["Ways"] else ""
    screen.say(f"encrypted anew: {answer['Reencrypted']}, {screen.size(answer['Bytes'])}{by}")
    screen.say(f"under the configured KMS key: {answer['UnderConfiguredKey']}")
    if answer["Left"]:
        screen.say(f"still under another key: {answer['Left']}; see --list")
    if answer["OlderVersions"]:
        screen.say(
            f"older versions under another key: {answer['OlderVersions']}. They are never rewritten: a lifecycle rule"
            " of the bucket, or its owner, removes them"
        )
    for arn, count in answer["OtherKeys"].items():
        screen.say(f"  {count} under {arn}")
    left, old = answer["DeliveredUnderOldKey"], answer["OldKmsKeyId"] or "the old KMS key"
    if left:
        screen.say(f"DeliveredUnderOldKey: {left}. Do not delete {old} before it is 0")
    else:
        screen.say("DeliveredUnderOldKey: 0")
