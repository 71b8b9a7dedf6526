"""A file sealed again under another data key: the same segments at the same places, compared, or no copy at all."""

import os
import random
from uuid import uuid4

import pytest

from pipeline.crypt.artifact import HEADER_SIZE, Header, Opener, next_entry
from pipeline.crypt.segments import KEY_SIZE, DataKey
from pipeline.errors import SegmentForgedError, StoreIoError
from pipeline.ids import KeyId
from pipeline.interim.reseal import reseal
from pipeline.interim.states import State
from pipeline.rekey import StillInUseError
from tests.fault.crash_journey import made_small
from tests.fault.test_rekey_crashes import filled, rekey
from tests.model_disk import ModelDisk
from tests.simulation.virtual import run

SOURCE, TARGET = "/store/source", "/store/target"


def new_key() -> DataKey:
    return DataKey(KeyId(uuid4()), os.urandom(KEY_SIZE))


def one_file() -> tuple[ModelDisk, bytes, DataKey]:
    """Give a sealed recording's file on a disk of its own, and its data key."""
    found: list[tuple[bytes, DataKey]] = []

    async def story() -> None:
        async with filled() as (process, key_id):
            name = next(each for each in process.store.index if each.standing is State.SEALED)
            key = await process.tenant().ring.opening(key_id)
            found.append((process.world.disk.tree()[process.store.path(name)], key))

    with made_small():
        run(story())
    data, key = found[0]
    disk = ModelDisk()
    disk.make_directory("/store")
    write(disk, data)
    return disk, data, key


def write(disk: ModelDisk, data: bytes) -> None:
    disk.unlink(SOURCE)
    handle = disk.create(SOURCE)
    disk.append(handle, [data])
    disk.close(handle)


def plaintexts(data: bytes, key: DataKey) -> list[tuple[int, int, int, bytes]]:
    """Open every segment: type, offset, synced offset, and what it holds."""
    opener, entry, found, at = Opener(key, data[:HEADER_SIZE]), None, [], HEADER_SIZE
    while at < len(data):
        entry = next_entry(entry, data[at : at + 13], len(data))
        sealed = data[entry.position : entry.end]
        plaintext = opener.open(entry.frame, entry.index, entry.media_offset, sealed)
        found.append((int(entry.frame.type), entry.position, entry.frame.durable, plaintext))
        at = entry.end
    return found


def test_the_copy_has_the_same_segments_at_the_same_places_and_no_other_key_opens_it() -> None:
    disk, data, old = one_file()
    new = new_key()
    found = reseal(disk, SOURCE, TARGET, old, new)
    copy = disk.tree()[TARGET]
    assert (found.is_whole, found.is_finished, found.end) == (True, True, len(data))
    assert plaintexts(copy, new) == plaintexts(data, old)
    assert Header.parse(copy[:HEADER_SIZE]).key_id == new.key_id
    with pytest.raises(SegmentForgedError):
        plaintexts(copy, DataKey(new.key_id, os.urandom(KEY_SIZE)))
    disk.sync_directory("/store")
    assert disk.crash().tree()[TARGET] == copy, "synced before it counts"
    assert disk.tree()[SOURCE] == data


def test_what_does_not_open_is_left_out_and_told() -> None:
    disk, data, old = one_file()
    segments = plaintexts(data, old)
    chance = random.Random(5)
    for _ in range(20):
        at = chance.randrange(HEADER_SIZE, len(data))
        write(disk, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        found = reseal(disk, SOURCE, TARGET, old, new_key())
        assert not found.is_whole
        assert found.end <= at
        assert not found.is_finished
    write(disk, data[:-1])
    assert reseal(disk, SOURCE, TARGET, old, new_key()).end == segments[-1][1] - 13


def test_a_file_that_is_another_keys_or_none_is_refused_and_leaves_nothing() -> None:
    disk, data, old = one_file()
    with pytest.raises(SegmentForgedError):
        reseal(disk, SOURCE, TARGET, new_key(), new_key())
    write(disk, b"no header")
    with pytest.raises(SegmentForgedError):
        reseal(disk, SOURCE, TARGET, old, new_key())
    assert TARGET not in disk.tree()
    assert data


def test_a_copy_that_does_not_read_back_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, _, old = one_file()
    read = disk.read

    def lies(handle: int, offset: int, size_bytes: int) -> bytes:
        data = read(handle, offset, size_bytes)
        is_copy = disk.handles[handle][0] == TARGET
        return data[:-1] + bytes([data[-1] ^ 1]) if is_copy and size_bytes > 100 else data

    monkeypatch.setattr(disk, "read", lies)
    with pytest.raises(StoreIoError, match="does not read back"):
        reseal(disk, SOURCE, TARGET, old, new_key())
    assert TARGET not in disk.tree()
    assert not disk.handles


def test_a_data_key_that_a_name_on_the_disk_needs_is_not_destroyed() -> None:
    """Whatever memory says: the names on the disk decide."""

    async def story() -> None:
        async with filled() as (process, key_id):
            name = next(each for each in process.store.index if each.standing is State.SEALED)
            process.store.index.remove(name.artifact_id)
            with pytest.raises(StillInUseError, match="meanwhile"):
                await rekey(process, key_id)
            assert process.tenant().ring.knows(key_id)

    with made_small():
        run(story())
