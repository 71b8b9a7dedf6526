"""The policy table as it is shown: to a person, to a program, in the README. Pure."""

from collections.abc import Iterable

from pipeline.records.classes import POLICIES
from pipeline.records.policy import Policy


def documents() -> list[dict[str, object]]:
    """Give the table for a program."""
    return [
        {
            "dataClass": row.data_class,
            "keyMode": str(row.key_mode),
            "keyScope": str(row.key_scope),
            "contextKeys": list(row.context_keys),
            "onRevoke": str(row.on_revoke),
            "keyChange": row.change_text,
            "retention": str(row.retention),
            "index": str(row.index),
        }
        for row in POLICIES.values()
    ]


COLUMNS = ("class", "KMS key", "data keys of", "encryption context", "when revoked", "change of key", "kept", "index")


def cells() -> list[tuple[str, ...]]:
    """Give the table for a person, one tuple a class."""
    return [
        (
            row.data_class,
            _mode(row),
            str(row.key_scope),
            " ".join(row.context_keys),
            str(row.on_revoke),
            row.change_text,
            _kept(row),
            _index(row),
        )
        for row in POLICIES.values()
    ]


def markdown() -> str:
    """Write the table as the README has it."""
    lines = [_line(COLUMNS), _line("---" for _ in COLUMNS)]
    lines += [_line((f"`{first}`", *rest)) for first, *rest in cells()]
    return "\n".join(lines) + "\n"


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _mode(row: Policy) -> str:
    chain = ", ".join(row.key_lookup)
    return f"{row.key_mode}: {chain}" + (f"; required with {', '.join(row.required_when)}" if row.required_when else "")


def _kept(row: Policy) -> str:
    return "; ".join(f"{part.name} {part.retention}" for part in row.parts) or str(row.retention)


def _index(row: Policy) -> str:
    names = ", ".join(field.name for field in row.fields)
    return f"{row.index}: {names}" if names else str(row.index)
