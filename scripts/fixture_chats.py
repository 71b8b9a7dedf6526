"""What is said in the chats of fixtures/events. Everyone is invented."""

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
_EVENT = "application/vnd.amazonaws.connect.event."
_INTERACTIVE = "application/vnd.amazonaws.connect.message.interactive"


@dataclass(frozen=True)
class Chat:
    """Items in order, each with the seconds since its contact began; what ends it; which chat it goes on from."""

    ended_by: str
    items: list[Json]
    continues: str | None = None


def _who(role: str, name: str) -> Json:
    return {"ParticipantId": f"p-{name.lower()}", "DisplayName": name, "ParticipantRole": role}


def _text(after_s: float, who: Json, content: str, content_type: str = "text/plain", **more: Any) -> Json:
    return {"after_s": after_s, "Type": "MESSAGE", "ContentType": content_type, "Content": content, **who, **more}


def _event(after_s: float, name: str, who: Json | None = None, **more: Any) -> Json:
    return {"after_s": after_s, "Type": "EVENT", "ContentType": _EVENT + name, **(who or {}), **more}


def _file(after_s: float, who: Json, name: str, content_type: str, status: str) -> Json:
    file = {"ContentType": content_type, "AttachmentId": f"a-{name}", "AttachmentName": name, "Status": status}
    return {"after_s": after_s, "Type": "ATTACHMENT", "ContentType": content_type, "Attachments": [file], **who}


MIRA = _who("CUSTOMER", "Mira")
BOT = _who("CUSTOM_BOT", "Helper")
OLE = _who("AGENT", "Ole")
JUNE = _who("AGENT", "June")
NOA = _who("CUSTOMER", "Noa")
ROOM = _who("SYSTEM", "SYSTEM_MESSAGE")

_CHOICE = {
    "templateType": "ListPicker",
    "version": "1.0",
    "data": {"content": {"title": "What is it about?", "elements": [{"title": "A parcel"}, {"title": "A refund"}]}},
}
_CHOSEN = {"templateType": "ListPicker", "version": "1.0", "data": {"selection": "A refund"}}
_READ = {
    "MessageId": "m-9",
    "Receipts": [{"RecipientParticipantId": "p-mira", "ReadTimestamp": "2026-11-23T09:01:40Z"}],
}

CHATS = {
    "refund": Chat(
        "chat.ended",
        [
            _event(1.12, "participant.joined", MIRA),
            _event(1.5, "participant.joined", BOT),
            _text(2.004, BOT, json.dumps(_CHOICE), _INTERACTIVE),
            _text(9.31, MIRA, json.dumps(_CHOSEN), _INTERACTIVE + ".response"),
            _text(10.0, ROOM, "You are being connected to a colleague."),
            _event(14.2, "participant.left", BOT),
            _event(14.7, "participant.joined", OLE),
            _text(20.25, OLE, "Hello Mira, this is Ole from refunds."),
            _text(41.9, MIRA, "The lamp came broken 😞💡 — order 88-1204, thanks 🙏🏽"),
            _file(47.003, MIRA, "broken lamp.jpg", "image/jpeg", "APPROVED"),
            _file(49.5, MIRA, "receipt.exe", "application/octet-stream", "REJECTED"),
            _text(75.75, OLE, "**Refunded in full:** it takes *three* days.", "text/markdown", MessageMetadata=_READ),
            _text(99.9, MIRA, "Wonderful, I am so relieved to hear that."),
            _event(104.4, "participant.left", OLE),
            _event(105.0, "chat.ended"),
        ],
    ),
    "later": Chat(
        "completed",
        [
            _event(0.9, "participant.joined", MIRA, RelatedContactId="cccc3333-0000-4000-8000-000000000013"),
            _text(6.6, MIRA, "One more thing about the broken lamp from before."),
            _event(15.0, "participant.joined", JUNE),
            _text(15.4, JUNE, "Sure, what would you like to know?"),
            _text(33.3, MIRA, "May I keep the shade, it was not damaged?", Sentiment={"score": 0.50, "words": None}),
            {"after_s": 36.0, "Type": "REACTION", "ContentType": "application/x-reaction", "Content": "👍", **JUNE},
            _event(40.1, "transfer.failed", JUNE),
            _text(58.0, JUNE, "Yes, keep it, and nothing to send back."),
        ],
        continues="refund",
    ),
    "abroad": Chat(
        "final",
        [
            _event(0.4, "participant.joined", NOA),
            _event(2.2, "participant.joined", JUNE),
            _text(11.0, NOA, "שלום, אפשר לקבוע תור ליום שישי בתשע?"),
            _text(30.5, JUNE, "נרשם: יום שישי 27.11 בשעה 09:00"),
            _text(52.0, NOA, "مرحبا، هل تتكلمون العربية أيضا؟"),
            _text(70.007, JUNE, "Přesně tak: naïve façade, 東京の歯医者, e\u0301 and é differ."),
            _text(90.0, NOA, "First line\nsecond line\twith a tab, and a \u2028 separator"),
            _event(101.0, "transfer.succeeded", JUNE),
            _event(120.0, "participant.left", NOA),
        ],
    ),
}  # fmt: skip
