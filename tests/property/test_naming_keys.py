"""No key leaves unchecked, and no bytes upset the sniffer."""

import re
from datetime import UTC, datetime
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.delivery.media import MediaCheck
from pipeline.delivery.naming import CONTENT_TYPES, object_keys, sniff
from pipeline.errors import RefuseError
from pipeline.ids import InstanceId, RecordingId
from pipeline.instances import Colon, Discriminator, Storage
from pipeline.intake.contacts import object_contact
from tests.property.examples import part

INSTANCE = InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001"))
SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=-]*")
NEARLY_PLAIN = st.text(st.sampled_from("aZ09._:=-/ %\n\0é"), max_size=140)


def storage(prefix: str, discriminator: Discriminator, colon: Colon) -> Storage:
    return Storage(
        association_id="a",
        bucket="b",
        prefix=prefix,
        kms_key_arn="k",
        bucket_owner="1" * 12,
        discriminator=discriminator,
        colon=colon,
    )


@settings(max_examples=part(200), deadline=None)
@given(
    prefix=st.text(max_size=140) | NEARLY_PLAIN | st.just("connect/acme"),
    contact=st.text(max_size=260) | NEARLY_PLAIN | st.just("c-1"),
    extension=st.text(max_size=18) | NEARLY_PLAIN | st.just("wav"),
    stamp=st.datetimes(timezones=st.just(UTC)),
    recording_id=st.uuids(),
    generation=st.integers(1, 10**6),
    when=st.sampled_from(Discriminator),
    colon=st.sampled_from(Colon),
    ivr=st.booleans(),
)
def test_keys_keep_the_rules_or_are_refused(
    prefix: str,
    contact: str,
    extension: str,
    stamp: datetime,
    recording_id: UUID,
    generation: int,
    when: Discriminator,
    colon: Colon,
    ivr: bool,
) -> None:
    try:
        keys = object_keys(
            storage=storage(prefix, when, colon),
            contact=contact,
            stamp=stamp,
            recording_id=RecordingId(recording_id),
            generation=generation,
            extension=extension,
            ivr=ivr,
        )
    except RefuseError:
        return
    assert 1 <= len(keys) == len(set(keys)) <= 2
    for key in keys:
        assert len(key.encode()) <= 1024
        assert key.startswith(f"{prefix}/")
        # The template adds year, month, day and name, and nothing in it can add more.
        assert key.count("/") == prefix.count("/") + 4 + ivr
        for segment in key.split("/"):
            assert SEGMENT.fullmatch(segment)
            assert not segment.endswith(".")


@settings(max_examples=part(150), deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=260) | NEARLY_PLAIN.filter(bool))
def test_every_contact_has_a_key_under_its_object_contact(contact: str) -> None:
    shown, outside = object_contact(contact, INSTANCE)
    assert (shown == contact) is (outside is None)
    assert object_keys(
        storage=storage("connect/acme", Discriminator.ALWAYS, Colon.KEEP),
        contact=shown,
        stamp=datetime(2026, 11, 23, tzinfo=UTC),
        recording_id=RecordingId(UUID(int=1)),
        generation=1,
        extension="wav",
    )


SIGNATURES = st.sampled_from(
    [b"", b"RIFF\x24\0\0\0WAVE", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0", b"\xff\xfb", b'{"', b"ID3"]
)


@settings(max_examples=part(150), deadline=None)
@given(
    SIGNATURES, st.binary(max_size=100), st.none() | st.text(max_size=20) | st.sampled_from(["audio/wav", "video/mp4"])
)
@example(b"", b"", None)
def test_any_bytes_get_a_name_and_a_verdict(signature: bytes, rest: bytes, declared: str | None) -> None:
    body = signature + rest
    content_type, extension, suspect = sniff(body, declared)
    assert extension in {*CONTENT_TYPES, "bin"}
    assert suspect or content_type in CONTENT_TYPES[extension]
    check = MediaCheck()
    check.feed(body)
    verdict = check.verdict(len(body), declared)
    assert (verdict.content_type, verdict.extension) == (content_type, extension)
