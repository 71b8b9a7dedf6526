"""One pass over what buckets hold: what is counted as what, what is rewritten, and what is left alone and why."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest

from pipeline.delivery.bucketpass import BucketPass, Counts, Pace, Place, Watch
from pipeline.delivery.reencrypt import Seen, Standing, Ways
from pipeline.errors import DestinationBusyError, DestinationHeldError, HoldCode, StoreIoError
from tests.s3_strict import STORAGE, StrictDestination
from tests.unit.keyring_fakes import FakeClock

OLD = STORAGE.kms_key_arn
NEW = replace(STORAGE, kms_key_arn="arn:aws:kms:eu-central-1:111122223333:key/cccc3333-0000-4000-8000-000000000003")
PREFIX = f"{STORAGE.prefix}/"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.delivery.bucketpass._FIRST_PAUSE_S", 0.0)


@dataclass
class Told:
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    looked: int = 0
    refuses: bool = False

    def watch(self) -> Watch:
        async def before(_place: Place, seen: Seen, _ways: Ways) -> None:
            self.before.append(seen.version.key)
            if self.refuses:
                raise StoreIoError("no room for the record")

        async def after(_place: Place, seen: Seen, _ways: Ways) -> None:
            self.after.append(seen.version.key)

        def left(_place: Place, seen: Seen, why: str) -> None:
            self.left[seen.version.key] = why

        def progress(count: int) -> None:
            self.looked = count

        return Watch(before=before, after=after, left=left, progress=progress)


def lay(store: StrictDestination, name: str, arn: str = OLD, **changes: object) -> str:
    key, body = f"{PREFIX}{name}", name.encode() * 50
    metadata = {"rid": name, "gen": "1", "sha256": hashlib.sha256(body).hexdigest()}
    about = {"etag": f'"{name}"', "kms_key_arn": arn, "metadata": metadata, "content_type": "audio/wav"}
    store.lay(key, body, **{**about, **changes})
    return key


async def gone_over(
    store: StrictDestination, told: Told, *, rewrites: bool = True, places: Sequence[Place] | None = None
) -> Counts:
    chosen = places or [Place(store, store.storage, PREFIX)]
    return await BucketPass(chosen, told.watch(), Pace(1e9, FakeClock()), rewrites=rewrites).run()


async def test_what_is_ours_and_under_another_key_is_rewritten_and_nothing_else() -> None:
    store, told = StrictDestination(NEW), Told()
    moved, plain = lay(store, "a"), lay(store, "b", encryption="AES256", kms_key_arn=None)
    done = lay(store, "c", NEW.kms_key_arn)
    foreign = lay(store, "d", metadata={"title": "x"})
    store.page = 2
    before = {key: stored.body for key, stored in store.objects.items()}
    counts = await gone_over(store, told)
    assert {key: stored.body for key, stored in store.objects.items()} == before
    keys = {key: stored.facts.kms_key_arn for key, stored in store.objects.items()}
    assert keys == {moved: NEW.kms_key_arn, plain: NEW.kms_key_arn, done: NEW.kms_key_arn, foreign: OLD}
    assert (counts.rewritten, counts.left, counts.under_other_key) == (2, 0, 0)
    assert counts.seen == {Standing.OTHER: 2, Standing.CONFIGURED: 1, Standing.FOREIGN: 1}
    assert sorted(told.before) == sorted(told.after) == [moved, plain]
    assert told.looked == 4
    again = Told()
    assert (await gone_over(store, again)).rewritten == 0
    assert again.before == []


async def test_what_a_bucket_was_tried_with_and_kept_is_encrypted_anew_too() -> None:
    store = StrictDestination(NEW)
    kept = lay(store, "pipeline-probe-0123456789abcdef-put", metadata=probe_metadata())
    counts = await gone_over(store, Told())
    assert (counts.rewritten, counts.under_other_key) == (1, 0)
    assert store.objects[kept].facts.kms_key_arn == NEW.kms_key_arn


def probe_metadata() -> dict[str, str]:
    body = b"pipeline-probe-0123456789abcdef-put" * 50
    return {"rid": str(UUID(int=0)), "gen": "1", "sha256": hashlib.sha256(body).hexdigest()}


async def test_a_dry_run_writes_nothing() -> None:
    store, told = StrictDestination(NEW), Told()
    key = lay(store, "a")
    counts = await gone_over(store, told, rewrites=False)
    assert (counts.left, counts.under_other_key, dict(counts.keys)) == (1, 1, {OLD: 1})
    assert told.left == {key: "not asked to"}
    assert set(store.calls) == {"versions", "head"}


async def test_older_versions_and_delete_markers_are_counted_and_never_rewritten() -> None:
    store, told = StrictDestination(NEW), Told()
    store.knows_update, store.keeps_versions = False, True
    key = lay(store, "a")
    store.older[key].append(replace(store.objects[key], facts=replace(store.objects[key].facts, version_id="v1")))
    store.markers.append(f"{PREFIX}gone")
    counts = await gone_over(store, told)
    assert counts.seen[Standing.MARKER] == 1
    assert counts.rewritten == 1
    assert counts.under_other_key == 2, "the version that was, and the one that the copy left behind"
    again = await gone_over(store, Told())
    assert (again.rewritten, again.under_other_key) == (0, 2)
    store.older.clear()
    assert (await gone_over(store, Told())).under_other_key == 0


@pytest.mark.parametrize("knows_copy", [True, False])
async def test_an_object_that_changes_under_our_hands_is_looked_at_again(knows_copy: bool) -> None:
    store, told = StrictDestination(NEW), Told()
    store.knows_update, store.knows_copy = False, knows_copy
    key = lay(store, "a")
    step = "copy before" if knows_copy else "put over before"
    changed = False

    async def meddle(at: str) -> None:
        nonlocal changed
        if at == step and told.before and not changed:
            changed = True
            lay(store, "a", etag='"another"')

    store.on_step = meddle
    counts = await gone_over(store, told)
    assert (counts.rewritten, told.before, told.after) == (1, [key, key], [key])
    assert store.objects[key].facts.kms_key_arn == NEW.kms_key_arn


async def test_an_answer_that_is_lost_is_found_done() -> None:
    store, told = StrictDestination(NEW), Told()
    key = lay(store, "a")
    lost = False

    async def lose(at: str) -> None:
        nonlocal lost
        if at == "update after" and told.before and not lost:
            lost = True
            raise DestinationBusyError("no answer")

    store.on_step = lose
    counts = await gone_over(store, told)
    assert (counts.rewritten, told.before) == (1, [key])


async def test_bytes_that_are_not_those_of_the_delivery_are_not_written_back() -> None:
    store, told = StrictDestination(NEW), Told()
    store.knows_update = store.knows_copy = False
    key = lay(store, "a")
    store.objects[key].body = b"b" + store.objects[key].body[1:]
    other = lay(store, "e")
    counts = await gone_over(store, told)
    assert (counts.rewritten, counts.left) == (1, 1)
    assert "not those that were delivered" in told.left[key]
    assert store.objects[key].facts.kms_key_arn == OLD
    assert told.after == [other]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"crc64nvme": None}, "full-object"),
        ({"etag": None}, "no ETag"),
        ({"checksum_type": "COMPOSITE"}, "full-object"),
    ],
)
async def test_what_can_not_be_proven_is_left(changes: dict[str, Any], why: str) -> None:
    store, told = StrictDestination(NEW), Told()
    key = lay(store, "a", **changes)
    counts = await gone_over(store, told)
    assert counts.left == 1
    assert why in told.left[key]


async def test_a_large_object_is_left_where_its_condition_would_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.delivery.reencrypt.PART_BYTES", 60)

    class Careless(StrictDestination):
        async def complete_over(self, *arguments: Any) -> None:
            self.keeps_conditions = False
            await super().complete_over(*arguments)
            self.keeps_conditions = True

    store, told = Careless(NEW), Told()
    store.knows_update = store.knows_copy = False
    large, small = lay(store, "large"), lay(store, "s")
    counts = await gone_over(store, told)
    assert (counts.rewritten, counts.left) == (1, 1)
    assert "large" in told.left[large]
    assert told.after == [small]


async def test_a_bucket_that_can_not_be_used_ends_the_pass_and_the_next_goes_on() -> None:
    store, told = StrictDestination(NEW), Told()
    keys = [lay(store, name) for name in "abcdefgh"]
    held = DestinationHeldError(HoldCode.KEY_DISABLED, "KMS.DisabledException")

    async def hold(at: str) -> None:
        if at == "update before" and len(told.after) >= 3:
            raise held

    store.on_step = hold
    with pytest.raises(DestinationHeldError):
        await gone_over(store, told)
    assert 3 <= len(told.after) < len(keys)

    async def calm(_at: str) -> None:
        pass

    store.on_step = calm
    again = Told()
    counts = await gone_over(store, again)
    assert len(told.after) + len(again.after) == len(keys)
    assert counts.under_other_key == 0


async def test_without_its_record_nothing_is_written() -> None:
    store, told = StrictDestination(NEW), Told(refuses=True)
    key = lay(store, "a")
    with pytest.raises(StoreIoError):
        await gone_over(store, told)
    assert store.objects[key].facts.kms_key_arn == OLD


async def test_each_object_belongs_to_the_longest_prefix() -> None:
    """A kind may lie below another's prefix, each under a KMS key of its own."""
    inner = StrictDestination(replace(NEW, prefix=f"{STORAGE.prefix}/screen"))
    outer = StrictDestination(STORAGE)
    outer.objects = inner.objects
    key, other = lay(inner, "screen/a"), lay(inner, "a")
    places = [Place(outer, outer.storage, PREFIX), Place(inner, inner.storage, f"{PREFIX}screen/")]
    counts = await gone_over(inner, Told(), places=places)
    assert counts.rewritten == 1
    assert inner.objects[key].facts.kms_key_arn == NEW.kms_key_arn
    assert inner.objects[other].facts.kms_key_arn == OLD


async def test_no_faster_than_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept = FakeClock(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr("pipeline.delivery.bucketpass.anyio.sleep", sleep)
    pace = Pace(4, clock)
    for _ in range(9):
        await pace.turn()
    assert sum(slept) == pytest.approx(2.0)
