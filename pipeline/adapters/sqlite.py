"""Rows in one SQLite file: `RecordEngine`. Ciphertext and keyed hashes only; nothing here could open them.

WAL with `synchronous=FULL`: a commit is on the disk before it is acknowledged. `secure_delete` overwrites what is
removed, and the log is folded into the file soon after. Writers share transactions: whoever finds the file busy is
taken along by the next one. Reads have a connection of their own and wait for no writer.
"""

import contextlib
import itertools
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread

from pipeline.errors import HaltError, PipelineError, StoreFullError, StoreIoError
from pipeline.ids import KeyId
from pipeline.records.rows import Row, RowChange, RowConflictError

VERSION = 2
_LARGEST_GROUP = 256
"""Transactions of callers in one of ours."""
_PATIENCE_S = 30
"""Of one who finds the file locked by another process."""
_TAGS = 500
"""Tags in one question; SQLite takes some 32,000 variables."""
_WRITER_CACHE_KIB = 32 * 1024
"""For the indexes of some 100,000 records: they are random, and a page that falls out is written again and again."""
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=ON",
    "foreign_keys=ON",
    "temp_store=MEMORY",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "wal_autocheckpoint=16384",  # 64 MiB: pages that many transactions touch are written to the file once
    "journal_size_limit=67108864",
)
_SCHEMA = """
CREATE TABLE record (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    shelf BLOB NOT NULL,
    tag BLOB NOT NULL,
    version INTEGER NOT NULL,
    key_id BLOB NOT NULL,
    expires INTEGER,
    part TEXT NOT NULL,
    sealed BLOB NOT NULL,
    UNIQUE (shelf, tag)
) STRICT;
CREATE INDEX record_order ON record (shelf, number);
CREATE INDEX record_key ON record (shelf, key_id);
CREATE INDEX record_expiry ON record (expires) WHERE expires IS NOT NULL;
"""
_BLIND = """
CREATE TABLE blind (
    digest BLOB NOT NULL,
    record INTEGER NOT NULL REFERENCES record (number) ON DELETE CASCADE,
    PRIMARY KEY (digest, record)
) STRICT, WITHOUT ROWID;
CREATE INDEX blind_record ON blind (record);
"""
_SET_BLIND_ASIDE = """
DROP INDEX blind_record;
ALTER TABLE blind RENAME TO blind_1;
"""
_TAKE_BLIND_OVER = """
INSERT OR IGNORE INTO blind (digest, record) SELECT digest, record FROM blind_1 ORDER BY digest;
DROP TABLE blind_1;
"""
_COLUMNS = "shelf, tag, version, key_id, sealed, expires, part, number"
_BY_TAG = f"SELECT {_COLUMNS} FROM record WHERE shelf = ? AND tag IN (%s)"  # noqa: S608 - constants
_BY_BLIND = f"""SELECT DISTINCT {", ".join(f"record.{name.strip()}" for name in _COLUMNS.split(","))}
    FROM blind CROSS JOIN record ON record.number = blind.record
    WHERE blind.digest IN (%s) AND record.shelf = ? ORDER BY record.number LIMIT ?"""  # noqa: S608
_VERSIONS = "SELECT number, tag, version FROM record WHERE shelf = ? ORDER BY number"
_PAGE = f"SELECT {_COLUMNS} FROM record WHERE shelf = ? AND number > ? ORDER BY number LIMIT ?"  # noqa: S608
_INSERT = (
    "INSERT INTO record (number, shelf, tag, version, key_id, expires, part, sealed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_INDEX = "INSERT OR IGNORE INTO blind (digest, record) VALUES (?, ?)"
_EXPIRED = f"SELECT {_COLUMNS} FROM record WHERE expires < ? AND number > ? ORDER BY number LIMIT ?"  # noqa: S608
_UNDER = f"SELECT {_COLUMNS} FROM record WHERE shelf = ? AND key_id IN (%s) LIMIT ?"  # noqa: S608
_COUNT = "SELECT count(*) FROM record WHERE shelf = ?"
_COUNT_UNDER = f"{_COUNT} AND key_id IN (%s)"
_UPDATE = "UPDATE record SET tag = ?, version = ?, key_id = ?, expires = ?, part = ?, sealed = ? WHERE number = ?"


@dataclass(slots=True)
class _Pending:
    """One caller's transaction."""

    changes: Sequence[RowChange]
    done: bool = False
    error: Exception | None = None


class SqliteEngine:
    """One file, two connections: one that writes, one that reads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._queue: list[_Pending] = []
        self._changes: Counter[bytes] = Counter()
        self._unsettled = True  # also what an earlier process left
        self._turn = anyio.Lock()
        self._writes = anyio.CapacityLimiter(1)
        self._reads = anyio.CapacityLimiter(1)
        self._writer = _connected(path)
        try:
            _prepare(self._writer)
            self._writer.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
            self._reader = _connected(path)
        except BaseException:
            self._writer.close()
            raise
        self._reader.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        """Close both connections; what was acknowledged is durable."""
        self._reader.close()
        with contextlib.suppress(sqlite3.Error):  # the last one folds the log into the file; the next start may do it
            self._writer.close()

    # --- the port

    async def write(self, changes: Sequence[RowChange]) -> None:
        pending = _Pending(changes)
        self._queue.append(pending)
        try:
            async with self._turn:
                if not pending.done:
                    group, self._queue = self._queue[:_LARGEST_GROUP], self._queue[_LARGEST_GROUP:]
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(self._commit, group, limiter=self._writes)
        finally:
            if pending in self._queue:
                self._queue.remove(pending)  # nobody waits for it any more
        if pending.error is not None:
            raise pending.error

    async def settled(self) -> bool:
        if self._unsettled:
            async with self._turn:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._settle, limiter=self._writes)
        return not self._unsettled

    async def rows(self, shelf: bytes, tags: Sequence[bytes]) -> list[Row]:
        found: list[Row] = []
        for start in range(0, len(tags), _TAGS):
            some = tags[start : start + _TAGS]
            found += await self._read(_BY_TAG % _marks(some), (shelf, *some))
        return found

    async def versions(self, shelf: bytes) -> list[tuple[int, bytes, int]]:
        return [(number, tag, version) for number, tag, version in await self._ask(_VERSIONS, (shelf,))]

    async def found(self, shelf: bytes, digests: Sequence[bytes], limit: int) -> list[Row]:
        return await self._read(_BY_BLIND % _marks(digests), (*digests, shelf, limit))

    async def page(self, shelf: bytes, after: int, limit: int) -> list[Row]:
        return await self._read(_PAGE, (shelf, after, limit))

    async def under(self, shelf: bytes, keys: Sequence[KeyId], limit: int) -> list[Row]:
        return await self._read(_UNDER % _marks(keys), (shelf, *(key.bytes for key in keys), limit)) if keys else []

    async def count(self, shelf: bytes, keys: Sequence[KeyId] | None = None) -> int:
        if keys is None:
            ((number,),) = await self._ask(_COUNT, (shelf,))
        else:
            ((number,),) = await self._ask(_COUNT_UNDER % _marks(keys), (shelf, *(key.bytes for key in keys)))
        return int(number)

    async def expired(self, before: int, after: int, limit: int) -> list[Row]:
        return await self._read(_EXPIRED, (before, after, limit))

    def changes(self, shelf: bytes) -> int:
        return self._changes[shelf]

    # --- inside

    async def _read(self, query: str, values: Sequence[object]) -> list[Row]:
        return [_row(each) for each in await self._ask(query, values)]

    async def _ask(self, query: str, values: Sequence[object]) -> list[Sequence[Any]]:
        def ask() -> list[Sequence[Any]]:
            found: list[Sequence[Any]] = []
            with translated():
                found += self._reader.execute(query, values)
            return found

        return await anyio.to_thread.run_sync(ask, limiter=self._reads)

    def _commit(self, group: list[_Pending]) -> None:
        """Carry out a group in one transaction; who conflicts takes no other with it."""
        try:
            with translated(), _transaction(self._writer):
                for pending in group:
                    try:
                        with _savepoint(self._writer):
                            _apply_all(self._writer, pending.changes)
                    except RowConflictError as error:
                        pending.error = error
        except PipelineError as error:
            for pending in group:
                pending.error = pending.error or error
        finally:
            for pending in group:
                pending.done = True
                self._unsettled = self._unsettled or any(change.expected for change in pending.changes)
                self._changes.update({change.shelf for change in pending.changes})

    def _settle(self) -> None:
        """Fold the log into the file and cut it; not while somebody reads from it."""
        with translated():
            self._writer.execute("PRAGMA busy_timeout = 0")
            try:
                ((busy, *_),) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {_PATIENCE_S * 1000}")
        self._unsettled = bool(busy)


def snapshot(path: str, target: str) -> str | None:
    """Write a copy of one moment to `target`, whoever writes meanwhile; None if there is no such file.

    Raises:
        StoreFullError, StoreIoError: it can't be read or written.

    """
    if not Path(path).exists():
        return None
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    with (
        translated(),
        contextlib.closing(sqlite3.connect(path, timeout=_PATIENCE_S)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # nothing beside the file
    return target


def _apply_all(writer: sqlite3.Connection, changes: Sequence[RowChange]) -> None:
    """Do changes in their order; new rows, of which there may be thousands, at once."""
    for are_new, some in itertools.groupby(changes, lambda change: change.expected == 0 and change.row is not None):
        if are_new:
            _insert(writer, list(some))
        else:
            for change in some:
                _apply(writer, change)


def _insert(writer: sqlite3.Connection, changes: Sequence[RowChange]) -> None:
    (last,) = writer.execute("SELECT seq FROM sqlite_sequence WHERE name = 'record'").fetchone() or (0,)
    rows = [
        (number, row.shelf, row.tag, row.version, row.key_id.bytes, row.expires, row.part, row.sealed)
        for number, change in enumerate(changes, last + 1)
        if (row := change.row) is not None
    ]
    try:
        writer.executemany(_INSERT, rows)
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise
        raise RowConflictError from error
    entries = [(digest, number) for number, change in enumerate(changes, last + 1) for digest in change.blinds or ()]
    writer.executemany(_INDEX, sorted(entries))  # in the index's own order: its pages are met once


def _apply(writer: sqlite3.Connection, change: RowChange) -> None:
    query = "SELECT number, version FROM record WHERE shelf = ? AND tag = ?"
    number, version = writer.execute(query, (change.shelf, change.tag)).fetchone() or (None, 0)
    if version != change.expected:
        raise RowConflictError
    row = change.row
    if row is None:
        writer.execute("DELETE FROM record WHERE number = ?", (number,))
        return
    writer.execute(_UPDATE, (row.tag, row.version, row.key_id.bytes, row.expires, row.part, row.sealed, number))
    if change.blinds is not None:
        writer.execute("DELETE FROM blind WHERE record = ?", (number,))
        writer.executemany(_INDEX, [(digest, number) for digest in change.blinds])


def _row(values: Sequence[object]) -> Row:
    shelf, tag, version, key_id, sealed, expires, part, number = values
    return Row(shelf, tag, version, KeyId(UUID(bytes=key_id)), sealed, expires, part, number)  # type: ignore[arg-type]


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


# --- SQLite


def _connected(path: str) -> sqlite3.Connection:
    """Open the file, making it readable by its owner only.

    Raises:
        HaltError: it can't be used.

    """
    try:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except (OSError, sqlite3.Error) as error:
        raise HaltError(
            f"{path} can't be used ({type(error).__name__}). Restore it from a backup, or mend it"
        ) from error
    return connection


def _prepare(writer: sqlite3.Connection) -> None:
    """Make the tables in a new file. Raises `HaltError` for one of another version."""
    try:
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with _transaction(writer):
                _execute(writer, _SCHEMA + _BLIND)
                writer.execute(f"PRAGMA user_version = {VERSION}")
        elif version == 1:
            with _transaction(writer):
                _execute(writer, _SET_BLIND_ASIDE + _BLIND + _TAKE_BLIND_OVER)
                writer.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION:
            raise HaltError(
                f"the records are of version {version}, and this program knows {VERSION}; nothing was changed"
            )
    except sqlite3.Error as error:
        raise HaltError(f"the records can't be used ({type(error).__name__}). Restore them from a backup") from error


def _execute(writer: sqlite3.Connection, statements: str) -> None:
    """Execute statements within the transaction that is open, which `executescript` would end."""
    for statement in statements.split(";")[:-1]:
        writer.execute(statement)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _savepoint(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("SAVEPOINT one")
    try:
        yield
    except RowConflictError:
        connection.execute("ROLLBACK TO one")
        raise
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE one")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Let only our own errors out."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if name == "SQLITE_FULL":
            raise StoreFullError("there is no room for more records; nothing of this was kept") from error
        raise StoreIoError(f"the records can't be read or written ({name}); nothing of this was kept") from error
