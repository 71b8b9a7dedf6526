"""`pipeline grants`: the grants by which the service uses the instances' KMS keys."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import ConfigOption, InstanceOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import DeferError, HoldCode, KeyUnavailableError, RefuseError

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.instances import Instance

EXAMPLES = {
    "list": "Example: pipeline grants list --instance acme",
    "create": "Example: pipeline grants create acme",
    "revoke": 'Example: pipeline grants revoke acme --reason "contract ended"',
}
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS|ID", help="The instance.")]
OURS = "pipeline:"
"""What the names of all our grants begin with."""


def list_grants(
    instance: InstanceOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the grants of this program on the instances' KMS keys, as KMS tells them.

    Exit code 1 if an instance that is to have a grant has none, else 4 if a key could not be asked.
    """
    import anyio

    site = open_site(config, state_dir)
    served = [site.configured(instance)] if instance is not None else list(site.loaded.instances.values())
    rows = anyio.run(_list, site, served)
    if as_json:
        screen.emit({"instances": rows})
    else:
        _show(rows)
    if any(row["state"] == "MISSING" for row in rows):
        raise typer.Exit(ExitCode.FOUND)
    if any(row["state"] == "UNKNOWN" for row in rows):
        raise typer.Exit(ExitCode.WAITING)


def create(
    wanted: AliasArgument,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grant the service the use of an instance's KMS key (again), and try it.

    A grant that is there already is found by its name. From then on the instance's file says that its key is used by a
    grant. A running service takes it up by itself.
    """
    import anyio

    site = open_site(config, state_dir)
    answer = anyio.run(_create, site, site.configured(wanted))
    if as_json:
        screen.emit(answer)
    else:
        screen.say(f"granted: {answer['grantId']} on {answer['kmsKeyArn']}")


def revoke(
    wanted: AliasArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")],
    grant_id: Annotated[
        str | None,
        typer.Option(metavar="ID", show_default=False, help="This grant on its key; else all that are the instance's."),
    ] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back the service's right to use an instance's KMS key: its recordings are held until it is granted again.

    Nothing is lost by it: what is sealed waits, new recordings are refused. It takes effect within the time that keys
    stay in memory, and works on keys that are disabled, too.
    """
    import anyio

    site = open_site(config, state_dir)
    answer = anyio.run(_revoke, site, site.configured(wanted), grant_id, reason)
    if as_json:
        screen.emit(answer)
    else:
        screen.say(f"revoked: {', '.join(answer['revoked']) or 'nothing, there is no such grant'}")
    if not answer["revoked"]:
        raise typer.Exit(ExitCode.FOUND)


# --- inside


async def _list(site: Site, instances: "list[Instance]") -> list[dict[str, Any]]:
    from pipeline.commands.access import open_access

    async with open_access(site.settings) as access:
        return [await _row(access, instance, arn) for instance in instances for arn in _arns(instance)]


async def _row(access: "Access", instance: "Instance", key_arn: str) -> dict[str, Any]:
    from pipeline.crypt.grants import name_of
    from pipeline.ids import RECORDINGS_CLASS
    from pipeline.instances import KeyAccess

    about = {
        "instance": instance.alias,
        "instanceId": str(instance.instance_id),
        "kmsKeyArn": key_arn,
        "keyAccess": instance.key_access.value,
    }
    kept = access.grants(instance).read().get(key_arn)
    try:
        found = await (await access.keys(instance)).list_grants(key_arn)
    except (DeferError, RefuseError) as error:
        grant_ids = [] if kept is None else [{"grantId": kept.grant_id, "name": kept.name}]
        return about | {"state": "UNKNOWN", "problem": str(error), "grants": grant_ids}
    name = name_of(str(instance.instance_id), RECORDINGS_CLASS)
    needed = instance.key_access is KeyAccess.GRANT and key_arn == instance.kms_key_arn
    state = "GRANTED" if any(grant.name == name for grant in found) else "MISSING" if needed else "NOT_NEEDED"
    grants = [
        {
            "grantId": grant.grant_id,
            "name": grant.name,
            "grantee": grant.grantee,
            "operations": list(grant.operations),
            "encryptionContext": None if grant.context is None else dict(grant.context),
            "createdAt": None if grant.created_at is None else grant.created_at.isoformat(timespec="seconds"),
            "isThisInstances": grant.name == name,
            "isKept": kept is not None and kept.grant_id == grant.grant_id,
        }
        for grant in found
        if grant.name.startswith(OURS)
    ]
    return about | {"state": state, "problem": None, "grants": grants}


async def _create(site: Site, instance: "Instance") -> dict[str, Any]:
    from dataclasses import replace

    import anyio.to_thread

    from pipeline.commands.access import open_access
    from pipeline.commands.onboarding import describe_key, grant_key, try_key
    from pipeline.commands.running import tell_service
    from pipeline.config import save_instance
    from pipeline.instances import KeyAccess

    async with open_access(site.settings) as access:
        await describe_key(access, instance)
        record = await grant_key(access, instance)
        await try_key(access, instance)
        if instance.key_access is not KeyAccess.GRANT:
            await access.record(access.trail.changed(instance.instance_id, "InstanceChanged", keyAccess="grant"))
            changed = replace(instance, key_access=KeyAccess.GRANT)
            await anyio.to_thread.run_sync(save_instance, site.settings.config_dir, changed)
    return {
        "instanceId": str(instance.instance_id),
        "kmsKeyArn": record.kms_key_arn,
        "grantId": record.grant_id,
        "serviceTold": tell_service(site),
    }


async def _revoke(site: Site, instance: "Instance", grant_id: str | None, reason: str) -> dict[str, Any]:
    from pipeline.commands.access import open_access
    from pipeline.commands.running import tell_service

    revoked = []
    async with open_access(site.settings) as access:
        for arn, each in await _chosen(access, instance, grant_id):
            verb = "GrantRevoked"
            details = {"kmsKeyArn": arn, "grantId": each, "reason": reason}
            await access.record(access.trail.changed(instance.instance_id, verb, **details))
            await _end(access, instance, arn, each)
            revoked.append(each)
    return {"instanceId": str(instance.instance_id), "revoked": revoked, "serviceTold": tell_service(site)}


async def _chosen(access: "Access", instance: "Instance", grant_id: str | None) -> list[tuple[str, str]]:
    """Find what is to be revoked: key and grant. What is kept here is known also where KMS gives us no list."""
    import anyio.to_thread

    from pipeline.crypt.grants import name_of
    from pipeline.ids import RECORDINGS_CLASS

    kept = await anyio.to_thread.run_sync(access.grants(instance).read)
    found = [(arn, record.grant_id) for arn, record in kept.items()]
    name = name_of(str(instance.instance_id), RECORDINGS_CLASS)
    for arn in _arns(instance):
        try:
            listed = await (await access.keys(instance)).list_grants(arn)
        except KeyUnavailableError as error:
            if error.code is not HoldCode.KEY_ACCESS_DENIED:
                raise
            continue
        there = {grant.grant_id for grant in listed if grant.name.startswith(OURS)}
        found = [(key, each) for key, each in found if key != arn or each in there]
        found += [(arn, grant.grant_id) for grant in listed if grant.name == name or grant.grant_id == grant_id]
    unique = list(dict.fromkeys(found))
    return [each for each in unique if grant_id in {None, each[1]}]


async def _end(access: "Access", instance: "Instance", key_arn: str, grant_id: str) -> None:
    """Revoke it; where the key's policy does not let us, retire it, which the grant itself permits."""
    import anyio.to_thread

    service, folder = await access.keys(instance), access.grants(instance)
    try:
        await service.revoke_grant(key_arn, grant_id)
    except KeyUnavailableError as error:
        if error.code is not HoldCode.KEY_ACCESS_DENIED:
            raise
        await service.retire_grant(key_arn, grant_id)
    record = (await anyio.to_thread.run_sync(folder.read)).get(key_arn)
    if record is not None and record.grant_id == grant_id:
        await anyio.to_thread.run_sync(folder.remove, key_arn)


def _arns(instance: "Instance") -> list[str]:
    return [arn for arn in (instance.kms_key_arn, instance.previous_kms_key_arn) if arn is not None]


def _show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        screen.say(f"{row['instance']}: {row['state'].lower().replace('_', ' ')} on {row['kmsKeyArn']}")
        if row["problem"]:
            screen.say(f"  could not be asked: {row['problem']}")
        if row["state"] == "MISSING":
            screen.say(f"  what to do: pipeline grants create {row['instance']}")
        for grant in row["grants"]:
            screen.say(f"  {grant['grantId']} {grant['name']} to {grant.get('grantee', 'us')}")
