"""Whether the state directory is its owner's alone: a walk over it, at each start and by `pipeline doctor`.

Changes nothing: what loosened it is for a person to find out.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

MOST_ENTRIES = 200_000
"""Files whose permissions are looked at: enough to find a habit, few enough to wait for."""


def open_to_others_in(state: Path) -> Iterator[Path]:
    """Give paths that group or others may enter or read. Below a closed bucket folder nobody gets in."""
    if state.stat().st_mode & 0o077:
        yield state
    seen = 0
    for folder, names, files in os.walk(state):
        if Path(folder).name == "bucket":
            names[:] = [name for name in names if name != "data"]  # written by another program, in a closed folder
        for name in (*names, *files):
            seen += 1
            if seen > MOST_ENTRIES:
                return
            path = Path(folder, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISLNK(mode) and mode & 0o077:
                yield path
