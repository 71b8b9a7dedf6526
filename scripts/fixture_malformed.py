"""Events that must be refused: one a line, each wrong in one way. fixtures/README.md says which."""

import json
from typing import Any

_ARN = "arn:aws:connect:eu-central-1:111122223333:instance/aaaa1111-0000-4000-8000-000000000001"
_CONTACT = "cccc3333-0000-4000-8000-000000000099"
_ITEM = {"AbsoluteTime": "2026-11-23T09:00:09.004Z", "Id": "i-2", "Type": "MESSAGE", "Content": "Never delivered."}


def _line(envelope: dict[str, Any], **changes: Any) -> bytes:
    """Encode an envelope with some members of `detail` changed; `None` takes one away."""
    detail = {name: value for name, value in {**envelope["detail"], **changes}.items() if value is not None}
    return json.dumps({**envelope, "detail": detail}, separators=(",", ":")).encode()


_MOVED = {
    "id": "e1d2c3b4-0000-4000-8000-000000000099",
    "detail-type": "Amazon Connect Contact Event",
    "source": "aws.connect",
    "time": "2026-11-23T14:21:00Z",
    "detail": {"eventType": "INITIATED", "contactId": _CONTACT, "channel": "VOICE", "instanceArn": _ARN},
}
_SAID = {
    "id": "e1d2c3b4-0000-4000-8000-000000000098",
    "detail-type": "Chat Message",
    "source": "pipeline.chat",
    "detail": {"instanceArn": _ARN, "contactId": _CONTACT, "item": _ITEM, "final": False},
}
_STARTED = {
    "id": "e1d2c3b4-0000-4000-8000-000000000097",
    "detail-type": "Recording Started",
    "source": "pipeline.recorder",
    "detail": {"instanceArn": _ARN, "contactId": _CONTACT, "recordingKind": "voice", "sourceId": "s-1"},
}

MALFORMED = [
    b"INITIATED cccc3333-0000-4000-8000-000000000099",
    _line(_MOVED)[:-40],
    _line(_MOVED).replace(b'"VOICE"', b'"VOI\xffCE"'),
    _line(_MOVED).replace(b'"VOICE"', b'"VOICE",'),
    b'"a string"',
    json.dumps({name: value for name, value in _MOVED.items() if name != "detail-type"}).encode(),
    json.dumps({**_MOVED, "detail": "INITIATED"}).encode(),
    _line(_MOVED, eventType=None),
    _line(_MOVED, contactId=None),
    _line(_MOVED, contactId="c" * 257),
    _line(_MOVED, contactId="cccc3333\r\nX-Injected: 1"),
    _line(_MOVED, contactId=[_CONTACT]),
    _line(_MOVED, instanceArn="arn:aws:connect:eu-central-1:111122223333:instance/acme"),
    _line(_MOVED, segmentAttributes=json.loads("[" * 80 + "]" * 80)),
    _line(_SAID, item=None),
    _line(_SAID, item={name: value for name, value in _ITEM.items() if name != "Id"}),
    _line(_SAID, item={name: value for name, value in _ITEM.items() if name != "AbsoluteTime"}),
    _line(_SAID, item={**_ITEM, "AbsoluteTime": "nine o'clock"}),
    _line(_SAID, item="Never delivered."),
    _line(_STARTED, recordingKind="hologram"),
    _line(_STARTED, sourceId=None),
    _line(_STARTED, sourceId=7),
]
