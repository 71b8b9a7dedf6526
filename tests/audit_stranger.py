"""A verifier of audit logs as a stranger writes it: from the README's section "Audit log" alone. For tests only.

Uses hashlib and an Ed25519 verifier, and nothing of the project.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

BEGINNING = re.compile(rb'\{"logIndex":(\d+),"previousHash":"([0-9a-f]{64})",')


@dataclass
class Findings:
    missing: set[object] = field(default_factory=set)
    gap: set[object] = field(default_factory=set)
    invalid: list[object] = field(default_factory=list)

    @property
    def first_bad(self) -> int | None:
        indexes = [each for each in [*self.missing, *self.gap, *self.invalid] if isinstance(each, int)]
        return min(indexes, default=None)

    @property
    def kinds(self) -> set[str]:
        return {name for name in ("missing", "gap", "invalid") if getattr(self, name)}


class Stranger:
    """Knows a folder and a public key."""

    def __init__(self, folder: Path, vkey: str, others: Iterable[str] = ()) -> None:
        self.folder = folder
        self.name, self.key_id, encoded = vkey.strip().split("+", 2)
        self.public = base64.b64decode(encoded)[1:]
        self.others = list(others)
        self.found = Findings()

    def verify(self) -> Findings:
        checkpoints = self._checkpoints()
        lines = self._lines()
        hashes = [leaf(line) for line in lines]
        covered = max((size for size, _ in checkpoints), default=0)
        believed = self._believed(checkpoints)
        used = self._lay_beside(lines, hashes, believed)
        end = self._follow(lines[used:], believed, covered)
        self._roots([*believed, *hashes[used:]], end, checkpoints)
        self._digests()
        return self.found

    # --- signatures

    def _is_signed(self, message: bytes, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def _checkpoints(self) -> list[tuple[int, bytes]]:
        good = []
        files = sorted((self.folder / "checkpoints").glob("*.txt"))
        for note in [*(path.read_text() for path in files), *self.others]:
            text, _, signature = note.rpartition("\n\n")
            words = signature.strip().split(" ")
            raw = base64.b64decode(words[-1]) if len(words) == 3 else b""
            lines = text.split("\n")
            is_ours = len(words) == 3 and words[1] == self.name == lines[0] and raw[:4].hex() == self.key_id
            if is_ours and self._is_signed(f"{text}\n".encode(), raw[4:]):
                good.append((int(lines[1]), base64.b64decode(lines[2])))
            else:
                self.found.invalid.append("checkpoint")
        wanted = {f"{number:08}.txt" for number in range(1, int(files[-1].stem) + 1)} if files else set()
        self.found.missing |= wanted - {path.name for path in files}
        return sorted(good)

    # --- records

    def _lines(self) -> list[bytes]:
        paths = sorted(path for path in self.folder.glob("*.jsonl") if re.match(r"\d{12}\.", path.name))
        found: list[bytes] = []
        for path in paths:
            *lines, rest = path.read_bytes().split(b"\n")
            found += lines
            if rest and path != paths[-1]:
                found.append(rest)
        return found

    def _believed(self, checkpoints: list[tuple[int, bytes]]) -> list[bytes]:
        path = self.folder / "leaves"
        raw = path.read_bytes() if path.exists() else b""
        kept = [raw[at : at + 32] for at in range(0, len(raw) - 31, 32)]
        sizes = [size for size, root in checkpoints if size <= len(kept) and root_of(kept[:size]) == root]
        return kept[: max(sizes, default=0)]

    def _lay_beside(self, lines: list[bytes], hashes: list[bytes], believed: list[bytes]) -> int:
        index_of = {each: index for index, each in enumerate(believed)}
        absent: set[int] = set()
        at = expected = 0
        while expected < len(believed):
            stop = at
            while stop < len(lines) and hashes[stop] not in index_of:
                stop += 1
            if stop < len(lines):
                there = index_of[hashes[stop]]
            else:
                there = len(believed)
                stop = at
                while stop < len(lines) and not (index_said(lines[stop]) or -1) >= len(believed):
                    stop += 1
            strangers = stop - at
            if there < expected:
                self.found.invalid += [expected] * strangers + [there]
                absent.discard(there)
                at = stop + 1
                continue
            altered = min(strangers, there - expected)
            self.found.invalid += range(expected, expected + altered)
            self.found.invalid += [expected + altered] * (strangers - altered)
            absent |= set(range(expected + altered, there))
            at, expected = stop, there
            if expected < len(believed):
                at, expected = at + 1, expected + 1
        while at < len(lines) and hashes[at] in index_of:
            self.found.invalid.append(index_of[hashes[at]])
            absent.discard(index_of[hashes[at]])
            at += 1
        self.found.missing |= absent
        return at

    def _follow(self, lines: list[bytes], believed: list[bytes], covered: int) -> int:
        expected, absent = len(believed), set[int]()
        last: str | None = believed[-1].hex() if believed else "0" * 64
        beyond_doubt = True
        for number, line in enumerate(lines):
            following = lines[number + 1] if number + 1 < len(lines) else b""
            index = index_said(line)
            if index is None:
                self.found.invalid.append(expected)
                if index_said(following) != expected:
                    expected, last, beyond_doubt = expected + 1, None, False
                continue
            if index < expected:
                absent.discard(index)
                self.found.invalid.append(index)
                continue
            absent |= set(range(expected, index))
            itself = False
            if index == expected and last not in {None, previous_said(line)}:
                behind = previous_said(following)
                itself = beyond_doubt or (behind is not None and behind != leaf(line).hex())
                self.found.invalid.append(index if itself else index - 1)
            expected, last, beyond_doubt = index + 1, None if itself else leaf(line).hex(), False
        self.found.missing |= {each for each in absent if each < covered}
        self.found.gap |= {each for each in absent if each >= covered}
        return expected

    def _roots(self, hashes: list[bytes], end: int, checkpoints: list[tuple[int, bytes]]) -> None:
        sound = 0
        for size, root in checkpoints:
            if size <= len(hashes) and root_of(hashes[:size]) == root:
                sound = size
            elif size > end:
                self.found.missing |= set(range(end, size))
                return
            elif self.found.first_bad is None or self.found.first_bad >= size:
                self.found.invalid.append(sound)
                return

    # --- digests

    def _digests(self) -> None:
        previous, before = ("", "", ""), 0
        paths = sorted((self.folder / "digests").glob("*.sig"))
        wanted = {f"{number:08}.sig" for number in range(1, int(paths[-1].stem) + 1)} if paths else set()
        self.found.missing |= wanted - {path.name for path in paths}
        for path in paths:
            document = gzip.decompress(path.with_suffix(".json.gz").read_bytes())
            digest: dict[str, Any] = json.loads(document)
            sha256, signature = hashlib.sha256(document).hexdigest(), path.read_text().strip()
            place = f"{digest['digestS3Bucket']}/{digest['digestS3Object']}"
            signed = f"{digest['digestEndTime']}\n{place}\n{sha256}\n{digest['previousDigestSignature'] or 'null'}"
            if not self._is_signed(signed.encode(), bytes.fromhex(signature)):
                self.found.invalid.append(path.name)
            elif before and int(path.stem) == before + 1:
                if (digest["previousDigestHashValue"], digest["previousDigestSignature"]) != previous[:2]:
                    self.found.invalid.append(path.name)
                elif digest["digestStartTime"] != previous[2]:
                    self.found.gap.add(path.name)
            for each in digest["logFiles"]:
                name = each["s3Object"].rpartition("/log-")[2].removesuffix(".gz")
                if not (self.folder / name).exists():
                    self.found.missing.add(name)
                elif hashlib.sha256((self.folder / name).read_bytes()).hexdigest() != each["hashValue"]:
                    self.found.invalid.append(name)
            previous, before = (sha256, signature, digest["digestEndTime"]), int(path.stem)


def leaf(line: bytes) -> bytes:
    return hashlib.sha256(b"\0" + line).digest()


def index_said(line: bytes) -> int | None:
    match = BEGINNING.match(line)
    return int(match[1]) if match else None


def previous_said(line: bytes) -> str | None:
    match = BEGINNING.match(line)
    return match[2].decode() if match else None


def root_of(hashes: list[bytes]) -> bytes:
    """Give the root of a tree (RFC 9162, 2.1.1), as its definition says."""
    if len(hashes) <= 1:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    middle = 1 << (len(hashes) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root_of(hashes[:middle]) + root_of(hashes[middle:])).digest()
