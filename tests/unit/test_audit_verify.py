"""S-31, S-32: every way to tamper with an audit log is found, named and told apart, by ours and by a stranger."""

import gzip
import json
import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.adapters.disk import Disk
from pipeline.audit.appender import ChainedLogs
from pipeline.audit.chain import NO_HASH, leaf_hash, linked, record_of
from pipeline.audit.examine import Verdict
from pipeline.audit.hourly import Place, make_digest
from pipeline.audit.signing import SignedLog, SigningKeys
from pipeline.audit.verifying import verify_log
from tests.audit_logs import record
from tests.audit_stranger import Findings, Stranger

PLACE = Place("111122223333", "acme-recordings", "audit/acme/0")
HOURS = ("2026-11-28T10", "2026-11-28T11", "2026-11-28T12")
COVERED, RECORDS = 9, 12
"""Three records in each of four rounds; the last round is not signed."""


class Log:
    """A log of 12 records in three files, with three checkpoints (3, 6 and 9 records) and two digests."""

    def __init__(self, root: Path) -> None:
        self.folder, self.keys, self.files = root / "audit" / "acme", SigningKeys(root / "config"), Disk()
        writer = ChainedLogs(self.files)
        signed = SignedLog(str(self.folder), self.files, self.keys)
        for round_, hour in enumerate((*HOURS, HOURS[-1])):
            lines = [record(3 * round_ + number) for number in range(3)]
            writer.append(str(self.folder), lines, hour)
            if round_ < 3:
                assert signed.sign() is not None
                now = datetime.fromisoformat(f"{hour}:59:00").replace(tzinfo=UTC)
                make_digest(str(self.folder), self.files, self.keys, PLACE, now)
        writer.close()

    @property
    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    @property
    def newest(self) -> str:
        """The checkpoint over nine records, as it was kept elsewhere."""
        kept = self.keys.kept("acme")
        assert kept is not None
        return kept

    def lines(self) -> list[bytes]:
        return [line for path in self.paths for line in path.read_bytes().splitlines()]

    def change(self, change: Callable[[list[bytes]], None], *, first: int = 0) -> None:
        """Change lines, counted from the beginning of file number `first`; files keep their names."""
        path = self.paths[first]
        lines = path.read_bytes().splitlines()
        change(lines)
        path.write_bytes(b"".join(line + b"\n" for line in lines))

    def forget_signatures(self) -> None:
        """Remove all that vouches for the log, as who tampers with a store would."""
        for name in ("checkpoints", "digests"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "leaves").unlink()

    def verify(self, *kept: str) -> tuple[Verdict, Findings]:
        verifier = self.keys.verifier("acme")
        ours = verify_log(str(self.folder), self.files, verifier, kept=kept).verdict
        return ours, Stranger(self.folder, str(verifier), kept).verify()

    def check(self, first_bad: int | None, *kinds: str, kept: tuple[str, ...] = ()) -> Verdict:
        """Both verifiers find these kinds of fault, and the first bad record."""
        ours, stranger = self.verify(*kept)
        found = {kind for kind in ("missing", "gap", "invalid") if getattr(ours, kind)}
        assert (ours.first_bad, found) == (first_bad, set(kinds)), ours.problems
        assert (stranger.first_bad, stranger.kinds) == (first_bad, set(kinds))
        return ours


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audit")
    Log(root)
    return root


@pytest.fixture
def log(template: Path, tmp_path: Path) -> Log:
    made = Log.__new__(Log)
    shutil.copytree(template, tmp_path / "copy")
    root = tmp_path / "copy"
    made.folder, made.keys, made.files = root / "audit" / "acme", SigningKeys(root / "config"), Disk()
    return made


def flip(at: int) -> Callable[[list[bytes]], None]:
    def change(lines: list[bytes]) -> None:
        lines[at] = lines[at].replace(b'"Event', b'"Evant')

    return change


def drop(at: int) -> Callable[[list[bytes]], None]:
    return lambda lines: lines.__delitem__(at)


def swap(at: int) -> Callable[[list[bytes]], None]:
    def change(lines: list[bytes]) -> None:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]

    return change


def insert(at: int, line: bytes) -> Callable[[list[bytes]], None]:
    return lambda lines: lines.insert(at, line)


def test_a_log_that_nobody_changed_is_whole(log: Log) -> None:
    verdict = log.check(None, kept=(log.newest,))
    assert (verdict.records, verdict.covered, verdict.is_ok, verdict.problems) == (RECORDS, COVERED, True, [])
    assert len(log.paths) == 3


# --- what a checkpoint covers


@pytest.mark.parametrize("at", range(3))
def test_a_flipped_bit_in_what_is_signed_is_invalid(log: Log, at: int) -> None:
    log.change(flip(at), first=1)
    assert log.check(3 + at, "invalid").missing == 0


@pytest.mark.parametrize("part", [b'"logIndex":4', b'"previousHash":"'])
def test_a_flipped_bit_in_a_records_place_is_invalid(log: Log, part: bytes) -> None:
    def change(lines: list[bytes]) -> None:
        lines[1] = lines[1].replace(part, part[:-1] + bytes([part[-1] ^ 1]), 1)

    log.change(change, first=1)
    log.check(4, "invalid")


@pytest.mark.parametrize("at", range(3))
def test_a_dropped_record_that_is_signed_is_missing(log: Log, at: int) -> None:
    log.change(drop(at), first=2)  # not in a digest yet
    assert log.check(6 + at, "missing").missing == 1


def test_a_dropped_record_in_a_digests_file_is_missing_and_the_file_invalid(log: Log) -> None:
    log.change(drop(1), first=1)
    log.check(4, "missing", "invalid")


@pytest.mark.parametrize("at", range(3))
def test_an_inserted_record_is_invalid(log: Log, at: int) -> None:
    forged = linked(record(99), 6 + at, leaf_hash(log.lines()[5 + at]).hex())
    log.change(insert(at, forged), first=2)
    log.check(6 + at, "invalid")


def test_a_repeated_record_is_invalid(log: Log) -> None:
    log.change(insert(2, log.lines()[6]), first=2)
    log.check(6, "invalid")


@pytest.mark.parametrize("at", range(2))
def test_swapped_records_are_invalid_and_not_missing(log: Log, at: int) -> None:
    log.change(swap(at), first=2)
    log.check(6 + at, "invalid")


def test_a_cut_tail_that_is_signed_is_missing(log: Log) -> None:
    log.change(lambda lines: lines.__delitem__(slice(1, None)), first=2)
    assert log.check(7, "missing").missing == 2


def test_a_file_that_is_gone_is_missing(log: Log) -> None:
    log.paths[1].unlink()
    assert log.check(3, "missing").missing == 4  # three records, and the file that a digest names


def test_a_folder_that_is_gone_is_missing_by_the_checkpoint_that_is_kept_apart(log: Log) -> None:
    kept = log.newest
    shutil.rmtree(log.folder)
    assert log.check(0, "missing", kept=(kept,)).missing == COVERED


def test_a_forked_log_is_invalid_from_where_it_parts(log: Log) -> None:
    """Somebody rewrites the end, chain and all, and the hashes beside it; the signatures are not theirs to make."""
    lines = log.lines()
    last = leaf_hash(lines[6]).hex()
    forged = [lines[6]]
    for index in range(7, RECORDS):
        forged.append(linked(record_of(lines[index]).replace(b"Event", b"Forged"), index, last))
        last = leaf_hash(forged[-1]).hex()
    log.paths[2].write_bytes(b"".join(line + b"\n" for line in forged))
    log.check(7, "invalid")
    (log.folder / "leaves").write_bytes(b"".join(leaf_hash(line) for line in [*lines[:6], *forged[:3]]))
    log.check(6, "invalid")  # the hashes are not believed beyond the checkpoint over six


def test_a_fork_with_the_key_itself_is_found_by_a_checkpoint_kept_elsewhere(log: Log) -> None:
    kept = log.newest
    lines = log.lines()
    log.forget_signatures()
    last, forged = leaf_hash(lines[6]).hex(), [lines[6]]
    for index in range(7, RECORDS):
        forged.append(linked(record(500 + index), index, last))
        last = leaf_hash(forged[-1]).hex()
    log.paths[2].write_bytes(b"".join(line + b"\n" for line in forged))
    assert SignedLog(str(log.folder), log.files, log.keys).sign() is not None
    log.check(None)
    log.check(0, "invalid", kept=(kept,))


# --- what no checkpoint covers yet


def test_a_flipped_bit_behind_the_last_checkpoint_is_found_by_the_chain(log: Log) -> None:
    log.change(flip(4), first=2)
    log.check(10, "invalid")


def test_a_dropped_record_behind_the_last_checkpoint_is_a_gap(log: Log) -> None:
    log.change(drop(4), first=2)
    assert log.check(10, "gap").gap == 1


def test_swapped_records_behind_the_last_checkpoint_are_invalid(log: Log) -> None:
    log.change(swap(4), first=2)
    log.check(10, "invalid")


def test_an_inserted_record_behind_the_last_checkpoint_is_invalid(log: Log) -> None:
    log.change(insert(4, b"no record"), first=2)
    log.check(10, "invalid")
    log.change(drop(4), first=2)
    log.change(insert(4, linked(record(99), 10, leaf_hash(log.lines()[9]).hex())), first=2)
    log.check(10, "invalid")


def test_a_cut_tail_that_nobody_signed_is_found_by_a_later_checkpoint_kept_elsewhere(log: Log) -> None:
    signed = SignedLog(str(log.folder), log.files, log.keys).sign()
    assert signed is not None
    (log.folder / "checkpoints" / f"{signed.number:08}.txt").unlink()
    log.change(lambda lines: lines.__delitem__(slice(4, None)), first=2)
    log.check(None)
    assert log.check(10, "missing", kept=(signed.note,)).missing == 2


# --- without what is redundant


@pytest.mark.parametrize(
    ("change", "first_bad", "kinds"),
    [(flip(1), 4, {"invalid"}), (drop(1), 4, {"missing", "invalid"}), (swap(0), 3, {"invalid"})],
)
def test_without_the_hashes_beside_the_log_the_chain_tells_as_much(
    log: Log, change: Callable[[list[bytes]], None], first_bad: int, kinds: set[str]
) -> None:
    (log.folder / "leaves").unlink()
    log.check(None)
    log.change(change, first=1)
    log.check(first_bad, *kinds)


def test_the_last_signed_record_without_the_hashes_is_one_behind_the_last_sound_checkpoint(log: Log) -> None:
    (log.folder / "leaves").unlink()
    log.change(lambda lines: lines.__delitem__(slice(3, None)), first=2)
    log.change(flip(2), first=2)
    log.check(6, "invalid")


def test_hashes_that_are_damaged_are_not_believed_and_harm_nothing(log: Log) -> None:
    path = log.folder / "leaves"
    raw = bytearray(path.read_bytes())
    raw[4 * 32] ^= 1
    path.write_bytes(raw)
    log.check(None)
    log.change(flip(2), first=1)
    log.check(5, "invalid")


def test_what_was_never_acknowledged_is_no_fault(log: Log) -> None:
    with log.paths[2].open("ab") as file:
        file.write(b'{"logIndex":12,"previ')
    assert log.check(None).tail_bytes == 21


# --- checkpoints and digests themselves


def test_a_checkpoint_that_is_not_signed_is_invalid_and_believed_in_nothing(log: Log) -> None:
    path = log.folder / "checkpoints" / "00000003.txt"
    path.write_text(path.read_text().replace("\n9\n", "\n8\n"))
    assert log.check(None, "invalid").covered == 6


def test_a_checkpoint_that_is_gone_is_missing(log: Log) -> None:
    (log.folder / "checkpoints" / "00000002.txt").unlink()
    log.check(None, "missing")


def test_a_digest_that_is_gone_is_missing_and_one_that_is_changed_invalid(log: Log) -> None:
    (log.folder / "digests" / "00000001.sig").unlink()
    log.check(None, "missing")
    path = log.folder / "digests" / "00000002.json.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"acme-recordings", b"acme-recordingz")))
    log.check(None, "missing", "invalid")


def test_a_quiet_hole_between_digests_is_a_gap(log: Log) -> None:
    from pipeline.audit.digests import signed_text

    path = log.folder / "digests" / "00000002.json.gz"
    document = json.loads(gzip.decompress(path.read_bytes()))
    document["digestStartTime"] = "2026-11-28T11:30:00Z"
    raw = json.dumps(document).encode()
    path.write_bytes(gzip.compress(raw))
    signature = log.keys.signer("acme").sign(signed_text(raw)).hex()
    path.with_name("00000002.sig").write_text(signature)
    log.check(None, "gap")


def test_a_log_of_another_key_proves_nothing(log: Log, tmp_path: Path) -> None:
    others = SigningKeys(tmp_path / "others").verifier("acme")
    verdict = verify_log(str(log.folder), log.files, others).verdict
    assert (verdict.covered, verdict.invalid) == (0, 5)  # three checkpoints, two digests
    assert NO_HASH == "0" * 64


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_changed_both_verifiers_find_the_same(log: Log, seed: int) -> None:
    chance = random.Random(seed)
    if chance.random() < 0.3:
        (log.folder / "leaves").unlink()
    for _ in range(chance.choice((1, 1, 2, 3))):
        number = chance.randrange(3)
        count = len(log.paths[number].read_bytes().splitlines())
        if count > 1:
            change = chance.choice((flip, drop, swap))(chance.randrange(count - 1))
            log.change(change, first=number)
        if chance.random() < 0.2:
            log.change(insert(0, chance.choice((b"junk", log.lines()[chance.randrange(5)]))), first=number)
    ours, stranger = log.verify()
    found = {kind for kind in ("missing", "gap", "invalid") if getattr(ours, kind)}
    assert (ours.first_bad, found) == (stranger.first_bad, stranger.kinds), ours.problems
    assert not ours.is_ok
