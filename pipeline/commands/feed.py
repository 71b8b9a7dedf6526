"""`pipeline feed`: play events from JSON lines to the service."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands import screen
from pipeline.commands.exits import ExitCode
from pipeline.commands.options import (
    DEFAULT_URL,
    GiveUpOption,
    JsonOption,
    TokenFileOption,
    UrlOption,
    opened,
    server,
    standard_input,
)
from pipeline.errors import PipelineError

EXAMPLE = "Example: pipeline feed events.jsonl --token-file token"
_STDIN = Path("-")


def feed(
    file: Annotated[Path, typer.Argument(help="One EventBridge envelope on each line; - is standard input.")],
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    give_up_after: GiveUpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send events in order, and try again until they are taken.

    A line that the service refuses is told by its number and left out; the exit code is then 1. Sending a file twice
    does no harm.
    """
    import anyio
    import anyio.to_thread

    from pipeline.client import Patience, Stream, connected
    from pipeline.commands.batches import Feed, read_lines

    where = server(url, token_file)

    async def play(stream: Stream) -> Feed:
        lines = read_lines(stream)
        async with connected(where) as client:
            feed = Feed(client, Patience(give_up_after, notice=screen.note), told)
            with screen.progress(file.name, is_bytes=False) as moved:
                try:
                    while (
                        piece := await anyio.to_thread.run_sync(next, lines, None, abandon_on_cancel=True)
                    ) is not None:
                        await feed.send(piece)
                        moved(feed.taken + feed.refused, None)
                except PipelineError:
                    screen.note(f"{feed.taken} events were taken, all up to line {feed.last_line}; go on behind it")
                    raise
        return feed

    def told(number: int, field: str | None, why: str) -> None:
        if as_json:
            screen.emit({"line": number, "field": field, "refused": why})
        screen.note(f"line {number}: {f'{field}: ' if field else ''}{why}")

    with ExitStack() as stack:
        done = anyio.run(play, standard_input() if file == _STDIN else stack.enter_context(opened(file)))
    if as_json:
        screen.emit({"taken": done.taken, "refused": done.refused})
    else:
        screen.say(f"{done.taken} events taken, {done.refused} refused")
    if done.refused:
        raise typer.Exit(ExitCode.FOUND)
