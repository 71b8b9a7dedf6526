"""What is here of one recording: artifacts by their names, and receipts. Reads only; opens no artifact."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from pipeline.delivery.naming import contact_in
from pipeline.delivery.proof import Receipt, read_receipt
from pipeline.erasure.progress import ErasedArtifact
from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.ids import InstanceId
from pipeline.interim.logs import whole_lines
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.survey import survey
from pipeline.ports import FileSystem


@dataclass(frozen=True, slots=True)
class FoundRecording:
    """All of one recording."""

    held: tuple[ArtifactName, ...]
    """Artifacts whose media are here."""
    delivered: tuple[ErasedArtifact, ...]
    """Of which only receipts are here."""
    receipts: tuple[Receipt, ...]


def find_recording(
    root: str, files: FileSystem, instance: InstanceId, wanted: UUID, generation: int | None
) -> FoundRecording:
    """Find every generation of what an id names, or one of them. The id is the recording's, or one of its artifacts'.

    Raises:
        StoreIoError: a folder can't be read.

    """
    names = [name for name in survey(root, files).names if name.instance_id == instance]
    tags = {name.tag for name in names if name.artifact_id == wanted}
    held: list[ArtifactName] = []
    delivered: dict[UUID, tuple[ErasedArtifact, Receipt]] = {}
    for name in names:
        if name.standing is not State.DELIVERED:
            if name.tag in tags:
                held.append(name)
            continue
        receipt = _receipt(files, f"{root}/artifacts/{name.path}")
        if receipt is not None and (name.tag in tags or wanted == receipt.recording_id):
            delivered[name.artifact_id] = _erased(receipt, name), receipt
    for receipt in _folded(f"{root}/receipts/{instance}", files):
        if wanted in {receipt.recording_id, receipt.artifact_id}:
            delivered.setdefault(receipt.artifact_id, (_erased(receipt, None), receipt))
    chosen = [each for each in delivered.values() if generation in {None, each[0].generation}]
    return FoundRecording(
        held=tuple(name for name in held if generation in {None, name.generation}),
        delivered=tuple(erased for erased, _ in chosen),
        receipts=tuple(receipt for _, receipt in chosen),
    )


def instance_of(root: str, files: FileSystem, wanted: UUID) -> InstanceId | None:
    """Tell whose recording an id names; None if nothing of it is here.

    Raises:
        StoreIoError: a folder can't be read.

    """
    for name in survey(root, files).names:
        if name.artifact_id == wanted:
            return name.instance_id
        if name.standing is State.DELIVERED:
            receipt = _receipt(files, f"{root}/artifacts/{name.path}")
            if receipt is not None and receipt.recording_id == wanted:
                return name.instance_id
    for folder in files.names(f"{root}/receipts"):
        with suppress(ValueError):
            instance = InstanceId(UUID(folder))
            for receipt in _folded(f"{root}/receipts/{folder}", files):
                if wanted in {receipt.recording_id, receipt.artifact_id}:
                    return instance
    return None


def _erased(receipt: Receipt, name: ArtifactName | None) -> ErasedArtifact:
    return ErasedArtifact(
        artifact_id=receipt.artifact_id,
        kind=receipt.kind,
        generation=receipt.generation,
        state=State.DELIVERED,
        data_key_id=None if name is None else name.key_id,
        size_bytes=receipt.size_bytes,
        recording_id=receipt.recording_id,
        contact=contact_in(receipt.key),
        bucket=receipt.bucket,
        key=receipt.key,
        version_id=receipt.version_id,
    )


def _receipt(files: FileSystem, path: str) -> Receipt | None:
    try:
        return read_receipt(_read(files, path))
    except (FileNotFoundError, SegmentForgedError, StoreIoError):
        return None


def _folded(folder: str, files: FileSystem) -> Iterator[Receipt]:
    for day in files.names(folder):
        for line in whole_lines(_read(files, f"{folder}/{day}")):
            with suppress(SegmentForgedError):
                yield read_receipt(line)


def _read(files: FileSystem, path: str) -> bytes:
    handle = files.open(path)
    try:
        return files.read(handle, 0, files.size(handle))
    finally:
        files.close(handle)
