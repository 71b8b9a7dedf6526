"""What stands against removing something, as commands see it: a legal hold, checked before what can't be undone."""

from collections.abc import Sequence

from pipeline.commands.access import Access
from pipeline.commands.options import Site
from pipeline.crypt.contents import Head
from pipeline.erasure import forbidden
from pipeline.errors import RefuseError
from pipeline.ids import InstanceId
from pipeline.interim.reader import read_head
from pipeline.interim.states import ArtifactName
from pipeline.legalholds import load_legal_holds


def refuse_for_instance(site: Site, instance: InstanceId) -> None:
    """Raise `RefuseError` if anything of an instance is under a legal hold."""
    forbidden.refuse_for_instance(load_legal_holds(site.settings.config_dir), instance)


async def refuse_for_artifacts(site: Site, access: Access, names: Sequence[ArtifactName]) -> None:
    """Raise `RefuseError` if any of these is under a legal hold, or nobody can tell."""
    holds = load_legal_holds(site.settings.config_dir)

    async def open_head(name: ArtifactName) -> Head:
        instance = site.loaded.instances.get(name.instance_id)
        if instance is None:
            raise RefuseError("its instance is not configured")
        key = await (await access.ring(instance)).opening(name.key_id)
        return read_head(access.files, f"{site.root}/artifacts/{name.path}", name, key)

    for name in names:
        await forbidden.refuse_for_artifact(holds, name, open_head)
