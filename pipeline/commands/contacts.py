"""Recordings and the metadata of their contacts, joined: which contact a recording is of, and what is known of that.

Opened here as recordings are, with the service's KMS key, and only after the audit log says by whom and why.
"""

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio.to_thread

from pipeline.adapters.sqlite import SqliteEngine
from pipeline.commands.access import Access, open_access
from pipeline.commands.find import find
from pipeline.commands.options import Site
from pipeline.commands.receipts import receipt_of
from pipeline.config import load_service_key
from pipeline.crypt.keyring import KeyRing
from pipeline.errors import PipelineError, RefuseError
from pipeline.ids import InstanceId
from pipeline.instances import Instance
from pipeline.intake.contacts import object_contact
from pipeline.interim.reader import read_head
from pipeline.interim.states import ArtifactName, State
from pipeline.ports import FileSystem
from pipeline.records import finding, sealing
from pipeline.records.contactmerge import shown
from pipeline.records.rows import Row
from pipeline.records.sealing import Record
from pipeline.records.shelves import ScopeRing, ServiceKey, Shelf
from pipeline.records.store import PAGE, entries_of, key_of

CONTACT_METADATA = "contact_metadata"
NUMBER = "number"
_OBJECT_NAME = re.compile(r"(?:.*/)?([A-Za-z0-9][A-Za-z0-9-]*)_\d{8}T\d\d[:-]\d\d_UTC[^/]*")

Told = dict[ArtifactName, str | PipelineError]
"""By artifact: its contact as object keys carry it, or why that can't be told now."""


class Contacts:
    """Tells which contact a recording is of, and opens what is known of contacts."""

    def __init__(self, site: Site, access: Access, reason: str | None, purpose: str) -> None:
        self._site = site
        self._access = access
        self._reason = reason
        self._purpose = purpose
        self._engine: SqliteEngine | None = None
        self._shelves: dict[InstanceId, Shelf] = {}

    async def of(self, names: Iterable[ArtifactName]) -> Told:
        """Tell the contact of each: by its receipt's object, or by its head, which is opened."""
        return {name: await self._of(name) for name in names}

    async def by_ids(self, instance: Instance, contacts: Sequence[str]) -> dict[str, Record]:
        """Open what is known of contacts, by their ids as object keys carry them.

        Raises:
            KeyUnavailableError, KeyBusyError: the KMS key can't be used now.
            RefuseError: the service has no KMS key of its own.
            SegmentForgedError: one is not what was sealed.

        """
        shelf = await self._shelf(instance)
        if shelf is None or not contacts:
            return {}
        blind, engine = await shelf.blind(), self._opened()
        tags = [sealing.tag_of(key, contact) for key in blind for contact in contacts]
        found = await self._records(shelf, await engine.rows(shelf.scope.shelf, tags))
        await self._tell(instance, found)
        return {record.id: record for record in found}

    async def by_number(self, instance: Instance, number: str) -> set[str]:
        """Find contacts by a number, as object keys carry their ids. Raises as `by_ids`."""
        shelf = await self._shelf(instance)
        if shelf is None:
            return set()
        field = shelf.scope.policy.field(NUMBER)
        assert field is not None
        wanted = finding.normal(field.normal, number)
        digests = [key.digest(f"index/{NUMBER}", wanted) for key in await shelf.blind()]
        rows = await self._opened().found(shelf.scope.shelf, digests, PAGE)
        found = [each for each in await self._records(shelf, rows) if (field, wanted) in entries_of(shelf, each)]
        await self._tell(instance, found)
        return {record.id for record in found}

    @property
    def files(self) -> FileSystem:
        """What the store is read through."""
        return self._access.files

    def close(self) -> None:
        """Close the records' file, and let keys go."""
        if self._engine is not None:
            self._engine.close()
        for shelf in self._shelves.values():
            if shelf.ring is not None:
                shelf.ring.drop()

    # --- inside

    async def _of(self, name: ArtifactName) -> str | PipelineError:
        try:
            if name.standing is State.DELIVERED:
                return contact_in(receipt_of(self._site.root, self._access.files, name).key)
            instance = self._site.loaded.instances.get(name.instance_id)
            if instance is None:
                return RefuseError("its instance is not configured here, so no key opens it", field="instance")
            key = await (await self._access.ring(instance)).opening(name.key_id)
            path = f"{self._site.root}/artifacts/{name.path}"
            return (await anyio.to_thread.run_sync(read_head, self._access.files, path, name, key)).contact
        except PipelineError as error:
            return error
        except FileNotFoundError:
            return RefuseError("it moved on just now; ask again", field="ID")

    async def _shelf(self, instance: Instance) -> Shelf | None:
        """Give the shelf of an instance's contact metadata; None if it has none."""
        if instance.instance_id in self._shelves:
            return self._shelves[instance.instance_id]
        place = next(each for (of_class, _), each in instance.places.items() if of_class == CONTACT_METADATA)
        settings = self._site.settings
        directory = f"{self._site.root}/{place.scope.directory}"
        if not any(name.endswith(".json") for name in self._access.files.names(directory)):
            return None
        made = await anyio.to_thread.run_sync(load_service_key, settings.config_dir)
        keys = ServiceKey(settings.records.service_key_arn or made, settings.records.previous_service_key_arn).keys_of(
            place
        )
        if keys is None:
            raise RefuseError("the service has no KMS key of its own", field="records.service_key_arn")
        ring = KeyRing(
            instance_id=place.scope.owner,
            data_class=CONTACT_METADATA,
            context=place.scope.context,
            current_arn=keys.current,
            previous_arn=keys.previous,
            directory=directory,
            files=self._access.files,
            service=await self._access.service_keys(instance, keys.current),
            clock=self._access.clock,
            cache=settings.keys.cache,
            seal_grace=settings.keys.seal_grace,
            random=lambda: 0.5,
        )
        shelf = self._shelves[instance.instance_id] = Shelf(place, keys, ScopeRing(ring), _no_grant)
        return shelf

    def _opened(self) -> SqliteEngine:
        if self._engine is None:
            self._engine = SqliteEngine(f"{self._site.root}/records/records.db")
        return self._engine

    async def _records(self, shelf: Shelf, rows: Sequence[Row]) -> list[Record]:
        blind, engine = await shelf.blind(), self._opened()
        found = []
        for row in rows:
            key = await key_of(engine, shelf, blind, row)
            found.append(sealing.open_record(key, blind, shelf.scope, row))
        return found

    async def _tell(self, instance: Instance, found: Sequence[Record]) -> None:
        """Record who opened what, durably, before any of it is given out."""
        for record in found:
            line = self._access.trail.changed(
                instance.instance_id,
                "RecordOpened",
                dataClass=CONTACT_METADATA,
                contact=record.id,
                version=record.version,
                purpose=self._purpose,
                reason=self._reason,
            )
            await self._access.record(line)


def contact_in(key: str) -> str:
    """Give the contact that an object's key names. Raises `RefuseError` if it names none."""
    found = _OBJECT_NAME.fullmatch(key)
    if found is None:
        raise RefuseError("its object's key names no contact", field="key")
    return found[1]


async def _no_grant() -> None:
    """Ask for none: the service's own key is used by its policy."""


@asynccontextmanager
async def open_contacts(site: Site, reason: str | None, purpose: str) -> AsyncIterator[Contacts]:
    """Open what tells of contacts; at the end of the block keys are dropped and everything closed."""
    async with open_access(site.settings) as access:
        contacts = Contacts(site, access, reason, purpose)
        try:
            yield contacts
        finally:
            contacts.close()


Rows = list[tuple[ArtifactName, dict[str, Any]]]


async def joined(
    site: Site, rows: Rows, *, contact: str | None, number: str | None, metadata: bool, reason: str | None
) -> tuple[Rows, int]:
    """Keep the recordings of a contact, or of those that have a number, and add what is known of each's contact.

    Gives how many were left out because nobody can tell now whose they are.

    Raises:
        KeyUnavailableError, KeyBusyError: nobody can tell who has the number.

    """
    async with open_contacts(site, reason, "ls") as contacts:
        of = await contacts.of(name for name, _ in rows)
        wanted: dict[InstanceId, set[str]] = {}
        for instance_id in {name.instance_id for name, _ in rows}:
            instance = site.loaded.instances.get(instance_id)
            if contact is not None:
                wanted[instance_id] = {object_contact(contact, instance_id)[0]}
            if number is not None and instance is not None:
                having = await contacts.by_number(instance, number)
                wanted[instance_id] = wanted.get(instance_id, having) & having
        kept, untold = [], 0
        filters = contact is not None or number is not None
        for name, row in rows:
            known = of[name]
            if isinstance(known, PipelineError):
                untold += 1
                row["contactProblem"] = str(known)
                if filters:
                    continue
            elif filters and known not in wanted.get(name.instance_id, set()):
                continue
            else:
                row["contact"] = known
            kept.append((name, row))
        if metadata:
            await _add(site, contacts, kept)
        return kept, untold if filters else 0


async def _add(site: Site, contacts: Contacts, rows: Rows) -> None:
    """Add what is known of contacts, without what may only go into a file. What can't be opened stops nothing."""
    for instance_id in {name.instance_id for name, _ in rows}:
        mine = [row for name, row in rows if name.instance_id == instance_id and "contact" in row]
        instance = site.loaded.instances.get(instance_id)
        try:
            found = (
                {} if instance is None else await contacts.by_ids(instance, sorted({row["contact"] for row in mine}))
            )
        except PipelineError as error:
            for row in mine:
                row["metadataProblem"] = str(error)
            continue
        for row in mine:
            if row["contact"] in found:
                row["metadata"] = _plain(shown(found[row["contact"]].body))


_PLAIN = ("EventType", "Channel", "InitiationMethod", "InitiationTimestamp", "DisconnectTimestamp")


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Choose what names nobody: numbers, names and attributes go to no terminal."""
    return {name[0].lower() + name[1:]: record[name] for name in _PLAIN if name in record}


async def metadata_of(site: Site, wanted: UUID, generation: int | None, reason: str | None) -> Record:
    """Open what is known of a recording's contact.

    Raises:
        RefuseError: nothing is known of it, or there is no such recording.
        KeyUnavailableError, KeyBusyError: the KMS key can't be used now.
        SegmentForgedError: it is not what was sealed.

    """
    async with open_contacts(site, reason, "get") as contacts:
        found = find(site, contacts.files, wanted, generation)
        if found.receipt is not None:
            contact: str | PipelineError = contact_in(found.receipt.key)
        else:
            assert found.name is not None
            contact = (await contacts.of([found.name]))[found.name]
        if isinstance(contact, PipelineError):
            raise contact
        instance = site.loaded.instances.get(found.instance_id)
        known = {} if instance is None else await contacts.by_ids(instance, [contact])
        if contact not in known:
            raise RefuseError("no metadata of its contact is kept here", field="--metadata")
        return known[contact]
