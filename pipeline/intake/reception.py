"""One recording being received: what is known of it, and the writer its bytes go to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import anyio
import msgspec

from pipeline.crypt.contents import Head
from pipeline.delivery.media import MediaCheck
from pipeline.ids import Kind, RecordingId
from pipeline.interim.states import ArtifactName
from pipeline.interim.writer import ArtifactWriter
from pipeline.tenants import Tenant


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """What a source is told once its recording is sealed and durable; a repeat is told the same."""

    recording_id: str
    artifact_id: str
    generation: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where bytes come from, and what it says of them."""

    kind: Kind
    contact: str
    """The contact's id as the outside names it."""
    source_id: str
    content_type: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Reception:
    """An open artifact in memory. `attached` while a source is connected to it."""

    tenant: Tenant
    writer: ArtifactWriter
    head: Head
    """Segment 0, as it was written."""
    tags: tuple[str, ...]
    created: datetime
    touched: float
    """When its source last sent something (monotonic)."""
    check: MediaCheck = field(default_factory=MediaCheck)
    attached: bool = True
    ended: datetime | None = None
    """As the source stated it."""
    told: bool = False
    """INITIATED was told already, or will be with the next sync."""
    recorded: bool = False
    """The same of the audit record of this artifact's beginning. INITIATED may be told of it by another one's."""
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Around the wait for the body: cancelled to break it off."""

    @property
    def name(self) -> ArtifactName:
        """Name of the open artifact."""
        return self.writer.name

    @property
    def recording_id(self) -> RecordingId:
        """The recording it is a generation of."""
        return RecordingId(self.head.recording_id)

    @property
    def contact(self) -> str:
        """The contact's id as the outside names it."""
        return self.head.original_contact or self.head.contact

    @property
    def size_bytes(self) -> int:
        """Bytes taken so far."""
        return self.writer.size_bytes

    @property
    def is_empty(self) -> bool:
        """Nothing came but the source's word that something would: no media, and no record behind the head."""
        return self.size_bytes == 0 and self.writer.tally.event_segments <= 1

    async def append(self, piece: bytes, now: float) -> None:
        """Take bytes of the body."""
        self.touched = now
        self.check.feed(piece)
        await self.writer.append(piece)
