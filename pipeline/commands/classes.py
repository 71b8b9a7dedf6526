"""`pipeline classes`: the classes of data, and the policy of each."""

from pipeline.commands import screen
from pipeline.commands.options import JsonOption

EXAMPLE = "Example: pipeline classes show"


def show(as_json: JsonOption = False) -> None:
    """Show the policy of every class of data: keys, encryption context, what happens when a key is revoked, retention.

    The table is part of the program: nothing is configured by it, and nothing is read to show it.
    """
    from pipeline.records.shown import COLUMNS, cells, documents

    if as_json:
        screen.emit({"classes": documents()})
    else:
        rows = cells()
        screen.table(f"classes: {len(rows)}", COLUMNS, rows)
