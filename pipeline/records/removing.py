"""Rows removed: all of some at once, and one by one where others change them meanwhile."""

from collections.abc import Sequence

from pipeline.records.rows import RecordEngine, Row, RowChange, RowConflictError


async def remove(engine: RecordEngine, rows: Sequence[Row]) -> list[Row]:
    """Remove rows, durably; give those that were changed meanwhile, which are left.

    Raises:
        StoreFullError, StoreIoError: the disk refuses; what was removed stays removed.

    """
    changes = [RowChange(row.shelf, row.tag, row.version, None) for row in rows]
    try:
        await engine.write(changes)
    except RowConflictError:
        left = []
        for row, change in zip(rows, changes, strict=True):
            try:
                await engine.write([change])
            except RowConflictError:
                left.append(row)
        return left
    return []
