"""Checkpoints, digests and their way to the bucket, as the service makes them; and what may go wrong on the way."""

import gzip
import hashlib
import itertools
import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from awscrt.checksums import crc64nvme

from pipeline.adapters.disk import Disk
from pipeline.audit import bucket
from pipeline.audit.appender import ChainedLogs
from pipeline.audit.hourly import Place, prefix_of
from pipeline.audit.keeper import AuditKeeper
from pipeline.audit.notes import Checkpoint, checkpoint_of
from pipeline.audit.records import hour_of
from pipeline.audit.signing import Signed, SignedLog, SigningKeys
from pipeline.audit.tree import Tree, is_consistent
from pipeline.audit.verifying import verify_log
from pipeline.checksums import checksum_text
from pipeline.errors import AuditBrokenError, DestinationBusyError, DestinationHeldError, HoldCode
from pipeline.ports import PutRequest
from pipeline.settings import AuditSettings
from pipeline.trail import NODE
from tests.audit_logs import record
from tests.audit_stranger import Stranger
from tests.s3_strict import StrictDestination
from tests.store_fixture import instance
from tests.unit.keyring_fakes import A, FakeClock

LOG = str(A)
EVERY_S = 300.0


@dataclass
class World:
    root: Path
    clock: FakeClock = field(default_factory=FakeClock)
    bucket: StrictDestination = field(default_factory=StrictDestination)
    told: list[tuple[str, Signed]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files, self.keys = Disk(), SigningKeys(self.root / "config")
        self.logs = ChainedLogs(self.files)
        self.keeper = self.started()
        self.written = 0

    @property
    def folder(self) -> Path:
        return self.root / "audit" / LOG

    @property
    def place(self) -> Place:
        return Place("111122223333", "acme-recordings", prefix_of(LOG, self.keys.verifier(LOG).key_id))

    def started(self) -> AuditKeeper:
        async def told(name: str, signed: Signed) -> None:
            self.told.append((name, signed))

        return AuditKeeper(
            str(self.root / "audit"),
            files=self.files,
            keys=self.keys,
            told=told,
            instances=lambda: [instance(A)],
            destinations=lambda _instance, _storage: self.bucket,
            clock=self.clock,
            settings=AuditSettings(checkpoint_every=timedelta(seconds=EVERY_S), checkpoint_records=100),
            node=NODE,
        )

    def write(self, count: int, log: str = LOG) -> None:
        records = [record(self.written + number) for number in range(count)]
        self.logs.append(str(self.root / "audit" / log), records, hour_of(self.clock.now()))
        self.written += count

    async def passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.keeper.sign()
        await self.keeper.ship()

    def keys_in_bucket(self, part: str) -> list[str]:
        return sorted(key for key in self.bucket.objects if part in key)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_what_was_added_is_signed_in_time_and_nothing_is_when_nothing_was(world: World) -> None:
    world.write(3)
    world.write(2, NODE)
    await world.passes(1)
    await world.passes(EVERY_S - 2)
    assert world.told == []
    await world.passes(2)
    assert [(name, each.number, each.checkpoint.size) for name, each in world.told] == [(LOG, 1, 3)]
    await world.passes(EVERY_S)
    world.write(1)
    await world.passes(EVERY_S)
    assert [each.checkpoint.size for _, each in world.told] == [3, 4]
    assert len(list((world.root / "audit" / NODE / "checkpoints").iterdir())) == 1
    assert world.keeper.troubles == {}


async def test_many_records_are_signed_sooner_and_all_of_them_at_a_stop(world: World) -> None:
    await world.keeper.sign()
    world.write(100)
    await world.passes(1)
    assert [each.checkpoint.size for _, each in world.told] == [100]
    world.write(1)
    await world.keeper.sign(all_of_it=True)
    assert [each.checkpoint.size for _, each in world.told] == [100, 101]
    assert world.keys.least(LOG) == 101
    key = world.root / "config" / "audit" / f"{LOG}.key"
    assert key.stat().st_mode & 0o777 == 0o600


async def test_a_service_that_starts_again_goes_on_with_the_same_tree(world: World) -> None:
    sizes = []
    for count in (3, 1, 4):
        world.write(count)
        world.keeper = world.started()
        await world.keeper.sign(all_of_it=True)
        sizes.append(world.told[-1][1].checkpoint.size)
    (world.folder / "leaves").unlink()
    world.write(1)
    world.keeper = world.started()
    await world.keeper.sign(all_of_it=True)
    assert [*sizes, world.told[-1][1].checkpoint.size] == [3, 4, 8, 9]
    assert [each.number for _, each in world.told] == [1, 2, 3, 4]
    assert len((world.folder / "leaves").read_bytes()) == 9 * 32
    found = verify_log(str(world.folder), world.files, world.keys.verifier(LOG))
    assert (found.verdict.is_ok, found.verdict.covered) == (True, 9)


async def test_any_two_checkpoints_are_provably_consistent(world: World) -> None:
    for count in (1, 2, 5, 7):
        world.write(count)
        await world.keeper.sign(all_of_it=True)
    made = [each.checkpoint for _, each in world.told]
    verified = verify_log(str(world.folder), world.files, world.keys.verifier(LOG))
    tree = Tree([each.leaf for each in verified.marks])
    for number, old in enumerate(made):
        for new in made[number:]:
            proof = tree.consistency(old.size, new.size)
            assert is_consistent(old.size, old.root, new.size, new.root, proof)


async def test_hourly_digests_name_every_closed_file_and_follow_each_other_through_quiet_hours(world: World) -> None:
    for count in (2, 1, 0, 3):
        if count:
            world.write(count)
        await world.passes(3600)
    documents = [
        json.loads(gzip.decompress(path.read_bytes())) for path in sorted((world.folder / "digests").glob("*.gz"))
    ]
    assert len(documents) == 4
    assert [len(each["logFiles"]) for each in documents] == [1, 1, 0, 1]
    assert [each["oldestEventTime"] is None for each in documents] == [False, False, True, False]
    for before, after in itertools.pairwise(documents):
        assert after["digestStartTime"] == before["digestEndTime"]
        assert after["previousDigestS3Object"] == before["digestS3Object"]
    assert documents[0]["previousDigestSignature"] is None
    assert Stranger(world.folder, str(world.keys.verifier(LOG))).verify().kinds == set()


async def test_all_of_it_arrives_in_the_bucket_once_and_verifies_there(world: World, tmp_path: Path) -> None:
    for count in (2, 3):
        world.write(count)
        await world.passes(3600)
    await world.keeper.ship()
    prefix = world.place.prefix
    assert world.keys_in_bucket("checkpoint") == [world.place.checkpoint(1), world.place.checkpoint(2)]
    assert world.keys_in_bucket("digest") == [world.place.digest(1), world.place.digest(2)]
    assert all(key.startswith(f"{prefix}/") for key in world.bucket.objects)
    digest = json.loads(gzip.decompress(world.bucket.objects[world.place.digest(2)].body))
    assert (digest["digestS3Bucket"], digest["digestS3Object"]) == ("acme-recordings", world.place.digest(2))
    [named] = digest["logFiles"]
    content = gzip.decompress(world.bucket.objects[named["s3Object"]].body)
    assert hashlib.sha256(content).hexdigest() == named["hashValue"]
    facts = world.bucket.objects[world.place.digest(2)].facts
    assert facts.metadata["signature-algorithm"] == digest["digestSignatureAlgorithm"] == "Ed25519"
    notes = await bucket.checkpoints(world.bucket, world.place)
    digests = await bucket.digests(world.bucket, world.place)
    # A stranger who has nothing but the bucket and the public key puts the log together again.
    there = tmp_path / "there"
    (there / "digests").mkdir(parents=True)
    (there / "checkpoints").mkdir()
    for key, stored in world.bucket.objects.items():
        name = key.rpartition("/")[2]
        if name.startswith("log-"):
            (there / name.removeprefix("log-").removesuffix(".gz")).write_bytes(gzip.decompress(stored.body))
        elif name.startswith("digest-"):
            (there / "digests" / name.removeprefix("digest-")).write_bytes(stored.body)
            signature = stored.facts.metadata["signature"]
            (there / "digests" / f"{name[7:15]}.sig").write_text(signature)
        else:
            (there / "checkpoints" / name.removeprefix("checkpoint-")).write_bytes(stored.body)
    assert Stranger(there, str(world.keys.verifier(LOG)), notes).verify().kinds == set()
    found = verify_log(str(world.folder), world.files, world.keys.verifier(LOG), kept=notes, digests=digests)
    assert found.verdict.is_ok, found.verdict.problems


@pytest.mark.parametrize(
    "error",
    [DestinationHeldError(HoldCode.DESTINATION_ACCESS_DENIED, "denied"), DestinationBusyError("503")],
)
async def test_a_bucket_that_can_not_be_used_only_delays_what_goes_there(world: World, error: Exception) -> None:
    async def refuse(_step: str) -> None:
        raise error

    well = world.bucket.on_step
    world.bucket.on_step = refuse
    world.write(2)
    await world.passes(3600)
    world.write(2)
    await world.passes(3600)
    assert (world.bucket.objects, [each.number for _, each in world.told]) == ({}, [1, 2])
    assert world.keeper.troubles == {}
    world.bucket.on_step = well
    await world.passes(60)
    assert len(world.keys_in_bucket("checkpoint")) == 2
    assert len(world.keys_in_bucket("digest")) == 2


async def test_a_delivery_that_was_broken_off_goes_on_and_writes_nothing_twice(world: World) -> None:
    world.write(2)
    await world.passes(3600)
    before = dict(world.bucket.objects)
    (world.folder / "delivered.json").unlink()
    world.keeper = world.started()
    await world.passes(1)
    assert world.bucket.objects == before
    assert (world.folder / "delivered.json").exists()


async def test_an_object_of_others_under_a_key_of_ours_stops_that_log_and_is_told(world: World) -> None:
    world.write(1)
    body = b"another's"
    request = PutRequest(
        key=world.place.checkpoint(1),
        size_bytes=len(body),
        crc64nvme=checksum_text(crc64nvme(body)),
        content_type="text/plain",
        metadata={},
    )
    await world.bucket.put(request, body)
    await world.passes(3600)
    assert world.bucket.objects[world.place.checkpoint(1)].body == body
    assert list(world.keeper.troubles) == [f"{LOG} delivery"]


async def test_a_log_that_was_cut_below_what_is_signed_is_not_signed_again_and_is_told(world: World) -> None:
    world.write(3)
    await world.keeper.sign(all_of_it=True)
    [path] = world.folder.glob("*.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    world.keeper = world.started()
    (world.folder / "leaves").unlink()
    await world.keeper.sign(all_of_it=True)
    assert len(world.told) == 1
    assert set(world.keeper.troubles) == {LOG}


@pytest.mark.parametrize("change", ["flipped", "rewritten"])
async def test_what_does_not_follow_from_what_was_signed_is_not_signed(world: World, change: str) -> None:
    world.write(3)
    await world.keeper.sign(all_of_it=True)
    world.write(3)
    [path] = world.folder.glob("*.jsonl")
    if change == "flipped":
        path.write_bytes(path.read_bytes().replace(b"Event4", b"Event8"))
    else:
        (world.folder / "checkpoints" / "00000001.txt").write_text(
            world.keys.signer("other").note(Checkpoint("recording-pipeline/audit/other", 3, bytes(32)).text)
        )
    with pytest.raises(AuditBrokenError):
        SignedLog(str(world.folder), world.files, world.keys).sign()


async def test_one_broken_log_stops_no_other(world: World) -> None:
    world.write(2)
    world.write(2, NODE)
    [path] = world.folder.glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"Event0", b"Event8"))
    await world.passes(0)
    await world.passes(EVERY_S)
    assert set(world.keeper.troubles) == {LOG}
    note = (world.root / "audit" / NODE / "checkpoints" / "00000001.txt").read_text()
    assert checkpoint_of(note, world.keys.verifier(NODE)).size == 2


async def test_a_folder_that_is_no_log_gets_no_key(world: World) -> None:
    world.write(1)
    (world.root / "audit" / "another").mkdir()
    await world.keeper.sign(all_of_it=True)
    assert [path.name for path in (world.root / "config" / "audit").glob("*.key")] == [f"{LOG}.key"]


def test_two_processes_sign_one_series(world: World) -> None:
    one, other = (SignedLog(str(world.folder), world.files, world.keys) for _ in range(2))
    numbers = []
    for number in range(6):
        world.write(1)
        signed = (one, other)[number % 2].sign()
        assert signed is not None
        numbers.append((signed.number, signed.checkpoint.size))
    assert numbers == [(number, number) for number in range(1, 7)]
    assert verify_log(str(world.folder), world.files, world.keys.verifier(LOG)).verdict.is_ok
