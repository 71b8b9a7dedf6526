"""What a crash leaves of an open artifact: acknowledged is recovered, torn is cut, the rest opens (F1, F3, F5, F6)."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from pipeline.crypt.artifact import FRAME_PREFIX, HEADER_SIZE, Frame, Header, Sealer
from pipeline.crypt.contents import Head, encode_head
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.errors import SegmentForgedError, StoreFullError, StoreIoError
from pipeline.ids import KeyId, Kind, new_artifact_id
from pipeline.interim.recovery import Recovered, recover, renew
from pipeline.interim.states import ArtifactName, State
from tests.store_fixture import WatchedDisk, World, node, source
from tests.unit.keyring_fakes import A, FakeClock

KEY = DataKey(KeyId(UUID(int=7)), os.urandom(32))
NOW = FakeClock().now()
NAME = ArtifactName(new_artifact_id(NOW), A, Kind.VOICE, KEY.key_id, "0" * 16, 1, 1, State.OPEN)
HEADER = Header(NAME.kind, A, NAME.artifact_id, KEY.key_id, NOW).pack()
HEAD = encode_head(Head(contact="c", source_id="s", recording_id=NAME.artifact_id))
BATCHES = [[b"one"], [b"two", b"twotwo"], [b"three", b"", b"33"]]
"""Media segments; each batch was acknowledged before the next began."""


@dataclass
class Artifact:
    """A file, and where its segments end."""

    raw: bytes
    ends: list[int]
    acknowledged: list[int]
    """Ends of what was acknowledged, batch by batch."""
    media: list[bytes]

    def held(self, end: int) -> bytes:
        return b"".join(media for media, at in zip(self.media, self.ends, strict=True) if at <= end)

    def whole_below(self, end: int) -> int:
        return max((at for at in self.ends if at <= end), default=0)


def artifact(header: bytes = HEADER, key: DataKey = KEY) -> Artifact:
    """Make one whose last batch is not acknowledged: nothing names its end."""
    sealer, raw, durable = Sealer(key, header), header, 0
    raw += sealer.seal(SegmentType.EVENT, HEAD, 0)
    ends, media, acknowledged = [len(raw)], [b""], []
    for batch in BATCHES:
        for piece in batch:
            raw += sealer.seal(SegmentType.MEDIA, piece, durable)
            ends.append(len(raw))
            media.append(piece)
        durable = len(raw)
        acknowledged.append(durable)
    return Artifact(raw, ends, acknowledged, media)


ARTIFACT = artifact()
VOUCHED = ARTIFACT.acknowledged[1]
"""Segments of the last batch name it: below it, nothing may be cut."""


def recovered(
    root: Path, raw: bytes, see: Callable[[bytes], None] = lambda _media: None
) -> tuple[Recovered | None, bytes, list[bytes]]:
    path, lost = root / "artifact", root / "lost"
    files = WatchedDisk()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    files.adopt(handle, str(path))
    os.ftruncate(handle, 0)
    os.write(handle, raw)
    try:
        found = recover(files, handle, NAME, KEY, str(lost), see)
        left = os.pread(handle, len(raw) + 1, 0)
    finally:
        files.close(handle)
    cut = []
    if lost.exists():
        cut.append(lost.read_bytes())
        lost.unlink()
    if left != raw:
        written = [at for at, (operation, _) in enumerate(files.done) if operation == "truncate"]
        synced = [at for at, done in enumerate(files.done) if done == ("sync", str(lost))]
        assert synced < written, "the copy is durable before the tail is cut"
    return found, left, cut


OTHER_HEADER = Header(NAME.kind, A, new_artifact_id(NOW), KEY.key_id, NOW).pack()
OTHER = artifact(OTHER_HEADER)
DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": lambda raw, at: raw[:at],
    "zeros": lambda raw, at: raw[:at] + bytes(len(raw) - at),
    "junk": lambda raw, at: raw[:at] + os.urandom(len(raw) - at),
    "its own old blocks": lambda raw, at: raw[:at] + (raw * 2)[at // 2 : at // 2 + len(raw) - at],
    "another's old blocks": lambda raw, at: raw[:at] + OTHER.raw[at:],
    "longer by zeros": lambda raw, at: raw[:at] + bytes(10_000),
}


SOME = pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])


@SOME
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_lost_from_any_byte_on_is_cut_and_the_rest_recovered(tmp_path: Path, damage: str, step: int) -> None:
    ends = {end - less for end in ARTIFACT.ends for less in (0, 1)}
    for at in sorted({*ends, *range(HEADER_SIZE, len(ARTIFACT.raw) + 1, step)}):
        torn = DAMAGE[damage](ARTIFACT.raw, at)
        # By chance the first bytes of the damage may be what stood there: one time in 256 for each.
        while torn[at : at + 1] and torn[at : at + 1] == ARTIFACT.raw[at : at + 1]:
            at += 1  # noqa: PLW2901
        end = ARTIFACT.whole_below(at)
        if end == 0:
            assert gives_up(tmp_path, torn) or damage.endswith("old blocks"), at
            continue
        seen: list[bytes] = []
        found, left, cut = recovered(tmp_path, torn, seen.append)
        assert found is not None
        assert (found.end, left) == (end, ARTIFACT.raw[:end]), at
        assert b"".join(cut) == torn[end:], at
        assert found.digests.size_bytes == len(ARTIFACT.held(end))
        assert b"".join(seen) == ARTIFACT.held(end)
        assert found.index == 1 + ARTIFACT.ends.index(end)


def gives_up(root: Path, raw: bytes) -> bool:
    """Tell whether a file is given up, not found damaged; in both cases it stays as it is."""
    try:
        found, left, cut = recovered(root, raw)
    except SegmentForgedError:
        assert (root / "artifact").read_bytes() == raw
        return False
    assert (found, left, cut) == (None, raw, [])
    return True


@pytest.mark.parametrize("damage", ["cut", "zeros", "junk"])
def test_a_torn_header_of_what_was_never_acknowledged_is_given_up_but_kept(tmp_path: Path, damage: str) -> None:
    beginning = ARTIFACT.raw[: ARTIFACT.ends[0]]
    for at in range(HEADER_SIZE):
        # One that still reads as a header, of something else, is for a person to look at.
        is_header = damage != "cut" and at >= 12
        assert gives_up(tmp_path, DAMAGE[damage](beginning, at)) or is_header, at


@SOME
def test_any_damaged_byte_below_what_was_acknowledged_is_told_and_nothing_is_cut(tmp_path: Path, step: int) -> None:
    for at in range(0, VOUCHED, step):
        for change in (0x01, 0xFF):
            damaged = bytearray(ARTIFACT.raw)
            damaged[at] ^= change
            with pytest.raises(SegmentForgedError):
                recovered(tmp_path, bytes(damaged))
            assert (tmp_path / "artifact").read_bytes() == damaged, at


@pytest.mark.parametrize("filler", [b"\0", b"\xa5"])
def test_damage_over_several_acknowledged_segments_is_told_too(tmp_path: Path, filler: bytes) -> None:
    whole = ARTIFACT.raw
    for start in range(ARTIFACT.ends[0], VOUCHED, 29):
        for end in (ARTIFACT.ends[2], VOUCHED):
            if start < end:
                damaged = whole[:start] + filler * (end - start) + whole[end:]
                with pytest.raises(SegmentForgedError):
                    recovered(tmp_path, damaged)
                assert (tmp_path / "artifact").read_bytes() == damaged


def test_a_header_that_is_another_artifacts_is_not_recovered(tmp_path: Path) -> None:
    for header in (OTHER_HEADER, Header(Kind.SCREEN, A, NAME.artifact_id, KEY.key_id, NOW).pack()):
        with pytest.raises(SegmentForgedError):
            recovered(tmp_path, artifact(header).raw)


def test_recovery_ten_times_is_recovery_once(tmp_path: Path) -> None:
    raw = ARTIFACT.raw + os.urandom(77)
    for turn in range(10):
        found, raw, cut = recovered(tmp_path, raw)
        assert found is not None
        assert (found.end, raw) == (len(ARTIFACT.raw), ARTIFACT.raw)
        assert len(cut) == (turn == 0)


def test_recovery_that_is_cut_off_at_any_step_converges(tmp_path: Path) -> None:
    torn = ARTIFACT.raw + os.urandom(50)
    for step in range(60):
        path = tmp_path / "artifact"
        path.write_bytes(torn)
        files = WatchedDisk()

        def die(number: int, _operation: str, _path: str, step: int = step) -> None:
            if number == step:
                raise KeyboardInterrupt

        files.before = die
        handle = os.open(path, os.O_RDWR | os.O_APPEND)
        files.adopt(handle, str(path))
        died = False
        try:
            recover(files, handle, NAME, KEY, f"{tmp_path}/lost-{step}")
        except KeyboardInterrupt:
            died = True
        finally:
            files.close(handle)
        found, left, _ = recovered(tmp_path, path.read_bytes())
        assert found is not None
        assert left == ARTIFACT.raw
        if not died:
            return
    raise AssertionError


def test_more_than_a_writer_leaves_unsynced_is_never_cut(tmp_path: Path) -> None:
    """F5. A crash can't have torn so much: it is damage."""
    with pytest.raises(SegmentForgedError):
        recovered(tmp_path, ARTIFACT.raw + bytes(16 * 1024 * 1024 + 1))
    assert (tmp_path / "artifact").stat().st_size > 16 * 1024 * 1024


def test_what_was_written_but_not_synced_before_is_synced_before_it_counts(tmp_path: Path) -> None:
    """A process that died may have written it and not synced it; after that, a power cut."""
    path = tmp_path / "artifact"
    path.write_bytes(ARTIFACT.raw)
    files = WatchedDisk()
    handle = files.open(str(path), write=True)
    recover(files, handle, NAME, KEY, f"{tmp_path}/lost")
    assert files.operations("sync") == [("sync", str(path))]
    files.close(handle)


def test_no_room_for_the_copy_means_that_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    path.write_bytes(ARTIFACT.raw + b"torn")
    for error in (StoreFullError("full"), StoreIoError("EIO")):
        files = WatchedDisk()
        handle = files.open(str(path), write=True)
        files.refuse("append", error=error)
        with pytest.raises(type(error)):
            recover(files, handle, NAME, KEY, f"{tmp_path}/lost")
        assert path.read_bytes() == ARTIFACT.raw + b"torn"
        assert not (tmp_path / "lost").exists()
        files.close(handle)


def test_a_read_that_fails_is_not_taken_for_damage(tmp_path: Path) -> None:
    """F8."""
    path = tmp_path / "artifact"
    path.write_bytes(ARTIFACT.raw)
    for number in range(1, 9):
        files = WatchedDisk()
        handle = files.open(str(path), write=True)
        files.refuse("read", times=number)
        files.refusals[0].times = 0
        reads = 0

        def fail(_number: int, operation: str, _path: str, number: int = number) -> None:
            nonlocal reads
            reads += operation == "read"
            if reads == number:
                raise StoreIoError("EIO")

        files.before = fail
        with pytest.raises(StoreIoError):
            recover(files, handle, NAME, KEY, f"{tmp_path}/lost")
        assert path.read_bytes() == ARTIFACT.raw
        files.close(handle)


def test_a_file_whose_sync_failed_is_copied_before_it_is_trusted(tmp_path: Path) -> None:
    """F7: the page cache shows what the disk may not have."""
    path = tmp_path / "artifact"
    path.write_bytes(ARTIFACT.raw)
    files = WatchedDisk()
    handle = files.open(str(path), write=True)
    before = path.stat().st_ino
    files.done.clear()
    again = renew(files, handle, str(path))
    assert path.stat().st_ino != before
    assert path.read_bytes() == ARTIFACT.raw
    assert [operation for operation, _ in files.done if operation not in {"read", "append"}] == [
        "unlink",
        "create",
        "sync",
        "rename",
        "sync_directory",
        "close",
    ]
    files.append(again, [b"goes on"])
    assert path.read_bytes() == ARTIFACT.raw + b"goes on"
    files.close_all()


# --- the whole way


@asynccontextmanager
async def broken_off(world: World, *pieces: bytes) -> AsyncIterator[Path]:
    """Leave an open artifact on disk, acknowledged piece by piece, its process dead."""
    async with node(world) as process:
        reception = await process.recorder.begin(process.a, source())
        for piece in pieces:
            await process.send(reception, piece)
            await reception.writer.sync()
        path = Path(reception.writer.path)
    yield path


@pytest.mark.parametrize("damage", ["cut", "zeros", "its own old blocks"])
async def test_what_follows_a_torn_tail_opens(tmp_path: Path, damage: str) -> None:
    for place in (0, 2):
        world = World(root=tmp_path / f"{place}")
        async with broken_off(world, b"acked-1", b"acked-2", b"not acknowledged") as path:
            raw = path.read_bytes()
            tail = len(raw) - _last_frame(raw)
            at = len(raw) - tail + place * (tail - 1) // 3
            path.write_bytes(DAMAGE[damage](raw, at))
        async with node(world) as process:
            offset = await process.recorder.offset(process.a, Kind.VOICE, "call-1")
            assert offset == len(b"acked-1acked-2")
            reception = await process.recorder.resume(process.a, source(), offset)
            await process.send(reception, b" and the rest")
            await process.recorder.finish(reception, None)
            assert await process.media(process.sealed[0]) == b"acked-1acked-2 and the rest"
            assert len(world.lost()) == (damage != "cut" or place > 0)


def _last_frame(raw: bytes) -> int:
    at = last = HEADER_SIZE
    while at < len(raw):
        last = at
        at += FRAME_PREFIX + Frame.parse(raw[at : at + FRAME_PREFIX]).sealed_size
    return last


async def test_damage_below_what_was_acknowledged_is_poison_and_its_bytes_are_kept(tmp_path: Path) -> None:
    """F12."""
    world = World(root=tmp_path)
    async with broken_off(world, b"acked-1", b"acked-2", b"acked-3") as path:
        raw = bytearray(path.read_bytes())
        raw[HEADER_SIZE + FRAME_PREFIX + 20] ^= 1
        path.write_bytes(raw)
    async with node(world) as process:
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") is None
        assert process.store.index.count(State.POISON) == 1
        [poisoned] = world.paths(".poison.integrity")
        assert poisoned.read_bytes() == raw
        assert b'"FAILED"' in world.events()
        answer = await process.upload(source(), b"a new body is taken")
        assert answer.generation == 2


async def test_what_never_began_is_kept_aside_and_the_store_goes_on(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with broken_off(world, b"x") as path:
        raw = path.read_bytes()
        path.write_bytes(raw[: HEADER_SIZE + 40])
    async with node(world) as process:
        assert await process.recorder.offset(process.a, Kind.VOICE, "call-1") is None
        assert len(process.store.index) == 0
        assert [each.read_bytes() for each in world.lost()] == [raw[: HEADER_SIZE + 40]]
        assert not process.files.handles
