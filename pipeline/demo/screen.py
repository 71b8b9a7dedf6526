"""What the demo shows: progress on standard error, the outcome on standard output."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TextIO

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from pipeline.demo.checking import Verdict
from pipeline.demo.search import Searched


@dataclass(slots=True)
class Outcome:
    """What all checks found."""

    verdicts: list[Verdict]
    open_search: Searched
    """Of the interim store while every recording was in progress."""
    store_search: Searched
    bucket_search: Searched
    extra: list[str]
    """Objects that should not be there."""

    @property
    def plaintext_hits(self) -> int:
        """Markers found, of all searches."""
        return sum(len(each.hits) for each in (self.open_search, self.store_search, self.bucket_search))

    @property
    def is_equal(self) -> bool:
        """Whether everything that was read back is what was sent."""
        return not any(verdict.unequal for verdict in self.verdicts)

    @property
    def doubts(self) -> list[str]:
        """Everything that does not hold, in sentences."""
        found = list(self.extra)
        for verdict in self.verdicts:
            place = f"s3://{verdict.storage.bucket}/{verdict.key}"
            found += [f"{place}: {doubt}" for doubt in dict.fromkeys((*verdict.unproven, *verdict.unequal))]
        for searched in (self.open_search, self.store_search, self.bucket_search):
            found += [f"{hit.file} holds plaintext of {hit.marker.place}" for hit in searched.hits]
        return found


@dataclass(slots=True)
class Step:
    """One step of the demo, while it goes on."""

    doing: str
    status: Status | None
    done: str = ""
    """What is said when it has ended."""

    def tell(self, progress: str) -> None:
        """Say how far it is, where that can be shown."""
        if self.status is not None:
            self.status.update(f"{self.doing}: {progress}")


@dataclass(slots=True)
class Screen:
    """Standard error for people, standard output for the outcome."""

    error: Console = field(default_factory=lambda: _console(sys.stderr))
    output: Console = field(default_factory=lambda: _console(sys.stdout))

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line for a person: never broken, so that it can be copied."""
        self.error.print(Text(text, style), soft_wrap=True)

    @contextmanager
    def step(self, doing: str) -> Iterator[Step]:
        """Show a step: what is done while the block runs at a terminal, and what was done in the end."""
        began = time.monotonic()
        if self.error.is_terminal:
            with self.error.status(doing) as status:
                step = Step(doing, status)
                yield step
        else:
            step = Step(doing, None)
            yield step
        took = f"{time.monotonic() - began:.1f} s"
        self.error.print(Text.assemble(("  ok  ", "green"), step.done or doing, (f"  {took}", "dim")))

    def show(self, outcome: Outcome) -> None:
        """Print the table, and what the searches found."""
        self.output.print()
        by_instance = sorted(outcome.verdicts, key=lambda verdict: verdict.alias)
        for _, group in groupby(by_instance, lambda verdict: verdict.alias):
            self._show_instance(list(group))
        chats = sum(verdict.sample.is_chat for verdict in outcome.verdicts)
        equal = f"{len(outcome.verdicts) - chats} byte for byte, {chats} chats item by item"
        said = f"equal to what was sent: {equal}" if outcome.is_equal else "DIFFERENT from what was sent"
        self._fact("read back", said, held=outcome.is_equal)
        for what, searched in (
            ("state directory, while every call and screen was being received", outcome.open_search),
            ("state directory, after delivery", outcome.store_search),
            ("data folder of the bucket server", outcome.bucket_search),
        ):
            said = f"{len(searched.hits)} hits in {searched.files} files, {searched.size_bytes:,} bytes: {what}"
            self._fact("plaintext", said, held=not searched.hits)

    def show_json(self, outcome: Outcome) -> None:
        """Print the outcome as one JSON object."""
        recordings = [
            {
                "instance": str(verdict.sample.instance_id),
                "contact": verdict.sample.contact,
                "kind": verdict.sample.kind.value,
                "bucket": verdict.storage.bucket,
                "key": verdict.key,
                "bytes": verdict.size_bytes,
                "kmsKeyArn": verdict.storage.kms_key_arn,
                "proven": not verdict.unproven,
            }
            for verdict in outcome.verdicts
        ]
        read_back = "equal" if outcome.is_equal else "different"
        document = {"recordings": recordings, "readBack": read_back, "plaintextHits": outcome.plaintext_hits}
        self.output.file.write(json.dumps(document) + "\n")
        self.output.file.flush()

    # --- inside

    def _show_instance(self, verdicts: Sequence[Verdict]) -> None:
        storage = verdicts[0].storage
        heading = Text.assemble((verdicts[0].alias, "bold"), f"  {verdicts[0].sample.instance_id}")
        self.output.print(heading)
        self.output.print(Text(f"bucket   {storage.bucket}\nKMS key  {storage.kms_key_arn}"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("kind")
        table.add_column("object key", overflow="fold")
        table.add_column("bytes", justify="right")
        table.add_column("proven")
        for verdict in verdicts:
            proven = Text("no", "bold red") if verdict.unproven else Text("yes", "green")
            table.add_row(verdict.sample.kind.value, Text(verdict.key), f"{verdict.size_bytes:,}", proven)
        self.output.print(table)
        self.output.print()

    def _fact(self, name: str, said: str, *, held: bool) -> None:
        style = "green" if held else "bold red"
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=11)
        grid.add_column(overflow="fold")
        grid.add_row(Text(name, style), Text(said))
        self.output.print(grid)


def _console(stream: TextIO) -> Console:
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200  # nothing is folded for a file or a pipe
    return console
