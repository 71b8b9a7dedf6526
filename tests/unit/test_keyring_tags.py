import pytest

from pipeline.crypt import ringfile, segments
from pipeline.crypt.duty import KEY_ARTIFACTS
from pipeline.errors import KeyBusyError, KeyUnavailableError, PipelineError
from pipeline.ids import Kind
from tests.unit.keyring_fakes import ARN, OLD_ARN, A, B, World, refusal, ring_file

# --- tags


async def test_tags_are_stable_and_tell_kinds_sources_and_instances_apart() -> None:
    world = World()
    ring, other = await world.loaded(A), await world.loaded(B)
    (tag,) = await ring.tags(Kind.VOICE, "contact/1")
    assert len(tag) == 16
    assert int(tag, 16) >= 0
    assert await (await world.loaded(A)).tags(Kind.VOICE, "contact/1") == [tag]
    assert await ring.tags(Kind.SCREEN, "contact/1") != [tag]
    assert await ring.tags(Kind.VOICE, "contact/2") != [tag]
    assert await other.tags(Kind.VOICE, "contact/1") != [tag]


async def test_item_digests_are_stable_and_not_tags() -> None:
    world = World()
    ring = await world.loaded()
    digest = await ring.item_digest("i-1")
    assert len(digest) == 16
    assert digest == await (await world.loaded()).item_digest("i-1")
    assert digest != await ring.item_digest("i-2")
    assert digest not in await ring.tags(Kind.CHAT, "i-1")


async def test_the_name_key_is_carried_to_a_new_data_key() -> None:
    world = World()
    ring = await world.loaded()
    tags = await ring.tags(Kind.VOICE, "s")
    first = await ring.active()
    world.clock.advance(24 * 3600)
    assert await ring.active() != first
    assert await ring.tags(Kind.VOICE, "s") == tags
    restarted = await world.loaded()
    world.clock.advance(24 * 3600)
    assert await restarted.active() != first
    assert await restarted.tags(Kind.VOICE, "s") == tags


async def test_the_name_key_is_carried_to_a_new_kms_key() -> None:
    world = World()
    tags = await (await world.loaded(arn=OLD_ARN)).tags(Kind.VOICE, "s")
    moved = await world.loaded(arn=ARN, previous=OLD_ARN)
    key = await moved.active()
    assert ring_file(world, key).wrapped[0].kms_key_arn == ARN
    assert await moved.tags(Kind.VOICE, "s") == tags


@pytest.mark.parametrize("error", [refusal(), KeyBusyError("gone")], ids=["refused", "silent"])
async def test_an_old_kms_key_that_is_gone_stops_no_new_recording_and_both_tags_are_known_later(
    error: Exception,
) -> None:
    world = World()
    old_ring = await world.loaded(arn=OLD_ARN)
    (old,) = await old_ring.tags(Kind.VOICE, "s")
    assert isinstance(error, KeyBusyError | KeyUnavailableError)
    world.kms.refuses[OLD_ARN] = error
    moved = await world.loaded(arn=ARN, previous=OLD_ARN)
    (new,) = await moved.tags(Kind.VOICE, "s")
    assert new != old
    await moved.active()
    del world.kms.refuses[OLD_ARN]
    world.clock.advance(60)
    assert await moved.tags(Kind.VOICE, "s") == [new, old]
    assert await (await world.loaded(arn=ARN, previous=OLD_ARN)).tags(Kind.VOICE, "s") == [new, old]


async def test_tags_ask_kms_once_for_each_name_key_and_not_for_each_data_key() -> None:
    world = World()
    ring = await world.loaded()
    for _ in range(5):
        ring.used((await ring.active()).key_id, KEY_ARTIFACTS, 0)
    await ring.active()
    restarted = await world.loaded()
    for key_id in restarted.key_ids():
        restarted.used(key_id, 0, 0)
    world.kms.calls.clear()
    await restarted.tags(Kind.VOICE, "s")
    assert world.kms.calls == ["Decrypt"]


async def test_while_what_was_begun_is_sealed_on_it_is_named_too() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    tags, digest = await ring.tags(Kind.CHAT, "s"), await ring.item_digest("i")
    world.clock.advance(256)
    world.kms.refuses[ARN] = refusal()
    with pytest.raises(KeyUnavailableError):
        await ring.active()
    assert await ring.sealing(key.key_id) == key
    assert await ring.tags(Kind.CHAT, "s") == tags
    assert await ring.item_digest("i") == digest
    world.clock.advance(901)
    with pytest.raises(KeyUnavailableError):
        await ring.item_digest("i")


def test_tags_of_a_known_name_key_never_change() -> None:
    """They stand in file names: HMAC-SHA-256 over domain, zero byte and name, computed elsewhere."""
    assert ringfile.tag(bytes(32), Kind.VOICE, "contact/1") == "892085d3cbdbdd25"
    assert ringfile.tag(bytes(32), "item", "i-1") == "4cba802a3425fd92"


async def test_the_name_key_is_sealed_for_one_key_of_one_instance() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    file = ring_file(world, key)
    place = b"recording-pipeline/name-key/1\x00" + A.bytes + key.key_id.bytes + file.name_key_id.bytes
    name_key = segments.open_segment(key, place, file.name_key)
    assert await ring.tags(Kind.CHAT, "s") == [ringfile.tag(name_key, "chat", "s")]


@pytest.mark.parametrize("error", [refusal(), KeyBusyError("throttled")], ids=["refused", "silent"])
async def test_no_tags_are_given_that_leave_a_name_key_of_the_current_kms_key_out(error: PipelineError) -> None:
    """A source id that is known under the missing name would be taken for a new one."""
    world = World()
    one, two = await world.loaded(), await world.loaded()
    await one.active()
    await two.active()
    await one.load()
    world.kms.refuses[ARN] = error
    with pytest.raises((KeyBusyError, KeyUnavailableError)):
        await one.tags(Kind.VOICE, "s")
    del world.kms.refuses[ARN]
    world.clock.advance(1)
    assert len(await one.tags(Kind.VOICE, "s")) == 2
