"""The committed fixtures are what fixtures/README.md says of them."""

import json
import re
import struct
import wave
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.delivery.transcript import ArrivedItem, render
from pipeline.errors import RefuseError
from pipeline.events import ChatMessage, ContactEvent, Incoming, RecordingStarted, parse

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
MEDIA = FIXTURES / "media"
CALLS = ["call-dentist.wav", "call-parcel.wav", "call-with-list-chunk.wav", "ivr-parcel.wav"]
STREAMS = ["acme-contacts", "borealis-contacts", "acme-chats", "borealis-chats"]
DEMO: dict[str, Any] = json.loads((FIXTURES / "demo.json").read_text(encoding="utf-8"))
MARKERS: dict[str, Any] = json.loads((FIXTURES / "markers.json").read_text(encoding="utf-8"))
CHATS = [each for each in DEMO["recordings"] if each["kind"] == "chat"]
ACCOUNTS = {each["id"]: each["account"] for each in DEMO["instances"]}


def _lines(stream: str) -> list[bytes]:
    return (FIXTURES / "events" / f"{stream}.jsonl").read_bytes().removesuffix(b"\n").split(b"\n")


def _events(*streams: str) -> list[Incoming]:
    return [event for stream in streams for line in _lines(stream) for event in parse(line)]


def _boxes(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    at = 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        assert 8 <= size <= len(data) - at
        found.append((name.decode(), data[at + 8 : at + size]))
        at += size
    return found


def test_all_fixtures_together_stay_under_two_mebibytes() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) <= 2 * 2**20


# --- media


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_stereo_at_8_khz_with_sound_on_both_sides(name: str) -> None:
    with wave.open(str(MEDIA / name)) as call:
        assert (call.getnchannels(), call.getframerate(), call.getsampwidth()) == (2, 8000, 2)
        assert 2 * 8000 < call.getnframes() < 15 * 8000
        samples = array("h", call.readframes(call.getnframes()))
    for side in (samples[0::2], samples[1::2]):
        assert max(side) > 2000


@pytest.mark.parametrize("name", [*CALLS, "call-lost.wav"])
def test_a_call_has_the_plain_header_or_a_list_chunk_in_it(name: str) -> None:
    data = (MEDIA / name).read_bytes()
    assert data[:4] == b"RIFF"
    assert data[8:16] == b"WAVEfmt "
    assert data[36:40] == (b"LIST" if "list" in name else b"data")
    assert struct.unpack_from("<I", data, 4) == (len(data) - 8,)
    begin = data.index(b"data") + 8
    assert struct.unpack_from("<I", data, begin - 4) == (len(data) - begin,)


def test_the_lost_call_is_a_header_only() -> None:
    assert (MEDIA / "call-lost.wav").stat().st_size == 44


def test_the_plain_screen_is_a_complete_mp4() -> None:
    names = [name for name, _ in _boxes((MEDIA / "screen.mp4").read_bytes())]
    assert names[0] == "ftyp"
    assert names.count("moov") == names.count("mdat") == 1
    assert "moof" not in names


def test_the_live_screen_is_fragmented() -> None:
    boxes = _boxes((MEDIA / "screen-live.mp4").read_bytes())
    names = [name for name, _ in boxes]
    assert names[:2] == ["ftyp", "moov"]
    assert "mvex" in [name for name, _ in _boxes(boxes[1][1])]
    pairs = [name for name in names[2:] if name != "mfra"]
    assert pairs == ["moof", "mdat"] * 5


# --- events


@pytest.mark.parametrize("stream", STREAMS)
def test_every_event_of_a_stream_is_taken_and_is_of_its_instance(stream: str) -> None:
    alias = stream.split("-", 1)[0]
    instance = next(each["id"] for each in DEMO["instances"] if each["alias"] == alias)
    assert {str(event.instance_id) for event in _events(stream)} == {instance}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_is_out_of_order_and_repeats_itself(stream: str) -> None:
    lines = _lines(stream)
    assert max(Counter(lines).values()) > 1
    times = [json.loads(line)["time"] for line in dict.fromkeys(lines)]
    assert times != sorted(times)


CONTACTS = [json.loads(line) for stream in STREAMS for line in _lines(stream)]
MOVES = [envelope for envelope in CONTACTS if envelope["source"] == "aws.connect"]
ODDITIES: dict[str, Callable[[Any], bool]] = {
    "payload in pascal case": lambda e: "ContactId" in e["detail"],
    "pascal object in a camel payload": lambda e: "AgentArn" in e["detail"].get("agentInfo", {}),
    "word in another case": lambda e: e["detail"].get("channel") == "Voice",
    "time not set": lambda e: e["detail"].get("connectedToSystemTimestamp") == "1970-01-01T00:00:00.001Z",
    "arn without partition": lambda e: e["detail"].get("instanceArn", "").startswith("arn:aws::connect:"),
    "three resources": lambda e: len(e["resources"]) == 3 and "instance/instance-id" in e["resources"][0],
    "instance in a tag only": lambda e: not e["resources"] and "instanceArn" not in e["detail"],
    "routing as object": lambda e: isinstance(e["detail"].get("routingCriteria"), dict),
    "routing as list": lambda e: isinstance(e["detail"].get("routingCriteria"), list),
    "recordings": lambda e: e["detail"].get("recordings", [{}])[0].get("StorageType") == "Amazon S3",
    "telephone number in a tag": lambda e: "aws:connect:systemEndpoint" in e["detail"].get("tags", {}),
    "unknown event type": lambda e: e["detail"].get("eventType") == "BEAMED_UP",
    "unknown channel": lambda e: e["detail"].get("channel") == "HOLOGRAM",
    "completed": lambda e: e["detail"].get("eventType") == "COMPLETED",
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_the_streams_hold_every_oddity_of_the_field(oddity: str) -> None:
    assert any(ODDITIES[oddity](envelope) for envelope in MOVES)


def test_an_outbound_call_has_no_queue() -> None:
    outbound = [envelope for envelope in MOVES if envelope["detail"].get("initiationMethod") == "OUTBOUND"]
    assert outbound
    assert not any("queueInfo" in envelope["detail"] for envelope in outbound)


def test_the_beginning_of_a_campaign_call_moves() -> None:
    moves = [event for event in _events("borealis-contacts") if isinstance(event, ContactEvent)]
    dialled = {event.initiated for event in moves if event.contact.endswith("21")}
    assert len(dialled) == 2


def test_every_refused_event_is_refused_for_what_the_readme_says() -> None:
    readme = (FIXTURES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| .+ \| (?:`([^`]+)`|—) \|$", readme, re.MULTILINE)
    lines = _lines("malformed")
    assert [int(number) for number, _ in rows] == list(range(1, len(lines) + 1))
    for line, (_, named) in zip(lines, rows, strict=True):
        with pytest.raises(RefuseError) as refused:
            parse(line)
        assert refused.value.field == (named or None)


# --- chats


@pytest.mark.parametrize("chat", CHATS, ids=lambda chat: chat["contact"][-2:])
def test_a_chats_stream_becomes_its_transcript(chat: dict[str, Any]) -> None:
    told = [event for event in _events(Path(chat["events"]).stem) if getattr(event, "contact", "") == chat["contact"]]
    said = [event for event in told if isinstance(event, ChatMessage)]
    items = [ArrivedItem(arrival, event.item) for arrival, event in enumerate(said) if event.item is not None]
    moves = [event for event in told if isinstance(event, ContactEvent)]
    assert said[0].instance_id is not None
    rendered = render(
        account_id=ACCOUNTS[chat["instance"]],
        instance_id=said[0].instance_id,
        contact=chat["contact"],
        initial_contact=moves[0].initial_contact,
        items=items,
    )
    assert json.loads(rendered.data) == json.loads((FIXTURES / chat["transcript"]).read_text(encoding="utf-8"))


def test_each_chat_ends_in_its_own_way_and_nothing_is_said_after_it() -> None:
    endings = set()
    for chat in CHATS:
        of_chat = [e for e in _events(Path(chat["events"]).stem) if getattr(e, "contact", "") == chat["contact"]]
        ends = [
            index
            for index, event in enumerate(of_chat)
            if (isinstance(event, ChatMessage) and event.ends_chat)
            or (isinstance(event, ContactEvent) and event.event_type == "COMPLETED")
        ]
        assert not any(isinstance(event, ChatMessage) for event in of_chat[ends[0] + 1 :])
        first = of_chat[ends[0]]
        endings.add((type(first), isinstance(first, ChatMessage) and first.final))
    assert endings == {(ChatMessage, False), (ChatMessage, True), (ContactEvent, False)}


# --- markers and the demo's plan


@pytest.mark.parametrize("name", MARKERS["media"])
def test_markers_stand_at_their_offsets_and_in_no_other_file(name: str) -> None:
    others = [path.read_bytes() for path in MEDIA.iterdir() if path != FIXTURES / name]
    data = (FIXTURES / name).read_bytes()
    assert bool(MARKERS["media"][name]) == (len(data) > 44)
    for marker in MARKERS["media"][name]:
        found = bytes.fromhex(marker["hex"])
        assert len(found) >= 16
        assert len(set(found)) >= 12
        assert data.startswith(found, marker["offset"])
        assert not any(found in other for other in others)


@pytest.mark.parametrize("chat", CHATS, ids=lambda chat: chat["contact"][-2:])
def test_a_chats_markers_are_in_its_stream_and_in_its_transcript(chat: dict[str, Any]) -> None:
    assert len(MARKERS["chats"][chat["contact"]]) >= 4
    for text in MARKERS["chats"][chat["contact"]]:
        assert len(text.encode()) >= 16
        for name in (chat["events"], chat["transcript"]):
            assert text.encode() in (FIXTURES / name).read_bytes()


def test_contact_markers_are_in_the_contact_events() -> None:
    told = b"".join(line for stream in STREAMS for line in _lines(stream))
    assert MARKERS["contactEvents"]
    assert all(text.encode() in told for text in MARKERS["contactEvents"])


def test_the_demo_has_every_kind_two_instances_and_six_contacts() -> None:
    recordings = DEMO["recordings"]
    assert {each["kind"] for each in recordings} == {"voice", "screen", "chat"}
    assert {each["instance"] for each in recordings} == {each["id"] for each in DEMO["instances"]}
    assert len(DEMO["instances"]) == 2
    assert len({each["contact"] for each in recordings}) >= 6
    assert {f"media/{path.name}" for path in MEDIA.iterdir()} == {
        each["media"] for each in recordings if "media" in each
    }


def test_every_recording_with_media_is_announced_under_its_source() -> None:
    events = _events("acme-contacts", "borealis-contacts")
    started = {
        (str(event.instance_id), event.contact, str(event.kind), event.source_id)
        for event in events
        if isinstance(event, RecordingStarted)
    }
    sent = {(e["instance"], e["contact"], e["kind"], e["source"]) for e in DEMO["recordings"] if "media" in e}
    assert started == sent
