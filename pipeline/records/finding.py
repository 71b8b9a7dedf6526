"""Which values of a record go into blind indexes, and in what form. Pure.

A telephone number is brought to E.164 as far as its own text allows: no country is guessed, so a number without one is
found only as it was written.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import msgspec

from pipeline.records.policy import Field, Normal, Policy

MOST_VALUES = 100
"""Index entries of one record: what comes after them is not indexed."""
_LONGEST = 1024
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_BETWEEN = re.compile(r"[\s().\-/\u00a0\u2010-\u2015]")


def is_json(content_type: str) -> bool:
    """Tell whether a record's members can be seen."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def members(content_type: str, body: bytes) -> Mapping[str, Any] | None:
    """Give the members of a record that is a JSON object; `None` for any other."""
    if not is_json(content_type):
        return None
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def normal(kind: Normal, value: str) -> str:
    """Bring a value to the one form under which it is found."""
    text = value.strip()
    if kind is Normal.EXACT:
        return text
    if kind is Normal.NUMBER:
        digits = _BETWEEN.sub("", text.removeprefix("tel:"))
        if _E164.fullmatch(digits):
            return digits
    return text.casefold()


def entries(policy: Policy, found: Mapping[str, Any] | None) -> list[tuple[Field, str]]:
    """List what a record is to be found by: index and normal form, each once."""
    if found is None or not policy.fields:
        return []
    names: dict[str, str] = {}
    listed: dict[tuple[str, str], Field] = {}
    for field in policy.fields:
        for first, lower, rest in _steps(field.paths):
            spelled = first
            if first not in found:
                names = names or {name.lower(): name for name in reversed(list(found))}
                if lower not in names:
                    continue
                spelled = names[lower]
            there = found[spelled]
            for value in (there,) if isinstance(there, str) and not rest else values(there, rest):
                if value.strip() and len(value) <= _LONGEST:
                    listed[field.name, normal(field.normal, value)] = field
    return [(field, value) for (_, value), field in list(listed.items())[:MOST_VALUES]]


@cache
def _steps(paths: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Cut paths: the first member, the same in lower case, and what follows."""
    cut = [path.partition(".") for path in paths]
    return [(first, first.lower(), rest) for first, _, rest in cut]


def values(found: Any, path: str) -> Iterator[str]:
    """Give the texts and whole numbers at a path, its names in any case; a list stands for each of its elements."""
    if isinstance(found, list):
        for each in found[:MOST_VALUES]:
            yield from values(each, path)
    elif not path:
        if isinstance(found, str) or (isinstance(found, int) and not isinstance(found, bool)):
            yield str(found)
    elif isinstance(found, dict):
        name, _, rest = path.partition(".")
        spelled = name if name in found else next((each for each in found if each.lower() == name.lower()), None)
        if spelled is not None:
            yield from values(found[spelled], rest)
