"""`pipeline subject`: all that is known of one person, given out or removed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.options import DEFAULT_URL, JsonOption, TokenFileOption, UrlOption, standard_input
from pipeline.commands.records import IdOption, ask, everything, write_file
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.client import Answer

EXAMPLES = {
    "export": "Example: pipeline subject export --instance aaaa1111-… -o person.json <person.txt",
    "erase": "Example: pipeline subject erase --instance aaaa1111-… <person.txt",
    "opt-out": "Example: pipeline subject opt-out --instance aaaa1111-… <speaker.txt",
}


def export(
    instance: IdOption,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Write to this file.")],
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all that is known of a person to a file, from every class that has an index of persons.

    Who it is stands on standard input, as number=+4930901820, email=…, account=…, customer=…, contact=…, profile=… or
    speaker=…, one a line.
    """
    answer = _ask(url, token_file, instance, "export", _identity())
    write_file(output, answer.body)
    found = json.loads(answer.body)
    told = {
        "records": len(found["records"]),
        **{name: found[name] for name in ("contacts", "notIncluded", "notSearched")},
    }
    if as_json:
        screen.emit(told)
    else:
        screen.say(f"{told['records']} records")
        _show_rest(found)


def erase(
    instance: IdOption,
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove all that is known of a person, and print the receipt, kept, and signed, in records/receipts/.

    Who it is stands on standard input, as with export. Exit code 3 if a legal hold stands against it.
    """
    _show(_ask(url, token_file, instance, "erase", _identity()), as_json=as_json)


def opt_out(
    instance: IdOption,
    data_class: Annotated[str, typer.Option("--class", help="The class of data.")] = "voiceid",
    scope: Annotated[str, typer.Option("--scope", metavar="NAME", help="Which of several domains.")] = "default",
    url: UrlOption = DEFAULT_URL,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Destroy the key of a speaker, named on standard input, and take nothing more of them; known or not."""
    subject = everything(standard_input()).decode(errors="replace").strip()
    body = {"subject": subject, "class": data_class, "scope": scope}
    _show(_ask(url, token_file, instance, "opt-out", body), as_json=as_json)


# --- inside


def _identity() -> dict[str, list[str]]:
    """Read who it is. Raises `RefuseError`."""
    identity: dict[str, list[str]] = {}
    for line in everything(standard_input()).decode(errors="replace").splitlines():
        kind, sign, value = line.strip().partition("=")
        if sign and value.strip():
            identity.setdefault(kind.strip(), []).append(value.strip())
        elif line.strip():
            raise RefuseError("each line has the form number=+4930901820")
    if not identity:
        raise RefuseError("who it is is expected on standard input, as number=+4930901820")
    return identity


def _ask(url: str, token_file: Path | None, instance: UUID, asked: str, body: Mapping[str, Any]) -> "Answer":
    path = f"/v1/instances/{instance}/subject/{asked}"
    return ask(url, token_file, "POST", path, {"Content-Type": "application/json"}, json.dumps(body).encode())


def _show(answer: "Answer", *, as_json: bool) -> None:
    receipt = json.loads(answer.body)
    if as_json:
        screen.emit(receipt)
        return
    screen.say(f"receipt {receipt['receiptId']}")
    for each in receipt["removed"]:
        key = f", key {each['keyDestroyed']} destroyed" if each.get("keyDestroyed") else ""
        screen.say(f"  {each['dataClass']}: {len(each['records'])} records{key}")
    for each in receipt["remainsIn"]:
        screen.say(f"  still in backup {each['backup']} until {each['until']}")
    _show_rest(receipt)


def _show_rest(answer: Mapping[str, Any]) -> None:
    """Say what is in none of it."""
    if answer.get("contacts"):
        screen.say(f"  contacts: {', '.join(answer['contacts'])}")
    for each in answer.get("notIncluded", ()):
        screen.say(f"  not included: {each['what']} of {each['of']}")
        screen.say(f"    held: {each['held']}; delivered: {each['delivered']}")
    if answer["notSearched"]:
        screen.say(f"  not searched, for want of an index: {', '.join(answer['notSearched'])}")
