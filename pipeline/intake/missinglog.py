"""What was announced and did not come, on disk: what a person is shown, and what makes sure that it is told once.

`missing/<instance>/<UTC day>.jsonl`: a line when a recording is given up, another when it came after all. Files of
old days are removed. A source is named by its tags only.
"""

from collections.abc import Iterator
from datetime import date, datetime
from uuid import UUID

import msgspec

from pipeline.errors import StoreIoError
from pipeline.interim.logs import LogLine
from pipeline.ports import FileSystem

_SUFFIX = ".jsonl"


class Missing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A recording that did not come, or did after all."""

    recording_id: UUID
    instance_id: UUID
    kind: str
    contact: str
    """As object keys carry it."""
    tags: tuple[str, ...]
    """Of its source."""
    announced: datetime
    given_up: datetime
    came: bool = False


def missing_line(root: str, missing: Missing, day: date) -> LogLine:
    """Make the line that goes into the file of `day`."""
    return LogLine(f"{root}/{missing.instance_id}/{day}{_SUFFIX}", msgspec.json.encode(missing))


def read_missing(root: str, files: FileSystem) -> list[Missing]:
    """Read what is missing now, also beside a running service; a line that can't be read is passed over."""
    lines = [missing for path in _paths(root, files) for missing in _lines(path, files)]
    came = {missing.recording_id for missing in lines if missing.came}
    # Whatever their order: a clock that was set back puts a line into the file of an earlier day.
    return list({each.recording_id: each for each in lines if each.recording_id not in came}.values())


def sweep_missing(root: str, files: FileSystem, oldest: date) -> None:
    """Remove the files of days before `oldest`."""
    for path in _paths(root, files):
        if _day(path.rpartition("/")[2]) < oldest:
            files.unlink(path)


def _paths(root: str, files: FileSystem) -> Iterator[str]:
    """Name all files, each instance's oldest first."""
    for instance in files.names(root):
        folder = f"{root}/{instance}"
        for name in sorted(files.names(folder)):
            if name.endswith(_SUFFIX) and _day(name) is not date.max:
                yield f"{folder}/{name}"


def _day(name: str) -> date:
    try:
        return date.fromisoformat(name.removesuffix(_SUFFIX))
    except ValueError:
        return date.max


def _lines(path: str, files: FileSystem) -> Iterator[Missing]:
    try:
        handle = files.open(path)
    except (FileNotFoundError, StoreIoError):
        return
    try:
        raw = files.read(handle, 0, files.size(handle))
    except StoreIoError:
        return
    finally:
        files.close(handle)
    for line in raw.splitlines():
        try:
            yield msgspec.json.decode(line, type=Missing)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
