"""`pipeline doctor`: whether it would run here, and be safe here."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import HoldError, PipelineError, RefuseError

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.commands.machine import Check
    from pipeline.instances import Instance

EXAMPLE = "Example: pipeline doctor"


def doctor(config: ConfigOption = None, state_dir: StateDirOption = None, as_json: JsonOption = False) -> None:
    """Look at this machine, the settings, and every instance's key and bucket; say what to do. Changes nothing.

    Exit code 1 if anything fails; warnings alone are 0.
    """
    import anyio

    from pipeline.commands.machine import Level

    checks = anyio.run(_look, config, state_dir)
    if as_json:
        screen.emit({"checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            screen.say(f"{check.level.value.upper():<4}  {check.name}: {check.detail}")
            if check.action is not None:
                screen.say(f"      -> {check.action}")
    if any(check.level is Level.FAIL for check in checks):
        raise typer.Exit(ExitCode.FOUND)


async def _look(config: ConfigOption, state_dir: StateDirOption) -> "list[Check]":
    from pipeline.commands import machine
    from pipeline.commands.machine import Check, Level

    try:
        site = open_site(config, state_dir)
    except RefuseError as error:
        action = "mend the settings; nothing else can be looked at before"
        return [*machine.programs(embedded=False), Check(Level.FAIL, "settings", screen.told(error), action)]
    checks = [*machine.programs(embedded=site.settings.embedded), Check(Level.OK, "settings", "they can be read")]
    checks += machine.folders(site)
    checks += _held_here(site)
    checks += _instance_files(site)
    checks += [check async for check in _reach(site)]
    return checks


def _held_here(site: Site) -> "Iterator[Check]":
    from pipeline.adapters.disk import Disk, holder
    from pipeline.commands import machine
    from pipeline.commands.machine import Check, Level
    from pipeline.interim.states import State
    from pipeline.interim.survey import begun, survey

    files = Disk()
    pid = holder(f"{site.root}/lock")
    found = survey(site.root, files)
    undelivered = [name for name in found.names if name.standing is not State.DELIVERED]
    yield Check(Level.OK, "service", "not running" if pid is None else f"running, process {pid}")
    yield machine.room(site, files, len(undelivered))
    yield from machine.memory(pid)
    yield machine.clock(datetime.now(UTC), begun(found.names[-1]) if found.names else None)
    yield from _root_key(site)


def _root_key(site: Site) -> "Iterator[Check]":
    from pipeline.commands.machine import Check, Level
    from pipeline.embedded import attached, concerns

    if not site.settings.embedded:
        return
    try:
        known = attached(site.settings)
    except PipelineError as error:
        yield Check(Level.WARN, "embedded servers", screen.told(error), "start `pipeline serve` once")
        return
    for concern in concerns(known):
        yield Check(Level.WARN, "embedded servers", concern, "name KMS keys and buckets elsewhere in a settings file")


def _instance_files(site: Site) -> "Iterator[Check]":
    from pipeline.commands.machine import Check, Level

    for path, error in site.loaded.problems.items():
        action = "mend the file and send the service SIGHUP; until then it keeps what was in force before"
        yield Check(Level.FAIL, path.name, screen.told(error), action)
    if not site.loaded.instances:
        yield Check(Level.WARN, "instances", "there are none", "pipeline instance add")


async def _reach(site: Site) -> "AsyncIterator[Check]":
    from pipeline.commands.access import open_access

    async with open_access(site.settings) as access:
        for instance in site.loaded.instances.values():
            yield await _key(access, instance)
            for check in await _buckets(access, instance):
                yield check


async def _key(access: "Access", instance: "Instance") -> "Check":
    from pipeline.commands.machine import Check, Level

    name = f"{instance.alias} key"
    try:
        described = await (await access.keys(instance)).describe(instance.kms_key_arn)
    except PipelineError as error:
        return _trouble(name, error)
    if described.state == "Enabled":
        return Check(Level.OK, name, "enabled")
    return Check(Level.FAIL, name, f"its state is {described.state}", "its recordings wait until it is enabled")


async def _buckets(access: "Access", instance: "Instance") -> "list[Check]":
    from pipeline.commands.machine import Check, Level

    checks = []
    for kind, storage in sorted(instance.storage.items()):
        name = f"{instance.alias} {kind} bucket"
        try:
            await (await access.destination(instance, storage)).unfinished(f"{storage.prefix}/pipeline-doctor")
        except PipelineError as error:
            checks.append(_trouble(name, error))
        else:
            checks.append(Check(Level.OK, name, f"s3://{storage.bucket}/{storage.prefix}"))
    return checks


def _trouble(name: str, error: PipelineError) -> "Check":
    from pipeline.commands.machine import Check, Level
    from pipeline.holdwords import ACTIONS

    if isinstance(error, HoldError):
        return Check(Level.FAIL, name, str(error), ACTIONS[error.code])
    if isinstance(error, RefuseError):
        return Check(Level.FAIL, name, screen.told(error), "mend the instance's file, or the key")
    return Check(Level.WARN, name, str(error), "look again in a moment; check the way there")
