"""Full text in memory, by SQLite's FTS5: `TextIndex`. Nothing of it goes to a disk from here. Synchronous."""

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from pipeline.errors import RefuseError, SegmentForgedError

_WORD = re.compile(r"\w+")
_MOST_WORDS = 32
_VERSION = 1
_SCHEMA = """
CREATE VIRTUAL TABLE document USING fts5(tag UNINDEXED, words, tokenize='unicode61 remove_diacritics 2');
CREATE TABLE known (
    tag BLOB PRIMARY KEY, row INTEGER NOT NULL, number INTEGER NOT NULL, version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""


class FtsIndex:
    """One index of one scope."""

    def __init__(self, content: bytes | None = None) -> None:
        """Make an empty one, or one of what `dumped` gave. Raises `SegmentForgedError` if it is of another program."""
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            if content is None:
                self._connection.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
            else:
                self._connection.deserialize(content)
            self._connection.execute("PRAGMA temp_store=MEMORY")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            self._connection.close()
            raise SegmentForgedError("an index's copy is not one") from error
        if version != _VERSION:
            self._connection.close()
            raise SegmentForgedError("an index's copy is of another version of the program")

    def versions(self) -> Mapping[bytes, tuple[int, int]]:
        rows = self._connection.execute("SELECT tag, number, version FROM known")
        return {bytes(tag): (number, version) for tag, number, version in rows}

    def put(self, documents: Iterable[tuple[bytes, tuple[int, int], str]]) -> None:
        self._connection.execute("BEGIN")
        for tag, (number, version), words in documents:
            self._forget(tag)
            row = self._connection.execute("INSERT INTO document (tag, words) VALUES (?, ?)", (tag, words)).lastrowid
            self._connection.execute("INSERT INTO known VALUES (?, ?, ?, ?)", (tag, row, number, version))
        self._connection.execute("COMMIT")

    def remove(self, tags: Iterable[bytes]) -> None:
        self._connection.execute("BEGIN")
        for tag in tags:
            self._forget(tag)
        self._connection.execute("COMMIT")

    def found(self, text: str, limit: int) -> Sequence[bytes]:
        words = _WORD.findall(text)[:_MOST_WORDS]
        if not words:
            raise RefuseError("at least one word is expected", field="text")
        query = " ".join(f'"{word}"' for word in words)
        with contextlib.closing(
            self._connection.execute("SELECT tag FROM document(?) ORDER BY rank LIMIT ?", (query, limit))
        ) as rows:
            return [bytes(tag) for (tag,) in rows]

    def dumped(self) -> bytes:
        return self._connection.serialize()

    def close(self) -> None:
        self._connection.close()

    def _forget(self, tag: bytes) -> None:
        row = self._connection.execute("SELECT row FROM known WHERE tag = ?", (tag,)).fetchone()
        if row is not None:
            self._connection.execute("DELETE FROM document WHERE rowid = ?", row)
            self._connection.execute("DELETE FROM known WHERE tag = ?", (tag,))
