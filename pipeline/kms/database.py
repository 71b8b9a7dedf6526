"""The keys on disk: SQLite, and nothing but rows in and rows out.

Key material is stored sealed under the root key; a deleted row's bytes are overwritten (`secure_delete`) and the
write-ahead log is emptied after a deletion. Each method is one transaction, durable when it returns.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from pipeline.errors import HaltError
from pipeline.kms.policy import parse_policy
from pipeline.kms.records import Alias, Grant, Key, KeyState, Material
from pipeline.kms.rootkey import RootKey, sync_directory

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE keys (key_id TEXT PRIMARY KEY, account_id TEXT NOT NULL, arn TEXT NOT NULL, created_at REAL NOT NULL,
    description TEXT NOT NULL, state TEXT NOT NULL, deletion_at REAL, deletion_days INTEGER,
    policy TEXT NOT NULL) STRICT;
CREATE TABLE materials (number INTEGER PRIMARY KEY, material_id TEXT NOT NULL UNIQUE,
    key_id TEXT NOT NULL REFERENCES keys ON DELETE CASCADE, sealed BLOB NOT NULL) STRICT;
CREATE TABLE aliases (account_id TEXT NOT NULL, name TEXT NOT NULL,
    key_id TEXT NOT NULL REFERENCES keys ON DELETE CASCADE, created_at REAL NOT NULL,
    PRIMARY KEY (account_id, name)) STRICT;
CREATE TABLE grants (grant_id TEXT PRIMARY KEY, key_id TEXT NOT NULL REFERENCES keys ON DELETE CASCADE,
    created_at REAL NOT NULL, document TEXT NOT NULL) STRICT;
PRAGMA user_version = 1;
"""


class _GrantDocument(msgspec.Struct):
    """What of a grant is not a column."""

    issuing_account: str
    grantee: str
    retiring: str | None
    operations: list[str]
    equals: dict[str, str] | None
    subset: dict[str, str] | None
    name: str | None


class Database:
    """One open file. Not shared between threads or processes."""

    def __init__(self, path: Path, root: RootKey) -> None:
        """Open or make the file.

        Raises: HaltError if it is another root key's, another version's, or can't be opened.
        """
        self._root = root
        try:
            self._sql = sqlite3.connect(path, isolation_level=None)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
                self._sql.execute(f"PRAGMA {pragma}")
            self._prepare(path)
        except sqlite3.Error as error:
            raise HaltError(f"The key database {path} can't be opened: {error}.") from error

    def _prepare(self, path: Path) -> None:
        (version,) = self._sql.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with self._transaction():
                for statement in _SCHEMA.split(";\n"):
                    self._sql.execute(statement)
                self._sql.execute("INSERT INTO meta VALUES ('root-key-check', ?)", (self._root.check,))
            sync_directory(path.parent)
        elif version != 1:
            raise HaltError(f"The key database {path} is of version {version}, this program knows version 1.")
        (check,) = self._sql.execute("SELECT value FROM meta WHERE name = 'root-key-check'").fetchone()
        if check != self._root.check:
            raise HaltError(f"The root key is not the one that {path} was made with. Nothing was changed.")

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back already, but after a COMMIT that a full disk refused it has not.
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise

    # --- reading, once at start

    def read_keys(self) -> Iterator[Key]:
        """Give every key with its materials and grants."""
        columns = "key_id, account_id, arn, created_at, description, state, deletion_at, deletion_days, policy"
        for row in self._sql.execute(f"SELECT {columns} FROM keys ORDER BY created_at, key_id").fetchall():  # noqa: S608
            yield Key(
                key_id=row[0],
                account_id=row[1],
                arn=row[2],
                created_at=_time(row[3]),
                description=row[4],
                state=KeyState(row[5]),
                deletion_at=None if row[6] is None else _time(row[6]),
                deletion_window=None if row[7] is None else timedelta(days=row[7]),
                policy=parse_policy(row[8]),
                materials={material.material_id: material for material in self._materials(row[0])},
                grants={grant.grant_id: grant for grant in self._grants(row[0])},
            )

    def _materials(self, key_id: str) -> Iterator[Material]:
        query = "SELECT material_id, sealed FROM materials WHERE key_id = ? ORDER BY number"
        for material_id, sealed in self._sql.execute(query, (key_id,)):
            yield Material(material_id, self._root.unseal(sealed, _material_name(key_id, material_id)))

    def _grants(self, key_id: str) -> Iterator[Grant]:
        query = "SELECT grant_id, created_at, document FROM grants WHERE key_id = ? ORDER BY created_at, grant_id"
        for grant_id, created_at, text in self._sql.execute(query, (key_id,)):
            document = msgspec.json.decode(text, type=_GrantDocument)
            yield Grant(
                grant_id=grant_id,
                key_id=key_id,
                issuing_account=document.issuing_account,
                created_at=_time(created_at),
                grantee=document.grantee,
                retiring=document.retiring,
                operations=frozenset(document.operations),
                equals=document.equals,
                subset=document.subset,
                name=document.name,
            )

    def read_aliases(self) -> Iterator[Alias]:
        """Give every alias."""
        for row in self._sql.execute("SELECT account_id, name, key_id, created_at FROM aliases ORDER BY name"):
            yield Alias(row[0], row[1], row[2], _time(row[3]))

    # --- writing

    def add_key(self, key: Key) -> None:
        """Store a new key with its first material."""
        row = (key.key_id, key.account_id, key.arn, key.created_at.timestamp(), key.description, key.state.value)
        with self._transaction():
            self._sql.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, ?)", (*row, key.policy.text))
            self._insert_material(key.key_id, key.current)

    def add_material(self, key_id: str, material: Material) -> None:
        """Store another material, the current one from now on."""
        with self._transaction():
            self._insert_material(key_id, material)

    def _insert_material(self, key_id: str, material: Material) -> None:
        sealed = self._root.seal(material.secret, _material_name(key_id, material.material_id))
        insert = "INSERT INTO materials (material_id, key_id, sealed) VALUES (?, ?, ?)"
        self._sql.execute(insert, (material.material_id, key_id, sealed))

    def set_state(self, key_id: str, state: KeyState, at: datetime | None, window: timedelta | None) -> None:
        """Store a key's state, and when it will be deleted."""
        update = "UPDATE keys SET state = ?, deletion_at = ?, deletion_days = ? WHERE key_id = ?"
        row = (state.value, None if at is None else at.timestamp(), None if window is None else window.days, key_id)
        with self._transaction():
            self._sql.execute(update, row)

    def set_policy(self, key_id: str, text: str) -> None:
        """Store a key's policy."""
        with self._transaction():
            self._sql.execute("UPDATE keys SET policy = ? WHERE key_id = ?", (text, key_id))

    def delete_key(self, key_id: str) -> None:
        """Destroy a key with its materials, grants and aliases; no page or log frame keeps them."""
        with self._transaction():
            self._sql.execute("DELETE FROM keys WHERE key_id = ?", (key_id,))
        self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def add_alias(self, alias: Alias) -> None:
        """Store an alias."""
        row = (alias.account_id, alias.name, alias.key_id, alias.created_at.timestamp())
        with self._transaction():
            self._sql.execute("INSERT INTO aliases VALUES (?, ?, ?, ?)", row)

    def delete_alias(self, alias: Alias) -> None:
        """Remove an alias."""
        with self._transaction():
            self._sql.execute("DELETE FROM aliases WHERE account_id = ? AND name = ?", (alias.account_id, alias.name))

    def add_grant(self, grant: Grant) -> None:
        """Store a grant."""
        document = _GrantDocument(
            issuing_account=grant.issuing_account,
            grantee=grant.grantee,
            retiring=grant.retiring,
            operations=sorted(grant.operations),
            equals=None if grant.equals is None else dict(grant.equals),
            subset=None if grant.subset is None else dict(grant.subset),
            name=grant.name,
        )
        row = (grant.grant_id, grant.key_id, grant.created_at.timestamp(), msgspec.json.encode(document).decode())
        with self._transaction():
            self._sql.execute("INSERT INTO grants VALUES (?, ?, ?, ?)", row)

    def delete_grant(self, grant_id: str) -> None:
        """Remove a grant."""
        with self._transaction():
            self._sql.execute("DELETE FROM grants WHERE grant_id = ?", (grant_id,))


def _material_name(key_id: str, material_id: str) -> bytes:
    return f"material/1\x00{key_id}\x00{material_id}".encode()


def _time(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)
