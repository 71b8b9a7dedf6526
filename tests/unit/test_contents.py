from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from pipeline.crypt.contents import (
    Counts,
    Gap,
    Head,
    Manifest,
    Pause,
    Record,
    Rendition,
    complete_manifest,
    decode_head,
    decode_manifest,
    decode_records,
    encode_head,
    encode_manifest,
    encode_records,
)
from pipeline.crypt.segments import SEGMENT_LIMIT
from pipeline.errors import SegmentForgedError

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HEAD = Head(
    contact="cccc3333",
    original_contact="sip:4711@example",
    source_id="put/1",
    recording_id=UUID(int=5),
    content_type="audio/wav",
    started=NOON,
    metadata={"Call-ID": "x"},
)
MANIFEST = Manifest(
    recording_id=UUID(int=5),
    generation=1,
    contact="cccc3333",
    ending="complete",
    started=NOON,
    ended=NOON + timedelta(minutes=5),
    counts=Counts(media_segments=1, media_bytes=44, event_segments=1, event_bytes=99),
    association_id="a1",
    bucket="acme",
    keys=("connect/a.wav", "connect/a_5.wav"),
    quality=("GAPS",),
    gaps=(Gap(NOON, NOON + timedelta(seconds=1)),),
    pauses=(Pause(start=NOON, end=NOON, kinds=("voice",), by="agent", reason="card"),),
    item_digests=("0123456789abcdef",),
    object=Rendition(
        renderer="copy/1",
        size_bytes=44,
        crc64nvme="AAAAAAAAAAA=",
        sha256="0" * 64,
        content_type="audio/wav",
        extension="wav",
    ),
)


def test_a_head_is_read_back_as_it_was_written() -> None:
    assert decode_head(encode_head(HEAD)) == HEAD
    bare = Head(contact="c", source_id="s", recording_id=UUID(int=5))
    assert decode_head(encode_head(bare)) == bare


def test_the_wire_has_camel_case_and_leaves_out_what_is_not_known() -> None:
    bare = Head(contact="c", source_id="s", recording_id=UUID(int=5))
    assert encode_head(bare) == (b'{"contact":"c","sourceId":"s","recordingId":"00000000-0000-0000-0000-000000000005"}')
    (raw,) = encode_manifest(MANIFEST)
    assert b'"gaps":[{"from":"2026-11-23T12:00:00Z","to":"2026-11-23T12:00:01Z"}]' in raw
    assert b'"itemDigests":["0123456789abcdef"]' in raw
    assert b'"more"' not in raw


def test_records_are_read_back_alone_and_in_batches() -> None:
    one = Record("item", msgspec.Raw(b'{"Id":"i-1"}'), NOON)
    two = Record("pause", msgspec.Raw(b"[1,2]"))
    for batch in ([one], [two], [one, two], []):
        found = decode_records(encode_records(batch))
        assert [(each.type, bytes(each.data), each.arrived) for each in found] == [
            (each.type, bytes(each.data), each.arrived) for each in batch
        ]
    assert encode_records([one]).startswith(b'{"type":"item"')


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    (raw,) = encode_manifest(MANIFEST)
    assert decode_manifest(raw) == MANIFEST
    assert complete_manifest(decode_manifest(raw), []) == MANIFEST


def test_readers_pass_over_fields_that_they_do_not_know() -> None:
    (raw,) = encode_manifest(MANIFEST)
    assert decode_manifest(raw[:-1] + b',"later":{"x":[1]}}') == MANIFEST


def long_manifest() -> Manifest:
    return msgspec.structs.replace(
        MANIFEST,
        item_digests=tuple(f"{number:016x}" for number in range(120_000)),
        gaps=tuple(Gap(NOON, NOON + timedelta(seconds=second)) for second in range(20_000)),
        pauses=tuple(
            Pause(start=NOON, end=NOON, kinds=("voice", "chat"), by="a" * 1_000, reason=str(number))
            for number in range(2_000)
        ),
    )


def test_a_manifest_that_is_too_long_goes_on_before_itself() -> None:
    manifest = long_manifest()
    *more, raw = encode_manifest(manifest)
    assert len(more) > 3
    assert all(len(each) <= SEGMENT_LIMIT for each in (*more, raw))
    short = decode_manifest(raw)
    assert short.more == len(more)
    assert (short.item_digests, short.gaps, short.pauses) == ((), (), ())
    whole = complete_manifest(short, more)
    assert (whole.item_digests, whole.gaps, whole.pauses) == (manifest.item_digests, manifest.gaps, manifest.pauses)


def test_the_segments_that_continue_a_manifest_are_counted_in_it() -> None:
    *more, raw = encode_manifest(long_manifest())
    counts = decode_manifest(raw).counts
    assert counts.event_segments == MANIFEST.counts.event_segments + len(more)
    assert counts.event_bytes == MANIFEST.counts.event_bytes + sum(map(len, more))


def test_a_manifest_at_the_limit_stays_in_one_segment() -> None:
    (empty,) = encode_manifest(msgspec.structs.replace(MANIFEST, item_digests=("",)))
    room = SEGMENT_LIMIT - len(empty)
    assert len(encode_manifest(msgspec.structs.replace(MANIFEST, item_digests=("d" * room,)))) == 1
    assert len(encode_manifest(msgspec.structs.replace(MANIFEST, item_digests=("d" * (room // 2),) * 3))) > 1


def test_a_manifest_that_is_not_continued_as_it_says_is_refused() -> None:
    *more, raw = encode_manifest(long_manifest())
    short = decode_manifest(raw)
    foreign = encode_records([Record("item", msgspec.Raw(b"{}"))])
    for wrong in (more[:-1], [*more, more[0]], [], [foreign, *more[1:]]):
        with pytest.raises(SegmentForgedError, match="continued"):
            complete_manifest(short, wrong)


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        (b'"generation":0', "generation"),
        (b'"generation":"1"', "generation"),
        (b'"keys":[]', "keys"),
        (b'"keys":["a","b","c"]', "keys"),
        (b'"ending":"canary"', "ending"),
        (b'"started":"2026-11-23T12:00:00"', "started"),
        (b'"counts":{}', "counts"),
        (b'"object":{"renderer":"copy/1"}', "object"),
    ],
)
def test_a_manifest_of_another_shape_is_refused_without_repeating_a_value(changed: bytes, path: str) -> None:
    fields = msgspec.json.decode(encode_manifest(MANIFEST)[0])
    fields.update(msgspec.json.decode(b"{" + changed + b"}"))
    with pytest.raises(SegmentForgedError, match=path) as caught:
        decode_manifest(msgspec.json.encode(fields))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"canary", b'{"contact":"\xff"}', b"null"])
def test_what_is_no_json_of_version_1_is_refused(raw: bytes) -> None:
    for decode in (decode_head, decode_manifest):
        with pytest.raises(SegmentForgedError, match="version 1") as caught:
            decode(raw)
        assert "canary" not in str(caught.value)
    if raw != b"[]":
        with pytest.raises(SegmentForgedError):
            decode_records(raw)
