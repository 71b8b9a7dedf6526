"""Another KMS key for a scope: every record sealed again under a new data key, in the background.

New records are sealed under the new KMS key at once. What is there is opened and sealed again, some hundreds of records
in a transaction; which are left, their rows say, so it can be broken off anywhere and goes on where it was. A data key
of the former KMS key is destroyed when nothing is sealed under it any more, and not before whoever was still sealing
under it has ended.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread

from pipeline.crypt.blind import BlindKey
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.rewrap import Side, SideError
from pipeline.errors import HoldCode, KeyUnavailableError, RecordsDeniedError
from pipeline.ids import KeyId
from pipeline.records import sealing
from pipeline.records.rows import RecordEngine, RowConflictError
from pipeline.records.shelves import Shelf
from pipeline.records.store import key_of, sealed_again

BATCH = 500
"""Records in one transaction: some 20 ms of other writers' waiting."""
_WAIT_S = 0.02

Told = Callable[[int, int], Awaitable[None]]
"""Told how many records are done, of how many."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a change is."""

    done: int
    total: int


def former_keys(ring: KeyRing) -> list[KeyId]:
    """List the data keys that the current KMS key can't open."""
    return [KeyId(file.key_id) for file in ring.files if file.wrapped_under(ring.files.current_arn) is None]


async def standing(shelf: Shelf, engine: RecordEngine) -> Standing:
    """Tell how far a change is. Raises as `Shelf.opened`."""
    ring = await shelf.opened()
    total = await engine.count(shelf.scope.shelf)
    return Standing(total - await engine.count(shelf.scope.shelf, former_keys(ring)), total)


async def reencrypt(shelf: Shelf, engine: RecordEngine, told: Told) -> Standing:
    """Seal every record of a shelf under its current KMS key, then destroy the data keys of the former one.

    Raises:
        SideError: one of the two KMS keys refuses.
        KeyBusyError: KMS does not answer; go on later.
        SegmentForgedError: a record is not what was sealed; what was done stays done.
        StoreFullError, StoreIoError: the disk refuses; go on later.

    """
    ring = await shelf.opened()
    assert shelf.scope.shelf_name == shelf.scope.name, "others' records are sealed under the same data keys"
    try:
        await shelf.active()
    except (KeyUnavailableError, RecordsDeniedError) as error:
        raise SideError(Side.NEW, f"the new KMS key can't be used: {error}") from error
    former = former_keys(ring)
    if ring.unusable:
        raise SideError(Side.OLD, f"{len(ring.unusable)} ring files can't be used; restore {shelf.scope.directory}")
    now = await standing(shelf, engine)
    await told(now.done, now.total)
    done = now.done
    while True:
        moved = await _some(shelf, engine, former)
        if moved:
            done += moved
            await told(min(done, now.total), now.total)
        elif await _is_free(shelf, engine, former):
            break
    blind = await shelf.blind()
    if len(blind) > 1:
        await _hash_again(shelf, engine, blind)
    for key_id in former:
        await _destroy(ring, key_id)
    return await standing(shelf, engine)


async def _some(shelf: Shelf, engine: RecordEngine, former: list[KeyId]) -> int:
    """Seal some records again; give how many."""
    rows = await engine.under(shelf.scope.shelf, former, BATCH)
    if not rows:
        return 0
    try:
        blind = await shelf.blind()
        keys = {key_id: await shelf.opening(key_id) for key_id in {row.key_id for row in rows}}
    except (KeyUnavailableError, RecordsDeniedError) as error:
        if error.code is HoldCode.KEY_UNREACHABLE:
            raise
        raise SideError(Side.OLD, f"the old KMS key can't be used: {error}") from error
    async with shelf.sealing() as key:
        changes = [
            sealed_again(shelf, key, blind, row, sealing.open_record(keys[row.key_id], blind, shelf.scope, row))
            for row in rows
        ]
        try:
            await engine.write(changes)
        except RowConflictError:
            await anyio.lowlevel.checkpoint()  # somebody put one of them meanwhile: look again
    return len(rows)


async def _hash_again(shelf: Shelf, engine: RecordEngine, blind: Sequence[BlindKey]) -> None:
    """Make the hashes anew of rows that are sealed under subjects' keys, where the search key is another now."""
    after = 0
    while rows := await engine.page(shelf.scope.shelf, after, BATCH):
        after = rows[-1].number
        changes = []
        for row in rows:
            key = await key_of(engine, shelf, blind, row)
            record = sealing.open_record(key, blind, shelf.scope, row)
            if sealing.tag_of(blind[0], record.id) != row.tag:
                changes.append(sealed_again(shelf, key, blind, row, record))
        try:
            await engine.write(changes)
        except RowConflictError:
            after = rows[0].number - 1  # somebody put one of them meanwhile: look again


async def _is_free(shelf: Shelf, engine: RecordEngine, former: list[KeyId]) -> bool:
    """Tell whether nothing is, and nobody is sealing, under these data keys."""
    assert shelf.of_scope is not None
    while any(shelf.of_scope.sealing[key_id] for key_id in former):  # noqa: ASYNC110 - once in a change, and briefly
        await anyio.sleep(_WAIT_S)
    return await engine.count(shelf.scope.shelf, former) == 0


async def _destroy(ring: KeyRing, key_id: KeyId) -> None:
    async with ring.changing:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(ring.files.remove, key_id)
        ring.files.forget(key_id)
    ring.drop(key_id)
