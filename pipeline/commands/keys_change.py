"""`pipeline keys change`: another KMS key for an instance, without touching what is sealed."""

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.jobs import carry_out
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.commands.running import tell_service
from pipeline.errors import KeyUnavailableError, PipelineError, RefuseError

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.instances import Instance
    from pipeline.jobs import Report
    from pipeline.keychange import KeyChange

EXAMPLE = (
    "Example: pipeline keys change acme arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000002"
)


def change(
    wanted: Annotated[str, typer.Argument(metavar="INSTANCE", help="Alias or id.")],
    key_arn: Annotated[str, typer.Argument(metavar="ARN", help="Full ARN of the KMS key to change to.")],
    bucket_key: Annotated[
        str | None,
        typer.Option(
            "--bucket-key",
            metavar="ARN",
            show_default=False,
            help="KMS key for what is delivered from now on. Without it: ARN, where the old key served for that.",
        ),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; is recorded.")] = "key change",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change an instance's KMS key: its data keys are wrapped again, its recordings stay as they are. Seconds.

    What comes in is sealed under the new key at once. Give the same command again to go on with a change that failed or
    was broken off. Never delete the old key before DeliveredUnderOldKey is 0: see `pipeline keys reencrypt`.

    Exit code 1 if one of the two keys can't be used (FAILED, with its side), 4 if it has to wait.
    """
    import anyio

    site = open_site(config, state_dir)
    instance = site.configured(wanted)
    if _is_done(instance, key_arn):
        answer = anyio.run(_status, site, instance, None)
        _show(answer, as_json=as_json, moved=[])
        return
    new, moved = _changed(instance, key_arn, bucket_key)
    if instance.kms_key_arn != key_arn:
        anyio.run(_begin, site, instance, new, moved, reason)
    report = carry_out(site, _verb(), instance.instance_id, {}, reason=reason, what="wrapping data keys")
    if _is_complete(site, new, report):
        anyio.run(_complete, site, new, reason)
        tell_service(site)
    answer = anyio.run(_status, site, new, report)
    _show(answer, as_json=as_json, moved=moved)
    if answer["UpdateStatus"] == "FAILED":
        raise typer.Exit(ExitCode.FOUND)
    if answer["UpdateStatus"] == "IN_PROGRESS":
        raise typer.Exit(ExitCode.WAITING)


# --- inside


def _verb() -> str:
    from pipeline.keychange import VERB

    return VERB


def _is_done(instance: "Instance", key_arn: str) -> bool:
    return instance.kms_key_arn == key_arn and instance.previous_kms_key_arn is None


def _changed(instance: "Instance", key_arn: str, bucket_key: str | None) -> tuple["Instance", list[str]]:
    """Give the instance as it is to be while the change goes on, and the kinds whose delivery changes with it.

    Raises:
        RefuseError: another change is under way, or the key can't be one for this instance.

    """
    from pipeline.instances import checked

    if instance.previous_kms_key_arn is not None:
        if instance.kms_key_arn != key_arn:
            raise RefuseError(
                "conflict: a change to another KMS key is under way. Give that key again to finish it first; see"
                " `pipeline keys status`",
                field="ARN",
            )
        return instance, []
    storage = dict(instance.storage)
    moved = []
    for kind, place in instance.storage.items():
        to = bucket_key or (key_arn if place.kms_key_arn == instance.kms_key_arn else place.kms_key_arn)
        if to != place.kms_key_arn:
            storage[kind] = replace(place, kms_key_arn=to)
            moved.append(str(kind))
    left = {place.kms_key_arn for kind, place in instance.storage.items() if str(kind) in moved}
    former = (left | set(instance.former_bucket_key_arns)) - {place.kms_key_arn for place in storage.values()}
    new = replace(
        instance,
        kms_key_arn=key_arn,
        previous_kms_key_arn=instance.kms_key_arn,
        former_bucket_key_arns=tuple(sorted(former)),
        storage=storage,
    )
    new = checked(new)
    if key_arn.split(":")[3] != instance.kms_key_arn.split(":")[3]:
        raise RefuseError("KMS wraps a data key again only within one Region: take a key of the old one's", field="ARN")
    return new, sorted(moved)


async def _begin(site: Site, old: "Instance", new: "Instance", moved: list[str], reason: str) -> None:
    """Try the new key, and the buckets if they get it; only then change the configuration. Raises: nothing changed."""
    import anyio.to_thread

    from pipeline.commands.access import open_access
    from pipeline.commands.onboarding import describe_key, granted, try_key
    from pipeline.config import save_instance
    from pipeline.keychange import KeyChange, write_change

    async with AsyncExitStack() as stack:
        access = await stack.enter_async_context(open_access(site.settings))
        try:
            await describe_key(access, new)
            await stack.enter_async_context(granted(access, new))
            await try_key(access, new)
        except KeyUnavailableError as error:
            # Another code than a hold's: nothing waits for this key yet.
            raise RefuseError(f"the new KMS key can't be used, nothing was changed: {error}", field="ARN") from error
        await _probe(access, new, moved)
        details = {"oldKmsKeyArn": old.kms_key_arn, "newKmsKeyArn": new.kms_key_arn, "deliveryMoved": moved}
        await access.record(access.trail.changed(new.instance_id, "KeyChangeBegun", reason=reason, **details))
        begun = KeyChange(
            instance_id=new.instance_id,
            old_kms_key_arn=old.kms_key_arn,
            new_kms_key_arn=new.kms_key_arn,
            begun_at=access.clock.now(),
        )
        await anyio.to_thread.run_sync(write_change, site.root, access.files, begun)
        await anyio.to_thread.run_sync(save_instance, site.settings.config_dir, new)


async def _probe(access: "Access", new: "Instance", moved: list[str]) -> None:
    """Try the buckets that are to encrypt under another key. Raises what one of them answers."""
    from pipeline.commands.onboarding import probe_all

    storage = {kind: place for kind, place in new.storage.items() if str(kind) in moved}
    for answer in (await probe_all(access, replace(new, storage=storage))).values():
        if isinstance(answer, PipelineError):
            raise answer


def _is_complete(site: Site, new: "Instance", report: "Report") -> bool:
    """Tell whether the old key is needed no more: by the report, and by what the ring files themselves say."""
    from pipeline.jobs import JobStatus

    if report.status is not JobStatus.COMPLETED or report.outcome.get("kmsKeyArn") != new.kms_key_arn:
        return False
    done, total = _counts(site, new)
    return done == total


def _counts(site: Site, instance: "Instance") -> tuple[int, int]:
    """Count the data keys that the current KMS key opens, and all, by the ring files."""
    from pipeline.adapters.clock import SystemClock
    from pipeline.adapters.disk import Disk
    from pipeline.crypt.ringfiles import RingFiles
    from pipeline.ids import RECORDINGS_CLASS

    ring = RingFiles(
        Disk(),
        f"{site.root}/keys/{instance.instance_id}",
        SystemClock(),
        instance_id=instance.instance_id,
        data_class=RECORDINGS_CLASS,
        context=instance.recordings_context,
        current_arn=instance.kms_key_arn,
        previous_arn=instance.previous_kms_key_arn,
    )
    ring.adopt(ring.read(), instance.kms_key_arn, instance.previous_kms_key_arn)
    done = sum(1 for file in ring if file.wrapped_under(instance.kms_key_arn) is not None)
    return done, len(ring.key_ids())


async def _complete(site: Site, new: "Instance", reason: str) -> None:
    """Give back the grant on the old key, and let the configuration forget it: nothing here needs it any more."""
    import anyio.to_thread
    import msgspec

    from pipeline.commands.access import open_access
    from pipeline.config import save_instance
    from pipeline.crypt.grants import end_grant
    from pipeline.keychange import read_change, write_change

    async with open_access(site.settings) as access:
        if new.previous_kms_key_arn is not None:
            await end_grant(await access.keys(new), access.grants(new), new.previous_kms_key_arn)
        details = {"oldKmsKeyArn": new.previous_kms_key_arn, "newKmsKeyArn": new.kms_key_arn}
        await access.record(access.trail.changed(new.instance_id, "KeyChangeCompleted", reason=reason, **details))
        change = read_change(site.root, access.files, new.instance_id)
        if change is not None:
            done = msgspec.structs.replace(change, completed_at=access.clock.now())
            await anyio.to_thread.run_sync(write_change, site.root, access.files, done)
        last = replace(new, previous_kms_key_arn=None)
        await anyio.to_thread.run_sync(save_instance, site.settings.config_dir, last)


async def _status(site: Site, instance: "Instance", report: "Report | None") -> dict[str, Any]:
    from pipeline.adapters.disk import Disk
    from pipeline.config import load_instances
    from pipeline.keychange import read_change

    now = load_instances(site.settings.config_dir).instances.get(instance.instance_id, instance)
    change = read_change(site.root, Disk(), instance.instance_id)
    return described(site, now, change, report)


def described(site: Site, now: "Instance", change: "KeyChange | None", report: "Report | None") -> dict[str, Any]:
    """Describe the last change of an instance's KMS key, by its configuration and by what came of the job."""
    from pipeline.jobs import JobStatus

    done, total = _counts(site, now)
    failed = report is not None and report.status is JobStatus.FAILED
    status = "COMPLETED" if now.previous_kms_key_arn is None else "FAILED" if failed else "IN_PROGRESS"
    about = change if change is not None and change.new_kms_key_arn == now.kms_key_arn else None
    delivered = None if about is None else about.delivered_under_old_key
    side = report.outcome.get("failedSide") if report is not None and status == "FAILED" else None
    return {
        "UpdateStatus": status,
        "FailedSide": side,
        "Done": done,
        "Total": total,
        "OldKmsKeyId": now.previous_kms_key_arn or (None if about is None else about.old_kms_key_arn),
        "KmsKeyId": now.kms_key_arn,
        "Message": None if report is None or status == "COMPLETED" else report.message,
        "DeliveredUnderOldKey": "unknown" if delivered is None else delivered,
    }


def show(answer: dict[str, Any]) -> None:
    """Say how a change stands, and what must not be done."""
    screen.say(f"change of KMS key: {answer['UpdateStatus']}, {answer['Done']} of {answer['Total']} data keys")
    if answer["FailedSide"] is not None:
        screen.say(f"  the {answer['FailedSide']} KMS key can't be used: {answer['Message']}")
        screen.say("  nothing is lost. Restore access to that key, then give the same command again")
    elif answer["Message"] is not None:
        screen.say(f"  {answer['Message']}")
    warn(answer)


def warn(answer: dict[str, Any]) -> None:
    """Say whether the old key may go."""
    if answer["OldKmsKeyId"] is None:
        return
    left = answer["DeliveredUnderOldKey"]
    if answer["UpdateStatus"] == "COMPLETED" and left == 0:
        screen.say(f"nothing that is held or delivered needs {answer['OldKmsKeyId']} any more")
        return
    screen.say(
        f"do not delete {answer['OldKmsKeyId']}: DeliveredUnderOldKey is {left}, and it may go only at 0;"
        " see `pipeline keys reencrypt`"
    )


def _show(answer: dict[str, Any], *, as_json: bool, moved: list[str]) -> None:
    if as_json:
        screen.emit({**answer, "DeliveryMoved": moved})
        return
    show(answer)
    if moved:
        screen.say(f"from now on {', '.join(moved)} are delivered under another KMS key, too")
