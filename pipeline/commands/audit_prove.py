"""`pipeline audit prove` and `check-proof`: what happened to one recording, for who trusts only a public key."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pipeline.commands import screen
from pipeline.commands.audit_logs import chosen
from pipeline.commands.options import ConfigOption, JsonOption, Site, StateDirOption, open_site
from pipeline.errors import RefuseError

if TYPE_CHECKING:
    from pipeline.audit.reading import Line
    from pipeline.commands.access import Access

EXAMPLES = {
    "prove": "Example: pipeline audit prove 019b0c3e-7d1a-7c22-9f5e-2a4b6c8d0e1f -o proof.json",
    "check-proof": "Example: pipeline audit check-proof proof.json --key acme.vkey",
}
_MOST_BYTES = 64 * 2**20


def prove(
    wanted: Annotated[UUID, typer.Argument(metavar="ID", help="A recording's id, or an artifact's.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the proof goes.")],
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a proof of custody: the recording's audit records and receipts, proven to be in the signed log.

    Whoever has the log's public key (`pipeline audit key`) checks it without this machine: `audit check-proof`.
    """
    import anyio

    from pipeline.config import write_private

    site = open_site(config, state_dir)
    document, answer = anyio.run(_prove, site, wanted)
    try:
        write_private(output.absolute(), document)
    except OSError as error:
        raise RefuseError(f"the file can't be written: {error.strerror}", field="-o") from None
    if as_json:
        screen.emit(answer | {"file": str(output)})
    else:
        _show(answer)


def check_proof(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The proof.")],
    key: Annotated[
        str, typer.Option("--key", metavar="VKEY|FILE", help="The log's public key, as `pipeline audit key` prints it.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a proof of custody by the log's public key alone. Exit code 1 if it does not hold."""
    from pipeline.audit.custody import checked
    from pipeline.audit.notes import Verifier

    try:
        text = key if "+" in key else Path(key).read_text(encoding="utf-8")
        with file.open("rb") as proof:
            document = proof.read(_MOST_BYTES)
    except (OSError, UnicodeDecodeError):
        raise RefuseError("the proof or the key can't be read") from None
    answer = checked(document, Verifier.parse(text))
    if as_json:
        screen.emit({"ok": True, **answer})
    else:
        _show(answer)


# --- inside


async def _prove(site: Site, wanted: UUID) -> tuple[bytes, dict[str, Any]]:
    from pipeline.audit.chain import leaf_hash
    from pipeline.audit.custody import checked, custody_of
    from pipeline.audit.reading import lines, snapshot
    from pipeline.audit.signing import SigningKeys, note_of, numbers
    from pipeline.commands.access import open_access

    keys = SigningKeys(site.settings.config_dir)
    async with open_access(site.settings) as access:
        log, recording_id = _found(site, access, wanted)
        directory = f"{site.root}/audit/{log}"
        await _sign(access, directory, keys)
        note = note_of(access.files, directory, numbers(access.files, directory)[-1]).decode()
        size = int(note.split("\n")[1])
        leaves: list[bytes] = []
        records: dict[int, bytes] = {}
        artifacts: set[str] = set()
        for line in lines(access.files, snapshot(access.files, directory)):
            if len(leaves) == size:
                break
            if (said := _of(line, recording_id)) is not None:
                records[len(leaves)] = line.text
                artifacts |= {str(said["artifactId"])} if "artifactId" in said else set()
            leaves.append(leaf_hash(line.text))
        receipts = _receipts(site, access, log, artifacts)
    verifier = keys.verifier(log)
    document = custody_of(recording_id, records, receipts, leaves=leaves, checkpoint=note, verifier=verifier)
    return document, checked(document, verifier)


async def _sign(access: "Access", directory: str, keys: Any) -> None:
    """Have all records covered by a checkpoint, also those that the service has not signed yet."""
    import anyio.to_thread

    from pipeline.audit.signing import SignedLog

    signed = await anyio.to_thread.run_sync(SignedLog(directory, access.files, keys).sign)
    if signed is not None:
        facts = {"log": directory.rpartition("/")[2], "number": signed.number, "size": signed.checkpoint.size}
        await access.record(access.trail.on_node("CheckpointSigned", **facts, root=signed.checkpoint.root.hex()))


def _found(site: Site, access: "Access", wanted: UUID) -> tuple[str, str]:
    """Find the log that tells of a recording or artifact, and the recording's id. Raises `RefuseError`."""
    from pipeline.audit.reading import lines, snapshot

    for log in chosen(site, access.files, None):
        for line in lines(access.files, snapshot(access.files, f"{site.root}/audit/{log}")):
            said = _of(line, str(wanted))
            if said is not None and "recordingId" in said:
                return log, str(said["recordingId"])
    raise RefuseError("no audit log tells of a recording or artifact of that id", field="ID")


def _of(line: "Line", wanted: str) -> dict[str, Any] | None:
    """Give what a record says, if it is of that recording or artifact."""
    import msgspec

    if wanted.encode() not in line.text:
        return None
    try:
        said = msgspec.json.decode(line.text, type=dict[str, Any]).get("requestParameters")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(said, dict) or wanted not in {said.get("recordingId"), said.get("artifactId")}:
        return None
    return said


def _receipts(site: Site, access: "Access", log: str, artifacts: set[str]) -> list[bytes]:
    """Give the receipts of these artifacts, beside them or folded."""
    from pipeline.commands.receipts import folded, receipt_of
    from pipeline.delivery.proof import write_receipt
    from pipeline.ids import InstanceId
    from pipeline.interim.states import State
    from pipeline.interim.survey import survey

    found = [
        receipt_of(site.root, access.files, name)
        for name in survey(site.root, access.files).names
        if str(name.artifact_id) in artifacts and name.standing is State.DELIVERED
    ]
    known = {str(receipt.artifact_id) for receipt in found}
    for receipt in folded(site.root, access.files, InstanceId(UUID(log))):
        if str(receipt.artifact_id) in artifacts - known:
            found.append(receipt)
            known.add(str(receipt.artifact_id))
    return [write_receipt(receipt) for receipt in found]


def _show(answer: dict[str, Any]) -> None:
    screen.say(f"recording {answer['recordingId']}, {len(answer['records'])} of {answer['signedRecords']} records")
    cells = [(each["index"], each["time"], each["event"], each["actor"]) for each in answer["records"]]
    screen.table("what happened to it", ("record", "time", "event", "by"), cells, right=("record",))
    for each in answer["sealed"]:
        screen.say(f"sealed: generation {each['generation']}, {each['sizeBytes']} bytes, SHA-256 {each['sha256']}")
    for each in answer["delivered"]:
        screen.say(f"delivered {each['deliveredAt']}: s3://{each['bucket']}/{each['key']}, SHA-256 {each['sha256']}")
