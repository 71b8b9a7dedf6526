"""What is to be put, and on what condition: checked once, trusted afterwards. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RecordChangedError, RefuseError
from pipeline.records import finding
from pipeline.records.policy import Part, Policy
from pipeline.records.sealing import BODY_LIMIT, ID_LIMIT


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A record to be put."""

    id: str
    body: bytes
    content_type: str = "application/json"
    part: str | None = None
    subject: str | None = None
    """Whose it is, for a part that has a key for each subject; else its indexed value, or its id."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What has to be there for a change to be made."""

    version: int | None = None
    """This version; 0: nothing."""
    present: bool = False
    """Any version."""

    def check(self, version: int) -> None:
        """Compare with what is there; 0 is nothing.

        Raises:
            RecordChangedError: it is something else.

        """
        if self.version not in {None, version} or (self.present and version == 0):
            raise RecordChangedError("the record is not at the version that was named; nothing was changed")

    @property
    def is_none(self) -> bool:
        """Whether there is none."""
        return self.version is None and not self.present


ALWAYS = Condition()


@dataclass(frozen=True, slots=True)
class Checked:
    """A draft that can be a record of its class."""

    draft: Draft
    part: Part | None
    found: Mapping[str, Any] | None
    """Its members, if it is JSON."""
    subject: str = ""
    """Whose it is; empty where that makes no difference."""


def checked(draft: Draft, policy: Policy, path: str = "") -> Checked:
    """Check a draft; `path` is its place among others.

    Raises:
        RefuseError: it can't be a record of this class.

    """
    if not 0 < len(draft.id) <= ID_LIMIT or not draft.id.isprintable():
        raise RefuseError(f"1 to {ID_LIMIT} printable characters", field=f"{path}.id".lstrip("."))
    if len(draft.body) > BODY_LIMIT:
        raise RefuseError(f"a record may have at most {BODY_LIMIT} bytes", field=f"{path}.data".lstrip("."))
    found = finding.members(draft.content_type, draft.body)
    if found is None and finding.is_json(draft.content_type):
        raise RefuseError("must be a JSON object", field=f"{path}.data".lstrip("."))
    part = policy.part(draft.part)
    if part is None or not part.shreds:
        if draft.subject is not None:
            raise RefuseError("this class, or part, has no subjects", field=f"{path}.subject".lstrip("."))
        return Checked(draft, part, found)
    named = [value for _, value in finding.entries(policy, found)]
    subject = draft.subject or next(iter(named), draft.id)
    if len(subject) > ID_LIMIT or not subject.isprintable():
        raise RefuseError(f"1 to {ID_LIMIT} printable characters", field=f"{path}.subject".lstrip("."))
    return Checked(draft, part, found, subject)
