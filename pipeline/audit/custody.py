"""Proof of custody of one recording: its records, each with the proof that a signed checkpoint covers it. Pure.

Checked with the log's public key and nothing else: no store, no bucket, no network. Says what the log says: that the
records are complete is not proved by them, but by whoever verifies the whole log.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.audit.chain import leaf_hash, link_of
from pipeline.audit.notes import Verifier, checkpoint_of
from pipeline.audit.tree import Tree, is_included
from pipeline.errors import ProofError, RefuseError

VERSION = 1


class Entry(msgspec.Struct, frozen=True):
    """One record."""

    index: int
    record: str
    """The line as it stands in the log."""
    proof: tuple[str, ...]
    """Base64 of each hash of the inclusion proof (RFC 9162, 2.1.3)."""


class Custody(msgspec.Struct, frozen=True, rename="camel"):
    """All of it."""

    version: int
    recording_id: str
    key: str
    """The public key, for information: whoever checks brings their own."""
    checkpoint: str
    """The signed note."""
    records: tuple[Entry, ...]
    receipts: tuple[str, ...]
    """Of each generation that was delivered, as it lies in the store."""


def custody_of(
    recording_id: str,
    records: Mapping[int, bytes],
    receipts: Sequence[bytes],
    *,
    leaves: Sequence[bytes],
    checkpoint: str,
    verifier: Verifier,
) -> bytes:
    """Write the proof. `records` are lines by their index; all must be below the checkpoint's size."""
    size, tree = checkpoint_of(checkpoint, verifier).size, Tree(leaves)
    entries = tuple(
        Entry(index, line.decode(), tuple(base64.b64encode(each).decode() for each in tree.inclusion(index, size)))
        for index, line in sorted(records.items())
    )
    made = Custody(VERSION, recording_id, str(verifier), checkpoint, entries, tuple(each.decode() for each in receipts))
    return msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"


def checked(document: bytes, verifier: Verifier) -> dict[str, Any]:
    """Check a proof, and tell what it proves.

    Raises:
        ProofError: it proves nothing: a record, a receipt, a signature or a hash does not hold.

    """
    try:
        custody = msgspec.json.decode(document, type=Custody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProofError("not a proof of custody") from None
    if custody.version != VERSION:
        raise ProofError("a proof of another version than this can read")
    try:
        checkpoint = checkpoint_of(custody.checkpoint, verifier)
    except RefuseError as error:
        raise ProofError(f"the checkpoint: {error}") from None
    if not custody.records:
        raise ProofError("there is no record in it")
    records = [_included(each, custody.recording_id, checkpoint.size, checkpoint.root) for each in custody.records]
    if len({each["logIndex"] for each in records}) < len(records):
        raise ProofError("a record is there twice")
    return {
        "recordingId": custody.recording_id,
        "log": checkpoint.origin,
        "signedRecords": checkpoint.size,
        "records": [
            {
                "index": each["logIndex"],
                "time": each["eventTime"],
                "event": each["eventName"],
                "actor": each["userIdentity"]["arn"],
            }
            for each in records
        ],
        "sealed": [_said(each, "artifactId", "generation", "sha256", "sizeBytes") for each in _named(records, _SEALED)],
        "delivered": [_delivered(receipt.encode(), custody.recording_id, records) for receipt in custody.receipts],
    }


_SEALED, _DELIVERED = "ArtifactSealed", "ArtifactDelivered"


def _included(entry: Entry, recording_id: str, size: int, root: bytes) -> dict[str, Any]:
    """Check that a record is in the log, and is of that recording."""
    line = entry.record.encode()
    try:
        proof = [base64.b64decode(each, validate=True) for each in entry.proof]
    except (binascii.Error, ValueError):
        proof = []
    link = link_of(line)
    is_there = is_included(leaf_hash(line), entry.index, size, proof, root)
    if link is None or link.index != entry.index or not is_there:
        raise ProofError(f"record {entry.index} is not in the log that was signed")
    record: dict[str, Any] = msgspec.json.decode(line)
    if recording_id not in {_parameters(record).get("recordingId"), _parameters(record).get("artifactId")}:
        raise ProofError(f"record {entry.index} is of another recording")
    return record


def _delivered(receipt: bytes, recording_id: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Check that a receipt is the one that a record names, and of the bytes that were sealed."""
    digest = hashlib.sha256(receipt).hexdigest()
    try:
        said = msgspec.json.decode(receipt, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProofError("a receipt can't be read") from None
    moves = [each for each in _named(records, _DELIVERED) if _parameters(each).get("receiptSha256") == digest]
    if not moves or said.get("recordingId") != recording_id:
        raise ProofError("no record names a receipt that is there")
    artifact = _parameters(moves[0]).get("artifactId")
    sealed = [_parameters(each) for each in _named(records, _SEALED) if _parameters(each).get("artifactId") == artifact]
    if not sealed or any(each.get("sha256") != said.get("sha256") for each in sealed):
        raise ProofError("a receipt is of other bytes than were sealed")
    names = ("bucket", "key", "versionId", "sizeBytes", "sha256", "kmsKeyArn", "deliveredAt")
    return {"artifactId": artifact, **{name: said.get(name) for name in names}}


def _named(records: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each for each in records if each["eventName"] == name]


def _parameters(record: dict[str, Any]) -> dict[str, Any]:
    given = record.get("requestParameters")
    return given if isinstance(given, dict) else {}


def _said(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: _parameters(record).get(name) for name in names}
