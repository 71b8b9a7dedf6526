"""What an upload says of itself in its headers. Pure.

`Idempotency-Key` is the source id; `X-Recording-Start`, `-End` (ISO 8601 or Unix seconds), `-Sha256` and
`-Completion-Cause` are claims that are checked or kept. A claim that can't be read, or that is made twice, is refused
by its header's name.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from starlette.datastructures import Headers

from pipeline.errors import RefuseError
from pipeline.intake.address import Address
from pipeline.intake.problems import Problem
from pipeline.intake.reception import Source

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})?/(?:\*|([0-9]{1,15}))")
_REFUSED_TYPES = ("multipart/", "application/x-www-form-urlencoded")
_LONGEST = 1024
_KEPT = "x-recording-"
_MOST_KEPT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """Headers of one upload, read."""

    source: Source
    size_bytes: int | None
    """Length of this body, if it was declared."""
    sha256: str | None
    resumes_at: int | None
    """Offset at which this body goes on; None if it starts anew."""


def read_claims(headers: Headers, address: Address) -> Claims:
    """Read an upload's headers.

    Raises:
        Problem: 415, a form or an encoded body.
        RefuseError: a header can't be read.

    """
    content_type = headers.get("content-type")
    if _is_encoded(headers) or (content_type or "").lower().startswith(_REFUSED_TYPES):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "Send the recording's bytes as they are: no form, no multipart, no encoding.",
        )
    sha256 = _one(headers, "X-Recording-Sha256")
    if sha256 is not None and not _SHA256.fullmatch(sha256.lower()):
        raise RefuseError("64 hex digits are expected", field="X-Recording-Sha256")
    source = Source(
        kind=address.kind,
        contact=address.contact,
        source_id=_source_id(headers, address),
        content_type=content_type[:_LONGEST] if content_type else None,
        started=_time(headers, "X-Recording-Start"),
        ended=_time(headers, "X-Recording-End"),
        metadata=_kept(headers),
    )
    return Claims(
        source=source,
        size_bytes=declared_length(headers),
        sha256=None if sha256 is None else sha256.lower(),
        resumes_at=_resumes_at(headers),
    )


def declared_length(headers: Headers) -> int | None:
    """Read Content-Length; None if the body has none.

    Raises:
        RefuseError: it is no number.

    """
    text = headers.get("content-length")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise RefuseError("a number of bytes is expected", field="Content-Length")
    return int(text)


def _one(headers: Headers, name: str) -> str | None:
    """Get a header that may stand once. Two senders on the way must not read two different claims."""
    values = headers.getlist(name)
    if len(values) > 1:
        raise RefuseError("this header may stand once only", field=name)
    return values[0] if values else None


def _is_encoded(headers: Headers) -> bool:
    """Tell whether the bytes that come are not the recording's own: nothing is unpacked here."""
    codings = {"content-encoding": "identity", "transfer-encoding": "chunked"}
    given = ((plain, value) for name, plain in codings.items() for value in headers.getlist(name))
    return any(value.strip().lower() != plain for plain, value in given)


def _resumes_at(headers: Headers) -> int | None:
    text = _one(headers, "Content-Range")
    if text is None:
        return None
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise RefuseError("the form is: bytes FIRST-LAST/*", field="Content-Range")
    if match[3] is not None and (match[2] is None or int(match[2]) + 1 != int(match[3])):
        # The end of a body is the end of its recording: a piece from the middle would be sealed as the whole.
        raise RefuseError("a resumed body must go to the end of the recording", field="Content-Range")
    return int(match[1])


def _source_id(headers: Headers, address: Address) -> str:
    key = _one(headers, "Idempotency-Key")
    if key is None:
        return address.source_id
    if not key or len(key) > _LONGEST or not key.isprintable():
        raise RefuseError(f"1 to {_LONGEST} printable characters are expected", field="Idempotency-Key")
    return key


def _time(headers: Headers, name: str) -> datetime | None:
    text = _one(headers, name)
    if text is None:
        return None
    try:
        if re.fullmatch(r"\d{1,11}(\.\d{1,9})?", text):
            return datetime.fromtimestamp(float(text), UTC)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RefuseError("ISO 8601 or Unix seconds are expected", field=name) from error


def _kept(headers: Headers) -> dict[str, str]:
    kept = {name: value for name, value in headers.items() if name.startswith(_KEPT)}
    if len(kept) > _MOST_KEPT or any(len(value) > _LONGEST for value in kept.values()):
        raise RefuseError(f"at most {_MOST_KEPT} headers of {_LONGEST} characters", field="X-Recording-*")
    return kept
