"""A sealed copy of an index of words, so that a restart need not build it. Derived: what does not open is thrown away.

    89 'R' 'P' 'X' || u8 1 || data key id (16) || copy id (16)
    again and again, to the end: u32 sealed length || sealed

Each is one segment of at most 1 MiB, bound to its class and scope, its copy, its place, and to being the last or not:
a copy that was cut, or has pieces of another one, does not open. No I/O, no clock.
"""

import struct
from collections.abc import Iterator
from uuid import UUID, uuid4

from pipeline.crypt import segments
from pipeline.crypt.segments import SEGMENT_LIMIT, DataKey
from pipeline.errors import SegmentForgedError
from pipeline.ids import KeyId
from pipeline.records.scopes import Scope

INDEXES = "records/indexes"
"""Where the copies are, below the state directory; each named by its shelf."""
SUFFIX = ".index"

_MAGIC = b"\x89RPX\x01"
_HEAD = struct.Struct(">5s16s16s")
_LENGTH = struct.Struct(">I")
_PLACE = struct.Struct(">QB")
_DOMAIN = b"recording-pipeline/index/1"


def sealed_copy(key: DataKey, scope: Scope, content: bytes) -> Iterator[bytes]:
    """Seal a copy, piece by piece as it is to be written."""
    copy_id = uuid4().bytes
    yield _HEAD.pack(_MAGIC, key.key_id.bytes, copy_id)
    starts = range(0, len(content), SEGMENT_LIMIT) or range(1)
    view = memoryview(content)
    for number, start in enumerate(starts):
        place = _context(scope, copy_id, number, is_last=number == len(starts) - 1)
        sealed = segments.seal(key, place, view[start : start + SEGMENT_LIMIT])
        yield _LENGTH.pack(len(sealed)) + sealed


def key_id_of(copy: bytes) -> KeyId:
    """Tell what data key a copy is sealed under. Raises `SegmentForgedError` if it is no copy."""
    return KeyId(UUID(bytes=_head(copy)[0]))


def opened_copy(key: DataKey, scope: Scope, copy: bytes) -> bytes:
    """Open a copy.

    Raises:
        SegmentForgedError: it is not what was sealed for this scope.

    """
    _, copy_id = _head(copy)
    view, at, number = memoryview(copy), _HEAD.size, 0
    pieces: list[bytes] = []
    while at < len(copy):
        if len(copy) - at < _LENGTH.size:
            raise _forged()
        (size,) = _LENGTH.unpack_from(copy, at)
        end = at + _LENGTH.size + size
        if end > len(copy):
            raise _forged()
        place = _context(scope, copy_id, number, is_last=end == len(copy))
        pieces.append(segments.open_segment(key, place, view[at + _LENGTH.size : end]))
        at, number = end, number + 1
    if not pieces:
        raise _forged()
    return b"".join(pieces)


def _head(copy: bytes) -> tuple[bytes, bytes]:
    if len(copy) < _HEAD.size:
        raise _forged()
    magic, key_id, copy_id = _HEAD.unpack_from(copy)
    if magic != _MAGIC:
        raise _forged()
    return key_id, copy_id


def _context(scope: Scope, copy_id: bytes, number: int, *, is_last: bool) -> bytes:
    names = (_DOMAIN, scope.policy.data_class.encode(), scope.shelf_name.encode())
    return b"\x00".join((*names, copy_id)) + _PLACE.pack(number, is_last)


def _forged() -> SegmentForgedError:
    return SegmentForgedError("an index's copy is not what was written; nothing of it was used")
