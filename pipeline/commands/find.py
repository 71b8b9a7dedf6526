"""Find what an id names: an artifact that is held here, or the receipt of one that was delivered."""

from dataclasses import dataclass
from uuid import UUID

from pipeline.commands.options import Site
from pipeline.commands.receipts import folded, receipt_of
from pipeline.delivery.proof import Receipt
from pipeline.errors import RefuseError
from pipeline.ids import InstanceId, Kind
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.survey import Survey, survey
from pipeline.ports import FileSystem

_NOT_FOUND = (
    "nothing of that id is held here. A recording whose first generation is not delivered yet is found by its artifact"
    " id, see `pipeline ls`"
)


@dataclass(frozen=True, slots=True)
class Found:
    """One generation of a recording: held here under `name`, or delivered with `receipt`."""

    instance_id: InstanceId
    kind: Kind
    generation: int
    artifact_id: UUID
    name: ArtifactName | None
    receipt: Receipt | None


def find(site: Site, files: FileSystem, wanted: UUID, generation: int | None) -> Found:
    """Find an artifact by its id, or a recording by its: that generation of it, or the newest.

    Raises:
        RefuseError: there is none.

    """
    seen = survey(site.root, files)
    mine = [name for name in seen.names if name.artifact_id == wanted]
    if mine and generation in {None, mine[0].generation}:
        return _held(site, files, mine[0])
    candidates = [*_generations(site, files, seen, wanted, mine), *_folded(site, files, wanted)]
    chosen = [each for each in candidates if generation in {None, each.generation}]
    if not chosen:
        raise RefuseError(_NOT_FOUND, field="ID")
    return max(chosen, key=lambda each: each.generation)


def _generations(site: Site, files: FileSystem, seen: Survey, wanted: UUID, mine: list[ArtifactName]) -> list[Found]:
    """Find the generations of a recording: those of the same source, and those whose receipts name it."""
    found = []
    for name in seen.names:
        if mine and (name.instance_id, name.tag) == (mine[0].instance_id, mine[0].tag):
            found.append(_held(site, files, name))
        elif name.standing is State.DELIVERED:
            held = _held(site, files, name)
            if held.receipt is not None and held.receipt.recording_id == wanted:
                found.append(held)
    return found


def _held(site: Site, files: FileSystem, name: ArtifactName) -> Found:
    receipt = receipt_of(site.root, files, name) if name.standing is State.DELIVERED else None
    return Found(name.instance_id, name.kind, name.generation, name.artifact_id, name, receipt)


def _folded(site: Site, files: FileSystem, wanted: UUID) -> list[Found]:
    found = []
    for instance in site.loaded.instances:
        for receipt in folded(site.root, files, instance):
            if wanted in {receipt.artifact_id, receipt.recording_id}:
                kind = Kind(receipt.kind)
                found.append(Found(instance, kind, receipt.generation, receipt.artifact_id, None, receipt))
    return found
