"""`pipeline instance`: add, list, probe, remove."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.commands.policy import show_policies
from pipeline.commands.running import tell_service
from pipeline.errors import DeferError, PipelineError, RefuseError

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.commands.onboarding import Wanted
    from pipeline.instances import Instance

EXAMPLES = {
    "add": "Example: pipeline instance add acme --account 111122223333 --region eu-central-1 --kms-key ARN"
    " --bucket acme-recordings --bucket-key ARN",
    "list": "Example: pipeline instance list",
    "probe": "Example: pipeline instance probe acme",
    "remove": "Example: pipeline instance remove acme",
}
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS|ID", help="The instance.")]


def add(
    alias: Annotated[str, typer.Argument(help="Its name: letters, digits and hyphens.")],
    account: Annotated[str | None, typer.Option(show_default=False, help="AWS account id, 12 digits.")] = None,
    region: Annotated[str | None, typer.Option(show_default=False, help="AWS Region.")] = None,
    kms_key: Annotated[
        str | None, typer.Option(metavar="ARN", show_default=False, help="KMS key that its data keys are made under.")
    ] = None,
    bucket: Annotated[str | None, typer.Option(show_default=False, help="Bucket for all three kinds.")] = None,
    bucket_key: Annotated[
        str | None,
        typer.Option(metavar="ARN", show_default=False, help="KMS key that its objects are encrypted under."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(show_default=False, help="Begins every object key; without it connect/ALIAS.")
    ] = None,
    owner: Annotated[
        str | None, typer.Option(show_default=False, help="Account that owns the bucket, if another.")
    ] = None,
    storage: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="JSON list of storage associations, instead of --bucket."
        ),
    ] = None,
    instance_id: Annotated[
        UUID | None, typer.Option("--id", show_default=False, help="Its id; without one it gets a new one.")
    ] = None,
    role_arn: Annotated[
        str | None,
        typer.Option(metavar="ARN", show_default=False, help="Role that is taken on for its keys and buckets."),
    ] = None,
    external_id: Annotated[
        str | None, typer.Option(show_default=False, help="External id that the role's owner asks for.")
    ] = None,
    no_grant: Annotated[
        bool, typer.Option("--no-grant", help="Make no grant: the KMS key's own policy lets this service use it.")
    ] = False,
    policies: Annotated[
        bool, typer.Option("--policies", help="Add nothing: print the policies that it needs, and the id to add it by.")
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add an instance, after its key and its destinations have proved usable. Prints its token, this once.

    The service grants itself the use of the KMS key, for this instance's data keys alone; --no-grant where the key's
    policy is to permit that. With the embedded servers and a name only, keys and bucket are made too.
    """
    site = open_site(config, state_dir)
    if any(known.alias == alias for known in site.loaded.instances.values()):
        raise RefuseError("an instance of that name exists already", field="alias")
    if instance_id in site.loaded.instances:
        raise RefuseError("an instance of that id exists already", field="--id")
    asked = _Asked(
        alias=alias,
        account=account,
        region=region,
        kms_key=kms_key,
        bucket=bucket,
        bucket_key=bucket_key,
        prefix=prefix,
        owner=owner,
        storage=storage,
        instance_id=instance_id,
        no_grant=no_grant,
        role_arn=role_arn,
        external_id=external_id,
    )
    if policies:
        show_policies(site, asked.wanted("0" * 64).instance(), as_json=as_json)
        return
    answer = asked.add(site)
    answer["serviceTold"] = tell_service(site)
    if as_json:
        screen.emit(answer)
        return
    screen.say(f"added {alias}, {answer['instanceId']}")
    screen.say(f"token, shown this once: {answer['token']}")
    _show_probes(answer["destinations"])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """The options of `add`."""

    alias: str
    account: str | None
    region: str | None
    kms_key: str | None
    bucket: str | None
    bucket_key: str | None
    prefix: str | None
    owner: str | None
    storage: Path | None
    instance_id: UUID | None
    no_grant: bool
    role_arn: str | None
    external_id: str | None

    def add(self, site: Site) -> dict[str, Any]:
        """Add the instance by what was given."""
        import anyio

        from pipeline.config import new_token

        places = (self.account, self.region, self.kms_key, self.bucket, self.bucket_key, self.prefix, self.owner)
        options = (*places, self.role_arn, self.external_id)
        if site.settings.embedded and options == (None,) * len(options) and self.storage is None:
            return anyio.run(_provision, site, self.alias, self.instance_id)
        token, hashed = new_token()
        return anyio.run(_add, site, self.wanted(hashed)) | {"token": token}

    def wanted(self, token_sha256: str) -> "Wanted":
        """Put together what was given. Raises `RefuseError`, `typer.BadParameter`."""
        from pipeline.commands.onboarding import Wanted, one_bucket, read_storage
        from pipeline.instances import KeyAccess

        account, region, key = _needed(
            **{"--account": self.account, "--region": self.region, "--kms-key": self.kms_key}
        )
        if self.storage is not None:
            associations = read_storage(self.storage)
        else:
            bucket, bucket_key = _needed(**{"--bucket": self.bucket, "--bucket-key": self.bucket_key})
            associations = one_bucket(self.alias, bucket, bucket_key, self.owner or account, self.prefix)
        return Wanted(
            instance_id=self.instance_id or uuid4(),
            alias=self.alias,
            account_id=account,
            region=region,
            kms_key_arn=key,
            key_access=KeyAccess.POLICY if self.no_grant else KeyAccess.GRANT,
            role_arn=self.role_arn,
            external_id=self.external_id,
            token_sha256=token_sha256,
            storage=associations,
        )


def list_instances(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """List the instances, and the files that can't be used. Exit code 1 if there are any such."""
    site = open_site(config, state_dir)
    rows = [_row(instance) for instance in site.loaded.instances.values()]
    problems = [
        {"file": path.name, "field": error.field, "problem": str(error)} for path, error in site.loaded.problems.items()
    ]
    if as_json:
        screen.emit({"instances": rows, "problems": problems})
    else:
        columns = ("alias", "id", "account", "region", "kms key", "storage")
        cells = [
            (
                row["alias"],
                row["instanceId"],
                row["accountId"],
                row["region"],
                row["kmsKeyArn"],
                ", ".join(f"{kind}: {place}" for kind, place in row["storage"].items()),
            )
            for row in rows
        ]
        screen.table(f"instances: {len(rows)}", columns, cells)
        for problem in problems:
            screen.say(f"{problem['file']}: {problem['field'] or 'the file'}: {problem['problem']}")
    if problems:
        raise typer.Exit(ExitCode.FOUND)


def probe(
    wanted: AliasArgument,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try an instance's key and destinations again with small objects, and keep the answer.

    Exit code 3 if one is refused, else 4 if one can't be used now.
    """
    import anyio

    site = open_site(config, state_dir)
    answer = anyio.run(_probe, site, site.configured(wanted))
    answer["serviceTold"] = tell_service(site)
    if as_json:
        screen.emit(answer)
    else:
        screen.say(f"key: {answer['key'] or 'usable'}")
        _show_probes(answer["destinations"])
    raise typer.Exit(answer["exitCode"])


def remove(
    wanted: AliasArgument,
    force: Annotated[bool, typer.Option("--force", help="Remove it although undelivered recordings are held.")] = False,
    reason: Annotated[str | None, typer.Option(show_default=False, help="Why; needed with --force.")] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove an instance's file, and retire its grant. Its recordings, key ring and bucket are left as they are.

    While undelivered recordings of it are held this is refused: nothing could deliver or open them any more. While
    anything of it is under a legal hold it is refused whatever is given. If a grant can't be retired now nothing is
    removed, unless --force and --reason are given. A running service is told and not waited for: what it still takes
    in the next moment is held until the instance is added again.
    """
    import anyio

    from pipeline.commands.removal import refuse_for_instance

    site = open_site(config, state_dir)
    instance = site.configured(wanted)
    refuse_for_instance(site, instance.instance_id)
    held = _undelivered(site, instance)
    if held and not (force and reason):
        raise RefuseError(
            f"{held} undelivered recordings of it are held. Deliver them first, or give --force and --reason"
        )
    retired = anyio.run(_remove, site, instance, held, reason if force else None)
    answer = {
        "instanceId": str(instance.instance_id),
        "undelivered": held,
        "grantsRetired": retired,
        "serviceTold": tell_service(site),
    }
    if as_json:
        screen.emit(answer)
    else:
        screen.say(f"removed {instance.alias}; {held} undelivered recordings stay where they are")


# --- inside


def _needed(**options: str | None) -> list[str]:
    """Give options that must be there. Raises `typer.BadParameter` naming one that is not."""
    for name, value in options.items():
        if not value:
            raise typer.BadParameter("is needed here", param_hint=name)
    return [value for value in options.values() if value]


async def _add(site: Site, wanted: "Wanted") -> dict[str, Any]:
    from pipeline.commands.access import open_access
    from pipeline.commands.onboarding import describe_key, granted, try_key

    instance = wanted.instance()
    if not instance.storage:
        raise RefuseError("no storage is named, so nothing could be delivered", field="storage")
    async with open_access(site.settings) as access:
        await describe_key(access, instance)
        async with granted(access, instance):
            await try_key(access, instance)
            return await _accept(site, access, instance)


async def _provision(site: Site, alias: str, instance_id: UUID | None) -> dict[str, Any]:
    import anyio.to_thread

    from pipeline.commands.access import open_access, running_servers
    from pipeline.commands.onboarding import try_key
    from pipeline.config import remove_instance
    from pipeline.embedded import attached
    from pipeline.ids import InstanceId
    from pipeline.provision import provision_instance

    running_servers(site.settings)
    wanted = None if instance_id is None else InstanceId(instance_id)
    servers, directory = attached(site.settings), site.settings.config_dir
    instance, token = await provision_instance(servers, directory, alias, instance_id=wanted)
    async with open_access(site.settings) as access:
        try:
            await try_key(access, instance)
            return await _accept(site, access, instance) | {"token": token}
        except PipelineError:
            await anyio.to_thread.run_sync(remove_instance, site.settings.config_dir, instance.instance_id)
            raise


async def _accept(site: Site, access: "Access", instance: "Instance") -> dict[str, Any]:
    """Probe, record, save. Raises the first error: nothing is saved then."""
    import anyio.to_thread

    from pipeline.commands.onboarding import described, probe_all, save_answers
    from pipeline.config import save_instance

    answers = await probe_all(access, instance)
    for answer in answers.values():
        if isinstance(answer, PipelineError):
            raise answer
    await access.record(
        access.trail.changed(
            instance.instance_id, "InstanceAdded", alias=instance.alias, kmsKeyArn=instance.kms_key_arn
        )
    )
    await anyio.to_thread.run_sync(save_instance, site.settings.config_dir, instance)
    await save_answers(Path(site.settings.config_dir), instance.instance_id, answers)
    rows = [described(kind, instance, answer) for kind, answer in answers.items()]
    return {"instanceId": str(instance.instance_id), "alias": instance.alias, "destinations": rows}


async def _probe(site: Site, instance: "Instance") -> dict[str, Any]:
    from pipeline.commands.access import open_access
    from pipeline.commands.onboarding import check_key, described, probe_all, save_answers

    errors: list[PipelineError] = []
    async with open_access(site.settings) as access:
        try:
            await check_key(access, instance)
        except (RefuseError, DeferError) as error:
            errors.append(error)
        key = screen.told(errors[0]) if errors else None
        answers = await probe_all(access, instance)
    errors += [answer for answer in answers.values() if isinstance(answer, PipelineError)]
    await save_answers(Path(site.settings.config_dir), instance.instance_id, answers)
    code = ExitCode.OK
    if errors:
        code = ExitCode.REFUSED if any(isinstance(error, RefuseError) for error in errors) else ExitCode.WAITING
    rows = [described(kind, instance, answer) for kind, answer in answers.items()]
    return {"instanceId": str(instance.instance_id), "key": key, "destinations": rows, "exitCode": int(code)}


async def _remove(site: Site, instance: "Instance", held: int, forced: str | None) -> int:
    """Retire the grants, record it, remove the file; tell how many grants were retired."""
    import anyio.to_thread

    from pipeline.commands.access import open_access
    from pipeline.commands.onboarding import retire_grants
    from pipeline.config import remove_instance
    from pipeline.delivery.holds import remove_holds

    retired = 0
    async with open_access(site.settings) as access:
        try:
            retired = await retire_grants(access, instance)
        except DeferError as error:
            if not forced:
                raise
            screen.note(f"pipeline: its grant stays, it could not be retired: {screen.told(error)}")
        details = {"alias": instance.alias, "undelivered": held, "grantsRetired": retired, "reason": forced}
        await access.record(access.trail.changed(instance.instance_id, "InstanceRemoved", **details))
        await anyio.to_thread.run_sync(remove_instance, site.settings.config_dir, instance.instance_id)
        await anyio.to_thread.run_sync(remove_holds, f"{site.root}/holds", access.files, instance.instance_id)
    return retired


def _undelivered(site: Site, instance: "Instance") -> int:
    from pipeline.adapters.disk import Disk
    from pipeline.interim.survey import survey

    return len(survey(site.root, Disk()).undelivered(instance.instance_id))


def _row(instance: "Instance") -> dict[str, Any]:
    return {
        "alias": instance.alias,
        "instanceId": str(instance.instance_id),
        "accountId": instance.account_id,
        "region": instance.region,
        "kmsKeyArn": instance.kms_key_arn,
        "keyAccess": instance.key_access.value,
        "storage": {str(kind): f"s3://{place.bucket}/{place.prefix}" for kind, place in instance.storage.items()},
    }


def _show_probes(rows: list[dict[str, Any]]) -> None:
    columns = ("kind", "bucket", "prefix", "usable", "proof of a put", "of a multipart", "checksums", "problem")
    cells = [
        (
            row["kind"],
            row["bucket"],
            row["prefix"],
            "yes" if row["usable"] else "no",
            row.get("put", ""),
            row.get("multipart", ""),
            row.get("checksums", ""),
            row.get("problem", ""),
        )
        for row in rows
    ]
    screen.table("destinations", columns, cells)
