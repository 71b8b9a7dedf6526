"""What stands against removing something: a legal hold, checked before anything that can't be undone.

A hold on an instance is told by names alone. One on a contact or a recording needs an artifact's head to be opened;
where that can't be done nothing is removed.
"""

from collections.abc import Sequence

from pipeline.commands.access import Access
from pipeline.commands.options import Site
from pipeline.delivery.naming import contact_in
from pipeline.delivery.proof import Receipt
from pipeline.errors import DeferError, PipelineError, RefuseError
from pipeline.ids import InstanceId
from pipeline.interim.reader import read_head
from pipeline.interim.states import ArtifactName
from pipeline.legalholds import LegalHold, LegalHolds, load_legal_holds


def refuse_for_instance(site: Site, instance: InstanceId) -> None:
    """Raise `RefuseError` if anything of an instance is under a legal hold."""
    held = load_legal_holds(site.settings.config_dir).of(instance)
    if held:
        raise _held(held[0], "something of this instance" if not held[0].is_on_all else "this instance")


def refuse_for_receipt(site: Site, receipt: Receipt) -> None:
    """Raise `RefuseError` if a delivered recording is under a legal hold."""
    holds = load_legal_holds(site.settings.config_dir)
    ids = (receipt.artifact_id, receipt.recording_id)
    hold = holds.on(InstanceId(receipt.instance_id), contact_in(receipt.key), ids)
    if hold is not None:
        raise _held(hold, "this recording")


async def refuse_for_artifacts(site: Site, access: Access, names: Sequence[ArtifactName]) -> None:
    """Raise `RefuseError` if any of these is under a legal hold, or nobody can tell."""
    holds = load_legal_holds(site.settings.config_dir)
    for name in names:
        hold = await _hold_on(site, access, holds, name)
        if hold is not None:
            raise _held(hold, f"artifact {name.artifact_id}")


async def _hold_on(site: Site, access: Access, holds: LegalHolds, name: ArtifactName) -> LegalHold | None:
    held = holds.of(name.instance_id)
    sure = holds.on_all(name.instance_id) or holds.on(name.instance_id, "", (name.artifact_id,))
    if sure is not None or not held:
        return sure
    instance = site.loaded.instances.get(name.instance_id)
    try:
        if instance is None:
            raise RefuseError("its instance is not configured")
        key = await (await access.ring(instance)).opening(name.key_id)
        head = read_head(access.files, f"{site.root}/artifacts/{name.path}", name, key)
    except (PipelineError, FileNotFoundError) as error:
        later = " Try again later." if isinstance(error, DeferError) else ""
        raise RefuseError(
            f"artifact {name.artifact_id} may be under legal hold {held[0].hold_id}: whose it is can't be told, since"
            f" its head does not open ({error}). Nothing was removed.{later}"
        ) from error
    return holds.on(name.instance_id, head.contact, (name.artifact_id, head.recording_id))


def _held(hold: LegalHold, what: str) -> RefuseError:
    return RefuseError(
        f"{what} is under legal hold {hold.hold_id}, placed {hold.placed_at:%Y-%m-%d} by {hold.placed_by}"
        f" ({hold.reason}). Nothing was removed; see `pipeline legal-hold list`"
    )
