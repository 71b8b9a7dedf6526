"""What was sent, and how much of it the service has acknowledged: the producers' side of the comparison.

Bodies are made from their seeds whenever they are needed, so that a long run keeps no bytes.
"""

import io
import random
import wave
from dataclasses import dataclass, field
from enum import Enum, auto

from pipeline.ids import Kind
from tests.sites import Party

MARKER = b"said under torture, and to be read by nobody else. "
_FILM = b"\0\0\0\x10ftypisom\0\0\0\1\0\0\0\x08moov"
"""The boxes before a film's data (ISO 14496-12)."""
_EVERY = 16 * 1024
"""A marker at least as often, so that there is one in every piece of a body that could be found anywhere."""


class Manner(Enum):
    """How a client sends."""

    WHOLE = auto()
    """With its length, from the beginning again if it breaks off."""
    STREAMED = auto()
    """In pieces, of no declared length, from the beginning again if it breaks off."""
    RESUMED = auto()
    """Where the service says that it is, if it breaks off."""
    CURL = auto()
    """By `curl -T`, run again until it succeeds."""
    ABANDONED = auto()
    """A beginning only; its client never comes back."""


@dataclass(slots=True)
class Recording:
    """One source's body."""

    party: Party
    contact: str
    kind: Kind
    manner: Manner
    seed: int
    size_bytes: int
    told: bool = False
    """Its contact's event was acknowledged before the first byte was sent."""
    durable_bytes: int = 0
    """As far as the service has ever said."""
    taken: bool = False
    """All of it was acknowledged."""
    refused: bool = False
    """None of it was taken, and its source was told so."""

    @property
    def name(self) -> str:
        """The last part of its address."""
        return "voice.wav" if self.kind is Kind.VOICE else "screen.mp4"

    def body(self) -> bytes:
        """Make the bytes: the same every time."""
        noise = _marked(random.Random(self.seed), self.size_bytes)
        if self.kind is Kind.SCREEN:
            return _FILM + (len(noise) + 8).to_bytes(4, "big") + b"mdat" + noise
        out = io.BytesIO()
        with wave.open(out, "wb") as call:
            call.setnchannels(2)
            call.setsampwidth(2)
            call.setframerate(8000)
            call.writeframes(noise)
        return out.getvalue()


@dataclass(slots=True)
class Chat:
    """A conversation that comes as events."""

    party: Party
    contact: str
    texts: list[str]
    """What is to be said, in order; the number of each is its item's id."""
    told: bool = False
    taken: int = 0
    """How many of them were acknowledged."""
    ended: bool = False
    """Its end was acknowledged, too."""


@dataclass(slots=True)
class Ledger:
    """Everything, by contact."""

    recordings: dict[str, Recording] = field(default_factory=dict)
    chats: dict[str, Chat] = field(default_factory=dict)


def _marked(chance: random.Random, size_bytes: int) -> bytes:
    """Make noise that says what nobody may read, in whole samples."""
    noise = bytearray(chance.randbytes(size_bytes - size_bytes % 4))
    for at in range(0, max(len(noise) - len(MARKER), 0), _EVERY):
        noise[at : at + len(MARKER)] = MARKER
    return bytes(noise)
