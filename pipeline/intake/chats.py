"""Chats that come as events: each item a sealed record of an open artifact, rendered to a transcript when sealed.

An item is acknowledged once its record is durable. A repeat is known by its id: within an artifact when it is
rendered, after sealing by the digests in manifest and receipt. Items that are new after sealing begin another
generation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import msgspec

from pipeline.checksums import checksum_text
from pipeline.crypt.contents import Head, Record, Rendition, encode_records
from pipeline.crypt.segments import SegmentType
from pipeline.delivery import transcript
from pipeline.errors import PipelineError, SegmentForgedError
from pipeline.events import Item, parse_item
from pipeline.ids import InstanceId, Kind
from pipeline.intake.contacts import Expected
from pipeline.intake.history import following
from pipeline.intake.reception import Answer, Reception, Source
from pipeline.intake.recorder import TRANSCRIPT, Recorder
from pipeline.intake.sealing import manifest_of
from pipeline.interim.reader import ArtifactReader
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.store import InterimStore
from pipeline.interim.writer import Digests
from pipeline.ports import Clock
from pipeline.status import Quality
from pipeline.tenants import Tenant

ITEM = "item"
"""Type of a record that holds a chat's item."""
_ACCOUNT, _INITIAL = "accountId", "initialContact"
"""What rendering needs besides the items, in the head's metadata: fixed when the chat begins."""
_Ending = Literal["complete", "recovered"]


def is_transcript(reception: Reception) -> bool:
    """Tell a chat that comes as events from one that was handed over as a file."""
    return reception.name.kind is Kind.CHAT and reception.head.source_id.startswith(TRANSCRIPT)


class _ReceiptDigests(msgspec.Struct, frozen=True, rename="camel"):
    item_digests: tuple[str, ...] = ()


class Chats:
    """Every chat that comes as events."""

    def __init__(self, store: InterimStore, recorder: Recorder, clock: Clock) -> None:
        self._store = store
        self._recorder = recorder
        self._clock = clock
        self._locks: WeakValueDictionary[tuple[InstanceId, str], anyio.Lock] = WeakValueDictionary()

    async def append(self, tenant: Tenant, contact: str, items: Sequence[Item]) -> None:
        """Take items of a chat; durable when this returns."""
        async with self._lock(tenant, contact):
            reception = await self._open(tenant, contact)
            if reception is None:
                known = await self._known_digests(tenant, contact)
                items = [item for item in items if await tenant.ring.item_digest(item.id) not in known]
                if not items:
                    return
                reception = await self._begin(tenant, contact)
            now = self._clock.now()
            records = [encode_records([Record(ITEM, msgspec.Raw(item.raw), now)]) for item in items]
            reception.touched = self._clock.monotonic()
            try:
                await reception.writer.append_records(SegmentType.EVENT, records)
                await reception.writer.sync()
            except PipelineError:
                await self._recorder.detach(reception)
                raise

    async def end(self, tenant: Tenant, contact: str, *, even_if_empty: bool) -> None:
        """Seal a contact's chat, if one is open; `even_if_empty` makes an empty transcript of one that had no item."""
        async with self._lock(tenant, contact):
            reception = await self._open(tenant, contact)
            if reception is None and even_if_empty and not await self.exists(tenant, contact):
                reception = await self._begin(tenant, contact)
            if reception is not None:
                await self._seal(reception, "complete")

    async def exists(self, tenant: Tenant, contact: str) -> bool:
        """Tell whether anything is held of a contact's chat."""
        return await self._recorder.is_known(tenant, Kind.CHAT, TRANSCRIPT + contact)

    async def is_begun(self, tenant: Tenant, contact: str, expected: Expected) -> bool:
        """Tell whether anything is held of a recording that an event announces. A chat's events name no source."""
        if expected.kind is Kind.CHAT and await self.exists(tenant, contact):
            return True
        return await self._recorder.is_known(tenant, expected.kind, expected.source_id)

    async def seal(self, reception: Reception, ending: _Ending) -> None:
        """Seal a chat that is open, unless somebody did so meanwhile."""
        async with self._lock(reception.tenant, reception.contact):
            if self._recorder.reception(reception.name.artifact_id) is reception:
                await self._seal(reception, ending)

    # --- inside

    async def _seal(self, reception: Reception, ending: _Ending) -> Answer:
        """Render the transcript once, for its length and checksums, and seal. Under the chat's lock: no item comes."""
        key = await reception.tenant.ring.sealing(reception.name.key_id)
        await reception.writer.conclude()
        with self._store.reading(reception.name, key, limit=reception.writer.end) as reader:
            items = await anyio.to_thread.run_sync(items_of, reader)
        contact = self._recorder.contact_of(reception)
        rendered = _rendered(reception.name, reception.head, items)
        reception.ended = reception.ended or rendered.ended
        digests = [await reception.tenant.ring.item_digest(each.item.id) for each in items]
        manifest = manifest_of(
            reception,
            rendition_of(rendered.data),
            contact=contact,
            generation=reception.name.generation,
            ending=ending,
            quality=() if rendered.items else (Quality.SUSPECT_EMPTY,),
            item_digests=tuple(dict.fromkeys(digests)),
        )
        return await self._recorder.seal(reception, manifest)

    def _lock(self, tenant: Tenant, contact: str) -> anyio.Lock:
        return self._locks.setdefault((tenant.instance.instance_id, contact), anyio.Lock())

    async def _open(self, tenant: Tenant, contact: str) -> Reception | None:
        return await self._recorder.unfinished(tenant, Kind.CHAT, TRANSCRIPT + contact)

    async def _begin(self, tenant: Tenant, contact: str) -> Reception:
        initial = self._recorder.initial_contact(tenant, contact)
        metadata = {_ACCOUNT: tenant.instance.account_id, **({_INITIAL: initial} if initial else {})}
        reception = await self._recorder.begin(
            tenant,
            Source(
                kind=Kind.CHAT,
                contact=contact,
                source_id=TRANSCRIPT + contact,
                content_type=transcript.CONTENT_TYPE,
                metadata=metadata,
            ),
        )
        reception.attached = False
        return reception

    async def _known_digests(self, tenant: Tenant, contact: str) -> set[str]:
        """Digests of all items that sealed and delivered generations hold."""
        tags = await tenant.ring.tags(Kind.CHAT, TRANSCRIPT + contact)
        known: set[str] = set()
        for name in self._store.index.generations(tenant.instance.instance_id, tags):
            try:
                known |= await following(self._store, name, partial(self._digests, tenant))
            except SegmentForgedError:
                continue  # a damaged one does not stop the others: at worst an item is delivered again
        return known

    async def _digests(self, tenant: Tenant, name: ArtifactName) -> set[str]:
        if name.state is State.OPEN:
            return set()
        if name.state is State.SEALED:
            key = await tenant.ring.opening(name.key_id)
            with self._store.reading(name, key) as reader:
                return set(reader.manifest().item_digests)
        try:
            return set(msgspec.json.decode(self._store.receipt(name), type=_ReceiptDigests).item_digests)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise SegmentForgedError("a receipt is damaged; its recording is delivered") from None


def items_of(reader: ArtifactReader) -> list[transcript.ArrivedItem]:
    """Read a chat's items in the order of their arrival."""
    records = (record for record in reader.records() if record.type == ITEM)
    return [transcript.ArrivedItem(arrival, parse_item(bytes(record.data))) for arrival, record in enumerate(records)]


def rendition_of(data: bytes) -> Rendition:
    """Describe a rendered transcript."""
    digests = Digests()
    digests.update(data)
    return Rendition(
        renderer=transcript.RENDERER,
        size_bytes=len(data),
        crc64nvme=checksum_text(digests.crc64nvme),
        sha256=digests.sha256,
        content_type=transcript.CONTENT_TYPE,
        extension=transcript.EXTENSION,
    )


def render_again(reader: ArtifactReader) -> bytes:
    """Render a sealed chat's transcript for delivery: a pure function of its segments and the renderer's version."""
    return _rendered(reader.name, reader.head(), items_of(reader)).data


def _rendered(name: ArtifactName, head: Head, items: list[transcript.ArrivedItem]) -> transcript.Rendered:
    return transcript.render(
        account_id=head.metadata[_ACCOUNT],
        instance_id=name.instance_id,
        contact=head.original_contact or head.contact,
        initial_contact=head.metadata.get(_INITIAL),
        items=items,
    )
