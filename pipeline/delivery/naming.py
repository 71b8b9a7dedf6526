"""Name the object of a recording, and tell from its first bytes what it is. No I/O, no clock.

A key is `{prefix}[/ivr]/{yyyy}/{mm}/{dd}/{contact}_{yyyy}{mm}{dd}T{HH}:{MM}_UTC{discriminator}.{extension}`, as Amazon
Connect writes them; the discriminator is ours. AWS's client sends `../`, `//` and control characters unchanged, so the
check of each segment here is the only guard. No personal data may be in a key: it is not covered by encryption.
"""

import codecs
import re
from datetime import UTC, datetime

from pipeline.errors import RefuseError
from pipeline.ids import RecordingId
from pipeline.instances import Colon, Discriminator, Storage

MAX_KEY_BYTES = 1024
"""S3's own limit."""
MAX_PREFIX = 128
"""Characters of a bucket prefix (Amazon Connect API, `S3Config`)."""
SNIFF_BYTES = 512
"""What `sniff` needs to see of a body that has as many."""

UNKNOWN_TYPE = "application/octet-stream"
UNKNOWN_EXTENSION = "bin"

CONTENT_TYPES: dict[str, tuple[str, ...]] = {
    "wav": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    "mp3": ("audio/mpeg", "audio/mp3"),
    "ogg": ("audio/ogg", "video/ogg", "application/ogg"),
    "mp4": ("video/mp4", "audio/mp4"),
    "webm": ("video/webm", "audio/webm"),
    "json": ("application/json",),
}
"""By extension, the types that name it. The first is used unless the sender declared another."""

_ALIASES = {
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/mp3": "audio/mpeg",
}
_SIGNED = frozenset({"wav", "ogg", "mp4", "webm"})
"""Formats that always begin with their signature."""
_CONTACT = re.compile(r"[A-Za-z0-9-]{1,256}")
_EXTENSION = re.compile(r"[A-Za-z0-9]{1,16}")
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:=-]*[A-Za-z0-9_:=-])?")
_BLANK = b" \t\r\n"
_MP4_BOXES = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"free", b"wide"})


def object_keys(
    *,
    storage: Storage,
    contact: str,
    stamp: datetime,
    recording_id: RecordingId,
    generation: int,
    extension: str,
    ivr: bool = False,
) -> tuple[str, ...]:
    """Give the keys a recording may take, in the order in which delivery tries them.

    Args:
        storage: where recordings of this kind go.
        contact: the contact id as it may stand in a key (`intake.contacts.object_contact`).
        stamp: start of the contact, aware; unknown: time of the first byte.
        recording_id: never cut; tells two recordings of one contact apart.
        generation: 1, or more for other bytes that came later under the same source id.
        extension: without its dot.
        ivr: whether this is the leg before an agent.

    Raises:
        RefuseError: a key can't be made of these.

    """
    if stamp.tzinfo is None:
        raise RefuseError("the start of a contact needs a time zone", field="stamp")
    if not 1 <= len(storage.prefix) <= MAX_PREFIX:
        raise RefuseError(f"a bucket prefix has 1 to {MAX_PREFIX} characters", field="prefix")
    if not _CONTACT.fullmatch(contact):
        raise RefuseError("a contact id in a key has 1 to 256 letters, digits and hyphens", field="contact")
    if not _EXTENSION.fullmatch(extension):
        raise RefuseError("an extension has 1 to 16 letters and digits", field="extension")
    moment = stamp.astimezone(UTC)
    day = f"{moment.year:04d}/{moment.month:02d}/{moment.day:02d}"
    minute = f"{moment.hour:02d}{':' if storage.colon is Colon.KEEP else '-'}{moment.minute:02d}"
    name = f"{contact}_{day.replace('/', '')}T{minute}_UTC"
    folder = f"{storage.prefix}/ivr/{day}" if ivr else f"{storage.prefix}/{day}"
    return tuple(
        _checked(f"{folder}/{name}{discriminator}.{extension}")
        for discriminator in _discriminators(storage.discriminator, recording_id, generation)
    )


def contact_in(key: str) -> str:
    """Give the contact that an object key names; what follows it begins with the first underscore."""
    return key.rpartition("/")[2].partition("_")[0]


def _discriminators(when: Discriminator, recording_id: RecordingId, generation: int) -> tuple[str, ...]:
    if generation > 1:
        return (f"_{recording_id}_g{generation}",)
    if when is Discriminator.ALWAYS:
        return (f"_{recording_id}",)
    return ("", f"_{recording_id}")


def _checked(key: str) -> str:
    """Let a key through if it is one path of plain segments."""
    if not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise RefuseError(
            "each part of an object key begins with a letter or digit, goes on with those or . _ : = - and does not end"
            " in a dot; check the bucket prefix",
            field="key",
        )
    if len(key) > MAX_KEY_BYTES:  # all ASCII by now
        raise RefuseError(f"an object key has at most {MAX_KEY_BYTES} bytes; shorten the bucket prefix", field="key")
    return key


def sniff(first: bytes, declared: str | None) -> tuple[str, str, bool]:
    """Tell content type and extension by the first bytes, else by the declared type.

    Args:
        first: the body's beginning: `SNIFF_BYTES`, or all of a shorter body.
        declared: the sender's `Content-Type`, if any.

    Returns:
        Content type, extension, and whether the bytes look like nothing that this could be (`SUSPECT_FORMAT`).

    """
    media_type = (declared or "").split(";", 1)[0].strip().lower()
    found = _extension_of(first)
    if found is not None:
        types = CONTENT_TYPES[found]
        return _plain(media_type if media_type in types else types[0]), found, False
    for extension, types in CONTENT_TYPES.items():
        if media_type in types:
            return _plain(media_type), extension, bool(first) and extension in _SIGNED
    return UNKNOWN_TYPE, UNKNOWN_EXTENSION, True


def _plain(media_type: str) -> str:
    return _ALIASES.get(media_type, media_type)


def _extension_of(first: bytes) -> str | None:
    if first[:4] == b"RIFF" and first[8:12] == b"WAVE":
        return "wav"
    if first[:4] == b"OggS":
        return "ogg"
    if first[4:8] in _MP4_BOXES and int.from_bytes(first[:4]) not in range(2, 8):
        return "mp4"
    if first[:4] == b"\x1a\x45\xdf\xa3" and b"webm" in first[:SNIFF_BYTES]:
        return "webm"
    if first[:3] == b"ID3" or _is_mp3_frame(first):
        return "mp3"
    return "json" if _is_json(first[:SNIFF_BYTES]) else None


def _is_mp3_frame(first: bytes) -> bool:
    """Check an MPEG audio frame header: sync, version not reserved, layer III, bit rate and sample rate possible."""
    if len(first) < 4:
        return False
    sync = first[0] == 0xFF and first[1] & 0xE0 == 0xE0
    version, layer = first[1] >> 3 & 3, first[1] >> 1 & 3
    bit_rate, sample_rate = first[2] >> 4, first[2] >> 2 & 3
    return sync and version != 1 and layer == 1 and bit_rate not in {0, 15} and sample_rate != 3


def _is_json(first: bytes) -> bool:
    """Check that text begins like an object or a list. The end of `first` may cut a character in two."""
    if first.lstrip(_BLANK)[:1] not in {b"{", b"["}:
        return False
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(first).lstrip(_BLANK.decode())
    except UnicodeDecodeError:
        return False
    inside = text[1:].lstrip(_BLANK.decode())[:1]
    if "\0" in text or not inside:
        return False
    return (text[0] == "{" and inside in '"}') or (text[0] == "[" and inside in '"{[]}-0123456789tfn')
