"""Another KMS key for a scope: sealed again, broken off anywhere, resumed; after that the old key is never asked."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from pipeline.crypt.rewrap import Side, SideError
from pipeline.errors import HoldCode
from pipeline.records import reencrypt as module
from pipeline.records.drafts import ALWAYS, Draft, checked
from pipeline.records.reencrypt import Standing, former_keys, reencrypt, standing
from pipeline.records.rows import RowChange
from pipeline.records.shelves import Shelf
from tests.records_fixture import Records, records_over
from tests.store_fixture import World, node
from tests.unit.keyring_fakes import ARN, A, refusal

NEW_ARN = ARN[:-4] + "003f"
CLASS = "profiles_domain"
MANY = 60


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[Records]:
    world.kms.arns.add(NEW_ARN)
    async with node(world) as process, records_over(process) as records:
        yield records


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 7)


async def filled(records: Records) -> Shelf:
    shelf = records.shelf(CLASS, A)
    drafts = [Draft(id=f"p-{each}", body=b'{"PhoneNumber": "+49309018%03d"}' % each) for each in range(MANY)]
    await records.store.put_all(records.caller(A), shelf, drafts)
    return shelf


def change_key(records: Records, current: str = NEW_ARN, previous: str | None = ARN) -> Shelf:
    mine = tuple(
        replace(each, kms_key_arn=current, previous_kms_key_arn=previous) if each.data_class == CLASS else each
        for each in records.caller(A).records
    )
    records.configure(a=replace(records.caller(A), records=mine))
    return records.shelf(CLASS, A)


async def untold(_done: int, _total: int) -> None:
    await anyio.lowlevel.checkpoint()


async def all_there(records: Records) -> None:
    shelf = records.shelf(CLASS, A)
    for each in range(MANY):
        found = await records.store.get(records.caller(A), shelf, f"p-{each}")
        assert found is not None
        assert found.body == b'{"PhoneNumber": "+49309018%03d"}' % each
    (one,) = await records.store.find(records.caller(A), shelf, "phone", "+49309018007")
    assert one.id == "p-7"


async def test_every_record_is_sealed_again_and_the_old_key_is_needed_no_more(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with opened(world) as records:
        await filled(records)
        shelf = change_key(records)
        (old,) = former_keys(await shelf.opened())
        assert await standing(shelf, records.engine) == Standing(0, MANY)
        told: list[tuple[int, int]] = []

        async def tell(done: int, total: int) -> None:
            told.append((done, total))
            await anyio.lowlevel.checkpoint()

        assert await reencrypt(shelf, records.engine, tell) == Standing(MANY, MANY)
        assert told[0] == (0, MANY)
        assert told[-1] == (MANY, MANY)
        assert not (tmp_path / shelf.scope.directory / f"{old.hex}.json").exists()
        change_key(records, previous=None)
        world.kms.refuses[ARN] = refusal()
        await all_there(records)
        assert await reencrypt(records.shelf(CLASS, A), records.engine, untold) == Standing(MANY, MANY)
    async with opened(world) as records:
        change_key(records, previous=None)
        await all_there(records)


@pytest.mark.parametrize(
    "after", [0, 4, 8, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 2, 3, 5, 6, 7))]
)
async def test_it_goes_on_where_it_was_broken_off(after: int, tmp_path: Path) -> None:
    """Whatever transaction was the last, nothing is lost and the next run does the rest alone."""
    world = World(root=tmp_path)
    async with opened(world) as records:
        await filled(records)
        shelf = change_key(records)
        left = after
        write = records.engine.write

        async def killed(changes: Sequence[RowChange]) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            await write(changes)

        records.engine.write = killed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            await reencrypt(shelf, records.engine, untold)
    async with opened(world) as records:
        shelf = change_key(records)
        assert await standing(shelf, records.engine) == Standing(min(after * 7, MANY), MANY)
        await all_there(records)
        assert await reencrypt(shelf, records.engine, untold) == Standing(MANY, MANY)
        change_key(records, previous=None)
        await all_there(records)


@pytest.mark.parametrize(("arn", "side"), [(NEW_ARN, Side.NEW), (ARN, Side.OLD)])
async def test_a_key_that_refuses_fails_its_side_and_loses_nothing(arn: str, side: Side, tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with opened(world) as records:
        await filled(records)
        ring = await change_key(records).opened()
        if side is Side.OLD:
            await ring.active()  # its name key is the old one's
            ring.drop()
        world.kms.refuses[arn] = refusal(HoldCode.KEY_DISABLED)
        world.clock.advance(301)
        with pytest.raises(SideError) as caught:
            await reencrypt(records.shelf(CLASS, A), records.engine, untold)
        assert caught.value.side is side
        del world.kms.refuses[arn]
        ring.ask_now()
        assert await reencrypt(records.shelf(CLASS, A), records.engine, untold) == Standing(MANY, MANY)
        await all_there(records)


async def test_an_old_key_that_could_not_be_used_at_first_leaves_nothing_unfindable(tmp_path: Path) -> None:
    """The search key could not be carried over: hashes are made anew with the new one."""
    world = World(root=tmp_path)
    async with opened(world) as records:
        await filled(records)
        world.kms.refuses[ARN] = refusal(HoldCode.KEY_DISABLED)
        world.clock.advance(301)
        shelf = change_key(records)
        await records.store.put(records.caller(A), shelf, Draft(id="new", body=b"{}"))
        with pytest.raises(SideError):
            await reencrypt(shelf, records.engine, untold)
        del world.kms.refuses[ARN]
        (await shelf.opened()).ask_now()
        assert len(await shelf.blind()) == 2
        await all_there(records)
        await reencrypt(shelf, records.engine, untold)
        assert len(await shelf.blind()) == 1
        await all_there(records)
        assert await records.store.get(records.caller(A), shelf, "new") is not None


async def test_who_puts_meanwhile_loses_nothing(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    async with opened(world) as records:
        before = await filled(records)
        late = Draft(id="late", body=b"{}")
        async with before.sealing() as key:  # somebody who has sealed, and not written yet
            shelf = change_key(records)
            ended = anyio.Event()

            async def run() -> None:
                await reencrypt(shelf, records.engine, untold)
                ended.set()

            async with anyio.create_task_group() as group:
                group.start_soon(run)
                for each in range(0, MANY, 5):
                    await records.store.put(records.caller(A), shelf, Draft(id=f"p-{each}", body=b'{"again": 1}'))
                while await records.engine.count(shelf.scope.shelf, [key.key_id]):
                    await anyio.lowlevel.checkpoint()
                assert not ended.is_set()
                changes = await records.store._changes(before, key, [checked(late, before.scope.policy)], ALWAYS)
                await records.engine.write(changes)
                before.of_scope.sealing[key.key_id] -= 1  # type: ignore[union-attr]
                with anyio.fail_after(20):
                    await ended.wait()
                before.of_scope.sealing[key.key_id] += 1  # type: ignore[union-attr]
        change_key(records, previous=None)
        world.kms.refuses[ARN] = refusal()
        shelf = records.shelf(CLASS, A)
        found = await records.store.get(records.caller(A), shelf, "late")
        assert found is not None
        again = await records.store.get(records.caller(A), shelf, "p-5")
        assert again is not None
        assert again.body == b'{"again": 1}'


async def test_a_key_of_the_services_may_be_the_former_or_the_next(tmp_path: Path) -> None:
    """From none to a customer's key, and back."""
    world = World(root=tmp_path)
    async with opened(world) as records:
        mine = tuple(
            replace(each, kms_key_arn=None) if each.data_class == CLASS else each for each in records.caller(A).records
        )
        records.configure(a=replace(records.caller(A), records=mine))
        await filled(records)
        shelf = change_key(records, previous=None)
        assert await reencrypt(shelf, records.engine, untold) == Standing(MANY, MANY)
        await all_there(records)
        mine = tuple(
            replace(each, kms_key_arn=None, previous_kms_key_arn=NEW_ARN) if each.data_class == CLASS else each
            for each in records.caller(A).records
        )
        records.configure(a=replace(records.caller(A), records=mine))
        assert await reencrypt(records.shelf(CLASS, A), records.engine, untold) == Standing(MANY, MANY)
        world.kms.refuses[NEW_ARN] = refusal()
        world.clock.advance(301)
        await all_there(records)
