"""The receipt of an erasure: what was erased, how, when, on whose word; what stays, and where copies may still be.

The words are those of NIST SP 800-88r2, of which cryptographic erase is a technique. The receipt is JSON, kept in
`erased/<instance>/<job>.json`; beside it, as `.note`, the same text signed with the key of the instance's audit log.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from pipeline.backup.made import Made
from pipeline.backup.manifest import read_manifest
from pipeline.erasure.progress import Erasure
from pipeline.errors import PipelineError
from pipeline.ids import InstanceId
from pipeline.ports import FileSystem
from pipeline.smallfiles import write_whole

VERSION = 1
GUIDELINE = "NIST SP 800-88r2"
Sign = Callable[[InstanceId, str], str]
"""Sign a text that ends with a line feed, as the instance's audit log; give the signed note."""


@dataclass(frozen=True, slots=True)
class Written:
    """A receipt that is durable."""

    path: str
    sha256: str


def common(erasure: Erasure, *, method: str, ended_at: datetime) -> dict[str, Any]:
    """Give what every receipt has."""
    return {
        "version": VERSION,
        "receiptId": str(erasure.job_id),
        "guideline": GUIDELINE,
        "method": method,
        "instanceId": str(erasure.instance_id),
        "instance": erasure.alias,
        "accountId": erasure.account_id,
        "reason": erasure.reason,
        "askedBy": erasure.asked_by,
        "askedAt": stamp(erasure.asked_at),
        "begunAt": stamp(erasure.begun_at),
        "endedAt": stamp(ended_at),
    }


def stamp(moment: datetime | None) -> str | None:
    """Write a time."""
    return None if moment is None else moment.isoformat(timespec="seconds")


def copies_in_backups(files: FileSystem, made: list[Made], holds: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Name the backups that hold a copy, by their manifests; one that can't be read may."""
    found = []
    for backup in made:
        try:
            listed = read_manifest(files, backup.folder)
            reachable = listed.beginning.backup_id == backup.backup_id
        except PipelineError:
            reachable = False
        if reachable and not any(holds(file.path) for file in listed.files):
            continue
        found.append(
            {
                "place": f"backup {backup.backup_id}",
                "folder": backup.folder,
                "madeAt": stamp(backup.begun_at),
                "holds": "a copy, by its manifest" if reachable else "perhaps a copy: its manifest could not be read",
                "until": "it is destroyed; then `pipeline backup forget`",
            }
        )
    return found


def write_receipt(files: FileSystem, root: str, erasure: Erasure, receipt: Mapping[str, Any], sign: Sign) -> Written:
    """Make a receipt durable, and its signed note."""
    instance = InstanceId(erasure.instance_id)
    text = msgspec.json.format(msgspec.json.encode(receipt)).decode() + "\n"
    path = receipt_path(root, instance, erasure.job_id)
    write_whole(files, path, text.encode())
    write_whole(files, path.removesuffix(".json") + ".note", sign(instance, text).encode())
    return Written(path, hashlib.sha256(text.encode()).hexdigest())


def receipt_path(root: str, instance: InstanceId, job_id: UUID) -> str:
    """Tell where a receipt lies."""
    return f"{root}/erased/{instance}/{job_id}.json"
