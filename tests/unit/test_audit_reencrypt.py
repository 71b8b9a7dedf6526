"""What an audit log brought to its bucket, encrypted anew under another KMS key: the same, and compared before."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from awscrt.checksums import crc64nvme

from pipeline.audit import bucket
from pipeline.audit.hourly import OBJECTS
from pipeline.audit.verifying import verify_log
from pipeline.checksums import checksum_text
from pipeline.delivery.bucketpass import BucketPass, Counts, Pace, Place
from pipeline.delivery.reencrypt import AUDITED, Standing
from tests.s3_strict import STORAGE, StrictDestination
from tests.unit.keyring_fakes import FakeClock
from tests.unit.test_audit_keeper import EVERY_S, LOG, World
from tests.unit.test_bucketpass import NEW, Told

WAYS = ("update", "copy", "put", "parts")


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """Bring checkpoints, a file of the log and digests to a bucket."""
    made = World(tmp_path)
    for _ in range(3):
        made.write(5)
        await made.passes(EVERY_S)
        await made.passes(3600)
    assert {"checkpoint", "digest", "log"} <= {key.rpartition("/")[2].partition("-")[0] for key in made.bucket.objects}
    return made


def under_another_key(old: StrictDestination, way: str, monkeypatch: pytest.MonkeyPatch) -> StrictDestination:
    new = StrictDestination(NEW)
    new.objects, new.older = old.objects, old.older
    new.knows_update, new.knows_copy = way == "update", way in {"update", "copy"}
    if way == "parts":
        monkeypatch.setattr("pipeline.delivery.reencrypt.PART_BYTES", 60)
    return new


async def gone_over(store: StrictDestination, told: Told) -> Counts:
    place = Place(store, store.storage, f"{OBJECTS}{LOG}/", AUDITED)
    return await BucketPass([place], told.watch(), Pace(1e9, FakeClock()), rewrites=True).run()


@pytest.mark.parametrize("way", WAYS)
async def test_they_are_the_same_under_another_key_and_the_log_is_verified_by_them(
    way: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = under_another_key(world.bucket, way, monkeypatch), Told()
    before = {key: (each.body, each.facts.metadata) for key, each in world.bucket.objects.items()}
    counts = await gone_over(store, told)
    assert told.left == {}
    assert (counts.rewritten, counts.under_other_key) == (len(before), 0)
    assert {key: (each.body, each.facts.metadata) for key, each in store.objects.items()} == before
    assert {each.facts.kms_key_arn for each in store.objects.values()} == {NEW.kms_key_arn}
    kept = await bucket.checkpoints(store, world.place)
    digests = await bucket.digests(store, world.place)
    assert min(len(kept), len(digests)) >= 3
    verifier = world.keys.verifier(LOG)
    assert verify_log(str(world.folder), world.files, verifier, kept=kept, digests=digests).verdict.is_ok
    world.write(5)
    world.bucket = store
    await world.passes(3600)  # and the service goes on with it
    assert world.keeper.troubles == {}
    assert (await gone_over(store, Told())).under_other_key == 0


BAD = {"forged": gzip.compress(b"forged"), "no gzip": b"plain text", "cut": gzip.compress(b"cut short")[:-4]}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
async def test_what_does_not_hold_what_was_brought_is_not_written_back(
    body: bytes, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = under_another_key(world.bucket, "put", monkeypatch), Told()
    key = next(key for key in store.objects if "/log-" in key)
    known = store.objects[key].facts
    store.lay(key, body, etag='"f"', metadata=known.metadata, crc64nvme=checksum_text(crc64nvme(body)))
    store.objects[key].facts = replace(store.objects[key].facts, kms_key_arn=STORAGE.kms_key_arn)
    counts = await gone_over(store, told)
    assert (counts.left, list(told.left)) == (1, [key])
    assert "not those that were delivered" in told.left[key]
    assert store.objects[key].body == body


async def test_what_is_another_instances_or_has_no_mark_of_ours_is_left_alone(world: World) -> None:
    store, told = StrictDestination(NEW), Told()
    store.lay(f"{OBJECTS}{LOG}/notes.txt", b"somebody's", kms_key_arn=STORAGE.kms_key_arn)
    marked = {"sha256": hashlib.sha256(b"x").hexdigest()}
    store.lay(f"{OBJECTS}another/x.txt", b"x", kms_key_arn=STORAGE.kms_key_arn, metadata=marked)
    counts = await gone_over(store, told)
    assert counts.seen == {Standing.FOREIGN: 1}
    assert told.before == []
