"""Seal bytes as segments; open them again. No I/O, no clock.

One segment is one complete Cobblestone-256 message (c2sp.org/chunked-encryption): AES-256-GCM in chunks of 16 KiB,
with key, nonce and a key commitment derived from the data key, a random salt and the segment's context. There is no
other suite and no option. A segment is never sealed twice: a retry draws a new salt, so no key and nonce can repeat.

What does not authenticate gives no plaintext: the library hands out chunks before it knows the message to be whole,
so nothing leaves this module before the last one is checked.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NoReturn

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from pipeline.errors import SegmentForgedError
from pipeline.ids import KeyId
from pipeline.ports import Buffer

SEGMENT_LIMIT = 1024 * 1024
"""Most plaintext bytes of one segment: a range read opens whole segments, and has to hold them in memory."""

KEY_SIZE = 32
"""Bytes of a data key."""

_CHUNK = 16 * 1024  # C2SP chunked-encryption, "Message chunking"
_TAG = 16
_SALT_AND_COMMITMENT = 24 + 32
_SMALLEST = _SALT_AND_COMMITMENT + _TAG

_DOMAIN = b"recording-pipeline/segment/1\x00"
_PLACE = struct.Struct(">QQQB")  # index, media offset, durable, type


class SegmentType(IntEnum):
    """What a segment holds."""

    MEDIA = 1
    """Bytes of the recording as they came."""
    EVENT = 2
    """JSON: the head (segment 0), or records."""
    MANIFEST = 3
    """JSON: what the artifact holds; the last segment."""


class DataKey:
    """The plaintext key of one instance for a time.

    `repr` shows its id only; it can't be pickled or copied. Two keys are equal if their ids are.
    """

    __slots__ = ("_secret", "key_id")

    def __init__(self, key_id: KeyId, secret: bytes) -> None:
        if len(secret) != KEY_SIZE:
            raise ValueError("a data key has 32 bytes")
        self.key_id = key_id
        self._secret = secret

    def encryptor(self, context: bytes) -> Cobblestone256Encryptor:
        """Begin a message under this key, with a new salt."""
        return Cobblestone256Encryptor(self._secret, context)

    def decryptor(self, context: bytes) -> Cobblestone256Decryptor:
        """Begin to open a message under this key."""
        return Cobblestone256Decryptor(self._secret, context)

    def __repr__(self) -> str:
        return f"DataKey({self.key_id})"

    def __hash__(self) -> int:
        return hash(self.key_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DataKey) and other.key_id == self.key_id

    def __reduce__(self) -> NoReturn:
        raise TypeError("a data key is not written anywhere")


def sealed_size(plain: int) -> int:
    """Tell how many bytes `plain` bytes seal to: the last chunk is always shorter than 16 KiB, perhaps empty."""
    return _SALT_AND_COMMITMENT + plain + _TAG * (plain // _CHUNK + 1)


_LARGEST = sealed_size(SEGMENT_LIMIT)


def plaintext_size(sealed: int) -> int:
    """Tell how many bytes a segment of `sealed` bytes holds.

    Raises:
        SegmentForgedError: no segment has that length.

    """
    chunks, rest = divmod(sealed - _SALT_AND_COMMITMENT, _CHUNK + _TAG)
    # C2SP chunked-encryption, "Implementation notes": the last chunk needs room for its tag.
    if sealed < _SMALLEST or rest < _TAG or sealed > _LARGEST:
        raise SegmentForgedError("a segment has a length that no segment can have; nothing of it was opened")
    return chunks * _CHUNK + rest - _TAG


def context(header: bytes, index: int, media_offset: int, durable: int, segment_type: SegmentType) -> bytes:
    """Say where a segment belongs; what was sealed for another place does not open.

    Args:
        header: the artifact's header, all 96 bytes.
        index: number of the segment in its artifact, from 0.
        media_offset: bytes of media before it, whatever its type.
        durable: the file offset that was known to be synced when it was sealed.
        segment_type: what it holds.

    """
    return _DOMAIN + header + _PLACE.pack(index, media_offset, durable, segment_type)


def seal(key: DataKey, context: bytes, plaintext: Buffer) -> bytes:
    """Seal up to 1 MiB.

    Raises:
        ValueError: `plaintext` is longer.

    """
    _check_limit(len(plaintext))
    encryptor = key.encryptor(context)
    return encryptor.update(plaintext) + encryptor.finalize()


def seal_into(key: DataKey, context: bytes, plaintext: Buffer | Sequence[Buffer], out: memoryview) -> int:
    """Seal up to 1 MiB into a buffer of the caller's and give back how many bytes that took.

    Args:
        key: the instance's data key.
        context: see `context`.
        plaintext: the bytes, whole or in parts; not in `out`.
        out: at least `sealed_size` bytes.

    Raises:
        ValueError: `plaintext` is too long or `out` too short.

    """
    parts = (plaintext,) if isinstance(plaintext, bytes | bytearray | memoryview) else plaintext
    size = sum(map(len, parts))
    _check_limit(size)
    total = sealed_size(size)
    _check_room(total, out)
    encryptor = key.encryptor(context)
    at = 0
    for part in parts:
        at += encryptor.update_into(part, out[at:total])
    out[at:total] = encryptor.finalize()
    return total


def open_segment(key: DataKey, context: bytes, sealed: Buffer) -> bytes:
    """Open one segment.

    Raises:
        SegmentForgedError: it is not what was sealed under this key for this place.

    """
    plaintext_size(len(sealed))
    decryptor = key.decryptor(context)
    try:
        return decryptor.update(sealed) + decryptor.finalize()
    except InvalidTag as error:
        raise _forged() from error


def open_into(key: DataKey, context: bytes, sealed: Buffer, out: memoryview) -> int:
    """Open one segment into a buffer of the caller's and give back how many bytes it holds.

    `out` holds plaintext only if this returns; else what was written is overwritten with zeros.

    Raises:
        SegmentForgedError: it is not what was sealed under this key for this place.
        ValueError: `out` has fewer than `plaintext_size` bytes.

    """
    size = plaintext_size(len(sealed))
    _check_room(size, out)
    decryptor = key.decryptor(context)
    try:
        at = decryptor.update_into(sealed, out[:size])
        out[at:size] = decryptor.finalize()
    except InvalidTag as error:
        out[:size] = bytes(size)
        raise _forged() from error
    return size


def _check_limit(size_bytes: int) -> None:
    if size_bytes > SEGMENT_LIMIT:
        raise ValueError("a segment holds at most 1 MiB")


def _check_room(size_bytes: int, out: memoryview) -> None:
    if len(out) < size_bytes:
        raise ValueError("the buffer is too short for the segment")


def _forged() -> SegmentForgedError:
    return SegmentForgedError("a segment is not what was sealed for its place; nothing of it was given out")
