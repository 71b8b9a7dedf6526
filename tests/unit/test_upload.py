import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checksums import checksum_text
from pipeline.delivery.buffers import MIB, BufferPool, size_class
from pipeline.delivery.proof import Receipt
from pipeline.delivery.upload import MAX_PARTS, PART_BYTES, part_bytes, parts_of
from pipeline.errors import (
    DestinationBusyError,
    DestinationConflictError,
    DestinationHeldError,
    DestinationRefusedError,
    HoldCode,
    SegmentForgedError,
)
from tests.s3_strict import StrictDestination
from tests.uploads import BARE, SECOND, Source, body_of, plan_for, pool, run


@pytest.mark.parametrize("size", [0, 1, 70_000, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 17])
async def test_every_size_arrives_byte_for_byte(size: int) -> None:
    destination, body = StrictDestination(), body_of(size)
    receipt = await run(destination, body)
    assert isinstance(receipt, Receipt)
    assert (receipt.key, receipt.size_bytes) == (BARE, size)
    assert destination.objects[BARE].body == body
    assert destination.uploads == {}
    assert destination.writes == (1 if size <= PART_BYTES else -(-size // PART_BYTES))


async def test_a_small_recording_costs_one_request() -> None:
    destination = StrictDestination()
    await run(destination, b"hello")
    assert destination.calls == ["put"]


def test_ten_thousand_parts_always_suffice() -> None:
    assert part_bytes(1) == part_bytes(MAX_PARTS * PART_BYTES) == PART_BYTES
    assert part_bytes(MAX_PARTS * PART_BYTES + 1) == 9 * MIB
    assert part_bytes(5 * 2**40) == 525 * MIB
    size = 10_001 * PART_BYTES
    parts = list(parts_of(size))
    assert len(parts) == 8890
    assert sum(part.size_bytes for part in parts) == size


@given(st.integers(min_value=0, max_value=200 * 2**30))
def test_parts_are_whole_mebibytes_and_cover_the_object(size: int) -> None:
    step = part_bytes(size)
    assert step % MIB == 0
    assert step * MAX_PARTS >= size
    first = next(parts_of(size), None)
    assert (first is None) == (size == 0)
    assert first is None or first.size_bytes == min(step, size)


def test_checksums_are_written_as_s3_writes_them() -> None:
    assert checksum_text(0) == "AAAAAAAAAAA="
    assert checksum_text(0x0102030405060708) == "AQIDBAUGBwg="


# --- taken keys


@pytest.mark.parametrize("size", [11, PART_BYTES + 1])
async def test_our_own_object_is_a_receipt_and_not_a_second_object(size: int) -> None:
    destination, body = StrictDestination(), body_of(size)
    first = await run(destination, body)
    writes = destination.writes
    assert await run(destination, body) == first
    assert list(destination.objects) == [BARE]
    assert destination.writes == writes


@pytest.mark.parametrize("size", [11, PART_BYTES + 1])
async def test_another_recording_at_the_bare_key_sends_ours_to_the_second(size: int) -> None:
    destination, body = StrictDestination(), body_of(size)
    destination.lay(BARE, b"theirs", metadata={"rid": "other", "gen": "1"})
    receipt = await run(destination, body)
    assert receipt.key == SECOND
    assert destination.objects[BARE].body == b"theirs"
    assert destination.objects[SECOND].body == body


async def test_foreign_objects_at_both_keys_are_a_conflict() -> None:
    destination = StrictDestination()
    for key in (BARE, SECOND):
        destination.lay(key, b"theirs", metadata={"rid": "other", "gen": "1"})
    with pytest.raises(DestinationConflictError):
        await run(destination, b"ours")
    assert {stored.body for stored in destination.objects.values()} == {b"theirs"}


async def test_our_name_on_other_bytes_is_a_conflict_at_once() -> None:
    destination = StrictDestination()
    destination.lay(BARE, b"ourz", metadata=plan_for(b"ours").subject.metadata)
    with pytest.raises(DestinationConflictError):
        await run(destination, b"ours")
    assert list(destination.objects) == [BARE]


async def test_our_bytes_under_another_kms_key_hold_the_destination() -> None:
    destination = StrictDestination()
    other = "arn:aws:kms:eu-central-1:111122223333:key/another"
    destination.lay(BARE, b"ours", metadata=plan_for(b"ours").subject.metadata, kms_key_arn=other)
    with pytest.raises(DestinationHeldError) as caught:
        await run(destination, b"ours")
    assert caught.value.code is HoldCode.DESTINATION_WRONG_KEY
    assert list(destination.objects) == [BARE]


async def test_an_object_without_a_checksum_is_neither_proof_nor_conflict() -> None:
    destination = StrictDestination()
    destination.lay(BARE, b"ours", metadata=plan_for(b"ours").subject.metadata, crc64nvme=None)
    with pytest.raises(DestinationBusyError, match="checksum"):
        await run(destination, b"ours")
    assert list(destination.objects) == [BARE]


# --- the source


@pytest.mark.parametrize("size", [11, PART_BYTES + 1])
async def test_bytes_that_are_not_the_manifests_are_never_completed(size: int) -> None:
    destination, body = StrictDestination(), bytearray(body_of(size))
    plan = plan_for(bytes(body))
    body[-1] ^= 1
    with pytest.raises(SegmentForgedError):
        await run(destination, bytes(body), plan)
    assert (destination.objects, destination.uploads) == ({}, {})


async def test_a_source_of_another_length_is_not_sent() -> None:
    destination = StrictDestination()
    with pytest.raises(SegmentForgedError):
        await run(destination, b"longer", plan_for(b"short"))
    assert destination.calls == []


async def test_a_source_is_read_in_order_and_never_twice_at_a_time() -> None:
    source = Source(body_of(3 * PART_BYTES + 5))
    await run(StrictDestination(), source.body, source=source)
    assert source.offsets == [0, PART_BYTES, 2 * PART_BYTES, 3 * PART_BYTES]


async def test_a_recording_whose_parts_do_not_fit_the_memory_is_refused() -> None:
    with pytest.raises(DestinationRefusedError):
        await run(StrictDestination(), body_of(PART_BYTES), buffers=BufferPool(PART_BYTES - 1))


# --- buffers


@given(st.integers(min_value=0, max_value=600 * MIB))
def test_size_classes_hold_what_is_asked_and_not_much_more(size: int) -> None:
    held = size_class(size)
    assert size <= held <= max(64 * 1024, 2 * size, size + MIB)
    assert size_class(held) == held


async def test_leases_wait_for_room_and_go_in_turn() -> None:
    buffers, order, hold = BufferPool(2 * MIB), list[str](), anyio.Event()

    async def lease(name: str, size: int) -> None:
        async with buffers.lease(size, name):
            order.append(name)
            assert buffers.leased_bytes <= buffers.limit_bytes
            await hold.wait()

    async with anyio.create_task_group() as tg:
        for name, size in (("first", MIB), ("large", 2 * MIB), ("small", 1)):
            tg.start_soon(lease, name, size)
            await anyio.wait_all_tasks_blocked()
        assert order == ["first"]
        hold.set()
    assert order == ["first", "large", "small"]
    assert buffers.leased_bytes == 0


async def test_no_owner_has_all_of_the_memory_and_who_waits_for_its_share_holds_up_nobody() -> None:
    """F35: parts that a dead bucket does not take leave room for the parts of others."""
    buffers, order, hold = BufferPool(16 * MIB), list[str](), anyio.Event()

    async def lease(owner: str, size: int) -> None:
        async with buffers.lease(size, owner):
            order.append(owner)
            await hold.wait()

    async with anyio.create_task_group() as tg:
        for owner, size in (("dead", 8), ("dead", 8), ("other", 4), ("dead", 4), ("third", 4), ("fourth", 1)):
            tg.start_soon(lease, owner, size * MIB)
            await anyio.wait_all_tasks_blocked()
        assert order == ["dead", "other", "third"]
        assert buffers.leased_bytes == buffers.limit_bytes
        hold.set()
    assert sorted(order[3:]) == ["dead", "dead", "fourth"]
    assert buffers.leased_bytes == 0
    async with buffers.lease(16 * MIB, "alone"):
        assert buffers.leased_bytes == buffers.limit_bytes


async def test_a_spoiled_buffer_is_not_used_again() -> None:
    buffers = BufferPool(2 * MIB)
    async with buffers.lease(MIB, "acme") as buffer:
        buffers.spoil(buffer)
    assert buffers.idle_bytes == 0
    async with buffers.lease(MIB, "acme"):
        pass
    assert buffers.idle_bytes == MIB


async def test_buffers_are_used_again_and_the_limit_counts_idle_ones() -> None:
    buffers = BufferPool(2 * MIB)
    async with buffers.lease(MIB, "acme") as first:
        kept = first.obj
    async with buffers.lease(MIB - 5, "acme") as second:
        assert second.obj is kept
        assert len(second) == MIB - 5
    async with buffers.lease(2 * MIB, "acme"):
        assert buffers.leased_bytes + buffers.idle_bytes <= buffers.limit_bytes


async def test_a_buffer_of_a_failed_upload_is_not_used_again() -> None:
    buffers = BufferPool(2 * MIB)
    with pytest.raises(DestinationBusyError):
        async with buffers.lease(MIB, "acme"):
            raise DestinationBusyError("reset")
    assert (buffers.leased_bytes, buffers.idle_bytes) == (0, 0)


async def test_a_cancelled_wait_takes_no_room() -> None:
    buffers = BufferPool(MIB)
    async with buffers.lease(MIB, "acme"):
        with anyio.move_on_after(0.01) as scope:
            async with buffers.lease(MIB, "acme"):
                pass
        assert scope.cancelled_caught
    with anyio.fail_after(1):
        async with buffers.lease(MIB, "acme"):
            pass


async def test_many_uploads_share_a_small_pool() -> None:
    destination, buffers = StrictDestination(), pool()
    bodies = [body_of(PART_BYTES + number) for number in range(1, 7)]

    async def one(number: int) -> None:
        keys = (f"connect/acme/CallRecordings/{number}.wav",)
        await run(destination, bodies[number], plan_for(bodies[number], keys=keys), buffers=buffers)

    async with anyio.create_task_group() as tg:
        for number in range(6):
            tg.start_soon(one, number)
    assert sorted(len(stored.body) for stored in destination.objects.values()) == [len(body) for body in bodies]
    assert buffers.leased_bytes == 0
    assert buffers.idle_bytes <= buffers.limit_bytes
