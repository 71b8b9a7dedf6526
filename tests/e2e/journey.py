"""One journey, whatever the servers: two instances send every kind of recording, and each arrives as it was sent."""

import hashlib
import json
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from pipeline.ids import Kind
from tests import markers
from tests.node import Caller, until
from tests.sites import PREFIXES, Party, Site, Stored

MARKER = markers.SPOKEN
STARTED = "2026-11-23T14:05:12.000Z"
STAMP = "20261123T14:05"
AT_A_TIME = 32
MIB = 2**20


@dataclass(frozen=True)
class Sent:
    """A recording, and what is to be found in the bucket of it."""

    party: Party
    contact: str
    kind: Kind
    body: bytes | None
    """None for a chat that came as events: its transcript is made here."""
    content_type: str
    extension: str
    items: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        prefix = f"connect/{self.party.instance.alias}/{PREFIXES[self.kind]}"
        return f"{prefix}/2026/11/23/{self.contact}_{STAMP}_UTC.{self.extension}"


def wav(size_bytes: int) -> bytes:
    """Make a stereo call of 8 kHz (RIFF) of that length in all, header included."""
    samples = size_bytes - 44
    format_chunk = b"fmt " + b"".join(
        number.to_bytes(width, "little")
        for number, width in ((16, 4), (1, 2), (2, 2), (8000, 4), (32000, 4), (4, 2), (16, 2))
    )
    head = b"RIFF" + (36 + samples).to_bytes(4, "little") + b"WAVE" + format_chunk
    return head + b"data" + samples.to_bytes(4, "little") + marked(samples)


def mp4(size_bytes: int) -> bytes:
    """Make the boxes of a film (ISO 14496-12) with noise in them."""
    ftyp = b"\0\0\0\x10ftypisom\0\0\0\1"
    moov = b"\0\0\0\x08moov"
    data = size_bytes - len(ftyp) - len(moov)
    return ftyp + moov + data.to_bytes(4, "big") + b"mdat" + marked(data - 8)


def marked(size_bytes: int) -> bytes:
    """Make noise that holds the marker."""
    noise = bytearray(random.randbytes(size_bytes))
    if size_bytes >= len(MARKER):
        noise[: len(MARKER)] = noise[-len(MARKER) :] = MARKER
    return bytes(noise)


def contact_event(party: Party, contact: str, event_type: str = "INITIATED", channel: str = "VOICE") -> dict[str, Any]:
    detail = {"eventType": event_type, "channel": channel, "initiationTimestamp": STARTED}
    return _event(party, contact, "aws.connect", "Amazon Connect Contact Event", detail)


def started(party: Party, contact: str, kind: Kind, source_id: str) -> dict[str, Any]:
    detail = {"recordingKind": kind, "sourceId": source_id, "startTime": STARTED}
    return _event(party, contact, "pipeline.recorder", "Recording Started", detail)


def message(party: Party, contact: str, item_id: str, text: str, *, final: bool = False) -> dict[str, Any]:
    item = {
        "Id": item_id,
        "AbsoluteTime": "2026-11-23T14:06:01.120Z",
        "Type": "MESSAGE",
        "ContentType": "text/plain",
        "Content": text,
        "ParticipantId": "p-customer",
        "ParticipantRole": "CUSTOMER",
    }
    return _event(party, contact, "pipeline.chat", "Chat Message", {"item": item, "final": final})


def final(party: Party, contact: str) -> dict[str, Any]:
    return _event(party, contact, "pipeline.chat", "Chat Message", {"final": True})


def _event(party: Party, contact: str, source: str, detail_type: str, detail: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "0",
        "id": secrets.token_hex(16),
        "detail-type": detail_type,
        "source": source,
        "account": party.instance.account_id,
        "time": "2026-11-23T14:05:13Z",
        "region": party.instance.region,
        "resources": [],
        "detail": {"instanceArn": party.instance.arn, "contactId": contact, **detail},
    }


# --- there


async def travel(site: Site, caller: Caller, crowd: int) -> list[Sent]:
    """Send everything, the last of it as a crowd; come back when all of it was told to be published."""
    sent: list[Sent] = []
    for party in site.parties:
        sent += await _one_of_each(caller, party)
    sent += await _crowd(site, caller, crowd)
    for party in site.parties:
        mine = [each for each in sent if each.party is party]
        await until(lambda party=party, mine=mine: len(site.published(party)) >= len(mine), 60 + crowd / 5)  # type: ignore[misc]
    return sent


async def _one_of_each(caller: Caller, party: Party) -> list[Sent]:
    contacts = ["c-trap", "c-film", "c-large", "c-live", "c-silent", "c-chat", "c-file"]
    answer = await caller.post(party, [contact_event(party, contact) for contact in contacts])
    assert (answer.status, answer.json) == (202, {"accepted": len(contacts)})
    announced = started(party, "c-film", Kind.SCREEN, "c-film/screen")
    assert (await caller.post(party, [announced, announced])).status == 202
    sent = [
        Sent(party, "c-trap", Kind.VOICE, wav(44), "audio/wav", "wav"),
        Sent(party, "c-film", Kind.SCREEN, mp4(300_001), "video/mp4", "mp4"),
        Sent(party, "c-large", Kind.SCREEN, mp4(9 * MIB + 123), "video/mp4", "mp4"),
        Sent(party, "c-live", Kind.VOICE, wav(2 * MIB + 7), "audio/wav", "wav"),
        Sent(party, "c-file", Kind.CHAT, b"", "application/json", "json"),
    ]
    for each in sent:
        assert each.body is not None
        body = _pieces(each.body) if each.contact == "c-live" else each.body
        await put(caller, each, body)
    return [*sent, *await _chats(caller, party)]


async def _chats(caller: Caller, party: Party) -> list[Sent]:
    texts = [f"{MARKER.decode()}{number}" for number in range(3)]
    first, second, third = (message(party, "c-chat", f"i-{number}", text) for number, text in enumerate(texts))
    assert (await caller.post(party, first)).status == 202
    assert (await caller.post(party, [first, second])).status == 202
    third["detail"]["final"] = True
    assert (await caller.post(party, third)).status == 202
    assert (await caller.post(party, final(party, "c-silent"))).status == 202
    return [
        Sent(party, "c-chat", Kind.CHAT, None, "application/json", "json", tuple(texts)),
        Sent(party, "c-silent", Kind.CHAT, None, "application/json", "json"),
    ]


async def _crowd(site: Site, caller: Caller, crowd: int) -> list[Sent]:
    """Send many at a time, of both instances in turn."""
    sent = [
        Sent(party, f"crowd-{number}", Kind.VOICE, wav(64 * 1024 + number), "audio/wav", "wav")
        for number in range(crowd // 2)
        for party in site.parties
    ]
    for party in site.parties:
        events = [contact_event(party, each.contact) for each in sent if each.party is party]
        assert (await caller.post(party, events)).status == 202
    limiter = anyio.CapacityLimiter(AT_A_TIME)

    async def send(each: Sent) -> None:
        async with limiter:
            assert each.body is not None
            await put(caller, each, each.body)

    async with anyio.create_task_group() as group:
        for each in sent:
            group.start_soon(send, each)
    return sent


async def put(caller: Caller, each: Sent, body: bytes | AsyncIterator[bytes]) -> None:
    """Send one recording; it is taken at once, and the answer names its bytes."""
    recording = f"{each.kind}.{each.extension}" if each.contact != "c-film" else str(each.kind)
    answer = await caller.put(each.party, each.contact, recording, body, Content_Type=each.content_type)
    assert answer.status == 201, answer
    assert each.body is not None
    assert answer.json["sha256"] == hashlib.sha256(each.body).hexdigest()


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """Cut a body into uneven pieces: sent so, it has no declared length."""
    at = 0
    while at < len(body):
        size = random.randint(1, 100_000)
        yield body[at : at + size]
        at += size


# --- and what is found


async def check(site: Site, sent: list[Sent]) -> None:
    """Compare everything that can be seen from outside with what was sent."""
    for party in site.parties:
        mine = [each for each in sent if each.party is party]
        objects = await site.objects(party)
        assert sorted(objects) == sorted(each.key for each in mine)
        receipts = _receipts(site, party)
        for each in mine:
            _check_object(each, objects[each.key], receipts[each.key])
        _check_status(site.events(party), mine)
        _check_audit(site, party, len(mine))
        assert await site.unfinished(party) == []
    assert site.artifacts("sealed") == site.artifacts("open") == []
    _check_key_server(site)
    check_no_plaintext(site.state)


def _receipts(site: Site, party: Party) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_bytes()) for path in site.artifacts("done")]
    return {each["key"]: each for each in found if each["bucket"] == party.bucket}


def _check_object(sent: Sent, stored: Stored, receipt: dict[str, Any]) -> None:
    if sent.body is not None:
        assert stored.body == sent.body, sent.key
    else:
        transcript = json.loads(stored.body)
        assert [item["Content"] for item in transcript["Transcript"]] == list(sent.items)
        assert transcript["InstanceId"] == str(sent.party.instance.instance_id)
    sha256 = hashlib.sha256(stored.body).hexdigest()
    assert stored.content_type == sent.content_type, sent.key
    assert stored.metadata == {"rid": receipt["recordingId"], "gen": "1", "sha256": sha256}
    key_arn = sent.party.instance.storage[sent.kind].kms_key_arn
    assert stored.kms_key_arn == receipt["kmsKeyArn"] == key_arn
    assert (receipt["sizeBytes"], receipt["sha256"]) == (len(stored.body), sha256)


def _check_status(events: list[dict[str, Any]], sent: list[Sent]) -> None:
    """Every recording has told each status once, in order."""
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        told[event["detail"]["recordingId"]].append(event)
    assert len(told) == len(sent)
    ids = [event["detail"]["eventDeduplicationId"] for event in events]
    assert len(set(ids)) == len(ids)
    for each in told.values():
        details = [event["detail"] for event in each]
        assert [detail["recordingStatus"] for detail in details] == ["INITIATED", "COMPLETED", "PUBLISHED"], details
        assert [detail["sequence"] for detail in details] == [1, 2, 3]
    trap = next(each for each in told.values() if each[0]["resources"][0].endswith("/c-trap"))
    assert trap[-1]["detail"]["quality"] == ["SUSPECT_EMPTY"]


def _check_audit(site: Site, party: Party, recordings: int) -> None:
    """One record for each use of a key and each move."""
    records = site.audit(party)
    assert len({record["eventID"] for record in records}) == len(records)
    calls = [record for record in records if record["eventSource"] == "kms.amazonaws.com"]
    assert [record["eventName"] for record in calls] == ["GenerateDataKey"]
    assert calls[0]["resources"][0]["ARN"] == party.instance.kms_key_arn
    moves = Counter(
        (record["eventName"], record["requestParameters"]["artifactId"])
        for record in records
        if record["eventSource"] != "kms.amazonaws.com" and record["eventName"] != "InstanceChanged"
    )
    assert set(moves.values()) == {1}
    kinds = Counter(name for name, _ in moves)
    assert kinds == {"ArtifactOpened": recordings, "ArtifactSealed": recordings, "ArtifactDelivered": recordings}


def _check_key_server(site: Site) -> None:
    """KMS has made one data key for each instance, and not one for each recording."""
    if site.key_trail is None:
        return
    asked = [record for record in site.key_trail() if record["userIdentity"]["arn"] == site.service_arn]
    made = [record["requestParameters"] for record in asked if record["eventName"] == "GenerateDataKey"]
    assert sorted(each["keyId"] for each in made) == sorted(party.instance.kms_key_arn for party in site.parties)
    ours = [record for party in site.parties for record in site.audit(party)]
    told = [record["requestID"] for record in ours if record["eventSource"] == "kms.amazonaws.com"]
    assert len(told) == len(asked), "the two trails tell of other calls"
    assert {request for request in told if request} <= {record["requestID"] for record in asked}
    contexts = [each["encryptionContext"]["pipeline:instanceId"] for each in made]
    assert sorted(contexts) == sorted(str(party.instance.instance_id) for party in site.parties)


def check_no_plaintext(*directories: Path) -> None:
    """No file holds what was said; at least one file was looked at."""
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if MARKER in path.read_bytes()] == []
