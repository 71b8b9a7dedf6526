"""Keys of single subjects: what is sealed under one is destroyed with it, wherever a copy of it may be.

32 random bytes for each subject of a shelf, themselves a row: sealed under the scope's data key, found by the subject's
keyed hash, and by the key's id from the rows that are sealed under it. Removing the row, which overwrites it, leaves of
all that only noise. A subject that has opted out has a row without a key in its place, so that nothing more is taken.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from pipeline.crypt.blind import BlindKey
from pipeline.crypt.segments import KEY_SIZE, DataKey
from pipeline.errors import RefuseError, SegmentForgedError
from pipeline.ids import KeyId
from pipeline.records import sealing
from pipeline.records.rows import RecordEngine, Row, RowChange
from pipeline.records.sealing import Record
from pipeline.records.shelves import Shelf

KEY_PART = ".key"
GONE_PART = ".opted-out"
HIDDEN = frozenset({KEY_PART, GONE_PART})
"""Parts that are nobody's records. No caller can name one: no part of a class begins with a dot."""
_ID = "\0subject\0"
"""Begins the id of such a row: no caller's id has a control character."""
_BYTES = 16


class OptedOutError(RefuseError):
    """The subject wants nothing of this class to be held of them."""

    reason = "opted-out"


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is of a subject."""

    row: Row | None
    key: DataKey | None


async def of(
    engine: RecordEngine, shelf: Shelf, blind: Sequence[BlindKey], subjects: Sequence[str]
) -> dict[str, Standing]:
    """Find the keys of subjects. Raises as `Shelf.opened`."""
    tags = {subject: [sealing.tag_of(key, _ID + subject) for key in blind] for subject in subjects}
    rows = await engine.rows(shelf.scope.shelf, [tag for known in tags.values() for tag in known])
    found: dict[str, Standing] = {}
    for subject, known in tags.items():
        row = next((row for row in rows if row.tag in known), None)
        key = None if row is None or row.part != KEY_PART else await _opened(shelf, blind, row)
        found[subject] = Standing(row, key)
    return found


def kept(
    shelf: Shelf, key: DataKey, blind: BlindKey, standings: Mapping[str, Standing], now: datetime, expires: int | None
) -> tuple[dict[str, DataKey], list[RowChange]]:
    """Give each subject's key, and the changes that keep it: a new one is made, one that is there must still be there.

    Raises:
        OptedOutError: one of them has opted out.

    """
    keys: dict[str, DataKey] = {}
    changes = []
    for subject, standing in standings.items():
        row = standing.row
        if row is not None and row.part == GONE_PART:
            raise OptedOutError("the subject has opted out; nothing was taken", field="subject")
        if row is None or standing.key is None:
            secret = secrets.token_bytes(KEY_SIZE)
            made = DataKey(KeyId(uuid4()), secret)
            record = Record(_ID + subject, made.key_id.bytes + secret, "", 1, now, KEY_PART)
            row = _row(shelf, key, sealing.tag_of(blind, record.id), record, expires)
            changes.append(RowChange(row.shelf, row.tag, 0, row, blinds_of(record)))
        else:
            made = standing.key
            again = Row(row.shelf, row.tag, row.version, row.key_id, row.sealed, expires, row.part)
            changes.append(RowChange(row.shelf, row.tag, row.version, again, None))
        keys[subject] = made
    return keys, changes


async def opening(engine: RecordEngine, shelf: Shelf, blind: Sequence[BlindKey], key_id: KeyId) -> DataKey:
    """Give the subject's key that a row names.

    Raises:
        SegmentForgedError: there is none: it was destroyed.

    """
    rows = await engine.found(shelf.scope.shelf, [key_id.bytes], 1)
    if not rows or rows[0].part != KEY_PART:
        raise SegmentForgedError("the key of a record's subject is not there; what was sealed under it is unreadable")
    key = await _opened(shelf, blind, rows[0])
    if key.key_id != key_id:
        raise SegmentForgedError("a subject's key is not the one that its row says")
    return key


def opted_out(
    shelf: Shelf, key: DataKey, blind: BlindKey, subject: str, standing: Standing, now: datetime
) -> RowChange:
    """Put the word that a subject has opted out in the place of their key."""
    version = 0 if standing.row is None else standing.row.version
    tag = sealing.tag_of(blind, _ID + subject) if standing.row is None else standing.row.tag
    record = Record(_ID + subject, b"", "", version + 1, now, GONE_PART)
    return RowChange(shelf.scope.shelf, tag, version, _row(shelf, key, tag, record, None))


def blinds_of(record: Record) -> list[bytes]:
    """Give the index entries of such a row: its key's id as it is."""
    return [record.body[:_BYTES]] if record.part == KEY_PART else []


async def _opened(shelf: Shelf, blind: Sequence[BlindKey], row: Row) -> DataKey:
    record = sealing.open_record(await shelf.opening(row.key_id), blind, shelf.scope, row)
    return DataKey(KeyId(UUID(bytes=record.body[:_BYTES])), record.body[_BYTES:])


def _row(shelf: Shelf, key: DataKey, tag: bytes, record: Record, expires: int | None) -> Row:
    sealed = sealing.seal(key, shelf.scope, tag, record)
    return Row(shelf.scope.shelf, tag, record.version, key.key_id, sealed, expires, record.part)
