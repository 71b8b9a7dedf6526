"""`pipeline put`: send one recording, and try until it is taken."""

import mimetypes
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.options import (
    DEFAULT_URL,
    GiveUpOption,
    JsonOption,
    RecordingKind,
    TokenFileOption,
    UrlOption,
    opened,
    server,
    standard_input,
)
from pipeline.errors import RefuseError

EXAMPLE = "Example: pipeline put call.wav --instance aaaa1111-0000-4000-8000-000000000001 --contact c-42 --kind voice"
STDIN = Path("-")


def put(
    file: Annotated[Path, typer.Argument(help="The recording; - is standard input, which can't be resumed.")],
    instance: Annotated[UUID, typer.Option(help="The instance's id.")],
    contact: Annotated[str, typer.Option(help="The contact's id.")],
    kind: Annotated[RecordingKind, typer.Option(help="What the recording is.")],
    name: Annotated[
        str | None, typer.Option(show_default=False, help="Tells two recordings of one contact and kind apart.")
    ] = None,
    source_id: Annotated[
        str | None,
        typer.Option(show_default=False, help="Idempotency key; without it the service takes contact, kind and name."),
    ] = None,
    start: Annotated[str | None, typer.Option(show_default=False, help="Start: ISO 8601 or Unix seconds.")] = None,
    end: Annotated[str | None, typer.Option(show_default=False, help="End: ISO 8601 or Unix seconds.")] = None,
    content_type: Annotated[
        str | None, typer.Option(show_default=False, help="Media type; without it the file name tells.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    give_up_after: GiveUpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one recording and try again until it is sealed and durable there.

    An upload that breaks off is resumed where the service has it. Prints the service's answer as JSON.
    """
    import anyio
    import msgspec

    from pipeline.client import Patience, Taken, Upload, connected, put_file, put_stream, upload_path

    del as_json  # the answer is JSON in any case
    headers = {
        "Idempotency-Key": source_id,
        "X-Recording-Start": start,
        "X-Recording-End": end,
        "Content-Type": content_type or mimetypes.guess_type(file.name)[0] or "application/octet-stream",
    }
    upload = Upload(path=upload_path(str(instance), contact, kind, name), headers=_checked(headers))
    where = server(url, token_file)

    async def send() -> Taken:
        patience = Patience(give_up_after, notice=screen.note)
        async with connected(where) as client:
            with ExitStack() as stack:
                moved = stack.enter_context(screen.progress(file.name, is_bytes=True))
                if file == STDIN:
                    return await put_stream(client, upload, standard_input(), patience, moved)
                return await put_file(client, upload, stack.enter_context(opened(file)), patience, moved)

    screen.emit(msgspec.to_builtins(anyio.run(send)))


def _checked(headers: dict[str, str | None]) -> dict[str, str]:
    """Leave out what was not given. Raises `RefuseError` for a value that would break out of its header."""
    given = {name: value for name, value in headers.items() if value is not None}
    for name, value in given.items():
        if not value.isprintable():
            raise RefuseError("printable characters are expected", field=name)
    return given
