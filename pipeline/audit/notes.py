"""Signed notes and checkpoints: what a log was at a time, in a form that others' tools read. Pure.

Formats: C2SP signed-note (Ed25519) and C2SP tlog-checkpoint. A note that does not verify gives out nothing.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipeline.errors import RefuseError

_ED25519 = b"\1"
"""Signature type (C2SP signed-note, "Signatures")."""
_NAME = re.compile(r"[^\s+\x00-\x20]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")
_DASH = "\N{EM DASH} "


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key and the name it signs under."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `<name>+<key id>+<base64 of type and key>`. Raises `RefuseError`."""
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _decoded(encoded)
        if raw is None or raw[:1] != _ED25519 or len(raw) != 33 or not _NAME.fullmatch(name):
            raise RefuseError("not a verifier key (<name>+<key id>+<base64>)", field="key")
        made = cls(name, raw[1:])
        if made.key_id != key_id:
            raise RefuseError("the verifier key's id is not that of its name and key", field="key")
        return made

    @property
    def key_id(self) -> str:
        """Eight hex digits that tell the key from others."""
        return _key_hash(self.name, self.public).hex()

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the raw public key."""
        return hashlib.sha256(self.public).hexdigest()

    def is_signed(self, message: bytes, signature: bytes) -> bool:
        """Tell whether it made a signature."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Signer:
    """A private key. Never shown; `text` goes to its file only."""

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.verifier = Verifier(name, private.public_key().public_bytes_raw())

    @classmethod
    def make(cls, name: str) -> Self:
        """Make a new key."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `text` gives. Raises `RefuseError`, which repeats nothing of it."""
        parts = text.strip().split("+", 4)
        raw = _decoded(parts[4]) if len(parts) == 5 and parts[:2] == ["PRIVATE", "KEY"] else None
        if raw is None or raw[:1] != _ED25519 or len(raw) != 33:
            raise RefuseError("the signing key's file does not hold a key; restore it from a backup", field="key")
        made = cls(parts[2], Ed25519PrivateKey.from_private_bytes(raw[1:]))
        if made.verifier.key_id != parts[3]:
            raise RefuseError("the signing key's file is damaged; restore it from a backup", field="key")
        return made

    @property
    def text(self) -> str:
        """The key as its file holds it."""
        key = base64.b64encode(_ED25519 + self._private.private_bytes_raw()).decode()
        return f"PRIVATE+KEY+{self.verifier.name}+{self.verifier.key_id}+{key}"

    def __repr__(self) -> str:
        return f"Signer({self.verifier.name}+{self.verifier.key_id})"

    def sign(self, message: bytes) -> bytes:
        """Sign (RFC 8032)."""
        return self._private.sign(message)

    def note(self, text: str) -> str:
        """Sign a text that ends with a line feed, as a note."""
        signature = bytes.fromhex(self.verifier.key_id) + self.sign(text.encode())
        return f"{text}\n{_DASH}{self.verifier.name} {base64.b64encode(signature).decode()}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The size and root of a log."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed (C2SP tlog-checkpoint)."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def opened(note: str, verifier: Verifier) -> str:
    """Give the text of a note that `verifier` signed; others' signatures beside it are ignored.

    Raises:
        RefuseError: it is no note, or that key did not sign it.

    """
    text, blank, signatures = note.rpartition("\n\n")
    if not blank or not signatures.endswith("\n"):
        raise RefuseError("not a signed note", field="checkpoint")
    text += "\n"
    for line in signatures.removesuffix("\n").split("\n"):
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        raw = _decoded(encoded)
        if not line.startswith(_DASH) or raw is None:
            raise RefuseError("not a signed note", field="checkpoint")
        if (name, raw[:4].hex()) == (verifier.name, verifier.key_id):
            if verifier.is_signed(text.encode(), raw[4:]):
                return text
            break
    raise RefuseError("the note is not signed by that key", field="checkpoint")


def checkpoint_of(note: str, verifier: Verifier) -> Checkpoint:
    """Give the checkpoint of a log that `verifier` signed. Raises `RefuseError`."""
    lines = opened(note, verifier).split("\n")
    root = _decoded(lines[2]) if len(lines) >= 4 else None
    if root is None or len(root) != 32 or not _SIZE.fullmatch(lines[1]) or lines[0] != verifier.name:
        raise RefuseError("the note is signed, and is no checkpoint of that log", field="checkpoint")
    return Checkpoint(lines[0], int(lines[1]), root)


def size_said(note: bytes) -> int:
    """Give the size that a checkpoint names, unchecked; 0 if it names none."""
    lines = note.split(b"\n")
    said = lines[1].decode("ascii", "replace") if len(lines) > 1 else ""
    return int(said) if _SIZE.fullmatch(said) else 0


def _key_hash(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
