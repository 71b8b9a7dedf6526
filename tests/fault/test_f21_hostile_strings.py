"""F21: strings from outside that would be a path, a line, a header or a key: each of them, everywhere it can stand."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.interim.states import parse_name
from tests.hostile import Hostile, hostile, request
from tests.intake_server import BODY, CANARY, url
from tests.store_fixture import instance
from tests.unit.keyring_fakes import A

NASTIES = {
    "up": "../../../../etc/passwd",
    "up, absolute": "/etc/passwd",
    "dots": "..",
    "dot": ".",
    "backslashes": "..\\..\\windows",
    "NUL": "a\0b",
    "line feed": "a\nSet-Cookie: x",
    "line end": "a\r\nX-Injected: 1\r\n\r\n",
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "right to left": "a\u202egpj.exe",
    "zero width": "a\u200b\u2060b\ufeff",
    "combining": "e\u0301" * 50,
    "composed": "\u00e9" * 50,
    "wide": "\uff0e\uff0e\uff0f",
    "a surrogate, escaped": "\\ud800",
    "beyond the plane": "\U0001f600\U000e0001",
    "reserved": "CON",
    "reserved, stream": "aux.wav:stream",
    "trailing": "a. . .",
    "shell": "$(id);`id`|id&&id",
    "format": "%s%n{0}${jndi:ldap://x}",
    "SQL": "'; DROP TABLE x; --",
    "long": "x" * 10_000,
    "spaces": " \t ",
    "escaped twice": "%252e%252e%252f",
    "percent": "%",
    "nothing": "",
    "an artifact's name": "0" * 32 + ".sealed",
    "a poison's": "x.poison.integrity",
}


def escaped(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


KNOWN = {
    *("artifacts", "audit", "events", "holds", "jobs", "journal"),
    *("keys", "lost+found", "receipts", "records", "store.json"),
}


def check_nothing_escaped(test: Hostile) -> None:
    """Nothing in the store bears such a name or holds it in clear, and every artifact's name is one of ours."""
    root = test.server.process.world.root
    for path in test.server.process.world.paths():
        parse_name(path.name)
    assert {path.name for path in root.iterdir() if path.is_dir()} <= KNOWN
    every = list(root.rglob("*"))
    assert not any(path.is_symlink() for path in every)
    contents = {path: path.read_bytes() for path in every if path.is_file()}
    for which, nasty in NASTIES.items():
        if len(nasty) > 6:
            assert [path for path, content in contents.items() if nasty.encode() in content] == [], which


def uploads_of(nasty: str) -> list[bytes]:
    """Make requests that have it in each part of their address, and in each header."""
    paths = [
        url(contact=escaped(nasty)),
        url(name="/" + escaped(nasty)),
        url(kind=escaped(nasty)),
        url(instance_id=escaped(nasty)),
        f"/{escaped(nasty)}",
    ]
    raw, size = nasty.encode(), str(len(BODY))
    headers = ("Idempotency-Key", "Content-Type", "X-Recording-Completion-Cause", "X-Recording-Start", "Content-Range")
    return [
        *(request("PUT", path, Content_Length=size) for path in paths),
        request("PUT", url(contact="CONTACT").encode().replace(b"CONTACT", raw), Content_Length=size),
        *(request("PUT", url(name=f"/{name}"), name.encode() + b": " + raw, Content_Length=size) for name in headers),
    ]


HALF = pytest.mark.parametrize("share", [2, pytest.param(1, marks=pytest.mark.slow)])
"""Every string in one place of so many, each place with one string of so many."""


@HALF
async def test_no_string_from_outside_becomes_a_path_a_key_or_a_line(tmp_path: Path, share: int) -> None:
    async with hostile(tmp_path) as test:
        for number, (which, nasty) in enumerate(NASTIES.items()):
            for head in uploads_of(nasty)[number % share :: share]:
                answer = await test.ask(head, BODY)
                assert answer is not None, which
                assert answer.status in {201, 400, 401, 404, 409, 415, 431}, (which, answer, head)
                assert {"set-cookie", "x-injected"}.isdisjoint(answer.headers), which
                assert answer.status == 201 or len(nasty) < 4 or nasty.encode() not in answer.body, which
        sealed = test.server.process.sealed
        assert len(sealed) > 20
        for name in sealed:
            key = await test.server.process.a.ring.opening(name.key_id)
            with test.server.process.store.reading(name, key) as reader:
                for object_key in reader.manifest().keys:
                    segments = object_key.split("/")
                    assert all(segment.strip(".") and segment.isascii() for segment in segments), object_key
                    assert len(object_key) <= 1024
        check_nothing_escaped(test)


def events_of(nasty: str) -> list[dict[str, Any]]:
    """Make events that have it in each of their fields, one at a time."""
    arn = instance(A).arn
    started = {"instanceArn": arn, "contactId": CANARY, "recordingKind": "voice", "sourceId": "s", "startTime": None}
    item = {"Id": "1", "AbsoluteTime": "2026-11-23T09:00:01.120Z", "Type": "MESSAGE", "Content": "hi"}
    contact = {"instanceArn": arn, "contactId": CANARY, "eventType": "INITIATED", "channel": "VOICE"}
    made = [
        {"detail-type": "Recording Started", "source": "x", "detail": {**started, field: nasty}} for field in started
    ]
    made += [
        {
            "detail-type": "Chat Message",
            "source": "x",
            "detail": {"instanceArn": arn, "contactId": CANARY, "item": {**item, field: nasty}},
        }
        for field in item
    ]
    made += [
        {"detail-type": "Amazon Connect Contact Event", "source": "aws.connect", "detail": {**contact, field: nasty}}
        for field in contact
    ]
    whole = made[0] | {"detail": contact}
    return [*made, *({**whole, field: nasty} for field in ("detail-type", "source", "id", "time", "account", "detail"))]


@HALF
async def test_no_string_of_an_event_becomes_a_path_or_a_line(tmp_path: Path, share: int) -> None:
    async with hostile(tmp_path) as test:
        for number, (which, nasty) in enumerate(NASTIES.items()):
            for event in events_of(nasty)[number % share :: share]:
                body = json.dumps(event).encode()
                answer = await test.ask(request("POST", "/v1/events", Content_Length=str(len(body))), body)
                assert answer is not None, which
                assert answer.status in {202, 400, 404}, (which, answer, event)
                assert len(nasty) < 4 or nasty not in answer.body.decode(), which
        check_nothing_escaped(test)
        for line in test.server.process.world.events().splitlines():
            assert json.loads(line)["source"] == "pipeline.recordings"
