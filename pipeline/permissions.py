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
    folders = [str(state)]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:  # gone meanwhile, or not to be read by us either
            continue
        for entry in entries:
            seen += 1
            if seen > MOST_ENTRIES:
                return
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISLNK(mode) and mode & 0o077:
                yield Path(entry.path)
            if stat.S_ISDIR(mode) and not _is_foreign(entry):
                folders.append(entry.path)


def _is_foreign(entry: "os.DirEntry[str]") -> bool:
    """Tell of a folder that another program writes, in a closed one."""
    return entry.name == "data" and Path(entry.path).parent.name == "bucket"
