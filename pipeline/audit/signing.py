"""Signs checkpoints of a log, each over all that was in it; keeps them beside it and in the configuration directory.

Keys lie in the configuration directory, apart from the store: who can write to the store can't sign what was not
there. Every checkpoint extends the one before, or none is made. Blocks: callers choose the thread.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipeline.audit.chain import NO_HASH, leaf_hash, link_of
from pipeline.audit.files import held, whole
from pipeline.audit.notes import Checkpoint, Signer, Verifier, checkpoint_of, size_said
from pipeline.audit.reading import Snapshot, lines, snapshot
from pipeline.audit.tree import Frontier
from pipeline.config import sync_directory, write_new_private, write_private
from pipeline.errors import AuditBrokenError, RefuseError
from pipeline.ports import FileSystem
from pipeline.smallfiles import write_whole

ORIGIN = "recording-pipeline/audit/"
"""Begins the name of each log and of its key; the log's own follows."""
LEAVES = "leaves"
CHECKPOINTS = "checkpoints"
SIGNING_LOCK = "signing.lock"
"""Held by whoever makes checkpoints or digests of a log."""
HASH_BYTES = 32
_NUMBER = re.compile(r"(?P<number>[0-9]{8})\.txt")
_KEYS = "audit"


class SigningKeys:
    """The keys of all logs, and the newest checkpoint of each, in the configuration directory."""

    def __init__(self, config_dir: PurePath) -> None:
        self._directory = Path(config_dir, _KEYS)

    def signer(self, log: str) -> Signer:
        """Give a log's key, made at its first use. Raises `RefuseError` if it can't be read."""
        path = self._directory / f"{log}.key"
        try:
            return Signer.parse(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            write_new_private(path, f"{Signer.make(ORIGIN + log).text}\n".encode())
            return Signer.parse(path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise RefuseError("an audit log's signing key can't be read; see the configuration directory") from error

    def verifier(self, log: str) -> Verifier:
        """Give the public half of a log's key."""
        return self.signer(log).verifier

    def keep(self, log: str, note: str) -> None:
        """Keep the newest checkpoint of a log apart from it."""
        try:
            write_private(self._directory / f"{log}.checkpoint", note.encode())
        except OSError as error:
            raise RefuseError("the configuration directory takes no checkpoint") from error

    def kept(self, log: str) -> str | None:
        """Give the newest checkpoint of a log that was kept; None if there is none."""
        try:
            return (self._directory / f"{log}.checkpoint").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def retire(self, log: str) -> None:
        """Set a log's key and checkpoint aside; the next use makes a new key. Nothing happens if there is none."""
        key_id = self.verifier(log).key_id
        try:
            for ending in ("checkpoint", "key"):  # the key last: what is broken off is done again under its name
                path = self._directory / f"{log}.{ending}"
                if path.exists():
                    path.rename(self._directory / f"{log}.{key_id}.{ending}")
            sync_directory(self._directory)
        except OSError as error:
            raise RefuseError("the configuration directory can't be written") from error

    def least(self, log: str) -> int:
        """Tell how many records a log must have, by the checkpoint that is kept."""
        return size_said((self.kept(log) or "").encode())


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint that was made."""

    number: int
    checkpoint: Checkpoint
    note: str


class SignedLog:
    """One log, and how far its tree has grown here."""

    def __init__(self, directory: str, files: FileSystem, keys: SigningKeys) -> None:
        self.log = directory.rpartition("/")[2]
        self.number = 0
        """Of the newest checkpoint; they count from 1."""
        self._directory = directory
        self._files = files
        self._keys = keys
        self._frontier = Frontier()
        self._last = NO_HASH
        self._new: list[bytes] = []
        """Hashes of the lines that no checkpoint covers."""
        self._at = 0, 0
        """Index of the first line of the file that is read, and the offset that was reached in it."""

    @property
    def new(self) -> int:
        """How many records were seen that no checkpoint covers."""
        return len(self._new)

    def look(self) -> None:
        """Read on. Raises `AuditBrokenError` if the log does not go on from where it was, `StoreIoError`."""
        self._catch_up()
        self._read_on(snapshot(self._files, self._directory))

    def sign(self) -> Signed | None:
        """Sign what the log holds now; None if the newest checkpoint covers it.

        Raises:
            AuditBrokenError: the log is not what was signed before, or does not follow.
            RefuseError: there is no key to sign with.
            StoreFullError, StoreIoError: the checkpoint could not be kept.

        """
        if not self._files.names(self._directory):
            return None
        with held(self._files, f"{self._directory}/{SIGNING_LOCK}"):
            self._catch_up()
            self._read_on(snapshot(self._files, self._directory, sync=True))
            if not self._new:
                return None
            signer = self._keys.signer(self.log)
            checkpoint = Checkpoint(ORIGIN + self.log, self._frontier.size, self._frontier.root)
            note = signer.note(checkpoint.text)
            self._keep_leaves()
            write_whole(self._files, _path(self._directory, self.number + 1), note.encode())
            self.number += 1
            self._new = []
        self._keys.keep(self.log, note)
        return Signed(self.number, checkpoint, note)

    # --- inside

    def _begin(self) -> None:
        self._frontier, self._last, self._new, self._at = Frontier(), NO_HASH, [], (0, 0)

    def _catch_up(self) -> None:
        """Start anew from the newest checkpoint, if another process has made one, or at first."""
        newest = max(numbers(self._files, self._directory), default=0)
        if newest == self.number:
            return
        note = whole(self._files, _path(self._directory, newest)) or b""
        try:
            checkpoint = checkpoint_of(note.decode("utf-8", "replace"), self._keys.verifier(self.log))
        except RefuseError as error:
            raise AuditBrokenError(f"the newest checkpoint of an audit log is not its own: {error}") from error
        self._begin()
        leaves = stored_leaves(self._files, self._directory, checkpoint.size)
        self._frontier = Frontier(leaves)
        if len(leaves) != checkpoint.size or self._frontier.root != checkpoint.root:
            self._begin()
            self._read_on(snapshot(self._files, self._directory), checkpoint.size)
            if self._frontier.root != checkpoint.root:
                raise AuditBrokenError("an audit log is not what was signed: see `pipeline audit verify`")
            self._keep_leaves(anew=True)
        elif leaves:
            self._last = leaves[-1].hex()
            self._at = self._found(checkpoint.size)
        self._new = []
        self.number = newest

    def _found(self, count: int) -> tuple[int, int]:
        """Find where the line of that index stands, or will stand."""
        seen = snapshot(self._files, self._directory)
        firsts = [file.first for file in seen.files if file.first <= count]
        if not firsts:
            return 0, 0
        index = max(number for number, file in enumerate(seen.files) if file.first == firsts[-1])
        skipped, offset = count - firsts[-1], 0
        if skipped:
            for number, line in enumerate(lines(self._files, seen, index), start=1):
                offset = line.offset + len(line.text) + 1
                if number == skipped:
                    break
        return firsts[-1], offset

    def _read_on(self, seen: Snapshot, upto: int | None = None) -> None:
        first, offset = self._at
        start = next((number for number, file in enumerate(seen.files) if file.first >= first), len(seen.files))
        for line in lines(self._files, seen, start, offset):
            if self._frontier.size == upto or not line.is_whole:
                break
            link = link_of(line.text)
            if link is None or (link.index, link.previous) != (self._frontier.size, self._last):
                raise AuditBrokenError("an audit log does not go on from where it was: see `pipeline audit verify`")
            leaf = leaf_hash(line.text)
            self._frontier.add(leaf)
            self._new.append(leaf)
            self._last = leaf.hex()
            self._at = line.file.first, line.offset + len(line.text) + 1

    def _keep_leaves(self, *, anew: bool = False) -> None:
        """Add the hashes of new lines to those that are kept. Behind what is covered may stand what a crash left."""
        covered = 0 if anew else self._frontier.size - len(self._new)
        path = f"{self._directory}/{LEAVES}"
        try:
            handle = self._files.open(path, write=True)
        except FileNotFoundError:
            handle = self._files.create(path)
            self._files.sync_directory(self._directory)
        try:
            if self._files.size(handle) > covered * HASH_BYTES:
                self._files.truncate(handle, covered * HASH_BYTES)
            self._files.append(handle, [b"".join(self._new)])
            self._files.sync(handle)
        finally:
            self._files.close(handle)


def numbers(files: FileSystem, directory: str) -> list[int]:
    """Give the numbers of the checkpoints that are kept beside a log, in order."""
    matches = (_NUMBER.fullmatch(name) for name in files.names(f"{directory}/{CHECKPOINTS}"))
    return sorted(int(match["number"]) for match in matches if match)


def note_of(files: FileSystem, directory: str, number: int) -> bytes:
    """Read one of them; nothing if it is gone."""
    return whole(files, _path(directory, number)) or b""


def stored_leaves(files: FileSystem, directory: str, size: int) -> list[bytes]:
    """Read the hashes of the first `size` lines, as far as they are kept. Only a root tells whether they are right."""
    raw = whole(files, f"{directory}/{LEAVES}", size * HASH_BYTES) or b""
    return [raw[at : at + HASH_BYTES] for at in range(0, len(raw) - HASH_BYTES + 1, HASH_BYTES)]


def _path(directory: str, number: int) -> str:
    return f"{directory}/{CHECKPOINTS}/{number:08}.txt"
