import logging
from datetime import timedelta
from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest

from pipeline.crypt.duty import KEY_ARTIFACTS
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.segments import DataKey
from pipeline.errors import HoldCode, KeyBusyError, KeyUnavailableError
from pipeline.ids import Kind
from tests.unit.keyring_fakes import ARN, OLD_ARN, A, B, World, refusal

# --- times: use and refresh


async def test_use_does_not_extend_the_life_of_a_key_in_memory() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    world.kms.refuses[ARN] = KeyBusyError("silent")
    for _ in range(299):
        world.clock.advance(1)
        await ring.opening(key.key_id)
        await ring.active()
    world.clock.advance(1)
    with pytest.raises(KeyBusyError):
        await ring.opening(key.key_id)
    with pytest.raises(KeyBusyError):
        await ring.active()


async def test_a_key_is_asked_for_again_from_80_percent_of_its_time() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    world.clock.advance(254.9)  # 85 % with this chance
    await ring.active()
    assert world.kms.calls == ["GenerateDataKey"]
    world.clock.advance(0.2)
    await ring.active()
    await ring.opening(key.key_id)
    assert world.kms.calls == ["GenerateDataKey", "Decrypt"]
    world.clock.advance(250)
    await ring.opening(key.key_id)
    assert world.kms.calls == ["GenerateDataKey", "Decrypt"]


@pytest.mark.parametrize("call", ["active", "opening", "sealing"])
async def test_one_caller_refreshes_while_the_others_go_on(call: str) -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    world.clock.advance(260)
    world.kms.pause = anyio.Event()
    done: list[DataKey] = []

    async def use() -> None:
        done.append(await (ring.active() if call == "active" else getattr(ring, call)(key.key_id)))

    async with anyio.create_task_group() as tg:
        for _ in range(50):
            tg.start_soon(use)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert len(done) == 49
        world.kms.pause.set()
    assert len(done) == 50
    assert world.kms.calls == ["GenerateDataKey", "Decrypt"]


async def test_a_thousand_openings_at_once_make_one_call() -> None:
    world = World()
    key = await (await world.loaded()).active()
    ring = await world.loaded()
    async with anyio.create_task_group() as tg:
        for _ in range(1_000):
            tg.start_soon(ring.opening, key.key_id)
    assert world.kms.calls.count("Decrypt") == 1


# --- times: KMS refuses


async def test_a_refusal_stops_opening_and_new_artifacts_at_once_and_sealing_after_the_grace() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    world.clock.advance(256)
    world.kms.refuses[ARN] = refusal()
    with pytest.raises(KeyUnavailableError) as caught:
        await ring.opening(key.key_id)
    assert caught.value.code is HoldCode.KEY_DISABLED
    with pytest.raises(KeyUnavailableError):
        await ring.active()
    refused_at = world.clock.seconds
    while world.clock.seconds < refused_at + 899:
        assert await ring.sealing(key.key_id) == key
        world.clock.advance(29)
    world.clock.seconds = refused_at + 899.9
    assert await ring.sealing(key.key_id) == key
    world.clock.seconds = refused_at + 900
    with pytest.raises(KeyUnavailableError):
        await ring.sealing(key.key_id)


async def test_a_refusal_of_one_key_drops_every_key_under_that_kms_key() -> None:
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    world.clock.advance(24 * 3600)
    await ring.active()
    world.clock.advance(100)
    assert await ring.opening(first.key_id) == first
    world.clock.advance(156)
    assert await ring.opening(first.key_id) == first
    world.kms.refuses[ARN] = refusal()
    with pytest.raises(KeyUnavailableError):
        await ring.active()
    with pytest.raises(KeyUnavailableError):
        await ring.opening(first.key_id)


async def test_without_grace_a_refusal_stops_sealing_at_once() -> None:
    world = World()
    ring = await world.loaded(grace=timedelta())
    key = await ring.active()
    world.clock.advance(256)
    world.kms.refuses[ARN] = refusal()
    with pytest.raises(KeyUnavailableError):
        await ring.sealing(key.key_id)
    del world.kms.refuses[ARN]
    world.clock.advance(60)
    assert await ring.sealing(key.key_id) == key


async def test_a_key_comes_back_by_itself_when_kms_allows_it_again() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    world.clock.advance(256)
    world.kms.refuses[ARN] = refusal()
    with pytest.raises(KeyUnavailableError):
        await ring.active()
    since = world.clock.now()
    assert (ring.state.code, ring.state.since) == (HoldCode.KEY_DISABLED, since)
    del world.kms.refuses[ARN]
    world.clock.advance(1)
    assert await ring.active() == key
    assert ring.state.code is None


async def test_silence_after_a_refusal_does_not_hide_it_nor_extend_the_grace() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    world.clock.advance(256)
    world.kms.refuses[ARN] = refusal()
    with pytest.raises(KeyUnavailableError):
        await ring.opening(key.key_id)
    refused_at, since = world.clock.seconds, world.clock.now()
    world.kms.refuses[ARN] = KeyBusyError("silent")
    world.clock.advance(100)
    assert await ring.sealing(key.key_id) == key
    assert (ring.state.code, ring.state.since) == (HoldCode.KEY_DISABLED, since)
    world.clock.seconds = refused_at + 900
    with pytest.raises((KeyUnavailableError, KeyBusyError)):
        await ring.sealing(key.key_id)


async def test_a_denial_of_new_keys_alone_leaves_the_old_ones_opening() -> None:
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    ring.used(first.key_id, KEY_ARTIFACTS, 0)
    world.kms.refuses[f"{ARN} GenerateDataKey"] = refusal(HoldCode.KEY_ACCESS_DENIED)
    with pytest.raises(KeyUnavailableError):
        await ring.active()
    assert ring.state.code is HoldCode.KEY_ACCESS_DENIED
    assert await ring.opening(first.key_id) == first


async def test_a_refused_kms_key_is_not_asked_a_thousand_times() -> None:
    world = World()
    ring = await world.loaded()
    world.kms.refuses[ARN] = refusal()
    refused = 0

    async def upload() -> None:
        nonlocal refused
        try:
            await ring.active()
        except KeyUnavailableError:
            refused += 1

    async with anyio.create_task_group() as tg:
        for _ in range(1_000):
            tg.start_soon(upload)
    assert refused == 1_000
    assert len(world.kms.calls) == 1


async def test_the_pause_after_a_failure_grows_to_thirty_seconds_at_most() -> None:
    world = World()
    ring = await world.loaded()
    world.kms.refuses[ARN] = refusal()
    asked: list[float] = []
    for _ in range(3_000):
        before = len(world.kms.calls)
        with pytest.raises(KeyUnavailableError):
            await ring.active()
        if len(world.kms.calls) > before:
            asked.append(world.clock.seconds)
        world.clock.advance(0.1)
    pauses = [round(later - earlier, 1) for earlier, later in pairwise(asked)]
    assert pauses[0] < 1.1
    assert pauses == sorted(pauses)
    assert 15 <= pauses[-1] <= 30


async def test_the_pause_is_short_again_after_a_success() -> None:
    world = World()
    ring = await world.loaded()
    for _ in range(2):
        world.kms.refuses[ARN] = refusal()
        for pause in (0.8, 1.6, 3.2):
            with pytest.raises(KeyUnavailableError):
                await ring.active()
            world.clock.advance(pause)
        del world.kms.refuses[ARN]
        ring.drop()
        ring.used((await ring.active()).key_id, KEY_ARTIFACTS, 0)


async def test_a_disabled_key_noticed_when_a_data_key_is_made_stops_opening_too() -> None:
    world = World()
    ring = await world.loaded()
    first = await ring.active()
    ring.used(first.key_id, KEY_ARTIFACTS, 0)
    world.kms.refuses[ARN] = refusal()
    with pytest.raises(KeyUnavailableError):
        await ring.active()
    with pytest.raises(KeyUnavailableError):
        await ring.opening(first.key_id)


async def test_one_instances_refusal_is_not_anothers() -> None:
    world = World()
    world.kms.refuses[ARN] = refusal()
    held = await world.loaded(A)
    with pytest.raises(KeyUnavailableError):
        await held.active()
    await (await world.loaded(B, arn=OLD_ARN)).active()


# --- times: KMS does not answer


async def test_silence_lets_keys_go_on_to_the_end_and_sealing_for_the_grace_after() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    made_at = world.clock.seconds
    world.kms.refuses[ARN] = KeyBusyError("silent")
    world.clock.seconds = made_at + 299.9
    assert await ring.opening(key.key_id) == key
    assert await ring.active() == key
    assert ring.state.code is HoldCode.KEY_UNREACHABLE
    world.clock.seconds = made_at + 300
    with pytest.raises(KeyBusyError):
        await ring.opening(key.key_id)
    with pytest.raises(KeyBusyError):
        await ring.active()
    world.clock.seconds = made_at + 1_199.9
    assert await ring.sealing(key.key_id) == key
    world.clock.seconds = made_at + 1_200
    with pytest.raises(KeyBusyError):
        await ring.sealing(key.key_id)


async def test_a_key_service_that_says_unreachable_is_silent_and_does_not_refuse() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    world.clock.advance(256)
    world.kms.refuses[ARN] = refusal(HoldCode.KEY_UNREACHABLE)
    assert await ring.opening(key.key_id) == key


async def test_a_chat_that_was_idle_past_the_cache_time_is_still_sealed_on_in_the_grace() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    world.kms.refuses[ARN] = KeyBusyError("silent")
    world.clock.advance(600)
    assert await ring.sealing(key.key_id) == key


# --- what stays in memory


def secrets_in(ring: KeyRing) -> int:
    return sum(1 for _ in ring._copies)


async def test_keys_leave_memory_when_their_time_is_over() -> None:
    world = World()
    key = await (await world.loaded()).active()
    ring = await world.loaded()
    await ring.opening(key.key_id)
    world.clock.advance(299)
    ring.expire()
    assert secrets_in(ring) == 1
    world.clock.advance(1)
    ring.expire()
    assert secrets_in(ring) == 0  # it only opened: no grace
    await ring.sealing(key.key_id)
    world.clock.advance(1_199)
    ring.expire()
    assert secrets_in(ring) == 1
    world.clock.advance(1)
    ring.expire()
    assert secrets_in(ring) == 0


async def test_drop_empties_the_memory() -> None:
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    ring.drop()
    assert secrets_in(ring) == 0
    world.kms.refuses[ARN] = refusal()
    for attempt in (ring.active(), ring.opening(key.key_id), ring.sealing(key.key_id), ring.tags(Kind.CHAT, "s")):
        with pytest.raises(KeyUnavailableError):
            await attempt


async def test_the_number_of_keys_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.crypt.keycopies.COPIES_LIMIT", 3)
    world = World()
    ring = await world.loaded()
    keys = []
    for _ in range(6):
        keys.append(await ring.active())
        ring.used(keys[-1].key_id, KEY_ARTIFACTS, 0)
    ring = await world.loaded()
    sealing = await ring.sealing(keys[0].key_id)
    for key in keys[1:]:
        await ring.opening(key.key_id)
    assert secrets_in(ring) == 3
    assert sealing in {copy.key for copy in ring._copies}


async def test_no_representation_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world = World()
    ring = await world.loaded()
    key = await ring.active()
    await ring.tags(Kind.VOICE, "canary-source")
    shown = repr([key, list(ring._copies), ring, ring.state, ring.files]) + caplog.text
    for secret in (*world.kms.plaintexts(), *(copy.name_key for copy in ring._copies)):
        assert repr(secret) not in shown
        assert secret.hex() not in shown
    assert "canary-source" not in shown
