"""Bring a store of an earlier format version to this one.

The marker comes first, so that an earlier program refuses what it would only half see; every step can be done again.
"""

import re

import structlog

from pipeline.ports import FileSystem

log = structlog.get_logger()

OLDEST = 1
"""The first version that can be brought to this one."""
_FOLDER_OF_1 = re.compile(r"[0-9a-f]{2}")


def migrate(files: FileSystem, root: str) -> None:
    """Move what an earlier version left elsewhere to where it belongs now.

    Version 1 had 256 folders, by the last two digits of the artifact id; since 2 there are 16, by the last.

    Raises:
        StoreFullError, StoreIoError: what is not moved yet is where it was.

    """
    artifacts = f"{root}/artifacts"
    moved = 0
    for folder in sorted(filter(_FOLDER_OF_1.fullmatch, files.names(artifacts))):
        names = files.names(f"{artifacts}/{folder}")
        for name in names:
            files.rename(f"{artifacts}/{folder}/{name}", f"{artifacts}/{folder[-1]}/{name}")
        if names:
            files.sync_directory(f"{artifacts}/{folder[-1]}")
            files.sync_directory(f"{artifacts}/{folder}")
        moved += len(names)
    if moved:
        log.info("store.migrated", files=moved)
