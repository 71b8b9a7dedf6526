"""`pipeline verify`: whether what the store holds is whole, and opens."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import ConfigOption, InstanceOption, JsonOption, Site, StateDirOption, open_site
from pipeline.ids import InstanceId

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.interim.states import ArtifactName

EXAMPLE = "Example: pipeline verify --read-data"


def verify(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: InstanceOption = None,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Open every segment too, and compare length and checksums.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every artifact's structure by its name, header and segments, and every receipt. Changes nothing.

    Exit code 1 if anything is wrong, else 4 if something could not be opened now, else 0.
    """
    import anyio

    site = open_site(config, state_dir)
    answer = anyio.run(_verify, site, site.find(instance), read_data)
    if as_json:
        screen.emit(answer)
    else:
        _show(answer)
    if answer["problems"]:
        raise typer.Exit(ExitCode.FOUND)
    if answer["unopened"]:
        raise typer.Exit(ExitCode.WAITING)


async def _verify(site: Site, wanted: InstanceId | None, read_data: bool) -> dict[str, Any]:
    from pipeline.commands.access import open_access
    from pipeline.commands.inspection import Inspection
    from pipeline.interim.survey import survey

    async with open_access(site.settings) as access:
        found = survey(site.root, access.files)
        names = [name for name in found.names if wanted in {None, name.instance_id}]
        if read_data:
            await _tell(access, names)
        inspection = Inspection(site, access, read_data=read_data)
        with screen.progress("verifying", is_bytes=False) as moved:
            for done, name in enumerate(names, start=1):
                await inspection.inspect(name)
                moved(done, len(names))
        if wanted is None:
            inspection.strangers(found.strangers)
        return inspection.answer()


async def _tell(access: "Access", names: "Sequence[ArtifactName]") -> None:
    """Record that all of these are opened, before the first is. Nothing of them leaves but whether they are right."""
    for instance, count in sorted(Counter(name.instance_id for name in names).items()):
        await access.record(access.trail.changed(instance, "PlaintextOpened", purpose="verify", artifacts=count))


def _show(answer: dict[str, Any]) -> None:
    screen.say(
        f"{answer['checked']} artifacts and receipts checked"
        f"{', every segment opened' if answer['readData'] else ', structure only'}; {len(answer['problems'])} problems"
    )
    for problem in answer["problems"]:
        screen.say(f"{problem['what']}: {problem['problem']}")
    for each in answer["unopened"]:
        screen.say(f"{each['what']}: not opened: {each['why']}")
    if answer["poison"]:
        screen.say(f"{answer['poison']} are poison already and wait for a person; see `pipeline ls --state poison`")
