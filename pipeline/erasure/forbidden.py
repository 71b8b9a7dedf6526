"""Whether a legal hold forbids to remove an artifact. Where nobody can tell, it does.

A hold on an instance is told by names alone. One on a contact or a recording needs an artifact's head to be opened.
"""

from collections.abc import Awaitable, Callable

from pipeline.crypt.contents import Head
from pipeline.delivery.naming import contact_in
from pipeline.delivery.proof import Receipt
from pipeline.errors import DeferError, PipelineError, RefuseError
from pipeline.ids import InstanceId
from pipeline.interim.states import ArtifactName
from pipeline.legalholds import LegalHold, LegalHolds

OpenHead = Callable[[ArtifactName], Awaitable[Head]]
"""Open an artifact's head, whatever may be wrong behind it."""


def refuse_for_instance(holds: LegalHolds, instance: InstanceId) -> None:
    """Raise `RefuseError` if anything of an instance is under a legal hold."""
    held = holds.of(instance)
    if held:
        raise _held(held[0], "this instance" if held[0].is_on_all else "something of this instance")


def refuse_for_receipt(holds: LegalHolds, receipt: Receipt) -> None:
    """Raise `RefuseError` if a delivered recording is under a legal hold."""
    ids = (receipt.artifact_id, receipt.recording_id)
    hold = holds.on(InstanceId(receipt.instance_id), contact_in(receipt.key), ids)
    if hold is not None:
        raise _held(hold, "this recording")


async def refuse_for_artifact(holds: LegalHolds, name: ArtifactName, open_head: OpenHead) -> None:
    """Raise `RefuseError` if an artifact is under a legal hold, or nobody can tell."""
    held = holds.of(name.instance_id)
    sure = holds.on_all(name.instance_id) or holds.on(name.instance_id, "", (name.artifact_id,))
    if sure is not None:
        raise _held(sure, f"artifact {name.artifact_id}")
    if not held:
        return
    try:
        head = await open_head(name)
    except (PipelineError, FileNotFoundError) as error:
        later = " Try again later." if isinstance(error, DeferError) else ""
        raise RefuseError(
            f"artifact {name.artifact_id} may be under legal hold {held[0].hold_id}: whose it is can't be told, since"
            f" its head does not open ({error}). Nothing was removed.{later}"
        ) from error
    hold = holds.on(name.instance_id, head.contact, (name.artifact_id, head.recording_id))
    if hold is not None:
        raise _held(hold, f"artifact {name.artifact_id}")


def _held(hold: LegalHold, what: str) -> RefuseError:
    return RefuseError(
        f"{what} is under legal hold {hold.hold_id}, placed {hold.placed_at:%Y-%m-%d} by {hold.placed_by}"
        f" ({hold.reason}). Nothing was removed; see `pipeline legal-hold list`"
    )
