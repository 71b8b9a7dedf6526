"""Bring a backup back: every file is compared with the manifest before it counts. Synchronous.

A store that is not restored to the end is marked, and nothing serves it: the mark is the first that is written, and
goes last.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.backup.copies import Copied
from pipeline.backup.manifest import NAME as MANIFEST
from pipeline.backup.manifest import Manifest
from pipeline.backup.store import LEFT_OUT, PREFIX
from pipeline.errors import RefuseError, StoreIoError
from pipeline.interim.marker import RESTORING
from pipeline.ports import FileSystem
from pipeline.smallfiles import read_whole, write_whole

CONFIG = "config"
_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Trouble:
    """One file that is not as the manifest says."""

    path: str
    what: str


def check(files: FileSystem, folder: str, manifest: Manifest, moved: Callable[[int], None]) -> list[Trouble]:
    """Compare every file of a backup with its manifest. `moved` is told the number of files."""
    troubles = []
    for done, file in enumerate(manifest.files, start=1):
        trouble = _trouble(files, folder, file)
        if trouble is not None:
            troubles.append(Trouble(file.path, trouble))
        moved(done)
    known = {file.path for file in manifest.files} | {MANIFEST}
    troubles += [
        Trouble(path, "is not in the manifest") for path in sorted(_found(files, folder, "")) if path not in known
    ]
    return troubles


def refuse_filled(files: FileSystem, root: str, without: frozenset[str]) -> None:
    """Raise `RefuseError` if anything but a restore that broke off lies where a store is to be restored."""
    there = set(_names(files, root))
    if RESTORING not in there and there - LEFT_OUT - without:
        raise RefuseError("the state directory is not empty; a backup is restored into an empty one only")


def bring_back(files: FileSystem, folder: str, manifest: Manifest, root: str, moved: Callable[[int], None]) -> None:
    """Write the store of a backup to `root`; when this returns it is durable and may be served.

    Raises:
        RefuseError: a file of the backup is not as the manifest says; the store stays marked.
        StoreFullError, StoreIoError: the same.

    """
    files.make_directory(root)
    mark = str(manifest.beginning.backup_id).encode()
    begun = read_whole(files, f"{root}/{RESTORING}", 64)
    if begun is None:
        write_whole(files, f"{root}/{RESTORING}", mark)
    elif begun != mark:
        raise RefuseError("the restore of another backup broke off here; empty the state directory first")
    _copy_all(files, folder, manifest, f"{PREFIX}/", root, moved)
    files.sync_volume(root)
    files.unlink(f"{root}/{RESTORING}")
    files.sync_directory(root)


def bring_back_config(files: FileSystem, folder: str, manifest: Manifest, target: str) -> None:
    """Write the configuration of a backup to `target`, which holds none yet.

    Raises:
        RefuseError: the backup holds none, a file of it is not as the manifest says, or there is something there.

    """
    if not manifest.beginning.config:
        raise RefuseError("this backup holds no configuration: it was made without --with-config")
    if _names(files, target):
        raise RefuseError("the directory for the configuration is not empty", field="--config-to")
    files.make_directory(target)
    _copy_all(files, folder, manifest, f"{CONFIG}/", target, lambda _done: None)
    files.sync_volume(target)


# --- inside


def _copy_all(
    files: FileSystem, folder: str, manifest: Manifest, prefix: str, root: str, moved: Callable[[int], None]
) -> None:
    for done, file in enumerate(manifest.files, start=1):
        if file.path.startswith(prefix):
            _copy(files, f"{folder}/{file.path}", f"{root}/{file.path.removeprefix(prefix)}", file)
        moved(done)


def _copy(files: FileSystem, source: str, target: str, file: Copied) -> None:
    files.make_directory(target.rpartition("/")[0])
    files.unlink(target)  # of a restore that broke off
    copy = files.create(target)
    try:
        digest, size = hashlib.sha256(), 0
        for piece in _pieces(files, source):
            files.append(copy, [piece])
            digest.update(piece)
            size += len(piece)
    except FileNotFoundError:
        raise RefuseError(f"{file.path} is missing from the backup; nothing of it is served") from None
    finally:
        files.close(copy)
    if (size, digest.hexdigest()) != (file.size_bytes, file.sha256):
        raise RefuseError(f"{file.path} is not as the backup's manifest says; nothing of it is served")


def _trouble(files: FileSystem, folder: str, file: Copied) -> str | None:
    digest, size = hashlib.sha256(), 0
    try:
        for piece in _pieces(files, f"{folder}/{file.path}"):
            digest.update(piece)
            size += len(piece)
    except FileNotFoundError:
        return "is missing"
    except StoreIoError as error:
        return f"can't be read: {error}"
    if size != file.size_bytes:
        return f"has {size} bytes instead of {file.size_bytes}"
    return None if digest.hexdigest() == file.sha256 else "holds other bytes than were copied"


def _pieces(files: FileSystem, path: str) -> Iterator[bytes]:
    handle = files.open(path)
    try:
        at = 0
        while piece := files.read(handle, at, _PIECE):
            yield piece
            at += len(piece)
    finally:
        files.close(handle)


def _found(files: FileSystem, folder: str, prefix: str) -> Iterator[str]:
    plain, others = files.sorted_out(folder)
    yield from (f"{prefix}{name}" for name in plain)
    for name in others:
        try:
            yield from _found(files, f"{folder}/{name}", f"{prefix}{name}/")
        except StoreIoError:
            yield f"{prefix}{name}"


def _names(files: FileSystem, path: str) -> list[str]:
    try:
        return files.names(path)
    except StoreIoError as error:
        raise RefuseError(f"the directory can't be used: {error}") from error
