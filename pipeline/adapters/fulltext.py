"""Full text in memory, by SQLite's FTS5: `TextIndex`. Nothing of it is ever on a disk. Synchronous."""

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Sequence

from pipeline.errors import RefuseError

_WORD = re.compile(r"\w+")
_MOST_WORDS = 32


class FtsIndex:
    """One index of one scope."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA temp_store=MEMORY")
        self._connection.execute(
            "CREATE VIRTUAL TABLE document USING fts5(tag UNINDEXED, words, tokenize='unicode61 remove_diacritics 2')"
        )
        self._rows: dict[bytes, int] = {}

    def put(self, documents: Iterable[tuple[bytes, str]]) -> None:
        self._connection.execute("BEGIN")
        for tag, words in documents:
            self._forget(tag)
            row = self._connection.execute("INSERT INTO document (tag, words) VALUES (?, ?)", (tag, words)).lastrowid
            self._rows[tag] = row or 0
        self._connection.execute("COMMIT")

    def remove(self, tags: Iterable[bytes]) -> None:
        for tag in tags:
            self._forget(tag)

    def found(self, text: str, limit: int) -> Sequence[bytes]:
        words = _WORD.findall(text)[:_MOST_WORDS]
        if not words:
            raise RefuseError("at least one word is expected", field="text")
        query = " ".join(f'"{word}"' for word in words)
        with contextlib.closing(
            self._connection.execute("SELECT tag FROM document(?) ORDER BY rank LIMIT ?", (query, limit))
        ) as rows:
            return [bytes(tag) for (tag,) in rows]

    def close(self) -> None:
        self._connection.close()
        self._rows.clear()

    def _forget(self, tag: bytes) -> None:
        row = self._rows.pop(tag, None)
        if row is not None:
            self._connection.execute("DELETE FROM document WHERE rowid = ?", (row,))
