"""F31 to F33 over the wire: the sizes at which an upload changes its way, parts that get lost, stores that can less."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate

import anyio.lowlevel
import pytest

from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.checksums import checksum_text
from pipeline.crypt.contents import Counts, Manifest, Rendition, decode_manifest, encode_manifest
from pipeline.delivery.buffers import MIB
from pipeline.delivery.probe import probe
from pipeline.delivery.upload import MAX_PARTS, PART_BYTES, Part, part_bytes, parts_of
from pipeline.errors import DestinationBusyError, RefuseError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind
from pipeline.interim.states import ArtifactName, State, parse_name
from pipeline.ports import Unfinished
from tests.s3_strict import STORAGE, StrictDestination, Upload
from tests.s3_wire import SMALL_PARTS, Fault, S3Wire, s3_wire, small_parts
from tests.uploads import BARE, RECORDING, body_of, plan_for, run
from tests.wire import http

SMALL, LARGE = body_of(10_000), body_of(3 * SMALL_PARTS + 17)
BOTH = pytest.mark.parametrize("body", [pytest.param(SMALL, id="put"), pytest.param(LARGE, id="multipart")])
SMALL_SCALE = pytest.mark.usefixtures(small_parts.__name__)
GIB = 2**30
NOW = datetime(2026, 11, 23, tzinfo=UTC)


async def delivered(server: S3Wire, body: bytes) -> None:
    async with open_client("s3", server.endpoint) as client:
        receipt = await run(S3Destination(client, STORAGE), body)
    assert receipt.key == BARE
    assert server.bucket.objects[BARE].body == body
    assert server.bucket.uploads == {}


# --- F31


@SMALL_SCALE
@pytest.mark.parametrize("at", [1, 2, 4])
async def test_an_upload_that_a_lifecycle_rule_ends_in_the_middle_is_planned_anew(at: int) -> None:
    """F31."""
    async with s3_wire() as server:
        server.faults["part"] = [*[Fault()] * (at - 1), Fault(applied=True, then=server.bucket.uploads.clear)]
        await delivered(server, LARGE)
        assert server.operations.count("create") == 2


def missing(upload: Upload) -> None:
    del upload.parts[2]


def swapped(upload: Upload) -> None:
    (one, first), (two, second) = upload.parts[1], upload.parts[2]
    upload.parts[1], upload.parts[2] = (one, second), (two, first)


def doubled(upload: Upload) -> None:
    upload.parts[2] = (upload.parts[2][0], upload.parts[1][1])


def cut(upload: Upload) -> None:
    facts, data = upload.parts[4]
    upload.parts[4] = facts, data[:-1]


@SMALL_SCALE
@pytest.mark.parametrize("damage", [missing, swapped, doubled, cut])
async def test_a_set_of_parts_that_is_not_ours_makes_no_object(damage: Callable[[Upload], None]) -> None:
    """F31: the store lost a part or mixed them up; checksum and length of the whole tell."""
    async with s3_wire() as server:

        async def step(name: str) -> None:
            if name == "complete before":
                server.bucket.on_step = checkpoint
                for upload in server.bucket.uploads.values():
                    damage(upload)

        async def checkpoint(_: str) -> None:
            await anyio.lowlevel.checkpoint()

        server.bucket.on_step = step
        for _ in range(2):
            try:
                await delivered(server, LARGE)
            except DestinationBusyError:
                assert server.bucket.objects == {}
                continue
            break
        assert server.bucket.objects[BARE].body == LARGE


def large(size: int) -> object:
    return pytest.param(size, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "size",
    [
        *(0, 1, 5 * MIB - 1, large(5 * MIB), large(PART_BYTES - 1), PART_BYTES, PART_BYTES + 1),
        *(large(2 * PART_BYTES), large(3 * PART_BYTES)),
    ],
)
async def test_boundary_sizes_arrive_byte_by_byte(size: int) -> None:
    """F31."""
    async with s3_wire() as server:
        await delivered(server, body_of(size))
        assert ("create" in server.operations) is (size > PART_BYTES)


@SMALL_SCALE
@pytest.mark.parametrize("size", [SMALL_PARTS - 1, 2 * SMALL_PARTS, 2 * SMALL_PARTS + 1, 3 * SMALL_PARTS])
async def test_boundary_sizes_of_small_parts_arrive_byte_by_byte(size: int) -> None:
    """F31."""
    async with s3_wire() as server:
        await delivered(server, body_of(size))
        assert server.operations.count("part") == (-(-size // SMALL_PARTS) if size > SMALL_PARTS else 0)


SIZES = [5 * GIB + 1, 10 * GIB, MAX_PARTS * PART_BYTES, MAX_PARTS * PART_BYTES + 1, 100 * GIB + 1, 5 * 2**40]


@pytest.mark.parametrize("size", SIZES)
def test_a_plan_covers_all_bytes_within_what_s3_allows(size: int) -> None:
    """F31: at most 10,000 parts; all of one size but the last, 5 MiB to 5 GiB."""
    parts = list(parts_of(size))
    assert len(parts) <= MAX_PARTS
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert {part.size_bytes for part in parts[:-1]} == {part_bytes(size)}
    assert 5 * MIB <= part_bytes(size) <= 5 * GIB
    assert 0 < parts[-1].size_bytes <= part_bytes(size)
    assert [0, *accumulate(part.size_bytes for part in parts)] == [*(part.offset for part in parts), size]


def test_a_plan_takes_larger_parts_only_where_it_must() -> None:
    """F31: 10,001 parts of 8 MiB don't exist."""
    assert part_bytes(MAX_PARTS * PART_BYTES) == PART_BYTES
    assert part_bytes(MAX_PARTS * PART_BYTES + 1) == PART_BYTES + MIB
    assert list(parts_of(10 * GIB))[-1] == Part(1280, 10 * GIB - PART_BYTES, PART_BYTES)
    assert list(parts_of(5 * GIB + 1))[-1] == Part(641, 5 * GIB, 1)
    assert list(parts_of(0)) == []


@pytest.mark.parametrize("size", [*SIZES, 10**15 - 1])
def test_name_and_manifest_hold_the_sizes_that_can_be_delivered(size: int) -> None:
    """F31: what was sealed can be planned after a restart."""
    name = ArtifactName(
        ArtifactId(RECORDING), InstanceId(RECORDING), Kind.SCREEN, KeyId(RECORDING), "0" * 16, 1, 2, State.SEALED, size
    )
    assert parse_name(str(name)).size_bytes == size
    rendition = Rendition(
        renderer="copy/1",
        size_bytes=size,
        crc64nvme=checksum_text(2**64 - 1),
        sha256="0" * 64,
        content_type="video/mp4",
        extension="mp4",
    )
    manifest = Manifest(
        recording_id=RECORDING,
        generation=1,
        contact="c",
        ending="complete",
        counts=Counts(media_segments=-(-size // 2**16), media_bytes=size, event_segments=1, event_bytes=1),
        association_id="a",
        bucket="b",
        keys=(BARE,),
        object=rendition,
    )
    [raw] = encode_manifest(manifest)
    assert decode_manifest(raw) == manifest


# --- F32


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"checksum_type": "COMPOSITE"}, "checksum type"), ({"crc64nvme": None}, "checksum"), ({"metadata": {}}, "")],
)
async def test_a_store_that_gives_no_checksum_of_the_whole_is_refused_when_it_is_added(
    changes: dict[str, object], said: str
) -> None:
    """F32: never a silent loss of proof. Metadata are needed where keys may be shared; an answer to a put has none."""
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.bucket.echo = dict.fromkeys(
            ("put", "complete", "head"),
            lambda facts: replace(facts, **changes),  # type: ignore[arg-type]
        )
        destination = S3Destination(client, STORAGE)
        if said:
            with pytest.raises(RefuseError, match=f"gives no proof of an object: .*{said}"):
                await probe(destination, STORAGE, now=NOW)
        else:
            assert (await probe(destination, STORAGE, now=NOW)).put == "answer"
        assert (server.bucket.objects, server.bucket.uploads) == ({}, {})


async def test_a_store_that_overwrites_is_refused_when_it_is_added() -> None:
    """F32: it ignores If-None-Match, at a put, or at the end of a multipart upload."""

    class Overwriting(StrictDestination):
        def _expect_free(self, key: str) -> None:
            if key.endswith(self.where):
                return
            super()._expect_free(key)

        where = ""

    for where in ("-put", "-multipart"):
        bucket = Overwriting()
        bucket.where = where
        async with s3_wire(bucket) as server, open_client("s3", server.endpoint) as client:
            with pytest.raises(RefuseError, match="would overwrite"):
                await probe(S3Destination(client, STORAGE), STORAGE, now=NOW)


# --- F33


@SMALL_SCALE
async def test_a_list_of_uploads_of_many_pages_is_read_to_its_end() -> None:
    """F33: what is ours is given up, also on the last page; what others do under keys like it stays."""
    async with s3_wire() as server:
        plan = plan_for(LARGE)
        for number in range(40):
            await server.bucket.create_multipart(plan.request(BARE if number % 4 else f"{BARE}.{number:02}"))
        server.page = 3
        await delivered_beside(server, 10)
        assert server.operations.count("uploads") == 14
        assert server.operations.count("abort") == 30


async def delivered_beside(server: S3Wire, others: int) -> None:
    async with open_client("s3", server.endpoint) as client:
        assert (await run(S3Destination(client, STORAGE), LARGE)).key == BARE
    assert len(server.bucket.uploads) == others
    assert BARE not in {one.request.key for one in server.bucket.uploads.values()}


async def test_a_list_that_never_ends_is_given_up() -> None:
    """F33: a store that answers every page with the same one."""
    page = (
        b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>"
        b"<NextUploadIdMarker>u</NextUploadIdMarker></ListMultipartUploadsResult>"
    )
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.always["uploads"] = Fault(answer=http(200, page))
        with pytest.raises(DestinationBusyError):
            await S3Destination(client, STORAGE).unfinished("a")
        assert len(server.asked) == 2


@SMALL_SCALE
async def test_an_upload_that_the_list_does_not_show_yet_does_no_harm() -> None:
    """F33: a stale list. The create-only end of the new upload decides, and the next attempt finds the old one."""
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        destination = S3Destination(client, STORAGE)
        old = await destination.create_multipart(plan_for(LARGE).request(BARE))
        server.faults["uploads"] = [Fault(answer=http(200, b"<ListMultipartUploadsResult/>"))]
        await run(destination, LARGE)
        assert list(server.bucket.uploads) == [old]
        assert await destination.unfinished(BARE) == [Unfinished(BARE, old)]


@SMALL_SCALE
@BOTH
async def test_a_versioned_bucket_gets_one_version_and_its_receipt_names_it(body: bytes) -> None:
    """F33: also where the current version is a delete marker, to which S3 answers 404."""
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.versions = True
        destination = S3Destination(client, STORAGE)
        first = await run(destination, body)
        again = await run(destination, body)
        assert first.version_id == again.version_id == f"v-{BARE[-8:]}"
        assert server.bucket.writes == (1 if body is SMALL else 4)
