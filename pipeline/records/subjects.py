"""One person's data across all classes: given out, or removed with a receipt.

A person is told by values: numbers, mail addresses, ids. Found is what a class's blind index knows; classes without one
can't be searched so, and every answer names them.
"""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from pipeline.crypt.blind import BlindKey
from pipeline.errors import RefuseError
from pipeline.ids import InstanceId
from pipeline.instances import Instance
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.ports import Clock, FileSystem
from pipeline.records import finding, subjectkeys
from pipeline.records.finding import is_json
from pipeline.records.removing import remove
from pipeline.records.rows import RecordEngine, Row, RowChange, RowConflictError
from pipeline.records.sealing import Record
from pipeline.records.shelves import Shelf, Shelves
from pipeline.records.store import RecordStore
from pipeline.trail import Trail

KINDS: Mapping[str, frozenset[str]] = {
    "number": frozenset({"number", "phone"}),
    "email": frozenset({"email"}),
    "account": frozenset({"account"}),
    "customer": frozenset({"customer"}),
    "contact": frozenset({"contact"}),
    "profile": frozenset({"profile"}),
    "speaker": frozenset({"speaker"}),
}
"""What a person may be told by, and the indexes that are asked then."""
MOST = 10_000
"""Records of one person and class: more is a mistake."""
_ATTEMPTS = 8
CONTACTS = "contact_metadata"
"""The class whose records tell which contacts a person had; their ids are the contacts'."""
_NOT_INCLUDED = {
    "what": "recordings and transcripts",
    "of": "the contacts named here, and any that no record names",
    "held": "pipeline ls --contact ID; pipeline erase recording ID",
    "delivered": "objects of the instance's own bucket: every version, by its owner",
}

Identity = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subjects:
    """Finds, gives out and removes."""

    shelves: Shelves
    store: RecordStore
    engine: RecordEngine
    commits: GroupCommit
    trail: Trail
    clock: Clock
    files: FileSystem
    root: str
    """Of the records' folder."""
    sign: Callable[[InstanceId, str], str]
    """Sign a text as the instance's audit log; give the signed note. Blocks."""

    async def export(self, caller: Instance, identity: Identity) -> dict[str, Any]:
        """Give out all that is known of a person. Audited before it is.

        Raises:
            RefuseError: nothing, or something unknown, was named.
            DeferError: a key can't be used now: nothing was given out.

        """
        _check(identity)
        records, contacts = [], set[str]()
        for shelf, asked in self._asked(caller, identity):
            found = await self._found(caller, shelf, asked)
            records += [_document(shelf, record) for record in found]
            contacts |= _contacts(shelf, found)
        await self._tell(caller, "SubjectExported", count=len(records))
        return {
            "exportedAt": self.clock.now(),
            "instanceId": caller.instance_id,
            "records": records,
            "contacts": sorted(contacts),
            "notIncluded": [_NOT_INCLUDED],
            "notSearched": self._not_searched(caller, identity),
        }

    async def erase(self, caller: Instance, identity: Identity, backups: Sequence[str]) -> dict[str, Any]:
        """Remove all that is known of a person; give the receipt, which is kept.

        Raises:
            LegalHoldError: a legal hold keeps it.
            RefuseError, DeferError: as `export`. What was removed stays removed: ask again.

        """
        _check(identity)
        await self.store.check_removal(caller.instance_id)
        removed: list[dict[str, Any]] = []
        contacts = set[str]()
        for shelf, asked in self._asked(caller, identity):
            if shelf.scope.policy.data_class == CONTACTS:
                contacts |= _contacts(shelf, await self._found(caller, shelf, asked))
            blind = await shelf.blind()
            rows = await self._rows(shelf, blind, asked)
            if not rows:
                continue
            if any(part.shreds for part in shelf.scope.policy.parts):
                values = dict.fromkeys(value for _, value in asked)
                removed += [await self._shred(caller, shelf, value, "SubjectErased", forget=True) for value in values]
                rows = await self._rows(shelf, blind, asked)
            await self._remove(rows)
            removed.append(_receipt_line(shelf, rows))
            if await self._rows(shelf, await shelf.blind(), asked):
                raise RefuseError("records of this person came while they were removed; ask again")
        told = {"contacts": sorted(contacts), "notIncluded": [_NOT_INCLUDED]}
        told["notSearched"] = self._not_searched(caller, identity)
        return await self._receipt(caller, "erasure", removed, backups, told)

    async def opt_out(self, caller: Instance, shelf: Shelf, subject: str, backups: Sequence[str]) -> dict[str, Any]:
        """Destroy a subject's key, and take nothing more of them; also of one who is not known yet. Give the receipt.

        Raises:
            RefuseError: the class has no keys of subjects.
            LegalHoldError, DeferError: as `erase`.

        """
        policy = shelf.scope.policy
        if not any(part.shreds for part in policy.parts):
            raise RefuseError("this class has no keys of single subjects", field="class")
        await self.store.check_removal(caller.instance_id)
        normal = finding.normal(policy.fields[0].normal, subject)
        removed = await self._shred(caller, shelf, normal, "SubjectOptedOut", forget=False)
        return await self._receipt(caller, "opt-out", [removed], backups, {"notSearched": []})

    # --- inside

    def _asked(self, caller: Instance, identity: Identity) -> Iterator[tuple[Shelf, list[tuple[str, str]]]]:
        """Give each shelf that can be asked, with the indexes and normal forms."""
        for shelf in self.shelves.of(caller.instance_id).values():
            asked = [
                (field.name, finding.normal(field.normal, value))
                for field in shelf.scope.policy.fields
                for kind, values in identity.items()
                if field.name in KINDS[kind]
                for value in values
            ]
            if asked and shelf.scope.policy.kept:
                yield shelf, asked

    def _not_searched(self, caller: Instance, identity: Identity) -> list[str]:
        searched = {shelf.scope.policy.data_class for shelf, _ in self._asked(caller, identity)}
        kept = {
            shelf.scope.policy.data_class
            for shelf in self.shelves.of(caller.instance_id).values()
            if shelf.scope.policy.kept
        }
        return sorted(kept - searched)

    async def _found(self, caller: Instance, shelf: Shelf, asked: Sequence[tuple[str, str]]) -> list[Record]:
        found: dict[str, Record] = {}
        for index, value in asked:
            for record in await self.store.find(caller, shelf, index, value, MOST):
                found[record.id] = record
        return list(found.values())

    async def _rows(self, shelf: Shelf, blind: Sequence[BlindKey], asked: Sequence[tuple[str, str]]) -> list[Row]:
        digests = [key.digest(f"index/{index}", value) for index, value in asked for key in blind]
        return await self.engine.found(shelf.scope.shelf, digests, MOST)

    async def _remove(self, rows: Sequence[Row]) -> None:
        left = list(rows)
        for _ in range(_ATTEMPTS):
            left = await remove(self.engine, left)
            if not left:
                return
            left = await self.engine.rows(left[0].shelf, [row.tag for row in left])
        raise RefuseError("others change the records all the time; ask again")

    async def _shred(self, caller: Instance, shelf: Shelf, subject: str, verb: str, *, forget: bool) -> dict[str, Any]:
        """Destroy a subject's key, then remove what that made unreadable.

        Unless they are forgotten, too, the word that they have opted out stays in its place.
        """
        scope = shelf.scope
        for _ in range(_ATTEMPTS):
            blind = await shelf.blind()
            standing = (await subjectkeys.of(self.engine, shelf, blind, [subject]))[subject]
            async with shelf.sealing() as key:
                change = subjectkeys.opted_out(shelf, key, blind[0], subject, standing, self.clock.now())
                if forget:
                    change = RowChange(change.shelf, change.tag, change.expected, None)
                tag = change.tag.hex()
                await self._tell(caller, verb, dataClass=scope.policy.data_class, scope=scope.name, subject=tag)
                try:
                    await self.engine.write([change])
                except RowConflictError:
                    continue
            key_id = None if standing.key is None else standing.key.key_id
            rows = [] if key_id is None else await self.engine.under(scope.shelf, [key_id], MOST)
            await self._remove(rows)
            return _receipt_line(shelf, rows) | {"subject": tag, "keyDestroyed": key_id}
        raise RefuseError("others change the subject all the time; ask again")

    async def _receipt(
        self,
        caller: Instance,
        what: str,
        removed: Sequence[Mapping[str, Any]],
        backups: Sequence[str],
        told: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Keep the receipt, signed, and its place in the audit trail. Keyed hashes tell of whom, to who has the key."""
        await self.engine.settled()  # else upkeep does it, within seconds
        receipt: dict[str, Any] = {
            "receiptId": uuid4(),
            "what": what,
            "instanceId": caller.instance_id,
            "at": self.clock.now(),
            "removed": list(removed),
            "cleared": ["records.db", "its write-ahead log", "its indexes"],
            "remainsIn": [{"backup": backup, "until": "it is destroyed"} for backup in backups],
            **told,
        }
        text = msgspec.json.format(msgspec.json.encode(receipt)).decode() + "\n"
        note = await anyio.to_thread.run_sync(self.sign, caller.instance_id, text)
        directory = f"{self.root}/receipts/{caller.instance_id}"
        await anyio.to_thread.run_sync(self.files.make_directory, directory)
        line = self.trail.changed(
            caller.instance_id,
            "SubjectReceipt",
            receiptId=str(receipt["receiptId"]),
            what=what,
            classes=len(removed),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        path = f"{directory}/{receipt['receiptId']}"
        files = ((f"{path}.json", text.encode()), (f"{path}.note", note.encode()))
        await self.commits.commit(Commit(files=files, lines=(line,)))
        return receipt

    async def _tell(self, caller: Instance, verb: str, **details: Any) -> None:
        await self.commits.commit(Commit(lines=(self.trail.changed(caller.instance_id, verb, **details),)))


def _contacts(shelf: Shelf, records: Sequence[Record]) -> set[str]:
    """Tell which contacts records are of."""
    return {record.id for record in records} if shelf.scope.policy.data_class == CONTACTS else set()


def _check(identity: Identity) -> None:
    """Refuse a person who is told by nothing. Raises `RefuseError`."""
    unknown = [kind for kind in identity if kind not in KINDS]
    if unknown or not any(identity.values()):
        raise RefuseError(f"name somebody by one or more of {', '.join(KINDS)}", field="subject")
    for kind, values in identity.items():
        if not all(0 < len(value.strip()) <= 1024 for value in values):
            raise RefuseError("1 to 1024 characters each", field=kind)


def _document(shelf: Shelf, record: Record) -> dict[str, Any]:
    document: dict[str, Any] = {
        "dataClass": shelf.scope.policy.data_class,
        "scope": shelf.scope.name,
        "id": record.id,
        "version": record.version,
        "putAt": record.put_at,
        "contentType": record.content_type,
    }
    if record.part == "voiceprint":
        return document | {"part": record.part, "data": None}  # compared in memory, and never given out
    if is_json(record.content_type):
        document["data"] = msgspec.Raw(record.body)
    else:
        document["base64"] = b64encode(record.body).decode()
    return document | ({"part": record.part} if record.part else {})


def _receipt_line(shelf: Shelf, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "dataClass": shelf.scope.policy.data_class,
        "scope": shelf.scope.name,
        "records": [row.tag.hex() for row in rows],
    }
