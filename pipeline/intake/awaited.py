"""Recordings that were announced and whose bytes have not come: still awaited, or given up. No I/O, no clock.

One that is given up keeps its id: if its bytes come after all, they are that recording.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from pipeline.ids import InstanceId, Kind, RecordingId

MISSING_SEQUENCE = 2
"""Of the status event that tells it: the second after INITIATED; what comes late goes on behind it."""
MAX_AWAITED = 100_000
"""About 0.5 KB each. More than that are not waited for."""


class Announced(Protocol):
    """As much of an announcement as matters here."""

    @property
    def kind(self) -> Kind: ...
    @property
    def source_id(self) -> str: ...
    @property
    def recording_id(self) -> RecordingId: ...
    @property
    def start(self) -> datetime | None: ...


@dataclass(slots=True, eq=False)
class Outstanding:
    """A recording that is awaited."""

    instance_id: InstanceId
    contact: str
    announced: Announced
    heard: datetime | None
    """When it was announced; None: just now."""
    told: bool = False
    """INITIATED of it is durable: its announcement said so, in this run."""
    ended: bool = False
    """Its recorder or its contact came to an end."""
    end_heard: datetime | None = None
    """When that was told; None: just now, or not yet."""
    seen: datetime | None = None
    deadline: float = float("inf")
    """When it is missing (monotonic). These two are set by who watches: `seen` is for people."""


@dataclass(slots=True)
class Awaited:
    """Both tables."""

    too_many: int = 0
    """Announcements that found no room here."""
    _by_contact: dict[tuple[InstanceId, str], list[Outstanding]] = field(default_factory=dict)
    _count: int = 0
    _news: dict[int, Outstanding] = field(default_factory=dict)
    _given_up: dict[tuple[InstanceId, str], RecordingId] = field(default_factory=dict)

    def __len__(self) -> int:
        return self._count

    # --- awaited

    def announce(self, instance_id: InstanceId, contact: str, announced: Announced, heard: datetime | None) -> None:
        """Await a recording; what is awaited already is described anew."""
        known = self.find(instance_id, contact, announced.kind, announced.source_id)
        if known is not None:
            known.announced = announced
        elif self._count >= MAX_AWAITED:
            self.too_many += 1
        else:
            made = Outstanding(instance_id, contact, announced, heard)
            self._by_contact.setdefault((instance_id, contact), []).append(made)
            self._count += 1
            self._news[id(made)] = made

    def end(self, instance_id: InstanceId, contact: str, heard: datetime | None, source: str | None = None) -> None:
        """Take note of the end of a contact, or of one source of it."""
        for each in self._by_contact.get((instance_id, contact), ()):
            if not each.ended and source in {None, each.announced.source_id}:
                each.ended, each.end_heard = True, heard
                self._news[id(each)] = each

    def find(self, instance_id: InstanceId, contact: str, kind: Kind, source_id: str | None) -> Outstanding | None:
        """Find what is awaited of a source; `source_id` None is any of that kind."""
        for each in self._by_contact.get((instance_id, contact), ()):
            if each.announced.kind is kind and source_id in {None, each.announced.source_id}:
                return each
        return None

    def came(self, instance_id: InstanceId, contact: str, kind: Kind, source_id: str | None) -> None:
        """Await it no longer: it is held."""
        while (found := self.find(instance_id, contact, kind, source_id)) is not None:
            self.forget(found)

    def forget(self, outstanding: Outstanding) -> None:
        """Await one no longer."""
        key = outstanding.instance_id, outstanding.contact
        siblings = self._by_contact.get(key, [])
        if outstanding in siblings:
            siblings.remove(outstanding)
            self._count -= 1
            if not siblings:
                del self._by_contact[key]

    def forget_all(self, instance_id: InstanceId) -> None:
        """Await nothing of an instance any more, and forget what was given up."""
        of_instance = [key for key in self._by_contact if key[0] == instance_id]
        for key in of_instance:
            self._count -= len(self._by_contact.pop(key))
        for given_up in [key for key in self._given_up if key[0] == instance_id]:
            del self._given_up[given_up]

    def awaits(self, outstanding: Outstanding) -> bool:
        """Tell whether it is awaited still."""
        return outstanding in self._by_contact.get((outstanding.instance_id, outstanding.contact), ())

    def news(self) -> list[Outstanding]:
        """Give what was announced or has ended since this was asked last."""
        told, self._news = list(self._news.values()), {}
        return [each for each in told if self.awaits(each)]

    # --- given up

    def give_up(self, instance_id: InstanceId, tags: Iterable[str], recording_id: RecordingId) -> None:
        """Remember a recording that did not come, by the tags of its source."""
        for tag in tags:
            self._given_up[instance_id, tag] = recording_id

    def given_up(self, instance_id: InstanceId, tags: Iterable[str]) -> RecordingId | None:
        """Find a recording that was given up, by the tags of its source."""
        found = (self._given_up.get((instance_id, tag)) for tag in tags)
        return next((recording_id for recording_id in found if recording_id is not None), None)

    def take_back(self, instance_id: InstanceId, tags: Iterable[str]) -> None:
        """Forget that one was given up."""
        for tag in tags:
            self._given_up.pop((instance_id, tag), None)
