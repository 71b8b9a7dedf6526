from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from pipeline.delivery.proof import Receipt, Subject, Verdict, compare, read_receipt, verify, write_receipt
from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId, InstanceId, Kind, RecordingId
from pipeline.ports import ObjectFacts, PutRequest
from tests.s3_strict import STORAGE

NOW = datetime(2026, 11, 23, 14, 21, 39, tzinfo=UTC)
SUBJECT = Subject(
    recording_id=RecordingId(UUID(int=1)),
    artifact_id=ArtifactId(UUID(int=2)),
    instance_id=InstanceId(UUID(int=3)),
    kind=Kind.CHAT,
    generation=2,
    sha256="ab" * 32,
    item_digests=("d1", "d2"),
)
REQUEST = PutRequest("a/key", 11, "AAAAAAAAAAE=", "application/json", SUBJECT.metadata)
ANSWER = ObjectFacts("a/key", crc64nvme="AAAAAAAAAAE=", encryption="aws:kms", kms_key_arn=STORAGE.kms_key_arn)
HEAD = replace(ANSWER, size_bytes=11, checksum_type="FULL_OBJECT", metadata=SUBJECT.metadata, version_id="v-1")


def proof(facts: ObjectFacts) -> Receipt | tuple[str, ...]:
    return verify(SUBJECT, REQUEST, STORAGE, facts, NOW)


@pytest.mark.parametrize("facts", [ANSWER, HEAD])
def test_an_answer_that_names_checksum_encryption_and_key_is_a_receipt(facts: ObjectFacts) -> None:
    receipt = proof(facts)
    assert isinstance(receipt, Receipt)
    assert (receipt.recording_id, receipt.artifact_id, receipt.generation) == (UUID(int=1), UUID(int=2), 2)
    assert (receipt.bucket, receipt.key, receipt.size_bytes) == (STORAGE.bucket, "a/key", 11)
    assert receipt.version_id == facts.version_id


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"crc64nvme": None}, "checksum"),
        ({"crc64nvme": "AAAAAAAAAAI="}, "checksum"),
        ({"checksum_type": "COMPOSITE"}, "checksum type"),
        ({"encryption": None}, "encryption"),
        ({"encryption": "AES256"}, "encryption"),
        ({"encryption": "aws:kms:dsse"}, "encryption"),
        ({"kms_key_arn": None}, "KMS key"),
        ({"kms_key_arn": STORAGE.kms_key_arn.rpartition("/")[2]}, "KMS key"),
        ({"kms_key_arn": "arn:aws:kms:eu-central-1:111122223333:alias/acme"}, "KMS key"),
        ({"size_bytes": 12}, "size"),
        ({"key": "another/key"}, "key"),
        ({"metadata": {**SUBJECT.metadata, "gen": "1"}}, "metadata"),
        ({"metadata": {"gen": "2"}}, "metadata"),
    ],
)
@pytest.mark.parametrize("facts", [ANSWER, HEAD])
def test_whatever_is_missing_or_differs_is_named_and_makes_no_receipt(
    facts: ObjectFacts, changes: dict[str, Any], doubt: str
) -> None:
    assert proof(replace(facts, **changes)) == (doubt,)


def test_an_answer_that_says_nothing_leaves_everything_open() -> None:
    assert proof(ObjectFacts("a/key")) == ("checksum", "encryption", "KMS key")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.MINE),
        ({"checksum_type": None}, Verdict.MINE),
        ({"metadata": {**SUBJECT.metadata, "rid": str(UUID(int=9))}}, Verdict.FOREIGN),
        ({"metadata": {**SUBJECT.metadata, "gen": "1"}}, Verdict.FOREIGN),
        ({"metadata": {}}, Verdict.FOREIGN),
        ({"size_bytes": 10}, Verdict.MINE_OTHER_BYTES),
        ({"size_bytes": None}, Verdict.UNKNOWN),
        ({"crc64nvme": "AAAAAAAAAAI="}, Verdict.MINE_OTHER_BYTES),
        ({"crc64nvme": None}, Verdict.UNKNOWN),
        ({"crc64nvme": "AAAAAAAAAAI=-2", "checksum_type": "COMPOSITE"}, Verdict.UNKNOWN),
        ({"encryption": "AES256", "kms_key_arn": None}, Verdict.MINE_WRONG_KEY),
        ({"kms_key_arn": "arn:aws:kms:eu-central-1:111122223333:key/another"}, Verdict.MINE_WRONG_KEY),
    ],
)
def test_a_taken_key_is_judged_by_name_bytes_and_kms_key(changes: dict[str, Any], verdict: Verdict) -> None:
    assert compare(REQUEST, STORAGE, replace(HEAD, **changes)) is verdict


def test_a_receipt_comes_back_from_its_file_in_camel_case() -> None:
    receipt = proof(HEAD)
    assert isinstance(receipt, Receipt)
    raw = write_receipt(receipt)
    assert read_receipt(raw) == receipt
    written = msgspec.json.decode(raw)
    assert len(written.pop("check")) == 16
    assert written == {
        "recordingId": str(UUID(int=1)),
        "artifactId": str(UUID(int=2)),
        "instanceId": str(UUID(int=3)),
        "kind": "chat",
        "generation": 2,
        "bucket": "acme-recordings",
        "key": "a/key",
        "versionId": "v-1",
        "sizeBytes": 11,
        "crc64nvme": "AAAAAAAAAAE=",
        "sha256": "ab" * 32,
        "kmsKeyArn": STORAGE.kms_key_arn,
        "deliveredAt": "2026-11-23T14:21:39Z",
        "itemDigests": ["d1", "d2"],
    }


def test_nobody_else_can_make_a_receipt() -> None:
    receipt = proof(HEAD)
    assert isinstance(receipt, Receipt)
    with pytest.raises(TypeError):
        Receipt(**msgspec.structs.asdict(receipt))
    with pytest.raises(TypeError):
        msgspec.structs.replace(receipt, generation=3)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(write_receipt(receipt), type=Receipt)


@pytest.mark.parametrize("raw", [b"", b"{", b"{}", b"[]", b'{"recordingId": 1}', b"\xff\xfe"])
def test_a_damaged_receipt_file_proves_nothing(raw: bytes) -> None:
    with pytest.raises(SegmentForgedError):
        read_receipt(raw)
