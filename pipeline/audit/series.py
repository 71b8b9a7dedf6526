"""Begin a new series of a log: another key, checkpoints from 1. For a log that is not what was signed any more.

A log that came back from a backup lacks what was signed since; one that is broken may never be whole again. Neither may
pass for the log that its key has vouched for. Nothing is removed: the old key, checkpoints and digests are set aside.
Blocks, and nobody else may use the log meanwhile.
"""

from typing import Any

from pipeline.audit.chain import file_names
from pipeline.audit.hourly import DIGESTS
from pipeline.audit.notes import Checkpoint, checkpoint_of
from pipeline.audit.shipping import CURSOR
from pipeline.audit.signing import CHECKPOINTS, LEAVES, SigningKeys
from pipeline.errors import RefuseError
from pipeline.ports import FileSystem


def begin_series(directory: str, files: FileSystem, keys: SigningKeys) -> dict[str, Any]:
    """Begin one, and give what a record is to say of the one before: its key, and the newest checkpoint it had.

    May be broken off, and done again. Raises `RefuseError`, `StoreIoError`.
    """
    log = directory.rpartition("/")[2]
    verifier = keys.verifier(log)
    newest = _newest(keys, log)
    facts: dict[str, Any] = {"previousKeyId": verifier.key_id}
    if newest is not None:
        facts |= {"signedRecords": newest.size, "signedRoot": newest.root.hex()}
    names = files.names(directory)
    for name in (CHECKPOINTS, DIGESTS, LEAVES, CURSOR):
        if name in names:
            files.rename(f"{directory}/{name}", f"{directory}/{name}.{verifier.key_id}")
    if names:
        files.sync_directory(directory)
    keys.retire(log)
    return facts


def set_aside(directory: str, files: FileSystem, target: str) -> list[str]:
    """Move a log's folder away as it is; give the names of its files. Raises `StoreIoError`."""
    found = [str(name) for name in file_names(files.names(directory))]
    files.make_directory(target.rpartition("/")[0])
    files.rename(directory, target)
    files.sync_directory(target.rpartition("/")[0])
    files.sync_directory(directory.rpartition("/")[0])
    return found


def _newest(keys: SigningKeys, log: str) -> Checkpoint | None:
    note = keys.kept(log)
    try:
        return None if note is None else checkpoint_of(note, keys.verifier(log))
    except RefuseError:
        return None
