"""The names of things: ids that can't be mistaken for one another, and the kinds of recording.

Pure. An id is a `UUID`; where it stands in a file name it is its 32 hex digits, elsewhere the dashed form.
"""

import secrets
from datetime import datetime
from enum import StrEnum
from typing import NewType
from uuid import UUID

InstanceId = NewType("InstanceId", UUID)
"""One tenant: a contact-centre instance."""
ArtifactId = NewType("ArtifactId", UUID)
"""One file of the interim store: one generation of one recording. A UUIDv7, so ids sort by time of creation."""
RecordingId = NewType("RecordingId", UUID)
"""One recording: the artifact id of its first generation."""
KeyId = NewType("KeyId", UUID)
"""One data key."""


class Kind(StrEnum):
    """What an artifact holds."""

    VOICE = "voice"
    SCREEN = "screen"
    CHAT = "chat"
    JOURNAL = "journal"
    """Incoming events, sealed; never delivered."""


RECORDINGS_CLASS = "recordings_interim"
"""The data class of recordings between intake and delivery, as encryption contexts name it."""
RECORDINGS = (Kind.VOICE, Kind.SCREEN, Kind.CHAT)
"""The kinds that are delivered."""


def new_artifact_id(now: datetime) -> ArtifactId:
    """Make a UUIDv7 for `now` (RFC 9562, 5.7: 48 bits of Unix milliseconds, then random)."""
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds << 80) | secrets.randbits(80)
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return ArtifactId(UUID(int=value))
