"""JSON objects from outside, seen without regard to the case of their names. No I/O, no clock.

Bad input is a `RefuseError` that names the field by its JSON path, as the sender spelled it, and never repeats a value.
Nothing else is raised, whatever the bytes are.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipeline.errors import RefuseError

MAX_DEPTH = 64
"""Objects and lists within one another. Documented events stay under 10."""
MAX_TEXT = 256
"""Characters of an id or a word (Amazon Connect's limit for contact and item ids)."""
UNSET_BEFORE = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
"""Amazon Connect writes 1970-01-01T00:00:00.001Z for a time that is not set."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding foreign bytes may raise."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def parse_time(text: object, path: str) -> datetime | None:
    """Read an ISO 8601 time, with or without fraction; UTC where it names no zone. "Not set" gives `None`.

    Raises:
        RefuseError: it is not one.

    """
    try:
        moment = msgspec.convert(text, datetime) if isinstance(text, str) else None
        if moment is not None:
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        moment = None
    if moment is None:
        raise RefuseError("must be a time, as 2026-11-23T14:05:12.000Z", field=path)
    return None if moment < UNSET_BEFORE else moment


def read_object(raw: bytes, path: str) -> "Fields":
    """Read a JSON object; `path` is its place among others.

    Raises:
        RefuseError: it is none, or nested too deep.

    """
    where = path or None
    if _is_too_deep(raw):
        raise RefuseError(f"objects and lists may be nested {MAX_DEPTH} deep, not more", field=where)
    try:
        values = _ANY.decode(raw)
    except UNREADABLE:
        # The foreign errors are not chained: some of them carry the whole input.
        raise RefuseError("the event is not valid JSON in UTF-8; nothing of it was taken", field=where) from None
    if not isinstance(values, dict):
        raise RefuseError("must be a JSON object", field=where)
    return Fields(values, path)


def _is_too_deep(raw: bytes) -> bool:
    """Count brackets outside strings. Also of what a repeated name hides from the decoded form."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _JSON_STRING.sub(b"", raw).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


class Fields:
    """A decoded JSON object whose names are found in any case, and the path that leads to it.

    An exactly spelled name comes before others; of names that differ in case only, the first counts. `null` and
    absent are the same.
    """

    __slots__ = ("_names", "_path", "_values")

    def __init__(self, values: Mapping[str, object], path: str) -> None:
        self._values = values
        self._path = path
        self._names = {name.lower(): name for name in reversed(list(values))}

    @property
    def values(self) -> Mapping[str, object]:
        return self._values

    def path_of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def find(self, name: str) -> tuple[str, object]:
        """Give the name as it is spelled here, and its value; `None` if there is none."""
        spelled = name if name in self._values else self._names.get(name.lower(), name)
        return spelled, self._values.get(spelled)

    def refusal(self, name: str, message: str) -> RefuseError:
        return RefuseError(message, field=self.path_of(self.find(name)[0]))

    def object(self, name: str) -> "Fields":
        spelled, value = self.find(name)
        if not isinstance(value, dict):
            raise self.refusal(name, "is required, and must be a JSON object")
        return Fields(value, self.path_of(spelled))

    def text(self, name: str, *, limit: int = MAX_TEXT) -> str | None:
        """Give a string without control characters; empty counts as absent."""
        _, value = self.find(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > limit or _CONTROL.search(value):
            raise self.refusal(name, f"must be a string of at most {limit} characters, without control characters")
        return value

    def word(self, name: str) -> str | None:
        value = self.text(name)
        return None if value is None else value.upper()

    def identifier(self, name: str, *, limit: int = MAX_TEXT) -> str:
        value = self.text(name, limit=limit)
        if value is None:
            raise self.refusal(name, f"is required: 1 to {limit} characters")
        return value

    def flag(self, name: str) -> bool:
        _, value = self.find(name)
        if value is not None and not isinstance(value, bool):
            raise self.refusal(name, "must be true or false")
        return value is True

    def time(self, name: str) -> datetime | None:
        spelled, value = self.find(name)
        return None if value is None or value == "" else parse_time(value, self.path_of(spelled))
