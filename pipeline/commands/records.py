"""`pipeline records`: put, get, list, find, delete and import records, by the service."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.options import (
    DEFAULT_URL,
    ConfigOption,
    GiveUpOption,
    JsonOption,
    StateDirOption,
    TokenFileOption,
    UrlOption,
    open_site,
    opened,
    server,
    standard_input,
)
from pipeline.errors import PipelineError, RefuseError

if TYPE_CHECKING:
    from pipeline.client import Answer, Client, Stream

EXAMPLES = {
    "put": "Example: pipeline records put profiles_domain p-17 profile.json --instance aaaa1111-…",
    "get": "Example: pipeline records get cases c-42 --instance aaaa1111-… -o case.json",
    "ls": "Example: pipeline records ls campaigns --instance aaaa1111-…",
    "search": "Example: pipeline records search profiles_domain phone --instance aaaa1111-… <number.txt",
    "delete": "Example: pipeline records delete cases c-42 --instance aaaa1111-…",
    "sweep": "Example: pipeline records sweep acme --dry-run",
    "import": "Example: pipeline records import profiles_domain profiles.jsonl --instance aaaa1111-…",
}
_STDIN = Path("-")
_SHOWN = 1000

ClassArgument = Annotated[str, typer.Argument(metavar="CLASS", help="The class of data: `pipeline classes show`.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The record's id.")]
IdOption = Annotated[UUID, typer.Option("--instance", help="The instance's id.")]
ScopeOption = Annotated[
    str | None,
    typer.Option("--scope", metavar="NAME", show_default=False, help="Which of several domains or resources."),
]


def put(
    data_class: ClassArgument,
    record_id: IdArgument,
    file: Annotated[Path, typer.Argument(help="The record; - is standard input.")],
    instance: IdOption,
    scope: ScopeOption = None,
    part: Annotated[str | None, typer.Option(show_default=False, help="Which part of its class it is.")] = None,
    content_type: Annotated[str, typer.Option(help="Its media type.")] = "application/json",
    if_version: Annotated[
        int | None, typer.Option(min=0, show_default=False, help="Only if it is at this version; 0: if there is none.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put one record, in place of the one of the same id. Exit code 3 if it is not at the version that was named."""
    with ExitStack() as stack:
        body = everything(standard_input() if file == _STDIN else stack.enter_context(opened(file)))
    headers = {"Content-Type": content_type, **_condition(if_version)}
    answer = ask(url, token_file, "PUT", _path(instance, data_class, record_id, scope, part=part), headers, body)
    if as_json:
        screen.emit(json.loads(answer.body))
    else:
        screen.say(f"version {json.loads(answer.body)['version']}")


def get(
    data_class: ClassArgument,
    record_id: IdArgument,
    instance: IdOption,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Write to this file.")
    ] = None,
    scope: ScopeOption = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one record to a file or a pipe, never to a terminal. The service's audit trail says so first."""
    if output is None and (as_json or sys.stdout.isatty()):
        raise typer.BadParameter("give a file: plaintext goes to no terminal, and not among JSON", param_hint="-o")
    answer = ask(url, token_file, "GET", _path(instance, data_class, record_id, scope))
    if output is None:
        sys.stdout.buffer.write(answer.body)
    else:
        write_file(output, answer.body)
    told = {"version": int(answer.headers["ETag"].strip('"')), "bytes": len(answer.body)}
    if as_json:
        screen.emit(told | {"contentType": answer.headers.get("Content-Type")})
    else:
        screen.note(f"version {told['version']}, {told['bytes']} bytes")


def ls(
    data_class: ClassArgument,
    instance: IdOption,
    scope: ScopeOption = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the records of a class: ids, versions, times. Their ids are sealed, so each is opened, and audited so."""
    shown: list[Mapping[str, Any]] = []
    after = 0
    while True:
        path = _path(instance, data_class, None, scope, after=str(after))
        page = json.loads(ask(url, token_file, "GET", path).body)
        for each in page["records"]:
            if as_json:
                screen.emit(each)
            elif len(shown) < _SHOWN:
                shown.append(each)
        after = page.get("next", 0)
        if not after or (len(shown) >= _SHOWN and not as_json):
            break
    if not as_json:
        _table(shown)
        if after:
            screen.note("there are more: --json lists all")


def search(
    data_class: ClassArgument,
    index: Annotated[str, typer.Argument(metavar="INDEX", help="The index, as `pipeline classes show` names it.")],
    instance: IdOption,
    scope: ScopeOption = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find records by a value on standard input: it is personal, and others can read a command line.

    With --json the records themselves are printed.
    """
    value = everything(standard_input()).decode(errors="replace").strip()
    if not value:
        raise RefuseError("a value is expected on standard input")
    answer = ask(url, token_file, "GET", _path(instance, data_class, None, scope, **{index: value}))
    found = json.loads(answer.body)["records"]
    if as_json:
        for each in found:
            screen.emit(each)
    else:
        _table(found)


def delete(
    data_class: ClassArgument,
    record_id: IdArgument,
    instance: IdOption,
    scope: ScopeOption = None,
    if_version: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Only if it is at this version.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete one record and its index entries. Exit code 3 if there is none."""
    ask(url, token_file, "DELETE", _path(instance, data_class, record_id, scope), _condition(if_version))
    if as_json:
        screen.emit({"deleted": True})
    else:
        screen.say("deleted")


def sweep(
    wanted: Annotated[str, typer.Argument(metavar="INSTANCE", help="Alias or id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; is recorded.")] = "retention",
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove every record of an instance whose time is over; the service does the same by itself, every ten minutes.

    What a legal hold is on is kept. No key is asked for: the time stands beside the sealed record.
    """
    from pipeline.commands.jobs import carry_out, end
    from pipeline.records.sweepjob import VERB

    site = open_site(config, state_dir)
    instance = site.configured(wanted)
    report = carry_out(site, VERB, instance.instance_id, {"dry": dry_run}, reason=reason, what="sweeping")
    outcome = dict(report.outcome)
    if as_json:
        screen.emit(outcome | {"dry": dry_run})
    else:
        for what in ("removed", "held"):
            for data_class, count in sorted(outcome.get(what, {}).items()):
                screen.say(f"{data_class}: {count} {'would be ' if dry_run and what == 'removed' else ''}{what}")
    end(report)


def import_records(
    data_class: ClassArgument,
    file: Annotated[Path, typer.Argument(help="One JSON object a line: id, data, perhaps part. - is standard input.")],
    instance: IdOption,
    scope: ScopeOption = None,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    give_up_after: GiveUpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put many records, and try again until they are taken. The same file twice does no harm.

    Each batch is taken whole or not at all. One that is refused ends the import, with the number of the line that is
    wrong; what came before it is taken, and perhaps the batch after it.
    """
    import anyio

    from pipeline.client import Patience, connected
    from pipeline.commands.imports import Import, batches

    where = server(url, token_file)
    path = _path(instance, data_class, None, scope)

    async def play(stream: "Stream", size_bytes: int | None) -> Import:
        async with connected(where) as client:
            done = Import(client, path, Patience(give_up_after, notice=screen.note))
            with screen.progress(file.name, is_bytes=True) as moved:
                try:
                    await done.send_all(batches(stream), lambda sent: moved(sent, size_bytes))
                except PipelineError:
                    screen.note(f"{done.taken} records were taken, all up to line {done.lines}")
                    raise
        return done

    with ExitStack() as stack:
        stream = standard_input() if file == _STDIN else stack.enter_context(opened(file))
        size_bytes = None if file == _STDIN else os.fstat(stream.fileno()).st_size  # type: ignore[attr-defined]
        done = anyio.run(play, stream, size_bytes)
    if as_json:
        screen.emit({"taken": done.taken, "new": done.new})
    else:
        screen.say(f"{done.taken} records taken, {done.new} of them new")


# --- inside


def _path(instance: UUID, data_class: str, record_id: str | None, scope: str | None, **query: str | None) -> str:
    from pipeline.client import record_path

    asked = {name: value for name, value in {"scope": scope, **query}.items() if value is not None}
    return record_path(str(instance), data_class, record_id, asked)


def everything(stream: "Stream") -> bytes:
    """Read a stream to its end."""
    return b"".join(iter(lambda: stream.read1(65_536), b""))


def _condition(version: int | None) -> dict[str, str]:
    if version is None:
        return {}
    return {"If-Match": f'"{version}"'} if version else {"If-None-Match": "*"}


def ask(
    url: str,
    token_file: Path | None,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> "Answer":
    """Ask the service once.

    Raises:
        RefuseError: it refuses.
        NotTakenError: it can't now.

    """
    import anyio

    from pipeline.client import LinkError, NotTakenError, connected

    where = server(url, token_file)

    async def once(client: "Client") -> "Answer":
        try:
            answer = await client.ask(method, path, headers, body)
        except LinkError as error:
            raise NotTakenError(str(error)) from error
        if answer.is_patient:
            raise NotTakenError(str(answer.refusal()))
        if answer.status >= 300:
            raise answer.refusal()
        return answer

    async def asked() -> "Answer":
        async with connected(where) as client:
            return await once(client)

    return anyio.run(asked)


def write_file(output: Path, body: bytes) -> None:
    """Put a file in place, readable by its owner only. Raises `RefuseError`."""
    from pipeline.config import write_private

    try:
        write_private(output.absolute(), body)
    except OSError as error:
        raise RefuseError(f"the file can't be written: {error.strerror}", field="-o") from None


def _table(records: list[Mapping[str, Any]]) -> None:
    rows = [(each["id"], each["version"], each.get("part", ""), screen.size(each["sizeBytes"]), each["putAt"])
            for each in records]  # fmt: skip
    screen.table(f"records: {len(rows)}", ("id", "version", "part", "size", "put at"), rows, right=("version", "size"))
