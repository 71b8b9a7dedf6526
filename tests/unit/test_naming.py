"""Keys of delivered objects, and types by first bytes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from pipeline.delivery.naming import object_keys, sniff
from pipeline.errors import RefuseError
from pipeline.ids import RecordingId
from pipeline.instances import Colon, Discriminator, Storage

RECORDING = RecordingId(UUID("01a208b9-9dc0-7e08-9d5a-3f1c8e2b6a90"))
CONTACT = "cccc3333-0000-4000-8000-000000000003"
STORAGE = Storage(
    association_id="a-1",
    bucket="acme-recordings",
    prefix="connect/acme/CallRecordings",
    kms_key_arn="arn:aws:kms:eu-central-1:111122223333:key/bbbb2222-0000-4000-8000-000000000002",
    bucket_owner="111122223333",
)
BARE = f"connect/acme/CallRecordings/2026/11/23/{CONTACT}_20261123T14:05_UTC"


def keys(**changes: Any) -> tuple[str, ...]:
    arguments: dict[str, Any] = {
        "storage": STORAGE,
        "contact": CONTACT,
        "stamp": datetime(2026, 11, 23, 14, 5, 59, 999_999, tzinfo=UTC),
        "recording_id": RECORDING,
        "generation": 1,
        "extension": "wav",
    }
    return object_keys(**{**arguments, **changes})


def test_a_key_is_bare_and_has_a_second_candidate_with_the_full_recording_id() -> None:
    assert keys() == (f"{BARE}.wav", f"{BARE}_{RECORDING}.wav")


def test_the_id_stands_in_every_key_if_so_configured() -> None:
    assert keys(storage=replace(STORAGE, discriminator=Discriminator.ALWAYS)) == (f"{BARE}_{RECORDING}.wav",)


@pytest.mark.parametrize("discriminator", list(Discriminator))
def test_late_data_has_one_key_with_its_generation(discriminator: Discriminator) -> None:
    storage = replace(STORAGE, discriminator=discriminator)
    assert keys(storage=storage, generation=2) == (f"{BARE}_{RECORDING}_g2.wav",)


def test_the_leg_before_an_agent_has_its_own_folder() -> None:
    assert keys(ivr=True)[0] == f"connect/acme/CallRecordings/ivr/2026/11/23/{CONTACT}_20261123T14:05_UTC.wav"


def test_a_dash_stands_for_the_colon_if_so_configured() -> None:
    assert keys(storage=replace(STORAGE, colon=Colon.DASH))[0] == f"{BARE.replace('14:05', '14-05')}.wav"


def test_day_and_minute_are_those_of_utc() -> None:
    local = datetime(2026, 11, 24, 1, 5, tzinfo=timezone(timedelta(hours=5)))
    assert keys(stamp=local)[0].startswith("connect/acme/CallRecordings/2026/11/23/")
    assert keys(stamp=local)[0].endswith("_20261123T20:05_UTC.wav")


def test_an_early_year_keeps_four_digits() -> None:
    assert "/0007/01/02/" in keys(stamp=datetime(7, 1, 2, tzinfo=UTC))[0]


@pytest.mark.parametrize(
    "prefix",
    ["", "/a", "a/", "a//b", "a/../b", "..", ".", "a/.hidden", "a/b.", "a b", "ä", "a\n", "x" * 129, "-a", "a/%2e"],
)
def test_a_prefix_that_is_no_plain_path_is_refused(prefix: str) -> None:
    with pytest.raises(RefuseError) as caught:
        keys(storage=replace(STORAGE, prefix=prefix))
    assert caught.value.field in {"prefix", "key"}


@pytest.mark.parametrize("prefix", ["a", "a/b.c/d_e-f:g=h", "x" * 128, "9", "A" + "/b" * 63])
def test_a_plain_prefix_is_taken(prefix: str) -> None:
    assert keys(storage=replace(STORAGE, prefix=prefix))[0].startswith(f"{prefix}/2026/")


@pytest.mark.parametrize("contact", ["", "a/b", "../a", "a.b", "-a", "x" * 257, "+49", "a\n", "ä", "a_b"])
def test_a_contact_that_a_key_cant_carry_is_refused(contact: str) -> None:
    with pytest.raises(RefuseError) as caught:
        keys(contact=contact)
    assert caught.value.field in {"contact", "key"}


@pytest.mark.parametrize("extension", ["", ".wav", "w/v", "x" * 17, "wav\n"])
def test_an_extension_that_is_none_is_refused(extension: str) -> None:
    with pytest.raises(RefuseError) as caught:
        keys(extension=extension)
    assert caught.value.field == "extension"


def test_a_start_without_a_zone_is_refused() -> None:
    with pytest.raises(RefuseError) as caught:
        keys(stamp=datetime(2026, 11, 23))  # noqa: DTZ001
    assert caught.value.field == "stamp"


def test_a_key_has_at_most_as_many_bytes_as_s3_takes() -> None:
    with pytest.raises(RefuseError, match="1024"):
        keys(generation=10**900)


@pytest.mark.parametrize(
    ("first", "declared", "expected"),
    [
        (b"RIFF\x24\0\0\0WAVEfmt ", None, ("audio/wav", "wav")),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio/x-wav", ("audio/wav", "wav")),
        (b"RIFF\x24\0\0\0WAVEfmt ", "video/mp4", ("audio/wav", "wav")),
        (b"ID3\x04\0\0", None, ("audio/mpeg", "mp3")),
        (b"\xff\xfb\x90\x64", "application/octet-stream", ("audio/mpeg", "mp3")),
        (b"\xff\xf3\x44\xc0", "audio/mp3", ("audio/mpeg", "mp3")),
        (b"OggS\0\x02", None, ("audio/ogg", "ogg")),
        (b"OggS\0\x02", "video/ogg; codecs=theora", ("video/ogg", "ogg")),
        (b"\0\0\0\x20ftypisom", None, ("video/mp4", "mp4")),
        (b"\0\0\0\x20ftypM4A ", "Audio/MP4", ("audio/mp4", "mp4")),
        (b"\0\0\0\x08wide\0\0\0\0mdat", None, ("video/mp4", "mp4")),
        (b"\0\0\0\0mdat", None, ("video/mp4", "mp4")),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm", None, ("video/webm", "webm")),
        (b"\x1a\x45\xdf\xa3webm", "audio/webm", ("audio/webm", "webm")),
        (b' \r\n{ "Version": 1', "text/plain", ("application/json", "json")),
        (b"[]", None, ("application/json", "json")),
        ('{"name": "é'.encode()[:-1], None, ("application/json", "json")),
    ],
)
def test_the_first_bytes_tell_the_type(first: bytes, declared: str | None, expected: tuple[str, str]) -> None:
    assert sniff(first, declared) == (*expected, False)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("audio/wav", ("audio/wav", "wav", True)),
        ("video/mp4", ("video/mp4", "mp4", True)),
        ("audio/ogg", ("audio/ogg", "ogg", True)),
        ("audio/mpeg", ("audio/mpeg", "mp3", False)),
        ("Application/JSON; charset=utf-8", ("application/json", "json", False)),
        ("text/html", ("application/octet-stream", "bin", True)),
        ("", ("application/octet-stream", "bin", True)),
        (None, ("application/octet-stream", "bin", True)),
    ],
)
def test_else_the_declared_type_counts_if_it_is_a_known_one(
    declared: str | None, expected: tuple[str, str, bool]
) -> None:
    assert sniff(b"\x01\x02\x03\x04\x05\x06\x07\x08", declared) == expected


@pytest.mark.parametrize(
    "first",
    [
        b"RIFF\x24\0\0\0AVI LIST",
        b"\xff\xff\xff\xff",
        b"\xff\xe1\x90\x64",
        b"\0\0\0\x04ftyp",
        b"\x1a\x45\xdf\xa3\x42\x82\x88matroska",
        b"{hello}",
        b"[ hello",
        b"{",
        b'{"\xff"',
        b'{"\0',
        b"\xff\xfb",
    ],
)
def test_what_only_looks_a_little_like_a_format_is_none(first: bytes) -> None:
    assert sniff(first, None) == ("application/octet-stream", "bin", True)


def test_an_empty_body_of_a_declared_type_is_not_of_a_wrong_format() -> None:
    assert sniff(b"", "audio/wav") == ("audio/wav", "wav", False)
