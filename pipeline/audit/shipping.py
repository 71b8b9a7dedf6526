"""Brings an instance's checkpoints, digests and closed log files to its bucket: create-only, in order, resumed at will.

What was brought is remembered beside the log, `delivered.json`; a bucket that can't be used now only delays it. An
object that is there already must be ours, byte for byte, or nothing goes on.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import anyio.to_thread
import awscrt.checksums
import msgspec

from pipeline.audit import hourly, signing
from pipeline.audit.digests import compressed
from pipeline.audit.files import whole
from pipeline.audit.hourly import Place
from pipeline.checksums import checksum_text
from pipeline.errors import AuditBrokenError
from pipeline.ports import Destination, FileSystem, ObjectExistsError, PutRequest
from pipeline.smallfiles import read_whole, write_whole

CURSOR = "delivered.json"
_LIMIT = 4096
_LOG_FILE = re.compile(r"log-(?P<name>[0-9]{12}\.[0-9T-]{13}\.jsonl)\.gz")


class Cursor(msgspec.Struct, frozen=True):
    """How much of a log's series is in the bucket."""

    checkpoints: int = 0
    digests: int = 0


@dataclass(frozen=True, slots=True)
class Shipment:
    """One object."""

    key: str
    body: bytes
    content_type: str
    metadata: Mapping[str, str]


async def ship(directory: str, files: FileSystem, destination: Destination, place: Place) -> int:
    """Bring all that is not in the bucket yet; give how many objects were put.

    Raises:
        DestinationHeldError, DestinationBusyError: not now; it goes on from there.
        DestinationRefusedError: the bucket will never take it.
        AuditBrokenError: another object has taken a key of ours, or what is to be brought is damaged.

    """
    put = 0
    while True:
        cursor = await anyio.to_thread.run_sync(_cursor, files, directory)
        following = await anyio.to_thread.run_sync(_next, files, directory, place, cursor)
        if following is None:
            return put
        shipments, after = following
        for shipment in shipments:
            put += await _put(destination, shipment)
        await anyio.to_thread.run_sync(write_whole, files, f"{directory}/{CURSOR}", msgspec.json.encode(after))


async def _put(destination: Destination, shipment: Shipment) -> bool:
    request = PutRequest(
        key=shipment.key,
        size_bytes=len(shipment.body),
        crc64nvme=checksum_text(awscrt.checksums.crc64nvme(shipment.body)),
        content_type=shipment.content_type,
        metadata=shipment.metadata,
    )
    try:
        await destination.put(request, shipment.body)
    except ObjectExistsError:
        known = await destination.head(shipment.key)
        if known is not None and known.metadata.get("sha256") == shipment.metadata["sha256"]:
            return False  # an earlier attempt's
        raise AuditBrokenError("an object that is not ours has taken the key of an audit object") from None
    return True


def _next(files: FileSystem, directory: str, place: Place, cursor: Cursor) -> tuple[list[Shipment], Cursor] | None:
    if cursor.checkpoints + 1 in signing.numbers(files, directory):
        number = cursor.checkpoints + 1
        note = signing.note_of(files, directory, number)
        return [_shipment(place.checkpoint(number), note, note, "text/plain")], replace_cursor(cursor, number, None)
    if cursor.digests + 1 in hourly.numbers(files, directory):
        number = cursor.digests + 1
        return list(_of_digest(files, directory, place, number)), replace_cursor(cursor, None, number)
    return None


def _of_digest(files: FileSystem, directory: str, place: Place, number: int) -> Iterator[Shipment]:
    """Give the log files that a digest names, and it behind them."""
    signed = hourly.digest_of(files, directory, number)
    digest = signed.digest
    for each in digest.log_files:
        match = _LOG_FILE.fullmatch(each.s3_object.rpartition("/")[2])
        content = whole(files, f"{directory}/{match['name']}") if match else None
        if content is None or hashlib.sha256(content).hexdigest() != each.hash_value:
            raise AuditBrokenError("a file of an audit log is not what its digest says")
        yield _shipment(each.s3_object, compressed(content), content, "application/gzip")
    made = _shipment(place.digest(number), compressed(signed.document), signed.document, "application/gzip")
    more = {"signature": signed.signature, "signature-algorithm": digest.digest_signature_algorithm}
    yield replace(made, metadata={**made.metadata, **more})


def _shipment(key: str, body: bytes, content: bytes, content_type: str) -> Shipment:
    return Shipment(key, body, content_type, {"sha256": hashlib.sha256(content).hexdigest()})


def replace_cursor(cursor: Cursor, checkpoints: int | None, digests: int | None) -> Cursor:
    """Move a cursor on."""
    return Cursor(checkpoints or cursor.checkpoints, digests or cursor.digests)


def _cursor(files: FileSystem, directory: str) -> Cursor:
    raw = read_whole(files, f"{directory}/{CURSOR}", _LIMIT)
    try:
        return Cursor() if raw is None else msgspec.json.decode(raw, type=Cursor)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Cursor()  # all of it again: what is there is recognised
