"""One file of a key ring: a wrapped data key, and the ring's name key sealed under that data key. No I/O, no clock.

The file is JSON and nothing in it is secret. It may be written by whoever can write to the store, so nothing in it is
believed: instance, class and encryption context must be the configured ones, the KMS key one that is configured, and
the name key must open under the unwrapped data key, which a wrapped key swapped in from another file does not manage.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from pipeline.crypt import segments
from pipeline.crypt.segments import KEY_SIZE, DataKey
from pipeline.errors import HoldCode, KeyUnavailableError, SegmentForgedError
from pipeline.ids import InstanceId, KeyId

VERSION = 1
SIZE_LIMIT = 64 * 1024
"""Most bytes of a ring file: a wrapped key has about 200, and there is one for each of at most two KMS keys."""
SUFFIX = ".json"

_NAME_KEY_DOMAIN = b"recording-pipeline/name-key/1\x00"
_DIGITS = 16
"""Hex digits of a tag: 64 bits keep chance collisions of a million names below 1 in 10^7."""


class Wrapped(Struct, frozen=True, kw_only=True, rename="camel"):
    """A data key as only one KMS key can open it."""

    kms_key_arn: str
    """Says which *configured* KMS key to ask; any other is ignored."""
    blob: bytes
    wrapped_at: Annotated[datetime, Meta(tz=True)]


class RingFile(Struct, frozen=True, kw_only=True, rename="camel"):
    """A data key at rest."""

    version: int = VERSION
    key_id: UUID
    instance_id: UUID
    data_class: str
    created_at: Annotated[datetime, Meta(tz=True)]
    context_sha256: str
    """Of the encryption context, so that a changed configuration is told from a damaged file."""
    name_key_id: UUID
    """Files with the same one hold the same name key."""
    name_key: bytes
    """The name key, sealed under the data key."""
    wrapped: tuple[Wrapped, ...]

    def wrapped_under(self, kms_key_arn: str | None) -> Wrapped | None:
        """Find the data key as wrapped under one KMS key."""
        return next((wrapped for wrapped in self.wrapped if wrapped.kms_key_arn == kms_key_arn), None)

    def encode(self) -> bytes:
        """Write the file."""
        return msgspec.json.format(msgspec.json.encode(self))


_decoder = msgspec.json.Decoder(RingFile)


def context_sha256(context: Mapping[str, str]) -> str:
    """Digest an encryption context: hex SHA-256 of its pairs as JSON, in order of their names."""
    return hashlib.sha256(msgspec.json.encode(dict(context), order="sorted")).hexdigest()


def parse(
    raw: bytes,
    key_id: KeyId,
    instance_id: InstanceId,
    data_class: str,
    context: Mapping[str, str],
    arns: Collection[str],
) -> RingFile:
    """Read a ring file and check it against the configuration.

    Raises:
        KeyUnavailableError: `KEY_MISMATCH`, with what does not agree.

    """
    try:
        file = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _mismatch(key_id, "it can't be read") from error
    if file.version != VERSION:
        raise _mismatch(key_id, "it has another format version")
    if file.key_id != key_id:
        raise _mismatch(key_id, "it names another data key than its file name")
    if file.instance_id != instance_id or file.data_class != data_class:
        raise _mismatch(key_id, "it belongs to another instance or data class")
    if file.context_sha256 != context_sha256(context):
        raise _mismatch(key_id, "it was made under another encryption context than the configured one")
    if not any(wrapped.kms_key_arn in arns for wrapped in file.wrapped):
        raise _mismatch(key_id, "none of its KMS keys is configured for the instance")
    return file


def seal_name_key(key: DataKey, instance_id: InstanceId, name_key_id: UUID, name_key: bytes) -> bytes:
    """Seal a ring's name key under one of its data keys."""
    return segments.seal(key, _name_key_context(key.key_id, instance_id, name_key_id), name_key)


def open_name_key(key: DataKey, file: RingFile) -> bytes:
    """Open the name key of a ring file. It also proves that the unwrapped key is the one the file was made for.

    Raises:
        KeyUnavailableError: `KEY_MISMATCH`: it does not open.

    """
    context = _name_key_context(key.key_id, InstanceId(file.instance_id), file.name_key_id)
    try:
        name_key = segments.open_segment(key, context, file.name_key)
    except SegmentForgedError as error:
        raise _mismatch(key.key_id, "its wrapped key is not the one it was made with") from error
    if len(name_key) != KEY_SIZE:
        raise _mismatch(key.key_id, "its name key is none")
    return name_key


def tag(name_key: bytes, domain: str, name: str) -> str:
    """Turn a name into 16 hex digits that tell an outsider nothing."""
    message = domain.encode() + b"\x00" + name.encode()
    return hmac.digest(name_key, message, "sha256").hex()[:_DIGITS]


def _name_key_context(key_id: KeyId, instance_id: InstanceId, name_key_id: UUID) -> bytes:
    return _NAME_KEY_DOMAIN + instance_id.bytes + key_id.bytes + name_key_id.bytes


def _mismatch(key_id: KeyId, why: str) -> KeyUnavailableError:
    return KeyUnavailableError(
        HoldCode.KEY_MISMATCH,
        f"the ring file of data key {key_id} is not used: {why}; what is sealed under it is kept and waits",
    )
