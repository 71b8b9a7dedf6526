"""Events that are records go where records are, and not into the journal: their class decides by what key they lie."""

from collections.abc import Sequence
from itertools import groupby

from pipeline.errors import NoSuchRecordError
from pipeline.events import Incoming
from pipeline.records.events import RecordEvent, record_of
from pipeline.records.shelves import Shelf, Shelves
from pipeline.records.store import RecordStore
from pipeline.tenants import Tenant


class RecordEvents:
    """Takes the records among events."""

    def __init__(self, shelves: Shelves, store: RecordStore) -> None:
        self._shelves = shelves
        self._store = store

    async def take(self, tenant: Tenant, incoming: Sequence[Incoming]) -> list[Incoming]:
        """Put the records among events, in order; give the other events. A repeat puts the same again.

        Raises:
            RefuseError: one of them can't be a record; it is found before any is put.
            DeferError: send all of them again.

        """
        others: list[Incoming] = []
        found: list[tuple[Shelf, RecordEvent]] = []
        for number, event in enumerate(incoming):
            record = record_of(event, f"[{number}].")
            if record is None:
                others.append(event)
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
        return others

    def _shelf(self, tenant: Tenant, record: RecordEvent, number: int) -> Shelf:
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
