from uuid import UUID

import anyio
import anyio.lowlevel
import msgspec
import pytest

from pipeline.crypt.duty import KEY_ARTIFACTS, KEY_BYTES
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.ringfile import Wrapped
from pipeline.crypt.segments import DataKey
from pipeline.errors import HoldCode, KeyBusyError, KeyUnavailableError, SegmentForgedError, StoreIoError
from pipeline.ids import KeyId, Kind
from tests.unit.keyring_fakes import ARN, OLD_ARN, A, B, World, change, is_same_secret, refusal, ring_file

# --- making a key


async def test_a_key_is_given_out_only_after_its_ring_file_is_durable() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    path = world.path(key.key_id)
    steps = [step for step, _ in world.files.done]
    assert steps == ["make_directory", "unlink", "create", "append", "sync", "rename", "sync_directory"]
    assert world.files.durable[path] == world.files.contents[path]
    assert world.files.open_handles == 0


@pytest.mark.parametrize("step", ["make_directory", "create", "append", "sync", "rename", "sync_directory"])
async def test_no_key_is_given_out_when_a_step_of_its_ring_file_fails(step: str) -> None:
    """Nothing is sealed under a key that a power cut could take away."""
    world = World()
    ring = await world.loaded()
    world.files.fail = step
    with pytest.raises(StoreIoError):
        await ring.active()
    assert ring.key_ids() == []
    assert world.files.open_handles == 0
    assert not [name for name in world.files.contents if name.endswith(".tmp")]
    world.files.fail = None
    key = await ring.active()
    assert world.files.durable[world.path(key.key_id)]


async def test_the_ring_file_holds_nothing_that_opens_anything() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    (tag,) = await ring.tags(Kind.VOICE, "source")
    raw = world.files.contents[world.path(key.key_id)]
    found = msgspec.json.decode(raw)
    assert set(found) == {
        "version",
        "keyId",
        "instanceId",
        "dataClass",
        "createdAt",
        "contextSha256",
        "nameKeyId",
        "nameKey",
        "wrapped",
    }
    assert set(found["wrapped"][0]) == {"kmsKeyArn", "blob", "wrappedAt"}
    for secret in world.kms.plaintexts():
        assert secret not in raw
        assert secret.hex().encode() not in raw
        assert msgspec.json.encode(secret).strip(b'"') not in raw
    assert tag.encode() not in raw


async def test_a_thousand_uploads_at_once_share_one_new_key() -> None:
    world = World()
    ring = await world.loaded()
    keys: list[DataKey] = []

    async def upload() -> None:
        keys.append(await ring.active())

    async with anyio.create_task_group() as tg:
        for _ in range(1_000):
            tg.start_soon(upload)
    assert world.kms.calls == ["GenerateDataKey"]
    assert len({id(key) for key in keys}) == 1


async def test_after_a_restart_the_newest_key_is_unwrapped_and_none_is_made() -> None:
    world = World()
    first = await (await world.loaded()).active()
    again = await (await world.loaded()).active()
    assert world.kms.calls == ["GenerateDataKey", "Decrypt"]
    assert again == first
    assert is_same_secret(first, again)


async def test_two_creators_that_race_lose_no_ring_file() -> None:
    world = World()
    one, two = await world.loaded(), await world.loaded()
    keys: list[DataKey] = []

    async def create(ring: KeyRing) -> None:
        keys.append(await ring.active())

    async with anyio.create_task_group() as tg:
        tg.start_soon(create, one)
        tg.start_soon(create, two)
    third = await world.loaded()
    assert set(third.key_ids()) == {key.key_id for key in keys}
    assert len(keys) == len(set(keys)) == 2
    for key in keys:
        assert is_same_secret(key, await third.opening(key.key_id))
    assert len(await third.tags(Kind.CHAT, "s")) == 2


async def test_a_cancelled_caller_leaves_a_ring_that_goes_on() -> None:
    world = World()
    ring = await world.loaded()
    world.kms.pause = anyio.Event()
    async with anyio.create_task_group() as tg:
        tg.start_soon(ring.active)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        tg.cancel_scope.cancel()
    world.kms.pause = None
    assert world.files.contents == {}
    await ring.active()


async def test_kms_that_answers_for_another_key_gives_no_data_key() -> None:
    world = World()
    ring = await world.loaded()
    world.kms.answers_with = OLD_ARN
    with pytest.raises(KeyUnavailableError):
        await ring.active()
    assert world.files.contents == {}


# --- limits of the active key


async def test_a_key_is_replaced_after_24_hours() -> None:
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    world.clock.advance(24 * 3600 - 1)
    assert await ring.active() == first
    world.clock.advance(1)
    second = await ring.active()
    assert second != first
    assert world.kms.calls.count("GenerateDataKey") == 2
    assert is_same_secret(first, await ring.opening(first.key_id))


@pytest.mark.parametrize(("artifacts", "size_bytes"), [(KEY_ARTIFACTS, 0), (0, KEY_BYTES)])
async def test_a_key_is_replaced_when_it_has_sealed_enough(artifacts: int, size_bytes: int) -> None:
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    ring.used(first.key_id, max(artifacts - 1, 0), max(size_bytes - 1, 0))
    assert await ring.active() == first
    ring.used(first.key_id, min(artifacts, 1), min(size_bytes, 1))
    assert await ring.active() != first


async def test_what_a_scan_counted_holds_for_a_key_from_before_the_restart() -> None:
    world = World()
    first = await (await world.loaded()).active()
    ring = await world.loaded()
    ring.used(first.key_id, KEY_ARTIFACTS, 0)
    assert await ring.active() != first


async def test_a_key_past_its_limits_goes_on_while_kms_is_silent_and_it_is_in_memory() -> None:
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    ring.used(first.key_id, KEY_ARTIFACTS, 0)
    world.kms.refuses[ARN] = KeyBusyError("throttled")
    assert await ring.active() == first
    world.clock.advance(300)
    with pytest.raises(KeyBusyError):
        await ring.active()


async def test_a_key_past_its_limits_does_not_go_on_when_kms_refuses_a_new_one() -> None:
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    ring.used(first.key_id, KEY_ARTIFACTS, 0)
    world.kms.refuses[ARN] = refusal()
    with pytest.raises(KeyUnavailableError):
        await ring.active()


# --- what is not believed


async def test_only_configured_kms_keys_are_ever_asked() -> None:
    world = World()
    key = await (await world.loaded()).active()
    foreign = "arn:aws:kms:eu-central-1:999999999999:key/evil"
    file = ring_file(world, key)
    change(
        world,
        world.path(key.key_id),
        wrapped=tuple(msgspec.structs.replace(each, kms_key_arn=foreign) for each in file.wrapped),
    )
    ring = await world.loaded(previous=OLD_ARN)
    assert ring.knows(key.key_id)
    assert "configured" in ring.unusable[key.key_id]
    with pytest.raises(KeyUnavailableError) as caught:
        await ring.opening(key.key_id)
    assert caught.value.code is HoldCode.KEY_MISMATCH
    assert world.kms.calls == ["GenerateDataKey"]


async def test_a_foreign_arn_beside_a_configured_one_is_passed_over() -> None:
    world = World()
    key = await (await world.loaded()).active()
    file = ring_file(world, key)
    evil = msgspec.structs.replace(file.wrapped[0], kms_key_arn="arn:aws:kms:eu-central-1:999999999999:key/evil")
    change(world, world.path(key.key_id), wrapped=(evil, *file.wrapped))
    assert is_same_secret(key, await (await world.loaded()).opening(key.key_id))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"version": 2}, "version"),
        ({"key_id": UUID(int=99)}, "file name"),
        ({"instance_id": B}, "another instance"),
        ({"data_class": "cases"}, "another instance or data class"),
        ({"context_sha256": "0" * 64}, "context"),
        ({"wrapped": ()}, "configured"),
    ],
)
async def test_a_ring_file_that_disagrees_is_not_used(fields: dict[str, object], why: str) -> None:
    world = World()
    key = await (await world.loaded()).active()
    change(world, world.path(key.key_id), **fields)
    ring = await world.loaded()
    with pytest.raises(KeyUnavailableError, match=why) as caught:
        await ring.opening(key.key_id)
    assert caught.value.code is HoldCode.KEY_MISMATCH
    assert await ring.active() != key
    assert world.kms.calls == ["GenerateDataKey", "GenerateDataKey"]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[]", b"{}", b"x" * 100_000])
async def test_a_ring_file_that_can_not_be_read_holds_only_what_needs_it(raw: bytes) -> None:
    world = World()
    key = await (await world.loaded()).active()
    world.files.contents[world.path(key.key_id)] = raw
    ring = await world.loaded()
    with pytest.raises(KeyUnavailableError) as caught:
        await ring.opening(key.key_id)
    assert caught.value.code is HoldCode.KEY_MISMATCH
    await ring.active()


async def test_a_changed_encryption_context_is_named() -> None:
    world = World()
    key = await (await world.loaded()).active()
    ring = world.ring(account="444455556666")
    await ring.load()
    assert "encryption context" in ring.unusable[key.key_id]


async def test_ring_files_swapped_between_ids_open_nothing() -> None:
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    world.clock.advance(24 * 3600)
    second = await ring.active()
    one, two = world.path(first.key_id), world.path(second.key_id)
    files = world.files.contents
    files[one], files[two] = files[two], files[one]
    again = await world.loaded()
    for key in (first, second):
        with pytest.raises(KeyUnavailableError):
            await again.opening(key.key_id)


async def test_wrapped_keys_swapped_between_ids_open_nothing() -> None:
    """KMS opens both, since the context is the instance's; the name key sealed under the right one tells."""
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    world.clock.advance(24 * 3600)
    second = await ring.active()
    one, two = ring_file(world, first), ring_file(world, second)
    change(world, world.path(first.key_id), wrapped=two.wrapped)
    change(world, world.path(second.key_id), wrapped=one.wrapped)
    again = await world.loaded()
    for key in (first, second):
        with pytest.raises(KeyUnavailableError) as caught:
            await again.opening(key.key_id)
        assert caught.value.code is HoldCode.KEY_MISMATCH
    assert await again.active() not in {first, second}


async def test_ring_files_swapped_between_instances_open_nothing() -> None:
    world = World()
    ours, theirs = await (await world.loaded(A)).active(), await (await world.loaded(B)).active()
    files = world.files.contents
    files[world.path(theirs.key_id, A)] = files[world.path(theirs.key_id, B)]
    ring = await world.loaded(A)
    with pytest.raises(KeyUnavailableError, match="another instance"):
        await ring.opening(theirs.key_id)
    # even if whoever swapped them mends what the file says
    change(world, world.path(theirs.key_id, A), instance_id=A, context_sha256=ring_file(world, ours).context_sha256)
    ring = await world.loaded(A)
    with pytest.raises(KeyUnavailableError) as caught:
        await ring.opening(theirs.key_id)
    assert caught.value.code is HoldCode.KEY_MISMATCH


async def test_a_wrapped_key_that_does_not_open_is_asked_for_once_and_its_artifacts_wait() -> None:
    world = World()
    key = await (await world.loaded()).active()
    file = ring_file(world, key)
    good = world.files.contents[world.path(key.key_id)]
    broken = tuple(msgspec.structs.replace(each, blob=b"junk") for each in file.wrapped)
    change(world, world.path(key.key_id), wrapped=broken)
    ring = await world.loaded()
    for _ in range(3):
        world.clock.advance(3600)
        with pytest.raises(KeyUnavailableError) as caught:
            await ring.opening(key.key_id)
        assert caught.value.code is HoldCode.KEY_MISMATCH
    assert world.kms.calls.count("Decrypt") == 1
    assert ring.state.code is None
    world.files.contents[world.path(key.key_id)] = good
    await ring.load()
    assert is_same_secret(key, await ring.opening(key.key_id))


async def test_a_key_that_is_not_in_the_ring_is_forged() -> None:
    ring = await World().loaded()
    assert not ring.knows(KeyId(UUID(int=5)))
    with pytest.raises(SegmentForgedError):
        await ring.opening(KeyId(UUID(int=5)))


async def test_other_names_in_the_directory_are_passed_over() -> None:
    world = World()
    key = await (await world.loaded()).active()
    folder = f"keys/{A.hex}/"
    for name in (f"{key.key_id.hex}.json.tmp", f"{UUID(int=4)}.json", "x.json", ".json", f"{UUID(int=3).hex}.bak"):
        world.files.contents[folder + name] = b"junk"
    ring = await world.loaded()
    assert ring.key_ids() == [key.key_id]


# --- a change of KMS key


async def test_after_a_rewrap_the_old_kms_key_is_never_asked() -> None:
    world = World()
    key = await (await world.loaded(arn=OLD_ARN)).active()
    file = ring_file(world, key)
    added = Wrapped(kms_key_arn=ARN, blob=world.kms.rewrap(file.wrapped[0].blob, ARN), wrapped_at=world.clock.now())
    change(world, world.path(key.key_id), wrapped=(*file.wrapped, added))
    world.kms.arns = {ARN}
    for previous in (OLD_ARN, None):
        ring = await world.loaded(arn=ARN, previous=previous)
        assert is_same_secret(key, await ring.opening(key.key_id))
        assert await ring.active() == key


async def test_under_the_previous_kms_key_things_open_and_are_sealed_on_but_nothing_is_begun() -> None:
    world = World()
    old = await (await world.loaded(arn=OLD_ARN)).active()
    ring = await world.loaded(arn=ARN, previous=OLD_ARN)
    assert await ring.active() != old
    assert is_same_secret(old, await ring.opening(old.key_id))
    assert is_same_secret(old, await ring.sealing(old.key_id))
