"""What a person decides about poison: give it back to delivery, or remove it. Works beside a running service.

The service never touches poison, so a command may move it under its eyes, as Postfix's postsuper does: one rename or
one unlink, durable when the call returns. `returned` is how the service then learns of it; a start finds it by itself.
"""

import hashlib
from collections import defaultdict
from datetime import datetime
from uuid import UUID

from msgspec import Struct

from pipeline.errors import RefuseError, SegmentForgedError
from pipeline.ids import ArtifactId
from pipeline.interim.index import Index
from pipeline.interim.states import ArtifactName, State, parse_name
from pipeline.ports import FileSystem

_PIECE = 2**20


class Discarded(Struct, frozen=True, kw_only=True, rename="camel"):
    """All that is left of an artifact which a person removed: one line in `discards/<instance>/`."""

    artifact_id: UUID
    instance_id: UUID
    kind: str
    generation: int
    data_key_id: UUID
    size_bytes: int | None
    """Length of the object that would have been delivered."""
    poison: str | None
    file_bytes: int
    file_sha256: str
    """Of the file as it lay there, sealed."""
    reason: str
    discarded_by: str
    discarded_at: datetime


def digest_of(root: str, files: FileSystem, name: ArtifactName) -> tuple[int, str]:
    """Give length and SHA-256 of an artifact's file. Raises `RefuseError` if it has moved on, `StoreIoError`."""
    try:
        return digest_of_file(files, f"{root}/artifacts/{name.path}")
    except FileNotFoundError:
        raise _moved_on() from None


def digest_of_file(files: FileSystem, path: str) -> tuple[int, str]:
    """Give length and SHA-256 of a file. Raises `StoreIoError`, `FileNotFoundError`."""
    digest, size = hashlib.sha256(), 0
    handle = files.open(path)
    try:
        while piece := files.read(handle, size, _PIECE):
            digest.update(piece)
            size += len(piece)
    finally:
        files.close(handle)
    return size, digest.hexdigest()


def requeue(root: str, files: FileSystem, name: ArtifactName) -> ArtifactName:
    """Give poison its sealed name back; it waits for delivery again when this returns.

    Raises:
        RefuseError: it has moved on.
        StoreIoError: the disk refuses.

    """
    target = name.requeued()
    try:
        files.rename(f"{root}/artifacts/{name.path}", f"{root}/artifacts/{target.path}")
    except FileNotFoundError:
        raise _moved_on() from None
    files.sync_directory(f"{root}/artifacts/{target.shard}")
    return target


def discard(root: str, files: FileSystem, name: ArtifactName) -> None:
    """Remove poison for good. Its `Discarded` must be durable. Raises `StoreIoError`."""
    assert name.standing is State.POISON, "nothing else is ever removed undelivered"
    files.unlink(f"{root}/artifacts/{name.path}")
    files.sync_directory(f"{root}/artifacts/{name.shard}")


def moved(root: str, files: FileSystem, index: Index) -> dict[ArtifactId, ArtifactName | None]:
    """Tell which poison of an index lies under another name now; None: it is gone. Reads the folders' names.

    Raises:
        StoreIoError: a folder can't be read.

    """
    by_shard: defaultdict[str, dict[ArtifactId, ArtifactName]] = defaultdict(dict)
    for name in index:
        if name.standing is State.POISON:
            by_shard[name.shard][name.artifact_id] = name
    found: dict[ArtifactId, ArtifactName | None] = {}
    for shard, aside in by_shard.items():
        there: dict[ArtifactId, ArtifactName] = {}
        for text in files.names(f"{root}/artifacts/{shard}"):
            try:
                name = parse_name(text)
            except SegmentForgedError:
                continue
            there[name.artifact_id] = name
        found |= {artifact: there.get(artifact) for artifact, name in aside.items() if there.get(artifact) != name}
    return found


def returned(index: Index, found: dict[ArtifactId, ArtifactName | None]) -> list[ArtifactName]:
    """Bring an index up to what `moved` found; give what waits for delivery again, oldest first."""
    back = []
    for artifact, name in sorted(found.items()):
        known = index.get(artifact)
        if known is None or known.standing is not State.POISON:
            continue
        if name is None:
            index.remove(artifact)
        elif name.is_waiting:
            index.put(name)
            back.append(name)
    return back


def _moved_on() -> RefuseError:
    return RefuseError("it is not poison any more: somebody else was quicker. Nothing was changed")
