"""`pipeline records change-key`: another KMS key for a domain, object type or instance's records."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.jobs import carry_out
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.commands.running import tell_service
from pipeline.errors import KeyUnavailableError, RefuseError

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.instances import Instance
    from pipeline.jobs import Report
    from pipeline.records.scopes import Placed, ScopeConfig

EXAMPLE = (
    "Example: pipeline records change-key acme voiceid"
    " arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000002"
)


def change_key(
    wanted: Annotated[str, typer.Argument(metavar="INSTANCE", help="Alias or id.")],
    data_class: Annotated[str, typer.Argument(metavar="CLASS", help="The class of data.")],
    key_arn: Annotated[
        str, typer.Argument(metavar="ARN", help="Full ARN of the KMS key to change to; '' for the service's own.")
    ],
    scope: Annotated[
        str, typer.Option("--scope", metavar="NAME", help="Which of several domains or object types.")
    ] = "default",
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; is recorded.")] = "key change",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the KMS key of a scope: every record is sealed again under a new data key, in the background.

    New records are sealed under the new key at once. Give the same command again to go on with a change that failed or
    was broken off. Exit code 1 if one of the two keys can't be used (FAILED, with its side), 4 if it has to wait.
    """
    import anyio

    from pipeline.records.keychange import VERB

    site = open_site(config, state_dir)
    instance = site.configured(wanted)
    known = _config(instance, data_class, scope)
    target = key_arn or None
    if known.kms_key_arn == target and known.previous_kms_key_arn is None:
        _show({"UpdateStatus": "COMPLETED", "FailedSide": None, "Done": 0, "Total": 0, "OldKmsKeyId": None,
               "KmsKeyId": target, "Message": "it is the key already"}, as_json=as_json)  # fmt: skip
        return
    new = instance
    if known.kms_key_arn != target:
        new = _changed(instance, known, target)
        anyio.run(_begin, site, new, known, target, reason)
    details = {"class": data_class, "scope": scope}
    report = carry_out(site, VERB, instance.instance_id, details, reason=reason, what="sealing records again")
    answer = _answer(_config(new, data_class, scope), report)
    if answer["UpdateStatus"] == "COMPLETED":
        anyio.run(_complete, site, new, _config(new, data_class, scope), reason)
        tell_service(site)
    _show(answer, as_json=as_json)
    if answer["UpdateStatus"] != "COMPLETED":
        raise typer.Exit(ExitCode.FOUND if answer["UpdateStatus"] == "FAILED" else ExitCode.WAITING)


# --- inside


def _config(instance: "Instance", data_class: str, scope: str) -> "ScopeConfig":
    """Find a scope's configuration; one that needs no table may have none. Raises `RefuseError`."""
    from pipeline.records.scopes import ScopeConfig

    if (data_class, scope) not in instance.places:
        raise RefuseError("the instance has no such class or scope", field="CLASS")
    found = [each for each in instance.records if (each.data_class, each.name) == (data_class, scope)]
    return found[0] if found else ScopeConfig(data_class=data_class, name=scope)


def _changed(instance: "Instance", known: "ScopeConfig", target: str | None) -> "Instance":
    """Give the instance as it is to be while the change goes on.

    Raises:
        RefuseError: another change is under way, or the class does not allow it.

    """
    from pipeline.instances import checked
    from pipeline.records.classes import policy_of
    from pipeline.records.policy import KeyChange

    policy = policy_of(known.data_class)
    if policy.key_change is KeyChange.SERVICE_ROTATES:
        raise RefuseError("this class has the service's own key: change records.service_key_arn", field="CLASS")
    if policy.key_change is KeyChange.IMMUTABLE:
        raise RefuseError("the key of this class never changes: make the resource anew", field="CLASS")
    if policy.locked_after in known.flags:
        raise RefuseError(f"{policy.locked_after} forbids a change of key", field="CLASS")
    if known.previous_kms_key_arn is not None:
        raise RefuseError("conflict: a change to another KMS key is under way. Give that key to finish it", field="ARN")
    # Without a key of the customer's before it, the service's own is the former one, and needs no naming.
    changed = replace(known, kms_key_arn=target, previous_kms_key_arn=known.kms_key_arn)
    return checked(_with(instance, changed))


def _with(instance: "Instance", config: "ScopeConfig") -> "Instance":
    others = [each for each in instance.records if (each.data_class, each.name) != (config.data_class, config.name)]
    return replace(instance, records=(*others, config))


async def _begin(site: Site, new: "Instance", known: "ScopeConfig", target: str | None, reason: str) -> None:
    """Try the new key; only then change the configuration. Raises: nothing was changed."""
    import anyio.to_thread

    from pipeline.commands.access import open_access
    from pipeline.config import save_instance

    place = new.places[known.data_class, known.name]
    async with open_access(site.settings) as access:
        if target is not None:
            try:
                await _try(access, new, place, target)
            except KeyUnavailableError as error:
                raise RefuseError(
                    f"the new KMS key can't be used, nothing was changed: {error}", field="ARN"
                ) from error
        details = {"dataClass": known.data_class, "scope": place.scope.name, "reason": reason}
        line = access.trail.changed(
            new.instance_id,
            "RecordKeyChangeBegun",
            oldKmsKeyArn=known.kms_key_arn,
            newKmsKeyArn=target,
            **details,
        )
        await access.record(line)
        await anyio.to_thread.run_sync(save_instance, site.settings.config_dir, new)


async def _try(access: "Access", instance: "Instance", place: "Placed", key_arn: str) -> None:
    """Describe the key, have the grant on it, and wrap and unwrap a data key."""
    from pipeline.crypt.grants import GrantedKeys, make_grant
    from pipeline.instances import KeyAccess
    from pipeline.records.grants import folder_of, terms_of

    scope = place.scope
    service = await access.keys(replace(instance, kms_key_arn=key_arn))
    described = await service.describe(key_arn)
    if described.state != "Enabled" or described.spec != "SYMMETRIC_DEFAULT":
        raise RefuseError(f"the KMS key is {described.state}, {described.spec}: nothing was changed", field="ARN")
    folder = folder_of(access.files, access.root, scope)
    if instance.key_access is KeyAccess.GRANT and scope.policy.grant_operations:
        wanted = terms_of(scope, await access.grantee(instance))
        await make_grant(service, folder, access.clock, key_arn, wanted)
    keys = GrantedKeys(service, folder, access.clock)
    made = await keys.generate_data_key(key_arn, scope.context)
    await keys.decrypt(key_arn, made.wrapped, scope.context)


async def _complete(site: Site, new: "Instance", config: "ScopeConfig", reason: str) -> None:
    """Let the configuration forget the old key, and give the grant on it back."""
    import anyio.to_thread

    from pipeline.commands.access import open_access
    from pipeline.config import save_instance
    from pipeline.crypt.grants import end_grant
    from pipeline.records.grants import folder_of

    scope = new.places[config.data_class, config.name].scope
    async with open_access(site.settings) as access:
        line = access.trail.changed(
            new.instance_id,
            "RecordKeyChangeCompleted",
            dataClass=config.data_class,
            scope=scope.name,
            oldKmsKeyArn=config.previous_kms_key_arn,
            newKmsKeyArn=config.kms_key_arn,
            reason=reason,
        )
        await access.record(line)
        last = _with(new, replace(config, previous_kms_key_arn=None))
        await anyio.to_thread.run_sync(save_instance, site.settings.config_dir, last)
        old = config.previous_kms_key_arn
        if old is not None:
            service = await access.keys(replace(new, kms_key_arn=old))
            try:
                await end_grant(service, folder_of(access.files, access.root, scope), old)
            except KeyUnavailableError as error:
                screen.note(f"the grant on the old key could not be given back: {error}")


def _answer(config: "ScopeConfig", report: "Report") -> dict[str, Any]:
    from pipeline.jobs import JobStatus

    completed = report.status is JobStatus.COMPLETED and report.outcome.get("done") == report.outcome.get("total")
    failed = report.status is JobStatus.FAILED
    return {
        "UpdateStatus": "COMPLETED" if completed else "FAILED" if failed else "IN_PROGRESS",
        "FailedSide": report.outcome.get("failedSide"),
        "Done": report.outcome.get("done", report.done),
        "Total": report.outcome.get("total", report.total),
        "OldKmsKeyId": config.previous_kms_key_arn,
        "KmsKeyId": config.kms_key_arn,
        "Message": report.message,
    }


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        screen.emit(answer)
        return
    screen.say(f"change of KMS key: {answer['UpdateStatus']}, {answer['Done']} of {answer['Total']} records")
    if answer["FailedSide"] is not None:
        screen.say(f"  the {answer['FailedSide']} KMS key can't be used: {answer['Message']}")
        screen.say("  nothing is lost. Restore access to that key, then give the same command again")
    elif answer["Message"] is not None:
        screen.say(f"  {answer['Message']}")
