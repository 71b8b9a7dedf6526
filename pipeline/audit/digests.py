"""Hourly digests of a log's files, in the shape of CloudTrail's digest files. Pure.

A digest names the files that were closed since the one before, each with its hash, and the digest before it with its
hash and signature. Source: "CloudTrail digest file structure" of the AWS CloudTrail user guide. What is not
CloudTrail's: the signature is Ed25519, and `nextLogIndex` tells which records are behind it.
"""

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipeline.errors import AuditBrokenError, RefuseError

ALGORITHM = "Ed25519"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class LogFile(msgspec.Struct, frozen=True, rename="camel"):
    """A file of a log."""

    s3_bucket: str
    s3_object: str
    hash_value: str
    """Hex SHA-256 of its bytes, not compressed."""
    hash_algorithm: str
    newest_event_time: str
    oldest_event_time: str


class Digest(msgspec.Struct, frozen=True, rename="camel"):
    """A digest."""

    aws_account_id: str
    digest_start_time: str
    digest_end_time: str
    digest_s3_bucket: str
    digest_s3_object: str
    digest_public_key_fingerprint: str
    digest_signature_algorithm: str
    newest_event_time: str | None
    oldest_event_time: str | None
    previous_digest_s3_bucket: str | None
    previous_digest_s3_object: str | None
    previous_digest_hash_value: str | None
    previous_digest_hash_algorithm: str | None
    previous_digest_signature: str | None
    log_files: tuple[LogFile, ...]
    next_log_index: int


@dataclass(frozen=True, slots=True)
class SignedDigest:
    """A digest's bytes and its signature."""

    document: bytes
    """JSON, not compressed."""
    signature: str
    """Hex."""

    @property
    def digest(self) -> Digest:
        """What it says. Raises `RefuseError`."""
        try:
            return msgspec.json.decode(self.document, type=Digest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RefuseError("not a digest", field="digest") from None

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of its bytes."""
        return hashlib.sha256(self.document).hexdigest()


def digest_after(
    previous: SignedDigest | None,
    files: Sequence[LogFile],
    *,
    account_id: str,
    bucket: str,
    key: str,
    fingerprint: str,
    start: str,
    end: str,
    next_log_index: int,
) -> bytes:
    """Write the next digest; `start` counts for the first one only, as each goes on where the one before ended."""
    before = None if previous is None else previous.digest
    digest = Digest(
        aws_account_id=account_id,
        digest_start_time=start if before is None else before.digest_end_time,
        digest_end_time=end,
        digest_s3_bucket=bucket,
        digest_s3_object=key,
        digest_public_key_fingerprint=fingerprint,
        digest_signature_algorithm=ALGORITHM,
        newest_event_time=max((each.newest_event_time for each in files), default=None),
        oldest_event_time=min((each.oldest_event_time for each in files), default=None),
        previous_digest_s3_bucket=None if before is None else before.digest_s3_bucket,
        previous_digest_s3_object=None if before is None else before.digest_s3_object,
        previous_digest_hash_value=None if previous is None else previous.sha256,
        previous_digest_hash_algorithm=None if previous is None else "SHA-256",
        previous_digest_signature=None if previous is None else previous.signature,
        log_files=tuple(files),
        next_log_index=next_log_index,
    )
    return msgspec.json.encode(digest)


def signed_text(document: bytes) -> bytes:
    """Give the text that is signed for a digest. Raises `RefuseError` if it is none."""
    signed = SignedDigest(document, "")
    digest = signed.digest
    place = f"{digest.digest_s3_bucket}/{digest.digest_s3_object}"
    previous = digest.previous_digest_signature or "null"
    return f"{digest.digest_end_time}\n{place}\n{signed.sha256}\n{previous}".encode()


def log_file(bucket: str, key: str, content: bytes) -> LogFile:
    """Describe a file of a log. Records of several processes may not be in the order of their times."""
    times = [_time_of(line) for line in content.splitlines()]
    return LogFile(
        s3_bucket=bucket,
        s3_object=key,
        hash_value=hashlib.sha256(content).hexdigest(),
        hash_algorithm="SHA-256",
        newest_event_time=max(times),
        oldest_event_time=min(times),
    )


def compressed(content: bytes) -> bytes:
    """Compress as gzip: the same bytes each time."""
    return gzip.compress(content, mtime=0)


def hour_begun(now: datetime) -> datetime:
    """Give the beginning of an hour."""
    return now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def time_text(moment: datetime) -> str:
    """Write a time as digests and records do."""
    return moment.strftime(_TIME)


def _time_of(line: bytes) -> str:
    try:
        record: dict[str, Any] = msgspec.json.decode(line)
        return str(record["eventTime"])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        raise AuditBrokenError("a file of an audit log has a line that is no record") from None
