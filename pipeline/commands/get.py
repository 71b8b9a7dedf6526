"""`pipeline get`: the plaintext of one recording, from the interim store or from its bucket."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import RefuseError, SegmentForgedError

if TYPE_CHECKING:
    from pipeline.commands.access import Access
    from pipeline.commands.find import Found
    from pipeline.commands.plaintext import Plaintext

EXAMPLE = "Example: pipeline get 019b0c3e-7d1a-7c22-9f5e-2a4b6c8d0e1f -o call.wav"


class Origin(StrEnum):
    """Where the bytes are read."""

    AUTO = "auto"
    STORE = "store"
    BUCKET = "bucket"


def get(
    wanted: Annotated[UUID, typer.Argument(metavar="ID", help="An artifact's id, or a recording's.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Write to this file.")
    ] = None,
    byte_range: Annotated[
        str | None,
        typer.Option("--range", metavar="A-B", show_default=False, help="These bytes only, both ends included."),
    ] = None,
    origin: Annotated[Origin, typer.Option("--from", help="Where to read it.")] = Origin.AUTO,
    generation: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=False, help="This generation; without it the artifact of that id, or the newest."
        ),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", show_default=False, help="Why: it stands in the audit log.")
    ] = None,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="What is known of its contact instead, as JSON: numbers, attributes.")
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the plaintext of a recording to a file or a pipe, never to a terminal.

    The audit log says who opened it before the first byte leaves. A whole recording is compared with the SHA-256 that
    was fixed when it was sealed.
    """
    import anyio

    if output is None and (as_json or sys.stdout.isatty()):
        raise typer.BadParameter("give a file: plaintext goes to no terminal, and not among JSON", param_hint="-o")
    bounds = _bounds(byte_range)
    site = open_site(config, state_dir)
    if metadata:
        if byte_range is not None or origin is not Origin.AUTO:
            raise typer.BadParameter("metadata has no ranges, and is in no bucket", param_hint="--metadata")
        _write_metadata(site, wanted, generation, output, reason, as_json=as_json)
        return
    answer = anyio.run(_get, site, wanted, generation, origin, bounds, output, reason)
    if as_json:
        screen.emit(answer)
    else:
        checked = "SHA-256 compared" if answer["compared"] else "a part, so not compared as a whole"
        screen.note(f"{answer['bytes']} bytes from the {answer['from']}; {checked}")


def _write_metadata(
    site: Site, wanted: UUID, generation: int | None, output: Path | None, reason: str | None, *, as_json: bool
) -> None:
    import anyio
    import msgspec

    from pipeline.commands.contacts import metadata_of
    from pipeline.commands.records import write_file
    from pipeline.records.contactmerge import shown

    record = anyio.run(metadata_of, site, wanted, generation, reason)
    body = msgspec.json.format(msgspec.json.encode(shown(record.body))) + b"\n"
    if output is None:
        sys.stdout.buffer.write(body)
    else:
        write_file(output, body)
    if as_json:
        screen.emit({"contact": record.id, "version": record.version, "bytes": len(body)})
    else:
        screen.note(f"metadata of contact {record.id}, version {record.version}")


def _bounds(text: str | None) -> tuple[int, int | None]:
    """Read `A-B` or `A-` as a start and an end that is not included."""
    if text is None:
        return 0, None
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and (not last or last.isdecimal())) or (last and int(last) < int(first)):
        raise typer.BadParameter("the form is FIRST-LAST, as 0-1023, or FIRST-", param_hint="--range")
    return int(first), int(last) + 1 if last else None


async def _get(
    site: Site,
    wanted: UUID,
    generation: int | None,
    origin: Origin,
    bounds: tuple[int, int | None],
    output: Path | None,
    reason: str | None,
) -> dict[str, Any]:
    from contextlib import AsyncExitStack

    from pipeline.commands.access import open_access
    from pipeline.commands.find import find
    from pipeline.commands.plaintext import from_bucket, from_store

    async with AsyncExitStack() as stack:
        access = await stack.enter_async_context(open_access(site.settings))
        found = find(site, access.files, wanted, generation)
        chosen = _chosen(found, origin)
        opener = from_store if chosen is Origin.STORE else from_bucket
        source = await stack.enter_async_context(opener(site, access, found))
        start, end = bounds[0], source.size_bytes if bounds[1] is None else min(bounds[1], source.size_bytes)
        if start > end or (start == end and start):
            raise RefuseError(f"the recording has {source.size_bytes} bytes", field="--range")
        await _tell(access, found, source, chosen, (start, end), reason)
        compared = await _write(source, start, end, output)
        return {
            "artifactId": str(found.artifact_id),
            "recordingId": str(source.recording_id),
            "generation": found.generation,
            "from": chosen,
            "bytes": end - start,
            "compared": compared,
            "contentType": source.content_type,
        }


def _chosen(found: "Found", origin: Origin) -> Origin:
    """Choose where to read. Raises `RefuseError` where it can't be."""
    if origin is Origin.AUTO:
        return Origin.BUCKET if found.receipt is not None else Origin.STORE
    if origin is Origin.BUCKET and found.receipt is None:
        raise RefuseError("it is not delivered yet, so no bucket has it for sure", field="--from")
    if origin is Origin.STORE and found.receipt is not None:
        raise RefuseError("it is delivered, and its media are gone from the store", field="--from")
    return origin


async def _tell(
    access: "Access", found: "Found", source: "Plaintext", origin: Origin, part: tuple[int, int], reason: str | None
) -> None:
    """Record who opens what and why, durably, before any of it leaves."""
    start, end = part
    line = access.trail.changed(
        found.instance_id,
        "PlaintextOpened",
        artifactId=str(found.artifact_id),
        recordingId=str(source.recording_id),
        kind=found.kind,
        generation=found.generation,
        purpose="get",
        reason=reason,
        source=origin,
        firstByte=start,
        bytes=end - start,
        whole=(start, end) == (0, source.size_bytes),
    )
    await access.record(line)


async def _write(source: "Plaintext", start: int, end: int, output: Path | None) -> bool:
    """Write the bytes; a file comes to be only when all of it is there and right. Tells whether it was compared."""
    if output is None:
        return await _copy(source, start, end, sys.stdout.buffer)
    import os
    import tempfile

    try:
        handle, aside = tempfile.mkstemp(dir=output.absolute().parent, prefix=f".{output.name}.")  # 0600
    except OSError as error:
        raise RefuseError(f"the file can't be written: {error.strerror}", field="-o") from None
    try:
        with os.fdopen(handle, "wb") as file:
            compared = await _copy(source, start, end, file)
        Path(aside).rename(output)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return compared


async def _copy(source: "Plaintext", start: int, end: int, target: BinaryIO) -> bool:
    import hashlib

    digest = hashlib.sha256()
    is_whole = (start, end) == (0, source.size_bytes)
    with screen.progress("opening", is_bytes=True) as moved:
        at = start
        async for piece in source.read(start, end):
            digest.update(piece)
            target.write(piece)
            at += len(piece)
            moved(at - start, end - start)
    target.flush()
    if is_whole and digest.hexdigest() != source.sha256:
        raise SegmentForgedError(
            "the bytes are not those that were sealed; what was written of them is not to be trusted"
        )
    return is_whole
