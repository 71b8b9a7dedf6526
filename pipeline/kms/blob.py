"""The ciphertext blob: what a caller stores and sends back to Decrypt. No I/O, no clock.

    version 0x01 (1 B) || key id (16 B) || material id (32 B) || salt (16 B) || nonce (12 B) || sealed || tag (16 B)

AES-256-GCM under HMAC-SHA256(material, "blob/1" || 0x00 || salt), so that a material is not bound by the number of
random nonces of one AES key (NIST SP 800-38D, 8.3: 2^32). AAD = the first 49 bytes || the encryption context, its
pairs sorted by name, each name and value as u32 length || UTF-8.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pipeline.kms.records import Material

_VERSION = b"\x01"
_HEAD, _SALT, _NONCE, _TAG = 49, 16, 12, 16


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob taken apart, not yet opened."""

    key_id: str
    material_id: str
    raw: bytes


def seal(key_id: str, material: Material, plaintext: bytes, context: Mapping[str, str]) -> bytes:
    """Seal `plaintext` under the material, bound to the key's id and the context."""
    head = _VERSION + bytes.fromhex(key_id.replace("-", "")) + bytes.fromhex(material.material_id)
    random = secrets.token_bytes(_SALT + _NONCE)
    cipher = AESGCM(_derived(material, random[:_SALT]))
    return head + random + cipher.encrypt(random[_SALT:], plaintext, head + canonical(context))


def parse(raw: bytes) -> Blob | None:
    """Take a blob apart; None if it is none of ours."""
    if len(raw) < _HEAD + _SALT + _NONCE + _TAG or raw[:1] != _VERSION:
        return None
    return Blob(str(UUID(bytes=raw[1:17])), raw[17:_HEAD].hex(), raw)


def unseal(blob: Blob, material: Material, context: Mapping[str, str]) -> bytes | None:
    """Open a blob; None if it was changed or the context is another."""
    body = blob.raw[_HEAD:]
    cipher = AESGCM(_derived(material, body[:_SALT]))
    try:
        return cipher.decrypt(
            body[_SALT : _SALT + _NONCE], body[_SALT + _NONCE :], blob.raw[:_HEAD] + canonical(context)
        )
    except InvalidTag:
        return None


def canonical(context: Mapping[str, str]) -> bytes:
    """Write an encryption context as bytes: the same for the same pairs in any order, different for any others."""
    texts = (text.encode() for name in sorted(context) for text in (name, context[name]))
    return b"".join(len(text).to_bytes(4, "big") + text for text in texts)


def _derived(material: Material, salt: bytes) -> bytes:
    return hmac.digest(material.secret, b"blob/1\x00" + salt, "sha256")
