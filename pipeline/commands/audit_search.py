"""`pipeline audit search` and `export`: find records, and give logs away."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.audit_logs import LogOption, chosen
from pipeline.commands.options import ConfigOption, JsonOption, StateDirOption, open_site
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.ports import FileSystem

EXAMPLES = {
    "search": "Example: pipeline audit search --instance acme --event PlaintextOpened --since 2026-11-01",
    "export": "Example: pipeline audit export acme -o acme-audit",
}
_ANY = "any"

Matches = Callable[[dict[str, Any]], bool]


def search(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    instance: LogOption = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", show_default=False, help="From this time on (ISO 8601, UTC).")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", show_default=False, help="Before this time (ISO 8601, UTC).")
    ] = None,
    event: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Event name: Decrypt, ArtifactSealed, ….")
    ] = None,
    of: Annotated[
        UUID | None, typer.Option("--id", metavar="ID", show_default=False, help="A recording's or artifact's id.")
    ] = None,
    data_key: Annotated[UUID | None, typer.Option(metavar="ID", show_default=False, help="A data key's id.")] = None,
    kms_key: Annotated[str | None, typer.Option(metavar="ARN", show_default=False, help="A KMS key.")] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Who acted: a principal or a user's name.")
    ] = None,
    error: Annotated[
        str | None, typer.Option(metavar="CODE", show_default=False, help="An error code, or `any`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Find audit records. What is given narrows the search; --json prints each whole record as a line."""
    from pipeline.adapters.disk import Disk

    site, files = open_site(config, state_dir), Disk()
    tests = _tests(_time(since, "--since"), _time(until, "--until"), event, of, data_key, kms_key, actor, error)
    found = 0
    for log in chosen(site, files, instance):
        for record in _records(files, f"{site.root}/audit/{log}"):
            if not all(matches(record) for matches in tests):
                continue
            found += 1
            if as_json:
                screen.emit({"log": log, **record})
            else:
                _show(record)
            if found >= limit:
                screen.note(f"{limit} records; there may be more: give --limit")
                return
    screen.note(f"{found} records")


def export(
    instance: Annotated[str, typer.Argument(metavar="ALIAS|ID|node", help="Whose log.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that does not exist yet.")],
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a log with its checkpoints, digests and public key into a folder: all that a stranger needs to verify it."""
    from pipeline.adapters.disk import Disk
    from pipeline.audit.files import pieces
    from pipeline.audit.reading import snapshot
    from pipeline.audit.signing import CHECKPOINTS, LEAVES, SigningKeys
    from pipeline.config import make_private_directory, write_private

    site, files = open_site(config, state_dir), Disk()
    [log] = chosen(site, files, instance)
    directory = f"{site.root}/audit/{log}"
    if output.exists():
        raise RefuseError("it is there already; give a folder that is not", field="-o")
    try:
        make_private_directory(output.absolute())
        # The checkpoints first: none may cover more than is copied.
        for name in (LEAVES, CHECKPOINTS, "digests"):
            _copy(Path(directory, name), output / name)
        seen = snapshot(files, directory)
        for number, file in enumerate(seen.files, start=1):
            end = seen.end if number == len(seen.files) else None
            write_private(output / str(file), b"".join(pieces(files, f"{directory}/{file}", 0, end)))
        write_private(output / "key.txt", f"{SigningKeys(site.settings.config_dir).verifier(log)}\n".encode())
    except OSError as error:
        raise RefuseError(f"the folder can't be written: {error.strerror}", field="-o") from None
    answer = {"log": log, "folder": str(output), "files": len(seen.files)}
    if as_json:
        screen.emit(answer)
    else:
        screen.say(f"{answer['files']} files of the log, its checkpoints, digests and key are in {output}")


# --- inside


def _records(files: "FileSystem", directory: str) -> Iterator[dict[str, Any]]:
    import msgspec

    from pipeline.audit.reading import lines, snapshot

    for line in lines(files, snapshot(files, directory)):
        try:
            record = msgspec.json.decode(line.text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # `verify` tells of it
        if isinstance(record, dict):
            yield record


def _tests(
    since: str | None,
    until: str | None,
    event: str | None,
    of: UUID | None,
    data_key: UUID | None,
    kms_key: str | None,
    actor: str | None,
    error: str | None,
) -> list[Matches]:
    def details(record: dict[str, Any]) -> dict[str, Any]:
        given = record.get("requestParameters")
        return given if isinstance(given, dict) else {}

    def ids(given: dict[str, Any]) -> set[Any]:
        several = given.get("artifacts")
        about = [given, *(each for each in several if isinstance(each, dict))] if isinstance(several, list) else [given]
        return {str(each.get(name)) for each in about for name in ("recordingId", "artifactId")}

    def arns(record: dict[str, Any]) -> list[Any]:
        named = [each.get("ARN") for each in record.get("resources", ()) if isinstance(each, dict)]
        return named + [value for name, value in details(record).items() if name.lower().endswith(("arn", "keyid"))]

    tests: list[tuple[object, Matches]] = [
        (since, lambda record: str(record.get("eventTime", "")) >= str(since)),
        (until, lambda record: str(record.get("eventTime", "")) < str(until)),
        (event, lambda record: record.get("eventName") == event),
        (of, lambda record: str(of) in ids(details(record))),
        (data_key, lambda record: details(record).get("dataKeyId") == str(data_key)),
        (kms_key, lambda record: kms_key in arns(record)),
        (actor, lambda record: record.get("userIdentity", {}).get("arn") == actor),
        (error, lambda record: record.get("errorCode") == error if error != _ANY else "errorCode" in record),
    ]
    return [matches for given, matches in tests if given is not None]


def _time(text: str | None, option: str) -> str | None:
    """Read a time as records write it."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("give a time as 2026-11-28 or 2026-11-28T10:00:00Z", param_hint=option) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _copy(source: Path, target: Path) -> None:
    from pipeline.config import write_private

    if source.is_dir():
        for each in sorted(source.iterdir()):
            if not each.name.endswith(".tmp"):
                _copy(each, target / each.name)
    elif source.is_file():
        write_private(target, source.read_bytes())


def _show(record: dict[str, Any]) -> None:
    given = record.get("requestParameters") or {}
    what = " ".join(f"{name}={value}" for name, value in given.items() if not isinstance(value, dict))
    error = f" {record['errorCode']}" if "errorCode" in record else ""
    actor = record.get("userIdentity", {}).get("arn", "-")
    screen.say(f"{record.get('eventTime')} {record.get('logIndex')} {record.get('eventName')}{error} by {actor} {what}")
