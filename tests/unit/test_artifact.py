from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from uuid import UUID

import pytest
from msgspec.structs import replace

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Entry, Frame, Header, Opener, Sealer, next_entry
from pipeline.crypt.segments import DataKey, SegmentType, open_segment, sealed_size
from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind
from tests.unit import c2sp
from tests.unit.artifact_file import HEADER, KEY, Content, frames, read, resealed_prefix

RAW = HEADER.pack()
SMALL: list[Content] = [
    (SegmentType.EVENT, b'{"head":1}'),
    (SegmentType.MEDIA, b"first media"),
    (SegmentType.EVENT, b'{"note":1}'),
    (SegmentType.MEDIA, b"other media"),
    (SegmentType.MANIFEST, b'{"end":1}'),
]
VECTORS = Path(__file__).parents[2] / "fixtures" / "vectors"


def file_of(parts: list[bytes], header: Header = HEADER) -> bytes:
    return header.pack() + b"".join(parts)


# --- header


def test_a_header_has_the_documented_layout() -> None:
    assert len(RAW) == HEADER_SIZE
    assert RAW[:8] == bytes.fromhex("89 52 50 49 0D 0A 1A 0A")
    assert RAW[8:24] == b"\x01\x01\x00\x60" + bytes(12)
    assert RAW[24:72] == UUID(int=11).bytes + UUID(int=13).bytes + UUID(int=7).bytes
    assert int.from_bytes(RAW[72:80], "big") == 1_795_442_712_345
    assert RAW[80:] == bytes(16)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_header_is_read_back_as_it_was_written(kind: Kind) -> None:
    header = replace(HEADER, kind=kind)
    assert Header.parse(header.pack()) == header


def test_the_kinds_keep_their_numbers() -> None:
    codes = {kind: replace(HEADER, kind=kind).pack()[9] for kind in Kind}
    assert codes == {Kind.VOICE: 1, Kind.SCREEN: 2, Kind.CHAT: 3, Kind.JOURNAL: 4}


def test_the_time_of_a_header_is_kept_to_the_millisecond() -> None:
    header = replace(HEADER, created=datetime(2026, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC))
    assert Header.parse(header.pack()).created == datetime(2026, 1, 1, 0, 0, 0, 999_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("field", "at", "value"),
    [
        *(("magic", at, b"\x00") for at in range(8)),
        ("version", 8, b"\x00"),
        ("version", 8, b"\x02"),
        ("kind", 9, b"\x00"),
        ("kind", 9, b"\x05"),
        ("length", 10, b"\x01"),
        ("length", 11, b"\x61"),
        *(("reserved", at, b"\x01") for at in (*range(12, 24), *range(80, 96))),
        ("created", 72, b"\xff"),
    ],
)
def test_a_header_that_version_1_does_not_name_is_refused_by_field(field: str, at: int, value: bytes) -> None:
    with pytest.raises(SegmentForgedError, match=field):
        Header.parse(RAW[:at] + value + RAW[at + 1 :])


@pytest.mark.parametrize("raw", [b"", RAW[:-1], RAW + b"\x00"])
def test_a_header_of_another_size_is_refused(raw: bytes) -> None:
    with pytest.raises(SegmentForgedError, match="size"):
        Header.parse(raw)


# --- prefixes


def test_a_prefix_has_the_documented_layout() -> None:
    packed = Frame(100, SegmentType.EVENT, 4_096).pack()
    assert packed == b"\x00\x00\x00\x64" + b"\x02" + b"\x00\x00\x00\x00\x00\x00\x10\x00"
    assert len(packed) == FRAME_PREFIX
    assert Frame.parse(packed) == Frame(100, SegmentType.EVENT, 4_096)


@pytest.mark.parametrize("code", [0, 4, 255])
def test_a_segment_type_that_version_1_does_not_name_is_refused(code: int) -> None:
    with pytest.raises(SegmentForgedError, match="type"):
        Frame.parse(b"\x00\x00\x00\x64" + bytes([code]) + bytes(8))


@pytest.mark.parametrize("size", [0, 71, 56 + 16_400, sealed_size(1024 * 1024) + 1])
def test_a_prefix_with_an_impossible_length_is_refused(size: int) -> None:
    with pytest.raises(SegmentForgedError, match="length"):
        Frame.parse(size.to_bytes(4, "big") + b"\x01" + bytes(8))


@pytest.mark.parametrize("size", [0, 12, 14])
def test_a_prefix_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(SegmentForgedError, match="cut off"):
        Frame.parse(bytes(size))


def test_prefixes_tell_where_every_segment_lies() -> None:
    parts = frames(SMALL)
    raw = file_of(parts)
    entries: list[Entry] = []
    at = HEADER_SIZE
    while at < len(raw):
        entries.append(next_entry(entries[-1] if entries else None, raw[at : at + FRAME_PREFIX], len(raw)))
        at = entries[-1].end
    assert [entry.index for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry.media_offset for entry in entries] == [0, 0, 11, 11, 22]
    assert [entry.media_end for entry in entries] == [0, 11, 11, 22, 22]
    assert [entry.frame.plaintext_size for entry in entries] == [len(content) for _, content in SMALL]
    assert [raw[entry.position : entry.end] for entry in entries] == [part[FRAME_PREFIX:] for part in parts]
    assert at == len(raw)


def entry_at(durable: int, *, kind: SegmentType = SegmentType.EVENT) -> Entry:
    return Entry(Frame(100, kind, durable), HEADER_SIZE + FRAME_PREFIX, 0, 0)


def test_a_segment_that_goes_beyond_the_file_is_refused() -> None:
    prefix = Frame(100, SegmentType.EVENT, 0).pack()
    end = HEADER_SIZE + FRAME_PREFIX + 100
    assert next_entry(None, prefix, end).end == end
    with pytest.raises(SegmentForgedError, match="cut off"):
        next_entry(None, prefix, end - 1)


@pytest.mark.parametrize("kind", [SegmentType.MEDIA, SegmentType.MANIFEST])
def test_an_artifact_that_does_not_begin_with_an_event_is_refused(kind: SegmentType) -> None:
    with pytest.raises(SegmentForgedError, match="head"):
        next_entry(None, Frame(100, kind, 0).pack(), 10_000)


@pytest.mark.parametrize("kind", list(SegmentType))
def test_nothing_may_follow_the_manifest(kind: SegmentType) -> None:
    with pytest.raises(SegmentForgedError, match="manifest"):
        next_entry(entry_at(0, kind=SegmentType.MANIFEST), Frame(100, kind, 0).pack(), 10_000)


def test_a_synced_offset_may_neither_go_back_nor_lie_ahead() -> None:
    before = entry_at(96)
    for durable in (96, before.end):
        assert next_entry(before, Frame(100, SegmentType.MEDIA, durable).pack(), 10_000).frame.durable == durable
    for durable in (95, before.end + 1):
        with pytest.raises(SegmentForgedError, match="synced"):
            next_entry(before, Frame(100, SegmentType.MEDIA, durable).pack(), 10_000)
    with pytest.raises(SegmentForgedError, match="synced"):
        next_entry(None, Frame(100, SegmentType.EVENT, 97).pack(), 10_000)


# --- sealing and opening


def test_a_whole_artifact_opens_again() -> None:
    assert read(file_of(frames(SMALL))) == SMALL


def test_an_independent_reader_opens_every_segment_of_an_artifact(tmp_path: Path) -> None:
    key = DataKey(KEY.key_id, b"k" * 32)
    sealer = Sealer(key, RAW)
    media, durable = 0, 0
    for index, (kind, plaintext) in enumerate(SMALL):
        frame = sealer.seal(kind, plaintext, durable)
        place = c2sp.segment_context(RAW, index, media, durable, int(kind))
        assert c2sp.open_message(b"k" * 32, place, frame[FRAME_PREFIX:]) == plaintext
        media += len(plaintext) if kind is SegmentType.MEDIA else 0
        durable += len(frame)


def test_sealing_into_a_buffer_writes_prefix_and_segment() -> None:
    sealer = Sealer(KEY, RAW)
    out = bytearray(FRAME_PREFIX + sealed_size(10) + 3)
    size = sealer.seal_into(SegmentType.EVENT, [memoryview(b"01234"), memoryview(b"56789")], 96, memoryview(out))
    assert size == len(out) - 3
    frame = Frame.parse(out[:FRAME_PREFIX])
    assert frame == Frame(sealed_size(10), SegmentType.EVENT, 96)
    back = bytearray(10)
    Opener(KEY, RAW).open_into(frame, 0, 0, out[FRAME_PREFIX:size], memoryview(back))
    assert back == b"0123456789"
    assert (sealer.index, sealer.media_offset) == (1, 0)


def test_a_sealer_counts_segments_and_media() -> None:
    sealer = Sealer(KEY, RAW)
    sealer.seal(SegmentType.EVENT, b"head", 0)
    sealer.seal(SegmentType.MEDIA, b"12345", 0)
    sealer.seal_into(SegmentType.MEDIA, b"678", 0, memoryview(bytearray(200)))
    assert (sealer.index, sealer.media_offset) == (3, 8)


def test_a_sealer_goes_on_where_another_left_off() -> None:
    parts = frames(SMALL[:3])
    durable = HEADER_SIZE + sum(map(len, parts))
    sealer = Sealer(KEY, RAW, index=3, media_offset=11)
    for kind, plaintext in SMALL[3:]:
        parts.append(sealer.seal(kind, plaintext, durable))
    assert read(file_of(parts)) == SMALL


def test_a_failed_seal_counts_nothing() -> None:
    sealer = Sealer(KEY, RAW)
    with pytest.raises(ValueError, match="too short"):
        sealer.seal_into(SegmentType.EVENT, b"head", 0, memoryview(bytearray(20)))
    assert sealer.index == 0


def test_a_sealer_refuses_another_beginning_and_anything_after_the_end() -> None:
    sealer = Sealer(KEY, RAW)
    with pytest.raises(ValueError, match="segment 0"):
        sealer.seal(SegmentType.MEDIA, b"media", 0)
    sealer.seal(SegmentType.EVENT, b"head", 0)
    sealer.seal(SegmentType.MANIFEST, b"end", 0)
    with pytest.raises(ValueError, match="manifest"):
        sealer.seal(SegmentType.MEDIA, b"media", 0)


def test_a_header_of_another_data_key_is_refused() -> None:
    foreign = replace(HEADER, key_id=KeyId(UUID(int=8))).pack()
    with pytest.raises(ValueError, match="another data key"):
        Sealer(KEY, foreign)
    with pytest.raises(SegmentForgedError, match="data key id"):
        Opener(KEY, foreign)


# --- what must be noticed


def test_every_flipped_bit_of_a_file_is_noticed() -> None:
    raw = file_of(frames(SMALL))
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SegmentForgedError):
            read(bytes(flipped))


def test_every_other_order_of_the_segments_is_noticed() -> None:
    parts = frames(SMALL)
    for order in permutations(parts):
        if list(order) != parts:
            with pytest.raises(SegmentForgedError):
                read(file_of(list(order)))


def test_every_dropped_segment_is_noticed() -> None:
    parts = frames(SMALL)
    for dropped in range(len(parts)):
        with pytest.raises(SegmentForgedError):
            read(file_of(parts[:dropped] + parts[dropped + 1 :]))


def test_every_repeated_segment_is_noticed() -> None:
    parts = frames(SMALL)
    for repeated, part in enumerate(parts):
        for at in range(repeated, len(parts) + 1):
            with pytest.raises(SegmentForgedError):
                read(file_of([*parts[:at], part, *parts[at:]]))


def test_every_cut_is_noticed() -> None:
    raw = file_of(frames(SMALL))
    for size in range(len(raw)):
        with pytest.raises(SegmentForgedError):
            read(raw[:size])


def test_bytes_after_the_manifest_are_noticed() -> None:
    parts = frames(SMALL)
    for tail in (b"\x00", bytes(FRAME_PREFIX), parts[1], parts[-1]):
        with pytest.raises(SegmentForgedError):
            read(file_of(parts) + tail)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(HEADER, artifact_id=ArtifactId(UUID(int=14))), id="artifact"),
        pytest.param(replace(HEADER, instance_id=InstanceId(UUID(int=12))), id="instance"),
        pytest.param(replace(HEADER, kind=Kind.SCREEN), id="kind"),
        pytest.param(replace(HEADER, created=datetime(2026, 11, 23, tzinfo=UTC)), id="time"),
    ],
)
def test_segments_under_the_header_of_another_artifact_are_noticed(other: Header) -> None:
    ours, theirs = frames(SMALL), frames(SMALL, other)
    assert read(file_of(theirs, other)) == SMALL
    with pytest.raises(SegmentForgedError):
        read(file_of(ours, other))
    for spliced in range(len(ours)):
        with pytest.raises(SegmentForgedError):
            read(file_of([*ours[:spliced], theirs[spliced], *ours[spliced + 1 :]]))


def test_segments_of_another_data_key_with_the_same_id_are_noticed() -> None:
    with pytest.raises(SegmentForgedError):
        read(file_of(frames(SMALL)), DataKey(KEY.key_id, bytes(32)))


def test_a_changed_type_or_synced_offset_in_clear_is_noticed() -> None:
    parts = frames(SMALL)
    for at in range(1, len(parts)):
        for changes in ({"type": 1}, {"type": 2}, {"type": 3}, {"durable": HEADER_SIZE + 1}):
            changed = resealed_prefix(parts[at], **changes)
            if changed != parts[at]:
                with pytest.raises(SegmentForgedError):
                    read(file_of([*parts[:at], changed, *parts[at + 1 :]]))


def test_a_sealed_segment_of_another_length_than_its_prefix_says_is_refused() -> None:
    opener = Opener(KEY, RAW)
    with pytest.raises(SegmentForgedError, match="cut off"):
        opener.open(Frame(100, SegmentType.EVENT, 0), 0, 0, bytes(99))


# --- vectors


def vector(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Read `name: value` lines; a line `segment:` begins a segment."""
    facts: dict[str, str] = {}
    found: list[dict[str, str]] = []
    for line in path.read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(":")
        if name == "segment":
            found.append({})
        (found[-1] if found else facts)[name] = value.strip()
    return facts, found


@pytest.mark.parametrize("path", sorted(VECTORS.glob("artifact-*.txt")), ids=lambda path: path.stem)
def test_a_file_of_version_1_opens_for_ever(path: Path) -> None:
    facts, found = vector(path)
    raw = bytes.fromhex(facts["header"])
    header = Header.parse(raw)
    assert header == Header(
        Kind(facts["kind"]),
        InstanceId(UUID(facts["instance id"])),
        ArtifactId(UUID(facts["artifact id"])),
        KeyId(UUID(facts["data key id"])),
        datetime.fromisoformat(facts["created"]),
    )
    secret = bytes.fromhex(facts["data key"])
    contents = [(SegmentType(int(each["type"])), bytes.fromhex(each["plaintext"])) for each in found]
    whole = raw + b"".join(bytes.fromhex(each["prefix"]) + bytes.fromhex(each["sealed"]) for each in found)
    assert read(whole, DataKey(header.key_id, secret)) == contents
    for index, (each, (kind, plaintext)) in enumerate(zip(found, contents, strict=True)):
        place = c2sp.segment_context(raw, index, int(each["media offset"]), int(each["durable"]), kind)
        assert place == bytes.fromhex(each["context"])
        assert c2sp.open_message(secret, place, bytes.fromhex(each["sealed"])) == plaintext
        assert open_segment(DataKey(header.key_id, secret), place, bytes.fromhex(each["sealed"])) == plaintext


def test_there_are_vectors() -> None:
    assert list(VECTORS.glob("artifact-*.txt"))
