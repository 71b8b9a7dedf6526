"""Make the event streams of fixtures/events: contact events and chats as two contact centres send them in the field.

Out of order, repeated, and with the oddities of Amazon Connect's own documented samples. Everyone in them is invented;
the telephone numbers are of the range kept for fiction.
"""

import json
import random
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fixture_chats import CHATS, Chat

Json = dict[str, Any]
CALLER_NUMBER = "+12025550143"
NOT_SET = "1970-01-01T00:00:00.001Z"
_NAMES = uuid.UUID("f1f2f3f4-0000-4000-8000-000000000000")


@dataclass(frozen=True)
class Instance:
    """A contact centre of its own."""

    id: str
    alias: str
    account: str
    region: str = "eu-central-1"

    @property
    def arn(self) -> str:
        return f"arn:aws:connect:{self.region}:{self.account}:instance/{self.id}"


@dataclass(frozen=True)
class Contact:
    """One contact of one instance, and when it began."""

    instance: Instance
    id: str
    channel: str
    method: str
    start: datetime


def _at(day_time: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-{day_time}+00:00").astimezone(UTC)


ACME = Instance("aaaa1111-0000-4000-8000-000000000001", "acme", "111122223333")
BOREALIS = Instance("aaaa1111-0000-4000-8000-000000000002", "borealis", "444455556666")
INSTANCES = (ACME, BOREALIS)

_CONTACT = "cccc3333-0000-4000-8000-0000000000"
PARCEL = Contact(ACME, f"{_CONTACT}11", "VOICE", "INBOUND", _at("23T14:05:12"))
LOST = Contact(ACME, f"{_CONTACT}12", "VOICE", "OUTBOUND", _at("23T14:31:07"))
REFUND = Contact(ACME, f"{_CONTACT}13", "CHAT", "API", _at("23T09:00:00"))
LATER = Contact(ACME, f"{_CONTACT}14", "CHAT", "API", _at("23T09:02:30"))
ODD = Contact(ACME, f"{_CONTACT}15", "TASK", "FLOW", _at("23T10:00:00"))
DENTIST = Contact(BOREALIS, f"{_CONTACT}21", "VOICE", "OUTBOUND", _at("23T16:40:03"))
BILLING = Contact(BOREALIS, f"{_CONTACT}22", "VOICE", "TRANSFER", _at("23T16:44:59"))
ABROAD = Contact(BOREALIS, f"{_CONTACT}23", "CHAT", "API", _at("23T23:58:40"))
CHAT_CONTACTS = {"refund": REFUND, "later": LATER, "abroad": ABROAD}


def make_events(directory: Path) -> None:
    """Write every stream into `directory`, one file for each instance and sort."""
    streams = {
        "acme-contacts.jsonl": _interleaved(_disordered(_parcel()), _disordered(_lost()), _disordered(_odd())),
        "borealis-contacts.jsonl": _interleaved(_disordered(_dentist()), _disordered(_billing())),
        "acme-chats.jsonl": _interleaved(_chat("refund"), _chat("later")),
        "borealis-chats.jsonl": _chat("abroad"),
    }
    for name, events in streams.items():
        lines = [json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in events]
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def transcript(name: str) -> Json:
    """Give the transcript file that a chat's stream must become, told from the chat alone."""
    chat, contact = CHATS[name], CHAT_CONTACTS[name]
    participants = dict.fromkeys(item["ParticipantId"] for item in chat.items if "ParticipantId" in item)
    return {
        "Version": "2019-08-26",
        "AWSAccountId": contact.instance.account,
        "InstanceId": contact.instance.id,
        "InitialContactId": CHAT_CONTACTS[chat.continues].id if chat.continues else contact.id,
        "ContactId": contact.id,
        "Participants": [{"ParticipantId": participant} for participant in participants],
        "Transcript": _timed(chat, contact),
    }


# --- envelopes


def _envelope(contact: Contact, after_s: float, kind: str, source: str, detail: Json) -> Json:
    instance = contact.instance
    time = contact.start + timedelta(seconds=after_s)
    name = json.dumps([contact.id, after_s, kind, detail])
    return {
        "version": "0",
        "id": str(uuid.uuid5(_NAMES, name)),
        "detail-type": kind,
        "source": source,
        "account": instance.account,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": instance.region,
        "resources": [f"{instance.arn}/contact/{contact.id}", instance.arn],
        "detail": detail,
    }


def _moved(contact: Contact, after_s: float, event_type: str, **more: Any) -> Json:
    """Make a contact event; a member of `more` that is `None` takes that member away."""
    detail: Json = {
        "eventType": event_type,
        "contactId": contact.id,
        "initialContactId": contact.id,
        "channel": contact.channel,
        "instanceArn": contact.instance.arn,
        "initiationMethod": contact.method,
        "initiationTimestamp": _iso(contact, 0),
        "tags": {"aws:connect:instanceId": contact.instance.id},
        **more,
    }
    known = {name: value for name, value in detail.items() if value is not None}
    return _envelope(contact, after_s, "Amazon Connect Contact Event", "aws.connect", known)


def _recording(contact: Contact, kind: str, source: str, begin_s: float, end_s: float) -> list[Json]:
    detail = {"instanceArn": contact.instance.arn, "contactId": contact.id, "recordingKind": kind, "sourceId": source}
    started = {**detail, "startTime": _iso(contact, begin_s)}
    stopped = {**detail, "endTime": _iso(contact, end_s)}
    return [
        _envelope(contact, begin_s, "Recording Started", "pipeline.recorder", started),
        _envelope(contact, end_s, "Recording Stopped", "pipeline.recorder", stopped),
    ]


def _iso(contact: Contact, after_s: float) -> str:
    moment = contact.start + timedelta(seconds=after_s)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- the calls


def _parcel() -> list[Json]:
    """Inbound, answered by an agent; screen and both legs recorded."""
    arn = PARCEL.instance.arn
    queue = {"queueArn": f"{arn}/queue/dddd4444-0000-4000-8000-000000000001", "queueType": "STANDARD"}
    queue["enqueueTimestamp"] = _iso(PARCEL, 5)
    agent = {"AgentArn": f"{arn}/agent/eeee5555-0000-4000-8000-000000000001"}
    agent["ConnectedToAgentTimestamp"] = _iso(PARCEL, 8)
    steps = [{"status": "ACTIVE", "expression": {"attributeCondition": {"name": "language", "value": "en"}}}]
    kept: Json = {"StorageType": "Amazon S3", "Location": "acme-recordings/elsewhere.wav", "MediaStreamType": "AUDIO"}
    kept |= {"ParticipantType": "IVR", "Status": None, "StartTimestamp": _iso(PARCEL, 0)}
    caller = {"aws:connect:instanceId": ACME.id, "aws:connect:systemEndpoint": CALLER_NUMBER}
    queued = _moved(PARCEL, 5, "QUEUED", queueInfo=queue, routingCriteria={"steps": steps, "index": 0})
    queued["resources"] = ["arn:aws:connect:eu-central-1:111122223333:instance/instance-id", *queued["resources"]]
    connected = _moved(PARCEL, 8, "CONNECTED_TO_AGENT", queueInfo=queue, agentInfo=agent, routingCriteria=[*steps])
    return [
        _moved(PARCEL, 0, "INITIATED", connectedToSystemTimestamp=NOT_SET, disconnectTimestamp=NOT_SET, tags=caller),
        _moved(PARCEL, 0, "CONNECTED_TO_SYSTEM", connectedToSystemTimestamp=_iso(PARCEL, 0), tags=caller),
        *_recording(PARCEL, "voice", "parcel-ivr", 0, 4.662),
        queued,
        connected,
        _moved(PARCEL, 9, "CONTACT_DATA_UPDATED", updatedProperties=["ContactLens.ConversationalAnalytics"]),
        *_recording(PARCEL, "voice", "parcel-agent", 8, 18.12),
        *_recording(PARCEL, "screen", "parcel-screen", 8.5, 18.5),
        _moved(PARCEL, 12, "SCREEN_SHARED_WITH_A_NEW_FEATURE", channel="Voice"),
        _moved(PARCEL, 19, "DISCONNECTED", disconnectTimestamp=_iso(PARCEL, 18.2), agentInfo=agent),
        _moved(PARCEL, 60, "COMPLETED", disconnectTimestamp=_iso(PARCEL, 18.2), recordings=[kept]),
    ]


def _lost() -> list[Json]:
    """Outbound, so without a queue; the recorder kept a header and no sound. Names its instance in a tag only."""
    bare: Json = {"instanceArn": None}
    events = [
        _moved(LOST, 0, "INITIATED", **bare),
        _moved(LOST, 2, "CONNECTED_TO_SYSTEM", connectedToSystemTimestamp=_iso(LOST, 2), **bare),
        _moved(LOST, 41, "DISCONNECTED", disconnectTimestamp=_iso(LOST, 40), **bare),
        _moved(LOST, 55, "COMPLETED", disconnectTimestamp=_iso(LOST, 40), **bare),
    ]
    for event in events:
        event["resources"] = []
    return [*events, *_recording(LOST, "voice", "lost-agent", 2, 40)]


def _odd() -> list[Json]:
    """Words that nobody knows yet: an event type, a channel, a method. Nothing is recorded."""
    strange = {"channel": "HOLOGRAM", "initiationMethod": "TELEPATHY"}
    return [
        _moved(ODD, 0, "INITIATED", segmentAttributes={"connect:Subtype": {"valueString": "connect:Task"}}),
        _moved(ODD, 20, "PAUSED"),
        _moved(ODD, 40, "RESUMED", **strange),
        _moved(ODD, 50, "BEAMED_UP", **strange),
        _moved(ODD, 60, "COMPLETED", customerId="profile-77", disconnectTimestamp=_iso(ODD, 60)),
    ]


def _dentist() -> list[Json]:
    """Dialled by a campaign: the time of initiation moves, and ARNs come with a part missing."""
    arn = DENTIST.instance.arn.replace("arn:aws:", "arn:aws::")
    moved = {"initiationTimestamp": _iso(DENTIST, 75), "instanceArn": arn, "campaign": {"campaignId": "recall-2026"}}
    return [
        _moved(DENTIST, 0, "INITIATED", instanceArn=arn, campaign={"campaignId": "recall-2026"}),
        _moved(DENTIST, 70, "AMD_DISABLED", answeringMachineDetectionStatus="AMD_DISABLED", **moved),
        _moved(DENTIST, 76, "CONNECTED_TO_SYSTEM", connectedToSystemTimestamp=_iso(DENTIST, 75), **moved),
        _moved(DENTIST, 77, "CONNECTED_TO_AGENT", **moved),
        *_recording(DENTIST, "voice", "dentist-agent", 77, 85),
        *_recording(DENTIST, "screen", "dentist-screen", 77, 87),
        _moved(DENTIST, 88, "DISCONNECTED", disconnectTimestamp=_iso(DENTIST, 87), **moved),
        _moved(DENTIST, 99, "COMPLETED", disconnectTimestamp=_iso(DENTIST, 87), **moved),
    ]


def _billing() -> list[Json]:
    """Transferred from the dentist's line; every payload in Pascal case, words too."""
    chain = {"initialContactId": DENTIST.id, "previousContactId": DENTIST.id}
    times = {"disconnectTimestamp": _iso(BILLING, 12)}
    events = [
        _moved(BILLING, 0, "INITIATED", **chain),
        _moved(BILLING, 4, "CONNECTED_TO_AGENT", **chain),
        _moved(BILLING, 12, "DISCONNECTED", **chain, **times),
        _moved(BILLING, 30, "COMPLETED", **chain, **times),
    ]
    for event in events:
        detail = {name[0].upper() + name[1:]: value for name, value in event["detail"].items()}
        for word in ("EventType", "Channel", "InitiationMethod"):
            detail[word] = "_".join(part.capitalize() for part in detail[word].split("_"))
        event["detail"] = detail
    return [*events, *_recording(BILLING, "voice", "billing-agent", 4, 7)]


# --- the chats


def _chat(name: str) -> list[Json]:
    """Tell a chat as a stream: its contact events around its items, and at the end what ends it."""
    chat, contact = CHATS[name], CHAT_CONTACTS[name]
    chain = {"initialContactId": CHAT_CONTACTS[chat.continues].id} if chat.continues else {}
    items = [_said(contact, item) for item in _timed(chat, contact)]
    last = chat.items[-1]["after_s"]
    completed = _moved(contact, last + 30, "COMPLETED", disconnectTimestamp=_iso(contact, last), **chain)
    begin = _moved(contact, 0, "INITIATED", **chain)
    match chat.ended_by:
        case "chat.ended":
            return [begin, *_disordered(items[:-1]), items[-1], completed]
        case "final":
            ending: Json = {"instanceArn": contact.instance.arn, "contactId": contact.id, "final": True}
            final = _envelope(contact, last + 1, "Chat Message", "pipeline.chat", ending)
            return [*_disordered([begin, *items]), final]
        case _:
            return [*_disordered([begin, *items]), completed]


def _said(contact: Contact, item: Json) -> Json:
    detail = {"instanceArn": contact.instance.arn, "contactId": contact.id, "item": item, "final": False}
    after_s = (datetime.fromisoformat(item["AbsoluteTime"]) - contact.start).total_seconds()
    return _envelope(contact, after_s, "Chat Message", "pipeline.chat", detail)


def _timed(chat: Chat, contact: Contact) -> list[Json]:
    """Give the items in order, each with its time instead of its distance from the start, and with its id."""
    timed = []
    for number, item in enumerate(chat.items, start=1):
        rest = {name: value for name, value in item.items() if name != "after_s"}
        item_id = str(uuid.uuid5(_NAMES, f"{contact.id} item {number}"))
        timed.append({"AbsoluteTime": _iso(contact, item["after_s"]), "Id": item_id, **rest})
    return timed


# --- as in the field


def _disordered(events: list[Json]) -> list[Json]:
    """Move each event by up to three places and send one of four again, later: always the same ones."""
    chance = random.Random(events[0]["id"])
    sent = [(place + 3 * chance.random(), event) for place, event in enumerate(events)]
    again = [(place + 1 + 2 * chance.random(), event) for place, event in sent if chance.random() < 0.25]
    return [event for _, event in sorted([*sent, *again], key=lambda each: each[0])]


def _interleaved(*streams: list[Json]) -> list[Json]:
    """Mix streams, keeping each one's own order."""
    placed = [(index / len(stream), event) for stream in streams for index, event in enumerate(stream)]
    return [event for _, event in sorted(placed, key=lambda each: each[0])]
