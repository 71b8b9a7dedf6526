"""`pipeline policy`: the key policies and IAM policies that an instance needs, ready to be put in place."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import screen
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.instances import Instance
    from pipeline.policies import Document

EXAMPLE = "Example: pipeline policy show acme"
PrincipalOption = Annotated[
    str | None,
    typer.Option(
        "--principal", metavar="ARN", show_default=False, help="Role or user that the service is, if not as set."
    ),
]
_PLACES = {
    "key-policy-statements": "add to the key policy of",
    "iam-policy": "attach to",
    "trust-policy": "trust policy of",
}


def show(
    wanted: Annotated[str, typer.Argument(metavar="ALIAS|ID", help="The instance.")],
    principal: PrincipalOption = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the least that an instance needs: statements for the policies of its KMS keys, and IAM policies.

    A KMS key's own policy has to keep its administrators beside these statements. For an instance that is still to be
    added: pipeline instance add ... --policies.
    """
    site = open_site(config, state_dir)
    show_policies(site, site.configured(wanted), principal=principal, as_json=as_json)


def show_policies(site: Site, instance: "Instance", *, principal: str | None = None, as_json: bool) -> None:
    """Print the policies of an instance, configured or not. Raises `RefuseError` if the service's name is unknown."""
    from pipeline.policies import documents

    made = documents(instance, _principal(site, principal), _beside(site, instance))
    if as_json:
        screen.emit({"instanceId": str(instance.instance_id), "policies": [_row(each) for each in made]})
        return
    screen.say(f"instance {instance.alias}, id {instance.instance_id}")
    for each in made:
        screen.say("")
        screen.say(f"{each.name}: {_PLACES[each.kind]} {each.belongs_to}")
        screen.say(json.dumps(_written(each), indent=2))


def _row(document: "Document") -> dict[str, Any]:
    return {
        "name": document.name,
        "kind": document.kind,
        "belongsTo": document.belongs_to,
        "document": _written(document),
    }


def _written(document: "Document") -> Any:
    """Write it as it is put in place: of a key's policy the statements alone, for the rest is its owner's."""
    return list(document.statements) if document.kind == "key-policy-statements" else document.document()


def _principal(site: Site, given: str | None) -> str:
    from pipeline.settings import PRINCIPAL

    if given is not None and not PRINCIPAL.fullmatch(given):
        raise RefuseError("not the ARN of an IAM role or user", field="--principal")
    if given is not None or site.settings.principal_arn is not None:
        return given or site.settings.principal_arn or ""
    return _asked(site)


def _asked(site: Site) -> str:
    import anyio

    from pipeline.commands.access import open_access

    async def ask() -> str:
        async with open_access(site.settings) as access:
            return await access.principal()

    return anyio.run(ask)


def _beside(site: Site, instance: "Instance") -> "Any":
    from pipeline.policies import Beside

    settings = site.settings
    return Beside(
        queues_in=[queue.queue_url for queue in settings.queues],
        queue_out=settings.events_out.queue_url,
        bus=settings.events_out.bus_name,
        region=settings.sqs.region,
        canary=settings.canary.instance in {instance.alias, str(instance.instance_id)},
    )
