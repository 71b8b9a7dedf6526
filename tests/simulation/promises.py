"""The reference model: what sources sent, and what the service has acknowledged of it. Nothing else is a promise.

Every body begins with a text of its own, so that an object tells by its first bytes whose it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipeline.ids import InstanceId, Kind
from pipeline.intake.reception import Answer, Source
from tests import markers

MARKER = markers.MEDIA
"""Begins everything that nobody may read."""
BEGINNING = 40
"""Bytes of a body that tell whose it is."""


class BrokenPromiseError(AssertionError):
    """What the service did is not what it said."""


class LostError(BrokenPromiseError):
    """Acknowledged, and neither held nor delivered."""


class DuplicatedError(BrokenPromiseError):
    """Delivered more than once."""


class WrongBytesError(BrokenPromiseError):
    """Delivered, or held, as something else than was sent."""


class PlaintextError(BrokenPromiseError):
    """Readable on the disk."""


class LeakError(BrokenPromiseError):
    """Something was left behind: a handle, an upload."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """One body that a source sends, as often as it must."""

    instance_id: InstanceId
    kind: Kind
    contact: str
    source_id: str
    data: bytes
    acknowledged: int = 0
    """So many bytes are durable, the source was told; what follows may be sent again by it."""
    answer: Answer | None = None
    """All of it is."""
    recovered: bool = False
    """Its end may have been taken for that of a source that fell silent."""

    @property
    def source(self) -> Source:
        """As the service is told of it."""
        return Source(kind=self.kind, contact=self.contact, source_id=self.source_id, content_type="audio/wav")

    @property
    def label(self) -> bytes:
        """How it begins."""
        return self.data[:BEGINNING]


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """One chat that comes as events: its items in the order in which they are sent."""

    instance_id: InstanceId
    contact: str
    items: tuple[str, ...]
    """Ids."""
    acknowledged: int = 0
    sent: int = 0
    ended: bool = False
    """Its end was acknowledged."""


@dataclass
class Promises:
    """Everything, by body and by chat."""

    bodies: dict[bytes, Body] = field(default_factory=dict)
    talks: dict[str, Talk] = field(default_factory=dict)
    announced: set[tuple[InstanceId, str]] = field(default_factory=set)
    """Contacts of which events were acknowledged."""

    def copy(self) -> "Promises":
        """Give a copy, as it is now."""
        return Promises(dict(self.bodies), dict(self.talks), set(self.announced))

    def add(self, body: Body) -> None:
        """Plan a body."""
        assert len(body.data) > BEGINNING
        assert body.label not in self.bodies
        self.bodies[body.label] = body

    def acknowledged(self, body: Body, offset: int) -> None:
        """Take a source's word that the service told it so."""
        known = self.bodies[body.label]
        self.bodies[body.label] = replace(known, acknowledged=max(known.acknowledged, offset))

    def answered(self, body: Body, answer: Answer) -> None:
        """Take the answer to a whole body. Raises if it is not the one that was given before."""
        known = self.bodies[body.label].answer
        if known is not None and known != answer:
            raise DuplicatedError(f"{body.source_id} got two answers: {known} and {answer}")
        if answer.size_bytes != len(body.data):
            raise WrongBytesError(f"{body.source_id}: {answer.size_bytes} bytes are not what was sent")
        self.bodies[body.label] = replace(self.bodies[body.label], answer=answer, acknowledged=len(body.data))

    def said(self, talk: Talk, count: int, *, sent: bool = False) -> None:
        """Take note of the first `count` items: sent, or acknowledged."""
        known = self.talks[talk.contact]
        done = known.acknowledged if sent else max(known.acknowledged, count)
        self.talks[talk.contact] = replace(known, acknowledged=done, sent=max(known.sent, count))

    def ended(self, talk: Talk) -> None:
        """Take note of an end that was acknowledged."""
        self.talks[talk.contact] = replace(self.talks[talk.contact], ended=True)

    def of_source(self, instance_id: InstanceId, source_id: str) -> Iterator[Body]:
        """Every body of one source."""
        for body in self.bodies.values():
            if (body.instance_id, body.source_id) == (instance_id, source_id):
                yield body

    def owner(self, data: bytes) -> Body:
        """Tell whose bytes these are. Raises if they are nobody's."""
        body = self.bodies.get(data[:BEGINNING])
        if body is None or body.data[: len(data)] != data:
            raise WrongBytesError("bytes that nobody sent")
        return body
