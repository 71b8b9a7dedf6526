"""Judge one delivered recording by what was sent, its receipt, the configuration and what the bucket gives back.

Pure, and independent of the service's own proof: checksums are computed again from the bytes, receipts are read as
plain JSON, and the KMS key that counts is the configured one. Each doubt is a sentence; no doubts is the proof.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from awscrt.checksums import crc64nvme

from pipeline.instances import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Returned:
    """What the bucket gave back for one key: the answer to HEAD, and the whole body."""

    head: Mapping[str, Any]
    body: bytes


def proof_doubts(receipt: Mapping[str, Any] | None, storage: Storage, location: str, returned: Returned) -> list[str]:
    """Say what speaks against "this object is in the configured bucket, under the configured key, as received"."""
    if receipt is None:
        return ["the interim store holds no receipt of it"]
    head, body = returned.head, returned.body
    crc = base64.b64encode(crc64nvme(body).to_bytes(8, "big")).decode()
    claims = {
        "the receipt names another bucket than the configuration": receipt["bucket"] == storage.bucket,
        "its PUBLISHED event names another place than the receipt": location
        == f"s3://{receipt['bucket']}/{receipt['key']}",
        "the receipt names another KMS key than the configuration": receipt["kmsKeyArn"] == storage.kms_key_arn,
        "the bucket does not say aws:kms": head.get("ServerSideEncryption") == "aws:kms",
        "the bucket names another KMS key than the configuration": head.get("SSEKMSKeyId") == storage.kms_key_arn,
        "the bucket's size is not the receipt's": head.get("ContentLength") == receipt["sizeBytes"] == len(body),
        "the bucket's checksum is not the receipt's": head.get("ChecksumCRC64NVME") == receipt["crc64nvme"],
        "the checksum is not that of the bytes": receipt["crc64nvme"] == crc,
        "the SHA-256 is not that of the bytes": receipt["sha256"] == hashlib.sha256(body).hexdigest(),
    }
    return [doubt for doubt, holds in claims.items() if not holds]


def media_doubts(sent: bytes, body: bytes) -> list[str]:
    """Compare media byte for byte."""
    if body == sent:
        return []
    at = next((at for at, (ours, theirs) in enumerate(zip(sent, body, strict=False)) if ours != theirs), None)
    where = f"from byte {at} on" if at is not None else f"in length: {len(sent)} bytes were sent"
    return [f"what the bucket gives back differs from what was sent {where}"]


def chat_doubts(sent: Mapping[str, Any], expected: Mapping[str, Any], account_id: str, body: bytes) -> list[str]:
    """Compare a transcript with the items that were sent, by id, and with the transcript that they must become."""
    try:
        transcript = json.loads(body)
        items = {item["Id"]: item for item in transcript["Transcript"]}
        order = [item["AbsoluteTime"] for item in transcript["Transcript"]]
    except (ValueError, LookupError, TypeError):
        return ["what the bucket gives back is no transcript"]
    return [
        *_item_doubts(sent, items, order),
        *_transcript_doubts(transcript, {**expected, "AWSAccountId": account_id}),
    ]


def _item_doubts(sent: Mapping[str, Any], items: Mapping[str, Any], order: list[str]) -> Iterator[str]:
    for missing in sorted(sent.keys() - items.keys()):
        yield f"item {missing} was sent and is not in the transcript"
    for extra in sorted(items.keys() - sent.keys()):
        yield f"item {extra} is in the transcript and was not sent"
    for both in sorted(sent.keys() & items.keys()):
        if items[both] != sent[both]:
            yield f"item {both} differs from what was sent"
    if len(order) != len(items):
        yield "an item is in the transcript more than once"
    if order != sorted(order):
        yield "the transcript's items are not in the order of their times"


def _transcript_doubts(transcript: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    for member in sorted(transcript.keys() | expected.keys()):
        if transcript.get(member) != expected.get(member):
            yield f"{member} of the transcript is not what the chat must become"
