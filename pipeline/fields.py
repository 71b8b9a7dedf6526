"""Keys of a settings file: read them from TOML and `PIPELINE_*` variables, check each, refuse the unknown. Pure.

A dataclass field made by one of the functions here carries how its key is spelled, parsed and bounded. Messages name
the key and what is allowed, never the value that was given.
"""

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from pipeline.errors import HaltError

T = TypeVar("T")

PREFIX = "PIPELINE_"
NOT_SETTINGS = frozenset({"PIPELINE_CONFIG", "PIPELINE_TOKEN", "PIPELINE_URL"})
"""Variables of the commands: where the file is, and a client's token and server."""


class _WrongError(Exception):
    """A value is of the wrong type or out of bounds; says what is allowed."""


@dataclass(frozen=True, slots=True)
class _Key:
    """How one field's key is spelled and read."""

    suffix: str
    from_text: Callable[[str], object]
    """What a variable's text is in the file."""
    check: Callable[[object, "Given"], object]
    """From the file's value to the field's. Raises `_WrongError`."""


# --- kinds of field


def whole(default: int, *, low: int, high: int) -> int:
    """Declare a whole number."""

    def check(value: object, _given: "Given") -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _WrongError(f"a whole number from {low} to {high}")
        return value

    return _declared(default, _Key("", int, check))


def seconds(default: float, *, low: float, high: float) -> timedelta:
    """Declare a duration: seconds in the file, under a key that ends in `_s`."""

    def check(value: object, _given: "Given") -> timedelta:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise _WrongError(f"seconds, from {low:g} to {high:g}")
        return timedelta(seconds=value)

    return _declared(timedelta(seconds=default), _Key("_s", float, check))


def flag(*, default: bool) -> bool:
    """Declare a yes or no."""

    def check(value: object, _given: "Given") -> bool:
        if not isinstance(value, bool):
            raise _WrongError("true or false")
        return value

    return _declared(default, _Key("", lambda given: {"true": True, "false": False}[given.lower()], check))


def text(default: str, *, choices: tuple[str, ...] = ()) -> str:
    """Declare a text that is never empty, perhaps one of `choices`."""

    def check(value: object, _given: "Given") -> str:
        if not isinstance(value, str) or not value or (choices and value not in choices):
            raise _WrongError(f"one of {', '.join(choices)}" if choices else "a text")
        return value

    return _declared(default, _Key("", str, check))


def optional_text() -> str | None:
    """Declare a text; empty is not set."""

    def check(value: object, _given: "Given") -> str | None:
        if not isinstance(value, str):
            raise _WrongError("a text, empty for none")
        return value or None

    return _declared(None, _Key("", str, check))


def url() -> str:
    """Declare an http or https address that must be given."""
    return cast("str", dataclasses.field(metadata={"key": _Key("", str, _checked_url)}))


def optional_url() -> str | None:
    """Declare an http or https address; empty is not set."""

    def check(value: object, given: "Given") -> str | None:
        return _checked_url(value, given) if value != "" else None

    return _declared(None, _Key("", str, check))


def optional_path() -> PurePath | None:
    """Declare a path, `~/` being the home directory; empty is not set."""

    def check(value: object, given: "Given") -> PurePath | None:
        if not isinstance(value, str) or "\0" in value:
            raise _WrongError("a path, empty for none")
        if value.startswith("~/"):
            return PurePath(given.home) / value[2:]
        return given.base / value if value else None

    return _declared(None, _Key("", str, check))


def _declared(default: T, key: _Key) -> T:
    # What stands in the class body is the field's declaration; to its reader and to the type checker, the default.
    return dataclasses.field(default=default, metadata={"key": key})


def _checked_url(value: object, _given: "Given") -> str:
    if not isinstance(value, str) or not _is_http(value):
        raise _WrongError("an http:// or https:// address without user and password")
    return value


def _is_http(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return bool(
            parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc and parts.port != 0
        )
    except ValueError:
        return False


# --- what was given


@dataclass(frozen=True, slots=True)
class Given:
    """What the file and the variables say, all names known, no value looked at yet."""

    base: PurePath
    home: str
    tables: Mapping[str, Mapping[str, object]]
    lists: Mapping[str, tuple[Mapping[str, object], ...]]
    variables: Mapping[tuple[str, str], str]
    """By table and key."""

    @classmethod
    def read(
        cls,
        toml_text: str | None,
        environ: Mapping[str, str],
        *,
        base: PurePath,
        tables: Mapping[str, type],
        lists: Mapping[str, type],
    ) -> "Given":
        """Parse the file and sort the variables. Raises `HaltError` for what is not TOML, and for unknown names."""
        try:
            document = tomllib.loads(toml_text or "")
        except tomllib.TOMLDecodeError as error:
            # The parser's message may quote what it met; only the position is repeated.
            place = str(error).rpartition("(")[2].rstrip(")")
            raise HaltError(f"The settings file is not TOML ({place})") from None
        own_tables = [name for name in tables if name]
        top = {name: value for name, value in document.items() if name not in own_tables and name not in lists}
        _refuse_unknown("", top, [*_keys(tables[""]), *own_tables, *lists])
        found = {"": top} | {name: _table(name, document.get(name, {}), tables[name]) for name in own_tables}
        rows = {name: _rows(name, document.get(name, []), row) for name, row in lists.items()}
        home = environ.get("HOME") or "~"
        return cls(base, home, found, rows, _variables(environ, tables, lists))

    def has(self, table: str, key: str) -> bool:
        """Say whether a key was set at all."""
        return key in self.tables[table] or (table, key) in self.variables

    def table(self, name: str, shape: type[T]) -> T:
        """Read one table. Raises `HaltError` naming the key."""
        fields = self._fields(shape, self.tables[name], f"{name}." if name else "")
        # A variable's path is relative to where the process runs, as in any shell.
        here = dataclasses.replace(self, base=PurePath())
        for spelled, (field_name, key) in _keys(shape).items():
            if (name, spelled) in self.variables:
                raw = self.variables[name, spelled]
                fields[field_name] = _checked(_variable(name, spelled), key, _from_text(key, raw), here)
        return shape(**fields)

    def rows(self, name: str, shape: type[T]) -> Iterator[T]:
        """Read an array of tables. Raises `HaltError` naming the key."""
        for number, row in enumerate(self.lists[name], start=1):
            yield shape(**self._fields(shape, row, f"{name}[{number}]."))

    def _fields(self, shape: type, values: Mapping[str, object], dotted: str) -> dict[str, Any]:
        fields = {}
        for spelled, (field_name, key) in _keys(shape).items():
            if spelled in values:
                fields[field_name] = _checked(dotted + spelled, key, values[spelled], self)
        for each in dataclasses.fields(shape):
            if each.default is dataclasses.MISSING and each.name not in fields:
                raise HaltError(f"{dotted}{each.name}: missing")
        return fields


def _checked(name: str, key: _Key, value: object, given: Given) -> object:
    try:
        return key.check(value, given)
    except _WrongError as error:
        raise HaltError(f"{name}: must be {error}") from None


def _from_text(key: _Key, raw: str) -> object:
    """Give what the file would hold; the text itself, which no check of another type accepts, if it can't be read."""
    try:
        return key.from_text(raw)
    except (ValueError, KeyError):
        return raw


def _keys(shape: type) -> dict[str, tuple[str, _Key]]:
    """Keys of a table as spelled in the file, each with its field's name."""
    found = {}
    for each in dataclasses.fields(shape):
        key: _Key = each.metadata["key"]
        found[each.name + key.suffix] = (each.name, key)
    return found


def _table(name: str, value: object, shape: type) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise HaltError(f"{name}: must be a table, [{name}]")
    _refuse_unknown(f"{name}.", value, _keys(shape))
    return value


def _rows(name: str, value: object, shape: type) -> tuple[Mapping[str, object], ...]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise HaltError(f"{name}: must be an array of tables, [[{name}]]")
    for number, row in enumerate(value, start=1):
        _refuse_unknown(f"{name}[{number}].", row, _keys(shape))
    return tuple(value)


def _variable(table: str, key: str) -> str:
    return PREFIX + "_".join(part.upper() for part in (table, key) if part)


def _variables(
    environ: Mapping[str, str], tables: Mapping[str, type], lists: Mapping[str, type]
) -> dict[tuple[str, str], str]:
    """Sort `PIPELINE_*` by table and key; an empty one is not set. Raises `HaltError` for an unknown one."""
    known = {_variable(table, key): (table, key) for table, shape in tables.items() for key in _keys(shape)}
    found = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or not value:
            continue
        if any(name.startswith(_variable("", each)) for each in lists):
            raise HaltError(f"{name}: a list of tables can be set in the file only")
        if name not in known:
            raise HaltError(f"{name}: there is no such setting{_nearest(name, known)}")
        found[known[name]] = value
    return found


def _refuse_unknown(dotted: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise HaltError(f"{dotted}{_printable(name)}: there is no such setting{_nearest(name, names)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _printable(name: str) -> str:
    """Make a key fit for a terminal and a log line."""
    return name if name.isprintable() and len(name) <= 64 else "a key"
