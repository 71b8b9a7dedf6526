"""Which events are records, and of what class. Pure.

Case events come as Amazon Connect Cases sends them (source `aws.cases`); everything else in an envelope of ours, whose
`detail-type` names what it is, and whose `detail` has `id`, `data` and perhaps `part`, `subject`, `scope`, `deleted`.
`Speaker Authenticated` has `subject` and perhaps `scope`: it brings no record, and lets a speaker's be kept longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from pipeline.errors import RefuseError
from pipeline.events import Incoming, OtherEvent
from pipeline.records.drafts import Draft
from pipeline.records.sealing import ID_LIMIT

DETAIL_TYPES: Mapping[str, str] = {
    "case": "cases",
    "contact metadata": "contact_metadata",
    "profile": "profiles_domain",
    "profile object": "profiles_object_type",
    "campaign contact": "campaigns",
    "knowledge document": "ai_content",
    "speaker enrolment": "voiceid",
    "forecast": "forecasts",
    "integration object": "appintegrations_data",
    "integration configuration": "appintegrations_config",
}
"""Our own envelopes, by `detail-type`, in any case."""
AUTHENTICATED = "speaker authenticated"
SPEAKERS = "voiceid"
CASES_SOURCE = "aws.cases"
CASE_EVENTS = "case_events"


class _Detail(msgspec.Struct, frozen=True):
    id: str
    data: msgspec.Raw = msgspec.Raw(b"{}")
    part: str | None = None
    subject: str | None = None
    scope: str | None = None
    deleted: bool = False


class _Envelope(msgspec.Struct, frozen=True):
    detail: _Detail


class _Met(msgspec.Struct, frozen=True):
    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=ID_LIMIT)]
    scope: str | None = None


class _MetEnvelope(msgspec.Struct, frozen=True):
    detail: _Met


@dataclass(frozen=True, slots=True)
class SpeakerMet:
    """A speaker was recognised."""

    subject: str = field(repr=False)
    scope: str | None = None
    data_class: str = SPEAKERS
    arns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordEvent:
    """A record that an event brings, or takes away."""

    data_class: str
    draft: Draft
    scope: str | None = None
    """Its name; `None` for the only one."""
    arns: tuple[str, ...] = ()
    """ARNs of which one is the scope's, where the event names it so."""
    deleted: bool = False


def record_of(event: Incoming, path: str) -> RecordEvent | SpeakerMet | None:
    """Read the record in an event, or whom it is about; `None` if it is none.

    Raises:
        RefuseError: it should be one, and can't be read.

    """
    if not isinstance(event, OtherEvent):
        return None
    if event.source.lower() == CASES_SOURCE:
        return _case_event(event, path)
    if event.detail_type.lower() == AUTHENTICATED:
        return _met(event, path)
    data_class = DETAIL_TYPES.get(event.detail_type.lower())
    if data_class is None:
        return None
    try:
        detail = msgspec.json.decode(event.raw, type=_Envelope).detail
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RefuseError("a record has an id, and data that is an object", field=f"{path}detail") from None
    draft = Draft(id=detail.id, body=bytes(detail.data), part=detail.part, subject=detail.subject)
    return RecordEvent(data_class, draft, scope=detail.scope, deleted=detail.deleted)


def _met(event: OtherEvent, path: str) -> SpeakerMet:
    try:
        detail = msgspec.json.decode(event.raw, type=_MetEnvelope).detail
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RefuseError("a speaker is named by subject", field=f"{path}detail") from None
    return SpeakerMet(detail.subject, detail.scope)


def _case_event(event: OtherEvent, path: str) -> RecordEvent:
    """Keep the whole envelope: it goes on as it came."""
    if event.envelope_id is None:
        raise RefuseError("is required", field=f"{path}id")
    document: dict[str, Any] = msgspec.json.decode(event.raw)
    resources = document.get("resources")
    named = [each for each in resources if isinstance(each, str)] if isinstance(resources, list) else []
    arns = [*named, *(each.rpartition("/case/")[0] for each in named if "/case/" in each)]
    draft = Draft(id=event.envelope_id, body=event.raw)
    return RecordEvent(CASE_EVENTS, draft, arns=tuple(arns))
