"""Makes the hourly digests of an instance's log, and keeps them beside it: `digests/<number>.json.gz` and `.sig`.

Blocks: callers choose the thread.
"""

import re
import zlib
from dataclasses import dataclass
from datetime import datetime
from gzip import BadGzipFile, decompress

from pipeline.audit.appender import ChainedLogs
from pipeline.audit.digests import (
    Digest,
    LogFile,
    SignedDigest,
    compressed,
    digest_after,
    hour_begun,
    log_file,
    signed_text,
    time_text,
)
from pipeline.audit.files import held, whole
from pipeline.audit.reading import snapshot
from pipeline.audit.records import hour_of
from pipeline.audit.signing import SIGNING_LOCK, SigningKeys
from pipeline.errors import AuditBrokenError, RefuseError
from pipeline.ports import FileSystem
from pipeline.smallfiles import write_whole

DIGESTS = "digests"
OBJECTS = "audit/"
"""Begins the keys of all audit objects in a bucket."""
_NUMBER = re.compile(r"(?P<number>[0-9]{8})\.sig")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance's audit objects go: its bucket, and the beginning of their keys."""

    account_id: str
    bucket: str
    prefix: str

    def digest(self, number: int) -> str:
        """Name a digest."""
        return f"{self.prefix}/digest-{number:08}.json.gz"

    def log_file(self, name: str) -> str:
        """Name a file of the log."""
        return f"{self.prefix}/log-{name}.gz"

    def checkpoint(self, number: int) -> str:
        """Name a checkpoint."""
        return f"{self.prefix}/checkpoint-{number:08}.txt"


def prefix_of(log: str, key_id: str) -> str:
    """Begin the keys of a log's objects. Another signing key begins another series."""
    return f"{OBJECTS}{log}/{key_id}"


def make_digest(directory: str, files: FileSystem, keys: SigningKeys, place: Place, now: datetime) -> Digest | None:
    """Make the digest of what was closed until this hour began; None if there is one, or no log.

    Raises:
        AuditBrokenError: the log, or the digest before, is not what it was.
        RefuseError: there is no key to sign with.
        StoreFullError, StoreIoError: it could not be kept.

    """
    log = directory.rpartition("/")[2]
    end = time_text(hour_begun(now))
    with held(files, f"{directory}/{SIGNING_LOCK}"):
        number = max(numbers(files, directory), default=0)
        previous = None if number == 0 else digest_of(files, directory, number)
        before = None if previous is None else previous.digest
        if before is not None and before.digest_end_time >= end:
            return None
        closing = ChainedLogs(files)
        try:
            closing.close_file(directory, hour_of(now))
        finally:
            closing.close()
        known = 0 if before is None else before.next_log_index
        closed = [each for each in snapshot(files, directory).files[:-1] if each.first >= known]
        found = [_described(files, directory, str(each), place) for each in closed]
        if before is None and not found:
            return None
        signer = keys.signer(log)
        document = digest_after(
            previous,
            found,
            account_id=place.account_id,
            bucket=place.bucket,
            key=place.digest(number + 1),
            fingerprint=signer.verifier.fingerprint,
            start=f"{min((each.oldest_event_time for each in found), default=end)[:13]}:00:00Z",
            end=end,
            next_log_index=snapshot(files, directory).files[-1].first if closed else known,
        )
        signature = signer.sign(signed_text(document)).hex()
        write_whole(files, _path(directory, number + 1, "json.gz"), compressed(document))
        write_whole(files, _path(directory, number + 1, "sig"), f"{signature}\n".encode())
        return SignedDigest(document, signature).digest


def numbers(files: FileSystem, directory: str) -> list[int]:
    """Give the numbers of the digests that are kept beside a log, in order. One without a signature is none yet."""
    matches = (_NUMBER.fullmatch(name) for name in files.names(f"{directory}/{DIGESTS}"))
    return sorted(int(match["number"]) for match in matches if match)


def digest_of(files: FileSystem, directory: str, number: int) -> SignedDigest:
    """Read a digest that is kept. Raises `AuditBrokenError` if it is gone or damaged; its signature is not checked."""
    document = whole(files, _path(directory, number, "json.gz"))
    signature = whole(files, _path(directory, number, "sig"))
    try:
        if document is not None and signature is not None:
            made = SignedDigest(decompress(document), signature.decode("ascii").strip())
            if made.digest:
                return made
    except (BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, RefuseError) as error:
        raise AuditBrokenError(f"digest {number} of an audit log is damaged") from error
    raise AuditBrokenError(f"digest {number} of an audit log is gone")


def _described(files: FileSystem, directory: str, name: str, place: Place) -> LogFile:
    content = whole(files, f"{directory}/{name}")
    if not content:
        raise AuditBrokenError("a file of an audit log is gone")
    return log_file(place.bucket, place.log_file(name), content)


def _path(directory: str, number: int, ending: str) -> str:
    return f"{directory}/{DIGESTS}/{number:08}.{ending}"
