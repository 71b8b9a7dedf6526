"""Another KMS key for a ring: what is asked of KMS, what proves a wrapped key, and what a failure leaves."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from pipeline.crypt import segments
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.rewrap import Side, SideError, Standing, let_go_of_others, rewrap, standing
from pipeline.errors import HoldCode, KeyBusyError, KeyUnavailableError, StoreIoError
from pipeline.ids import KeyId, Kind
from pipeline.keyports import KeyDescription
from tests.model_disk import ModelDisk
from tests.unit.keyring_fakes import ARN, OLD_ARN, StrictKms, World, refusal

DAY_S = 86_400


async def quiet(_done: int, _total: int) -> None:
    pass


@dataclass
class Telling(StrictKms):
    """KMS that also tells a key's state, as its refusals say."""

    states: dict[str, str] = field(default_factory=dict)

    async def describe(self, key_arn: str, tokens: Sequence[str] = ()) -> KeyDescription:
        self.calls.append("DescribeKey")
        return KeyDescription(key_arn, self.states.get(key_arn, "Enabled"), "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")

    def disable(self, arn: str) -> None:
        self.refuses[arn] = refusal()
        self.states[arn] = "Disabled"

    def enable(self, arn: str) -> None:
        del self.refuses[arn], self.states[arn]


def new_world() -> World:
    return World(kms=Telling())


def telling(world: World) -> Telling:
    assert isinstance(world.kms, Telling)
    return world.kms


async def loaded(world: World, *, arn: str = ARN, previous: str | None = None) -> KeyRing:
    ring = world.ring(arn=arn, previous=previous, directory="/state/keys")
    await ring.load()
    return ring


def path(key_id: KeyId) -> str:
    return f"/state/keys/{key_id.hex}.json"


async def with_keys(world: World, count: int) -> dict[KeyId, bytes]:
    """Make data keys under the old KMS key, each with something sealed under it."""
    sealed = {}
    ring = await loaded(world, arn=OLD_ARN)
    for _ in range(count):
        key = await ring.active()
        sealed[key.key_id] = segments.seal(key, b"place", key.key_id.bytes)
        world.clock.advance(DAY_S)
    return sealed


async def all_open(ring: KeyRing, sealed: Mapping[KeyId, bytes]) -> None:
    for key_id, message in sealed.items():
        assert segments.open_segment(await ring.opening(key_id), b"place", message) == key_id.bytes


async def test_each_data_key_is_wrapped_again_by_two_calls_and_opens_without_the_old_kms_key() -> None:
    world = new_world()
    sealed = await with_keys(world, 5)
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    told: list[tuple[int, int]] = []

    async def tell(done: int, total: int) -> None:
        told.append((done, total))

    assert standing(ring) == Standing(0, 5)
    world.kms.calls.clear()
    assert await rewrap(ring, world.clock, tell) == Standing(6, 6)
    assert told[0] == (1, 6), "a new data key under the new KMS key is there first"
    assert told[-1] == (6, 6)
    asked = sorted(world.kms.calls)
    # The fake tells a ReEncrypt twice, once for each KMS key; one Decrypt more carries the name key over.
    assert asked == ["Decrypt"] * 6 + ["GenerateDataKey"] + ["ReEncrypt"] * 10
    world.kms.calls.clear()
    assert await rewrap(ring, world.clock, tell) == Standing(6, 6)
    assert await let_go_of_others(ring) == 5
    assert await let_go_of_others(ring) == 0
    telling(world).disable(OLD_ARN)
    await all_open(ring, sealed)
    later = await loaded(world, arn=ARN)
    await all_open(later, sealed)
    assert all(len(file.wrapped) == 1 for file in later.files)
    assert later.unusable == {}


async def test_a_ring_file_without_a_wrapped_key_under_the_new_kms_key_keeps_all_it_has() -> None:
    world = new_world()
    (key_id,) = sealed = await with_keys(world, 1)
    ring = await loaded(world, arn=OLD_ARN)
    (file,) = ring.files
    foreign = replace(file.wrapped[0], kms_key_arn=f"{ARN}-of-long-ago")
    ring.files.write(replace(file, wrapped=(foreign, *file.wrapped)))
    before = world.files.contents[path(key_id)]
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    assert await let_go_of_others(ring) == 0
    assert world.files.contents[path(key_id)] == before
    await all_open(ring, sealed)
    await rewrap(ring, world.clock, quiet)
    assert await let_go_of_others(ring) == 1
    assert [wrapped.kms_key_arn for each in ring.files for wrapped in each.wrapped] == [ARN, ARN]


async def test_tags_stay_what_they_are() -> None:
    world = new_world()
    await with_keys(world, 2)
    old = await loaded(world, arn=OLD_ARN)
    tags = await old.tags(Kind.VOICE, "source")
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    await rewrap(ring, world.clock, quiet)
    await let_go_of_others(ring)
    assert await ring.tags(Kind.VOICE, "source") == tags
    assert await (await loaded(world, arn=ARN)).tags(Kind.VOICE, "source") == tags


@pytest.mark.parametrize(("side", "arn"), [(Side.OLD, OLD_ARN), (Side.NEW, ARN)])
async def test_a_kms_key_that_is_lost_meanwhile_is_named_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, side: Side, arn: str
) -> None:
    monkeypatch.setattr("pipeline.crypt.rewrap._AT_A_TIME", 1)
    world = new_world()
    sealed = await with_keys(world, 4)
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)

    async def lose(done: int, _total: int) -> None:
        if done == 2:
            telling(world).disable(arn)

    with pytest.raises(SideError) as caught:
        await rewrap(ring, world.clock, lose)
    assert caught.value.side is side
    with pytest.raises(SideError) as again:
        await rewrap(ring, world.clock, quiet)
    assert again.value.side is side
    telling(world).enable(arn)
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    await all_open(ring, sealed)
    assert await rewrap(ring, world.clock, quiet) == Standing(5, 5)
    await let_go_of_others(ring)
    await all_open(ring, sealed)


async def test_new_data_goes_under_the_new_kms_key_also_when_the_old_one_is_gone_already() -> None:
    world = new_world()
    sealed = await with_keys(world, 1)
    telling(world).disable(OLD_ARN)
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    with pytest.raises(SideError) as caught:
        await rewrap(ring, world.clock, quiet)
    assert caught.value.side is Side.OLD
    key = await ring.active()
    assert key.key_id not in sealed
    (file,) = [each for each in ring.files if each.key_id == key.key_id]
    assert [each.kms_key_arn for each in file.wrapped] == [ARN]


async def test_silence_is_no_failure() -> None:
    world = new_world()
    sealed = await with_keys(world, 2)
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    await ring.active()
    world.kms.refuses[f"{OLD_ARN} ReEncrypt"] = KeyBusyError("no answer")
    with pytest.raises(KeyBusyError):
        await rewrap(ring, world.clock, quiet)
    world.kms.refuses.clear()
    await rewrap(ring, world.clock, quiet)
    await all_open(ring, sealed)


async def test_a_denial_of_one_operation_names_the_permissions() -> None:
    world = new_world()
    await with_keys(world, 1)
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    await ring.active()
    world.kms.refuses[f"{ARN} ReEncrypt"] = refusal(HoldCode.KEY_ACCESS_DENIED)
    with pytest.raises(SideError, match="kms:ReEncryptFrom"):
        await rewrap(ring, world.clock, quiet)


async def test_another_data_key_than_the_one_that_was_sent_is_not_kept() -> None:
    """Whatever KMS answers: a wrapped key counts only if it opens what its ring file was sealed with."""

    class Mistaken(Telling):
        async def re_encrypt(
            self,
            source_arn: str,
            target_arn: str,
            wrapped: bytes,
            context: Mapping[str, str],
            tokens: Sequence[str] = (),
        ) -> bytes:
            return (await self.generate_data_key(target_arn, context)).wrapped

    world = World(kms=Mistaken())
    sealed = await with_keys(world, 1)
    (key_id,) = sealed
    before = world.files.contents[path(key_id)]
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    with pytest.raises(SideError) as caught:
        await rewrap(ring, world.clock, quiet)
    assert caught.value.side is Side.NEW
    assert world.files.contents[path(key_id)] == before
    await all_open(ring, sealed)


async def test_a_ring_file_that_can_not_be_used_stops_the_end_and_harms_no_other() -> None:
    world = new_world()
    sealed = await with_keys(world, 2)
    spoiled, _ = sealed
    world.files.contents[path(spoiled)] = b"{"
    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    with pytest.raises(SideError, match="1 ring files"):
        await rewrap(ring, world.clock, quiet)


async def test_a_ring_goes_on_under_its_new_keys_with_what_is_in_memory() -> None:
    """A body that is being received meets no KMS key that is not configured any more, and is not broken off."""
    world = new_world()
    ring = await loaded(world, arn=OLD_ARN)
    begun = await ring.active()
    await ring.sealing(begun.key_id)
    await ring.follow(ARN, OLD_ARN)
    fresh = await ring.active()
    assert fresh.key_id != begun.key_id
    await rewrap(ring, world.clock, quiet)
    await let_go_of_others(ring)
    await ring.follow(ARN, None)
    telling(world).disable(OLD_ARN)
    world.clock.advance(100_000)
    assert (await ring.sealing(begun.key_id)).key_id == begun.key_id
    assert ring.state.code is None


async def test_keys_that_are_not_configured_any_more_open_nothing() -> None:
    world = new_world()
    ring = await loaded(world, arn=OLD_ARN)
    key = await ring.active()
    await ring.follow(ARN, None)
    with pytest.raises(KeyUnavailableError) as caught:
        await ring.opening(key.key_id)
    assert caught.value.code is HoldCode.KEY_MISMATCH


async def test_a_directory_that_can_not_be_read_changes_nothing() -> None:
    world = new_world()
    ring = await loaded(world, arn=OLD_ARN)
    key = await ring.active()

    def names(_path: str) -> list[str]:
        raise StoreIoError("no names")

    world.files.names = names  # type: ignore[assignment]
    with pytest.raises(StoreIoError):
        await ring.follow(ARN, OLD_ARN)
    assert await ring.active() is key


async def test_no_crash_leaves_a_data_key_that_does_not_open() -> None:
    """Killed or without power at any step: all opens, the same change goes on, and ends without the old KMS key."""
    disk, world = ModelDisk(), new_world()
    world.files = disk  # type: ignore[assignment]
    sealed = await with_keys(world, 3)
    moments: list[ModelDisk] = []

    def take(_number: int, operation: str, _path: str) -> None:
        if operation not in {"open", "read", "names", "close"}:
            moments.append(disk.snapshot())

    ring = await loaded(world, arn=ARN, previous=OLD_ARN)
    disk.before = take
    await rewrap(ring, world.clock, quiet)
    await let_go_of_others(ring)
    disk.before = lambda _number, _operation, _path: None
    chance, seen = random.Random(4), set()
    for moment in [*moments, disk.snapshot()]:
        for fates in moment.choices(chance, samples=1):
            left = moment.crash(fates)
            if left.fingerprint() in seen:
                continue
            seen.add(left.fingerprint())
            await _goes_on(world, left, sealed)
    assert len(seen) > 30


async def _goes_on(world: World, disk: ModelDisk, sealed: dict[KeyId, bytes]) -> None:
    kms = Telling(_wrapped=dict(world.kms._wrapped))
    after = World(clock=world.clock, files=disk, kms=kms)  # type: ignore[arg-type]
    ring = await loaded(after, arn=ARN, previous=OLD_ARN)
    await all_open(ring, sealed)
    found = await rewrap(ring, world.clock, quiet)
    assert found.done == found.total
    await let_go_of_others(ring)
    kms.disable(OLD_ARN)
    kms.calls.clear()
    last = await loaded(after, arn=ARN)
    assert last.unusable == {}
    await all_open(last, sealed)
