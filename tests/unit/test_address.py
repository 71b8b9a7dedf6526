from uuid import UUID

import pytest

from pipeline.ids import Kind
from pipeline.intake.address import Address, parse_address

INSTANCE = "aaaa1111-0000-4000-8000-000000000001"
BASE = f"/v1/instances/{INSTANCE}/contacts"


def test_a_path_says_where_a_recording_belongs() -> None:
    found = {path: parse_address(f"{BASE}/{path}".encode()) for path in ("c/voice", "c/voice.wav", "c/screen/1.mp4")}
    assert found["c/voice"] == Address(UUID(INSTANCE), "c", Kind.VOICE, "c/voice")  # type: ignore[arg-type]
    assert [(each.kind, each.source_id) for each in found.values() if each] == [
        (Kind.VOICE, "c/voice"),
        (Kind.VOICE, "c/voice.wav"),
        (Kind.SCREEN, "c/screen/1.mp4"),
    ]


def test_an_escaped_slash_stays_inside_its_segment() -> None:
    found = parse_address(f"{BASE}/a%2Fb%2F..%2Fc/voice/x%20y".encode())
    assert found is not None
    assert (found.contact, found.source_id) == ("a/b/../c", "a/b/../c/voice/x y")


def test_letters_of_any_script_are_taken() -> None:
    found = parse_address(f"{BASE}/%C3%A9%E6%97%A5/chat".encode())
    assert found is not None
    assert found.contact == "é日"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1/instances",
        BASE,
        f"{BASE}/c",
        f"{BASE}/c/",
        f"{BASE}//voice",
        f"{BASE}/c/fax",
        f"{BASE}/c/journal",
        f"{BASE}/c/VOICE",
        f"{BASE}/c/voice/",
        f"{BASE}/c/voice.wav/x",
        f"{BASE}/c/voice/x/y",
        f"{BASE}/c%00/voice",
        f"{BASE}/c%0a/voice",
        f"{BASE}/%ff/voice",
        f"{BASE}/c/voice/%1b",
        f"{BASE}/{'x' * 257}/voice",
        f"/v2/instances/{INSTANCE}/contacts/c/voice",
        f"/v1/instances/{INSTANCE}/contact/c/voice",
        "/v1/instances/nobody/contacts/c/voice",
        f"v1/instances/{INSTANCE}/contacts/c/voice",
        f"{BASE}/c/voice?x=1",
    ],
)
def test_what_names_nothing_that_could_exist_is_nothing(path: str) -> None:
    assert parse_address(path.encode()) is None
