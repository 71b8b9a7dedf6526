"""What is odd about sealed artifacts, as their manifests say: opened with their data keys. Changes nothing."""

from collections.abc import Iterable

import anyio.to_thread

from pipeline.commands import screen
from pipeline.commands.access import Access, open_access
from pipeline.commands.options import Site
from pipeline.commands.plaintext import reading_store
from pipeline.crypt.segments import DataKey
from pipeline.errors import PipelineError, RefuseError
from pipeline.interim.states import ArtifactName
from pipeline.interim.store import InterimStore

Flags = dict[ArtifactName, tuple[str, ...] | PipelineError]
"""By artifact: its quality flags, or why they can't be told now."""


async def flags_of(site: Site, names: Iterable[ArtifactName]) -> Flags:
    """Open the manifests of sealed artifacts. What can't be opened stops none of the others."""
    wanted = list(names)
    found: Flags = {}
    async with open_access(site.settings) as access:
        store = reading_store(site, access)
        with screen.progress("opening manifests", is_bytes=False) as moved:
            for done, name in enumerate(wanted, start=1):
                try:
                    key = await _key(site, access, name)
                    found[name] = await anyio.to_thread.run_sync(_quality, store, name, key)
                except PipelineError as error:
                    found[name] = error
                moved(done, len(wanted))
    return found


async def _key(site: Site, access: Access, name: ArtifactName) -> DataKey:
    instance = site.loaded.instances.get(name.instance_id)
    if instance is None:
        raise RefuseError("its instance is not configured here, so no key opens it", field="instance")
    return await (await access.ring(instance)).opening(name.key_id)


def _quality(store: InterimStore, name: ArtifactName, key: DataKey) -> tuple[str, ...]:
    with store.reading(name, key) as reader:
        return reader.manifest().quality
