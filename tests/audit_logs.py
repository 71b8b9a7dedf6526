"""Audit logs as tests write and read them. For tests only."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.audit.chain import NO_HASH, file_names, leaf_hash, link_of
from tests.model_disk import ModelDisk

HOUR, NEXT_HOUR = "2026-11-28T10", "2026-11-28T11"
TIME = "2026-11-28T10:00:00Z"


def record(number: int, **details: Any) -> bytes:
    """Make a record."""
    actor = {"type": "Service", "arn": "test"}
    common = {"eventVersion": "1.11", "userIdentity": actor, "eventTime": TIME, "eventID": f"e-{number}"}
    return json.dumps({**common, "eventName": f"Event{number}", "requestParameters": details}).encode()


def files_of(tree: Mapping[str, bytes], directory: str) -> list[bytes]:
    """Give the contents of a log's files, in order."""
    inside = {path.rpartition("/")[2]: path for path in tree if path.rpartition("/")[0] == directory}
    return [tree[inside[str(name)]] for name in file_names(inside)]


def chained(contents: Iterable[bytes]) -> list[dict[str, Any]]:
    """Read the lines of a log; each must follow the one before."""
    found: list[dict[str, Any]] = []
    last = NO_HASH
    for content in contents:
        *lines, rest = content.split(b"\n")
        assert rest == b"", "a torn line"
        for line in lines:
            link = link_of(line)
            assert link is not None, line
            assert (link.index, link.previous) == (len(found), last), line
            found.append(json.loads(line))
            last = leaf_hash(line).hex()
    return found


def names(disk: ModelDisk, directory: str) -> list[str]:
    """Give the events of a log on a modelled disk."""
    return [each["eventName"] for each in chained(files_of(disk.tree(), directory))]
