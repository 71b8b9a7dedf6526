"""`store.json`: which store this is, and in which format. A volume that came back empty, or another, lacks it."""

import msgspec

from pipeline.errors import HaltError
from pipeline.ports import FileSystem

FORMAT_VERSION = 2
_NAME = "store.json"
RESTORING = "restoring"
"""Lies in a store that a backup is being restored to, until all of it is there."""


class Marker(msgspec.Struct, frozen=True, rename="camel"):
    """What the file says."""

    store_id: str
    format_version: int


def read_marker(files: FileSystem, root: str) -> Marker | None:
    """Read it; None if there is none.

    Raises:
        HaltError: it is damaged, or the store is half restored.
        StoreIoError, StoreBusyError: it can't be read.

    """
    if RESTORING in files.names(root):
        raise HaltError("a backup was not restored to its end here; run `pipeline restore` again")
    try:
        handle = files.open(f"{root}/{_NAME}")
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(files.read(handle, 0, 4096), type=Marker)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HaltError("store.json is damaged; restore it from a backup") from error
    finally:
        files.close(handle)


def write_marker(files: FileSystem, root: str, marker: Marker) -> None:
    """Make it durable, in one step."""
    files.make_directory(root)
    aside = f"{root}/{_NAME}.tmp"
    files.unlink(aside)
    handle = files.create(aside)
    try:
        files.append(handle, [msgspec.json.encode(marker)])
        files.sync(handle)
    finally:
        files.close(handle)
    files.rename(aside, f"{root}/{_NAME}")
    files.sync_directory(root)
