"""Render a chat's items as the transcript file of Amazon Connect. No I/O, no clock.

A pure function of the items and of `RENDERER`: whoever renders again gets the same bytes, whatever order the items are
handed over in. Each item is written as it came, unknown members, types and the spelling of numbers included; only a
member that is `null` is left out, because in this format absent means omitted.

Items are ordered by (`AbsoluteTime`, arrival) and known by `Id`. Of several with one id the first to arrive counts,
whatever the later ones hold: what was acknowledged can't be rewritten by a later event. The later ones are still in
the sealed artifact.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from pipeline.events import Item
from pipeline.ids import InstanceId

RENDERER = "transcript/1"
"""Stands in the manifest. Other bytes for the same items need another number."""
VERSION = "2019-08-26"
CONTENT_TYPE = "application/json"
EXTENSION = "json"

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = msgspec.json.Decoder(str)


@dataclass(frozen=True, slots=True)
class ArrivedItem:
    """An item and its place among the artifact's records."""

    arrival: int
    item: Item


@dataclass(frozen=True, slots=True)
class Rendered:
    """A transcript file, and what the manifest says of it."""

    data: bytes
    items: int
    started: datetime | None
    """`AbsoluteTime` of the first item."""
    ended: datetime | None


def render(
    *,
    account_id: str,
    instance_id: InstanceId,
    contact: str,
    initial_contact: str | None,
    items: Iterable[ArrivedItem],
) -> Rendered:
    """Make the transcript file. No items make a file with an empty `Transcript`.

    Args:
        account_id: of the instance.
        instance_id: of the instance.
        contact: the outside contact id.
        initial_contact: the first of its chain; `None` means that it is the first itself.
        items: in any order; arrival numbers differ.

    """
    kept = _in_order(items)
    members = [_members(each.item) for each in kept]
    participants = dict.fromkeys(filter(None, map(_participant, members)))
    data = msgspec.json.encode(
        {
            "Version": VERSION,
            "AWSAccountId": account_id,
            "InstanceId": str(instance_id),
            "InitialContactId": initial_contact or contact,
            "ContactId": contact,
            "Participants": [{"ParticipantId": participant} for participant in participants],
            "Transcript": members,
        }
    )
    return Rendered(
        data,
        len(kept),
        kept[0].item.absolute_time if kept else None,
        kept[-1].item.absolute_time if kept else None,
    )


def _in_order(items: Iterable[ArrivedItem]) -> list[ArrivedItem]:
    first: dict[str, ArrivedItem] = {}
    for each in items:
        known = first.get(each.item.id)
        if known is None or each.arrival < known.arrival:
            first[each.item.id] = each
    return sorted(first.values(), key=lambda each: (each.item.absolute_time, each.arrival))


def _members(item: Item) -> dict[str, msgspec.Raw]:
    return {name: value for name, value in _OBJECT.decode(item.raw).items() if bytes(value) != b"null"}


def _participant(members: dict[str, msgspec.Raw]) -> str | None:
    """Give an item's participant; `None` for one that isn't a string, which is kept all the same."""
    for name, value in members.items():
        if name.lower() == "participantid" and bytes(value).startswith(b'"'):
            return _STRING.decode(value)
    return None
