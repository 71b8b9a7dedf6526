"""Events that are records go where records are, and not into the journal: their class decides by what key they lie.

Contact events go into the journal, and before that what they say of their contact is merged into its metadata. So an
event that is acknowledged is in both, and one that is not comes again, which changes nothing. They are not read from
the journal for this: what was erased must not come back from there.
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby

from pipeline.errors import NoSuchRecordError
from pipeline.events import ContactEvent, Incoming
from pipeline.intake.contacts import object_contact
from pipeline.records.contactmerge import merged
from pipeline.records.events import RecordEvent, SpeakerMet, record_of
from pipeline.records.merging import Merging
from pipeline.records.shelves import Shelf, Shelves
from pipeline.records.speakers import Speakers
from pipeline.records.store import RecordStore
from pipeline.tenants import Tenant

CONTACT_METADATA = "contact_metadata"


class RecordEvents:
    """Takes the records among events."""

    def __init__(self, shelves: Shelves, store: RecordStore, merging: Merging, speakers: Speakers) -> None:
        self._shelves = shelves
        self._store = store
        self._merging = merging
        self._speakers = speakers

    async def take(self, tenant: Tenant, incoming: Sequence[Incoming]) -> list[Incoming]:
        """Put the records among events, in order; give the other events. A repeat puts the same again.

        Raises:
            RefuseError: one of them can't be a record; it is found before any is put.
            DeferError: send all of them again.

        """
        others: list[Incoming] = []
        found: list[tuple[Shelf, RecordEvent]] = []
        met: list[tuple[Shelf, str]] = []
        for number, event in enumerate(incoming):
            record = record_of(event, f"[{number}].")
            if record is None:
                others.append(event)
            elif isinstance(record, SpeakerMet):
                met.append((self._shelf(tenant, record, number), record.subject))
            else:
                found.append((self._shelf(tenant, record, number), record))
        for (_, deleted), some in groupby(found, key=lambda each: (id(each[0]), each[1].deleted)):
            pairs = list(some)
            shelf = pairs[0][0]
            if deleted:
                for _, record in pairs:
                    await self._store.delete(tenant.instance, shelf, record.draft.id)
            else:
                await self._store.put_all(tenant.instance, shelf, [record.draft for _, record in pairs])
        for shelf, subject in met:
            await self._speakers.authenticated(tenant.instance, shelf, subject)
        await self._merge(tenant, [event for event in others if isinstance(event, ContactEvent)])
        return others

    async def _merge(self, tenant: Tenant, events: Sequence[ContactEvent]) -> None:
        """Keep what events say of their contacts. A service without a KMS key of its own keeps none of it."""
        instance_id = tenant.instance.instance_id
        mine = (shelf for (of_class, _), shelf in self._shelves.of(instance_id).items() if of_class == CONTACT_METADATA)
        shelf = next(mine, None)
        if not events or shelf is None or shelf.keys is None:
            return
        contacts: dict[str, list[ContactEvent]] = {}
        for event in events:
            contacts.setdefault(object_contact(event.contact, instance_id)[0], []).append(event)
        await self._merging.merge(shelf, {contact: partial(merged, events=some) for contact, some in contacts.items()})

    def _shelf(self, tenant: Tenant, record: RecordEvent | SpeakerMet, number: int) -> Shelf:
        instance = tenant.instance.instance_id
        shelves = self._shelves.of(instance)
        for (data_class, _), shelf in shelves.items():
            if data_class == record.data_class and shelf.scope.name in record.arns:
                return shelf
        if record.arns and sum(data_class == record.data_class for data_class, _ in shelves) != 1:
            raise NoSuchRecordError("names no domain of this instance", field=f"[{number}].resources")
        try:
            return self._shelves.get(instance, record.data_class, record.scope)
        except NoSuchRecordError:
            raise NoSuchRecordError("there is no such class or scope", field=f"[{number}].detail-type") from None
