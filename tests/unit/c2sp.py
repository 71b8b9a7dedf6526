"""An independent reader of sealed segments, from the text of c2sp.org/chunked-encryption. For tests only."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CHUNK = 16 * 1024
TAG = 16


def open_message(input_key: bytes, context: bytes, message: bytes) -> bytes:
    """Open one message; raises `ValueError` or `InvalidTag`."""
    salt, commitment, body = message[:24], message[24:56], message[56:]
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00" + salt + context
    derived = HKDFExpand(hashes.SHA512(), 32 + 12 + 32, info).derive(input_key)
    key, base_nonce = derived[:32], int.from_bytes(derived[32:44], "big")
    if commitment != derived[44:]:
        raise ValueError("commitment")
    chunks = [body[at : at + CHUNK + TAG] for at in range(0, len(body), CHUNK + TAG)]
    if not chunks or not TAG <= len(chunks[-1]) < CHUNK + TAG:
        raise ValueError("truncated")
    aead = AESGCM(key)
    opened = [
        aead.decrypt((base_nonce ^ number).to_bytes(12, "big"), chunk, None) for number, chunk in enumerate(chunks)
    ]
    return b"".join(opened)


def segment_context(header: bytes, index: int, media_offset: int, durable: int, code: int) -> bytes:
    """Write a segment's context from the format's text, without the code under test."""
    numbers = b"".join(number.to_bytes(8, "big") for number in (index, media_offset, durable))
    return b"recording-pipeline/segment/1" + b"\x00" + header + numbers + bytes([code])
