"""Cut a list into the pages that the List operations answer with. Pure."""

import base64
from typing import Any

from pipeline.kms.refusal import KmsRefusalError


def page(member: str, entries: list[tuple[str, dict[str, Any]]], marker: str | None, limit: int) -> dict[str, Any]:
    """Give the page after `marker`.

    Args:
        member: the answer's name for the list.
        entries: all of it, sorted by the first of each pair.

    Raises: KmsRefusalError (InvalidMarkerException).
    """
    after = "" if marker is None else _decoded(marker)
    rest = [(name, entry) for name, entry in entries if name > after]
    shown = rest[:limit]
    answer: dict[str, Any] = {member: [entry for _, entry in shown], "Truncated": len(rest) > limit}
    if len(rest) > limit:
        answer["NextMarker"] = base64.b64encode(shown[-1][0].encode()).decode()
    return answer


def _decoded(marker: str) -> str:
    try:
        return base64.b64decode(marker, validate=True).decode()
    except ValueError:
        raise KmsRefusalError("InvalidMarkerException", "The marker is not one that this server gave.") from None
