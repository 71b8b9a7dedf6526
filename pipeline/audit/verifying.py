"""Verify a log with all that is kept of it: its files, checkpoints, hashes, digests. Changes nothing. Blocks."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.audit import hourly, signing
from pipeline.audit.digests import SignedDigest, signed_text
from pipeline.audit.examine import Mark, Verdict, examine, mark
from pipeline.audit.files import pieces
from pipeline.audit.notes import Checkpoint, Verifier, checkpoint_of
from pipeline.audit.reading import lines, snapshot
from pipeline.errors import AuditBrokenError, RefuseError
from pipeline.ports import FileSystem


@dataclass(frozen=True, slots=True)
class Verified:
    """A log, judged, and what a proof of it is made from."""

    verdict: Verdict
    marks: Sequence[Mark]
    checkpoints: Sequence[Checkpoint]


def verify_log(
    directory: str,
    files: FileSystem,
    verifier: Verifier,
    *,
    kept: Iterable[str] = (),
    digests: Sequence[SignedDigest] = (),
) -> Verified:
    """Judge a log.

    Args:
        directory: the log's.
        files: how it is read.
        verifier: the log's key.
        kept: checkpoints from elsewhere: the configuration directory, the bucket, a file.
        digests: digests from elsewhere that may not be here any more.

    Raises:
        StoreIoError, StoreBusyError: the log can't be read now.

    """
    checkpoints: list[Checkpoint] = []
    bad: list[str] = []
    present = signing.numbers(files, directory)
    notes = [
        (f"checkpoint {number}", signing.note_of(files, directory, number).decode("utf-8", "replace"))
        for number in present
    ]
    for name, note in [*notes, *((f"checkpoint from elsewhere {at}", note) for at, note in enumerate(kept, start=1))]:
        try:
            checkpoints.append(checkpoint_of(note, verifier))
        except RefuseError as error:
            bad.append(f"{name}: {error}")
    marks: list[Mark] = []
    tail = 0
    for line in lines(files, snapshot(files, directory)):
        if line.is_whole:
            marks.append(mark(line.text, str(line.file)))
        else:
            tail = len(line.text)
    largest = max((each.size for each in checkpoints), default=0)
    verdict = examine(marks, checkpoints, signing.stored_leaves(files, directory, largest))
    verdict.tail_bytes = tail
    for text in bad:
        verdict.add("invalid", None, text)
    for number in sorted(set(range(1, max(present, default=0) + 1)) - set(present)):
        verdict.add("missing", None, f"checkpoint {number} is gone")
    _judge_digests(directory, files, verifier, digests, verdict)
    return Verified(verdict, marks, checkpoints)


def _judge_digests(
    directory: str, files: FileSystem, verifier: Verifier, others: Sequence[SignedDigest], verdict: Verdict
) -> None:
    """Follow the digests; hold each file that they name against the one that is here."""
    present = set(hourly.numbers(files, directory))
    previous: SignedDigest | None = None
    for number in range(1, max([*present, len(others)], default=0) + 1):
        try:
            signed = hourly.digest_of(files, directory, number) if number in present else others[number - 1]
        except AuditBrokenError as error:
            verdict.add("invalid", None, str(error))
            previous = None
            continue
        except IndexError:
            verdict.add("missing", None, f"digest {number} is gone")
            previous = None
            continue
        if number not in present:
            verdict.add("missing", None, f"digest {number} is gone here")
        if number <= len(others) and others[number - 1].document != signed.document:
            verdict.add("invalid", None, f"digest {number} is another one elsewhere")
        _judge_digest(number, signed, previous, verifier, verdict)
        for each in signed.digest.log_files:
            _judge_file(directory, files, each.s3_object, each.hash_value, verdict)
        previous = signed


def _judge_digest(
    number: int, signed: SignedDigest, previous: SignedDigest | None, verifier: Verifier, verdict: Verdict
) -> None:
    digest = signed.digest
    try:
        is_signed = verifier.is_signed(signed_text(signed.document), bytes.fromhex(signed.signature))
    except ValueError:
        is_signed = False
    if not is_signed or digest.digest_public_key_fingerprint != verifier.fingerprint:
        verdict.add("invalid", None, f"digest {number} is not signed by the log's key")
        return
    if previous is None:
        return
    if (digest.previous_digest_hash_value, digest.previous_digest_signature) != (previous.sha256, previous.signature):
        verdict.add("invalid", None, f"digest {number} does not follow the one before")
    elif digest.digest_start_time != previous.digest.digest_end_time:
        verdict.add("gap", None, f"digest {number} does not begin where the one before ended")


def _judge_file(directory: str, files: FileSystem, key: str, sha256: str, verdict: Verdict) -> None:
    name = key.rpartition("/log-")[2].removesuffix(".gz")
    found = hashlib.sha256()
    try:
        for piece in pieces(files, f"{directory}/{name}", 0, None) if "/" not in name else ():
            found.update(piece)
    except FileNotFoundError:
        verdict.add("missing", None, f"{name}, which a digest names, is gone")
        return
    if found.hexdigest() != sha256:
        verdict.add("invalid", None, f"{name} is not what its digest says")
