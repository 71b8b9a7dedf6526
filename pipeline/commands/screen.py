"""Standard output and standard error of the commands.

Standard output carries the answer alone: tables for people, JSON for programs. No control character that came from
outside reaches a terminal.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

from pipeline.errors import PipelineError, RefuseError
from pipeline.terminal import escaped

if TYPE_CHECKING:
    from rich.console import Console

_KIB = 1024.0


def emit(document: Mapping[str, Any]) -> None:
    """Print one JSON object as a line."""
    typer.echo(json.dumps(document, default=str))  # ASCII only: nothing in it can move a cursor


def say(text: str) -> None:
    """Print a line for a person to standard output."""
    typer.echo(escaped(text))


def note(text: str) -> None:
    """Print a line for a person to standard error."""
    typer.echo(escaped(text), err=True)


def told(error: PipelineError) -> str:
    """Write an error for a person: what is wrong, and where."""
    place = f"{error.field}: " if isinstance(error, RefuseError) and error.field else ""
    return f"{place}{error}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print a table; `right` names the columns of numbers. Not cut where the output is no terminal."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(escaped(title)), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(escaped(str(cell))) for cell in row))
    console = _console(sys.stdout)
    if console.is_terminal:
        console.print(grid)
        return
    console.width = max(console.measure(grid, options=console.options.update(width=100_000)).maximum, 20)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


class Progress(Protocol):
    """A bar that moves."""

    def __call__(self, done: int, total: int | None) -> None:
        """Show that much."""
        ...


@contextmanager
def progress(what: str, *, is_bytes: bool) -> Iterator[Progress]:
    """Show a bar on standard error while the block runs, if that is a terminal."""
    if not sys.stderr.isatty():
        yield _no_bar
        return
    from rich import progress as bars

    amount = bars.DownloadColumn(binary_units=True) if is_bytes else bars.MofNCompleteColumn()
    shown = bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        amount,
        bars.TimeRemainingColumn(),
        console=_console(sys.stderr),
        transient=True,
    )
    with shown:
        task = shown.add_task(escaped(what), total=None)

        def move(done: int, total: int | None) -> None:
            shown.update(task, completed=done, total=total)

        yield move


def size(size_bytes: int | None) -> str:
    """Write a number of bytes for a person."""
    if size_bytes is None:
        return "-"
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < _KIB:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KIB
    return f"{value:.1f} TiB"


def age(seconds: float) -> str:
    """Write a duration for a person."""
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {left}s" if minutes else f"{left}s"


def _no_bar(done: int, total: int | None) -> None:
    pass


def _console(stream: Any) -> "Console":
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False)
