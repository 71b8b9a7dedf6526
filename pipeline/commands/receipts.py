"""Receipts as commands need them: found beside the artifacts, or in the log that old ones were folded into."""

from collections.abc import Iterator

from pipeline.delivery.proof import Receipt, read_receipt
from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.ids import InstanceId
from pipeline.interim.logs import whole_lines
from pipeline.interim.states import ArtifactName
from pipeline.ports import FileSystem


def receipt_of(root: str, files: FileSystem, name: ArtifactName) -> Receipt:
    """Read a delivered artifact's receipt and check that it is that artifact's.

    Raises:
        SegmentForgedError: it is no receipt, or another's.
        StoreIoError: it is not there any more.

    """
    try:
        handle = files.open(f"{root}/artifacts/{name.path}")
    except FileNotFoundError as error:
        raise StoreIoError("a receipt is not where its name says; it was folded or removed meanwhile") from error
    try:
        receipt = read_receipt(files.read(handle, 0, files.size(handle)))
    finally:
        files.close(handle)
    said = (receipt.artifact_id, receipt.instance_id, receipt.kind, receipt.generation, receipt.size_bytes)
    if said != (name.artifact_id, name.instance_id, name.kind, name.generation, name.size_bytes):
        raise SegmentForgedError("a receipt and its name disagree")
    return receipt


def folded(root: str, files: FileSystem, instance: InstanceId) -> Iterator[Receipt]:
    """Give an instance's receipts that were folded into its log, newest day first.

    Raises:
        SegmentForgedError: a line is no receipt.

    """
    directory = f"{root}/receipts/{instance}"
    for day in sorted(files.names(directory), reverse=True):
        handle = files.open(f"{directory}/{day}")
        try:
            log = files.read(handle, 0, files.size(handle))
        finally:
            files.close(handle)
        yield from (read_receipt(line) for line in whole_lines(log))
