"""Render a chat's items as the transcript file of Amazon Connect. No I/O, no clock.

A pure function of the items and of `RENDERER`: whoever renders again gets the same bytes, whatever order the items are
handed over in. Each item is written as it came, unknown members, types and the spelling of numbers included; only a
member that is `null` is left out, because in this format absent means omitted.

Items are ordered by (`AbsoluteTime`, arrival) and known by `Id`. Of several with one id the first to arrive counts,
whatever the later ones hold: what was acknowledged can't be rewritten by a later event. The later ones are still in
the sealed artifact.

A transcript that is handed over as a file is delivered as it came, and only judged.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from pipeline.events import Item
from pipeline.ids import InstanceId
from pipeline.ports import Buffer
from pipeline.status import Quality

RENDERER = "transcript/1"
"""Stands in the manifest. Other bytes for the same items need another number."""
VERSION = "2019-08-26"
CONTENT_TYPE = "application/json"
EXTENSION = "json"

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = msgspec.json.Decoder(str)
_CHECKED_MOST = 256 * 1024
"""Longer files are not read through, only looked at where they end."""


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


class _File(msgspec.Struct, rename="pascal"):
    transcript: list[msgspec.Raw] | None = None


_FILE = msgspec.json.Decoder(_File)


class TranscriptCheck:
    """Judges JSON that is handed over as a file: cut off, no JSON at all, or a transcript of no item."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._last = b""
        """The last of its bytes that is no white space."""

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes."""
        self._text += piece[: _CHECKED_MOST + 1 - len(self._text)]
        self._last = bytes(piece).rstrip(b" \t\r\n")[-1:] or self._last

    def flags(self, size_bytes: int) -> list[Quality]:
        """Judge a body of that length."""
        if size_bytes > _CHECKED_MOST:
            return [] if self._last in {b"}", b"]"} else [Quality.SUSPECT_SHORT]
        try:
            file = _FILE.decode(self._text.decode())
        except msgspec.ValidationError:
            return []  # JSON, but no transcript that we know
        except msgspec.DecodeError as error:
            return [Quality.SUSPECT_SHORT if "truncated" in str(error) else Quality.SUSPECT_FORMAT]
        except (UnicodeDecodeError, RecursionError):
            return [Quality.SUSPECT_FORMAT]
        return [Quality.SUSPECT_EMPTY] if file.transcript == [] else []

    def duration(self, _size_bytes: int) -> timedelta | None:
        """Tell nothing: a chat's file may begin and end with any item."""
        return None
