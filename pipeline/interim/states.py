"""States of an artifact, the one table of moves between them, and the file names that carry them. Pure.

A name holds all that scheduling, de-duplication and key keeping need, so that the scan at start opens no file:

    <artifact>.<instance>.<kind>.<data key>.<source tag>.g<n>.<seq>.open
    <artifact>.<instance>.<kind>.<data key>.<source tag>.g<n>.<bytes>.<seq>.sealed | .done
    either, with .poison.<code> appended

Ids are 32 hex digits. The source tag is a keyed hash, so names tell an outsider nothing. `bytes` is the length of the
object to be delivered, `seq` counts the recording's status events.
"""

import re
from enum import StrEnum
from functools import lru_cache
from uuid import UUID

import msgspec
from msgspec.structs import replace

from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind

SHARDS = tuple("0123456789abcdef")
"""Folders of the store: few, since a group of moves syncs each that it changed."""


def shard_of(artifact: ArtifactId) -> str:
    """Name the folder of an artifact: the last digit of its id, the most random one."""
    return SHARDS[artifact.int & 0xF]


class State(StrEnum):
    """Where an artifact is in its life. `DELIVERED` is a receipt: the media is gone."""

    OPEN = "open"
    SEALED = "sealed"
    DELIVERED = "done"
    POISON = "poison"


class Event(StrEnum):
    """What moves an artifact on."""

    FINISHED = "finished"
    IDLE = "idle"
    SETTLED = "settled"
    REJECTED = "rejected"
    REQUEUED = "requeued"


NEXT: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.FINISHED): State.SEALED,
    (State.OPEN, Event.IDLE): State.SEALED,  # as recovered
    (State.OPEN, Event.REJECTED): State.POISON,  # damaged below what was acknowledged
    (State.SEALED, Event.SETTLED): State.DELIVERED,
    (State.SEALED, Event.REJECTED): State.POISON,
    (State.POISON, Event.REQUEUED): State.SEALED,  # by a person
}

_HEX = "[0-9a-f]{32}"
_NUMBER = "(?:0|[1-9][0-9]{0,14})"  # spelled in one way only, so that a name that is read is the name that is written
_NAME = re.compile(
    rf"({_HEX})\.({_HEX})\.(voice|screen|chat)\.({_HEX})\.([0-9a-f]{{16}})\.g([1-9][0-9]{{0,8}})"
    rf"(?:\.({_NUMBER}))?\.({_NUMBER})\.(open|sealed|done)(?:\.poison\.([a-z0-9-]{{1,64}}))?",
)
_KINDS = {str(kind): kind for kind in Kind}
_STATES = {str(state): state for state in State}


class ArtifactName(msgspec.Struct, frozen=True, gc=False):
    """What an artifact's file name says.

    Of a kind that is made fast and takes little memory, since a store holds 100,000 of them and more.
    """

    artifact_id: ArtifactId
    instance_id: InstanceId
    kind: Kind
    key_id: KeyId
    tag: str
    generation: int
    sequence: int
    state: State
    size_bytes: int | None = None
    """Length of the object to be delivered; known once sealed."""
    poison: str | None = None
    """Why it needs a person; its `state` is then where it was before."""

    def __str__(self) -> str:
        size = "" if self.size_bytes is None else f".{self.size_bytes}"
        ending = "" if self.poison is None else f".poison.{self.poison}"
        return (
            f"{self.artifact_id.hex}.{self.instance_id.hex}.{self.kind}.{self.key_id.hex}.{self.tag}"
            f".g{self.generation}{size}.{self.sequence}.{self.state}{ending}"
        )

    @property
    def shard(self) -> str:
        """Folder it lies in."""
        return shard_of(self.artifact_id)

    @property
    def path(self) -> str:
        """Path below the store's `artifacts` folder."""
        return f"{self.shard}/{self}"

    @property
    def is_waiting(self) -> bool:
        """Sealed, and to be delivered."""
        return self.standing is State.SEALED

    @property
    def standing(self) -> State:
        """The state that counts: `POISON` whatever it was before."""
        return self.state if self.poison is None else State.POISON

    def sealed(self, event: Event, *, generation: int, size_bytes: int) -> "ArtifactName":
        """Name after FINISHED or IDLE (status COMPLETED)."""
        return self._moved(event, generation=generation, size_bytes=size_bytes)

    def delivered(self) -> "ArtifactName":
        """Name of the receipt (status PUBLISHED)."""
        return self._moved(Event.SETTLED)

    def rejected(self, code: str) -> "ArtifactName":
        """Name after REJECTED (status FAILED)."""
        target = NEXT[self.standing, Event.REJECTED]
        assert target is State.POISON
        return replace(self, poison=code, sequence=self.sequence + 1)

    def requeued(self) -> "ArtifactName":
        """Name after a person gave it back to delivery; only what had been sealed has one."""
        assert NEXT[self.standing, Event.REQUEUED] is self.state
        return replace(self, poison=None, sequence=self.sequence + 1)

    def _moved(self, event: Event, **changes: int) -> "ArtifactName":
        """Follow the table; every move is one status event more. A move it lacks is a `KeyError`: a bug."""
        return replace(self, state=NEXT[self.standing, event], sequence=self.sequence + 1, **changes)


def parse_name(name: str) -> ArtifactName:
    """Read a file name.

    Raises:
        SegmentForgedError: it is not one of ours.

    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise SegmentForgedError("a file in the store does not bear an artifact's name")
    artifact, instance, kind, key, tag, generation, size, sequence, state, code = match.groups()
    if (size is None) != (state == "open"):
        raise SegmentForgedError("the name of a file in the store has no length, or one too early")
    return ArtifactName(
        artifact_id=ArtifactId(UUID(int=int(artifact, 16))),
        instance_id=InstanceId(_shared(instance)),
        kind=_KINDS[kind],
        key_id=KeyId(_shared(key)),
        tag=tag,
        generation=int(generation),
        sequence=int(sequence),
        state=_STATES[state],
        size_bytes=None if size is None else int(size),
        poison=code,
    )


@lru_cache(maxsize=4096)
def _shared(digits: str) -> UUID:
    """Give an id that many names have: made once, which saves a scan a quarter of its time."""
    return UUID(hex=digits)
