"""F27 to F30 over the wire: a bucket that is elsewhere, another's, or whose key can't be used; keys that are taken."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.errors import (
    DestinationBusyError,
    DestinationConflictError,
    DestinationHeldError,
    HoldCode,
)
from pipeline.ports import ObjectFacts
from tests.s3_strict import STORAGE
from tests.s3_wire import SMALL_PARTS, Fault, S3Wire, s3_wire, small_parts
from tests.uploads import BARE, SECOND, body_of, plan_for, run
from tests.wire import s3_error

SMALL, LARGE = body_of(10_000), body_of(3 * SMALL_PARTS + 17)
BOTH = pytest.mark.parametrize("body", [pytest.param(SMALL, id="put"), pytest.param(LARGE, id="multipart")])
SMALL_SCALE = pytest.mark.usefixtures(small_parts.__name__)
GIB = 2**30
NOW = datetime(2026, 11, 23, tzinfo=UTC)


async def delivered(server: S3Wire, body: bytes, key: str = BARE) -> None:
    async with open_client("s3", server.endpoint) as client:
        receipt = await run(S3Destination(client, STORAGE), body)
    assert receipt.key == key
    assert server.bucket.objects[key].body == body
    assert server.bucket.uploads == {}


async def held(server: S3Wire, body: bytes) -> HoldCode:
    async with open_client("s3", server.endpoint) as client:
        with pytest.raises(DestinationHeldError) as caught:
            await run(S3Destination(client, STORAGE), body)
    return caught.value.code


# --- F27


ELSEWHERE = [
    (s3_error(301, "PermanentRedirect", Endpoint="elsewhere.example"), HoldCode.DESTINATION_MISSING),
    (s3_error(307, "TemporaryRedirect"), HoldCode.DESTINATION_MISSING),
    (s3_error(400, "AuthorizationHeaderMalformed", Region="eu-west-3"), HoldCode.DESTINATION_MISSING),
    (s3_error(404, "NoSuchBucket"), HoldCode.DESTINATION_MISSING),
    (s3_error(403, "AccessDenied"), HoldCode.DESTINATION_ACCESS_DENIED),
]


def at_any_step(operations: Sequence[tuple[object, ...]], answers: Sequence[tuple[object, ...]]) -> list[object]:
    """Give every step with the first and the last of the answers, the third step with each; the rest to the slow."""
    return [
        pytest.param(*step, *answer, marks=[] if answer in (answers[0], answers[-1]) or at == 2 else pytest.mark.slow)
        for at, step in enumerate(operations)
        for answer in answers
    ]


@SMALL_SCALE
@pytest.mark.parametrize(
    ("operation", "answer", "code"),
    at_any_step([("uploads",), ("create",), ("part",), ("complete",)], ELSEWHERE),
)
async def test_a_bucket_that_is_elsewhere_or_gone_at_any_step_holds_and_nothing_is_sent_twice(
    operation: str, answer: bytes, code: HoldCode
) -> None:
    """F27."""
    async with s3_wire() as server:
        server.always[operation] = Fault(answer=answer)
        assert await held(server, LARGE) is code
        assert server.operations.count(operation) <= 2  # two parts at a time
        assert server.bucket.objects == {}
        server.always.clear()
        await delivered(server, LARGE)


@SMALL_SCALE
@BOTH
async def test_a_bucket_of_that_name_that_belongs_to_another_gets_nothing(body: bytes) -> None:
    """F27: deleted, and made anew by somebody else. S3 answers 403 to whoever names another owner."""
    async with s3_wire() as server:
        server.owner = "999988887777"
        assert await held(server, body) is HoldCode.DESTINATION_ACCESS_DENIED
        assert (server.bucket.objects, server.bucket.uploads) == ({}, {})
        assert {asked.headers["x-amz-expected-bucket-owner"] for asked in server.asked} == {STORAGE.bucket_owner}
        server.owner = STORAGE.bucket_owner
        await delivered(server, body)


# --- F29


KMS = {
    "KMS.DisabledException": HoldCode.KEY_DISABLED,
    "KMS.KMSInvalidStateException": HoldCode.KEY_INVALID_STATE,
    "KMS.NotFoundException": HoldCode.KEY_NOT_FOUND,
    "KMS.AccessDeniedException": HoldCode.KEY_ACCESS_DENIED,
}


@SMALL_SCALE
@pytest.mark.parametrize(
    ("operation", "body", "code", "hold"),
    at_any_step([("put", SMALL), ("create", LARGE), ("part", LARGE), ("complete", LARGE)], list(KMS.items())),
)
async def test_a_buckets_kms_key_that_can_not_be_used_holds_at_any_step(
    code: str, hold: HoldCode, operation: str, body: bytes
) -> None:
    """F29: disabled, pending deletion, gone, policy lost, also in mid-upload."""
    async with s3_wire() as server:
        server.always[operation] = Fault(answer=s3_error(400, code))
        assert await held(server, body) is hold
        assert (server.bucket.objects, server.bucket.uploads) == ({}, {})
        server.always.clear()
        await delivered(server, body)


@SMALL_SCALE
async def test_a_kms_that_is_throttled_is_waited_for() -> None:
    """F29."""
    async with s3_wire() as server:
        server.faults["put"] = [
            Fault(answer=s3_error(503, "SlowDown")),
            Fault(answer=s3_error(400, "KMS.ThrottlingException")),
        ]
        for _ in range(2):
            with pytest.raises(DestinationBusyError):
                await delivered(server, SMALL)
        await delivered(server, SMALL)


@SMALL_SCALE
@BOTH
@pytest.mark.parametrize(
    "changes",
    [{"encryption": "AES256", "kms_key_arn": None}, {"encryption": None}, {"kms_key_arn": "arn:aws:kms:a:1:key/b"}],
)
async def test_an_object_under_another_key_or_none_is_not_delivered_and_holds(
    body: bytes, changes: dict[str, str | None]
) -> None:
    """F29: the bytes are kept, and no second object is made."""
    async with s3_wire() as server:

        def told(facts: ObjectFacts) -> ObjectFacts:
            return replace(facts, **changes)  # type: ignore[arg-type]

        server.bucket.echo = dict.fromkeys(("put", "complete", "head"), told)
        assert await held(server, body) is HoldCode.DESTINATION_WRONG_KEY
        assert await held(server, body) is HoldCode.DESTINATION_WRONG_KEY
        assert list(server.bucket.objects) == [BARE]
        server.bucket.echo.clear()  # it was encrypted again, in the bucket
        await delivered(server, body)


# --- F30


@SMALL_SCALE
@BOTH
async def test_a_key_that_holds_this_recording_is_a_receipt_and_nothing_is_sent(body: bytes) -> None:
    """F30: same recording, generation and bytes."""
    async with s3_wire() as server:
        await delivered(server, body)
        server.asked.clear()
        await delivered(server, body)
        assert server.bucket.writes == (1 if body is SMALL else 4)
        assert set(server.operations) <= {"put", "head", "uploads"}


@SMALL_SCALE
@BOTH
async def test_a_key_that_holds_other_bytes_of_this_recording_is_a_conflict(body: bytes) -> None:
    """F30: neither overwritten nor gone around."""
    async with s3_wire() as server:
        server.bucket.lay(BARE, b"other bytes", metadata=plan_for(body).subject.metadata)
        async with open_client("s3", server.endpoint) as client:
            with pytest.raises(DestinationConflictError):
                await run(S3Destination(client, STORAGE), body)
        assert server.bucket.objects[BARE].body == b"other bytes"
        assert list(server.bucket.objects) == [BARE]


@SMALL_SCALE
@BOTH
async def test_a_key_that_holds_another_recording_leads_to_the_second_one(body: bytes) -> None:
    """F30: and if that is taken, too, to a person."""
    async with s3_wire() as server:
        server.bucket.lay(BARE, b"another call", metadata={"rid": "another", "gen": "1", "sha256": "0"})
        await delivered(server, body, SECOND)
        assert server.bucket.objects[BARE].body == b"another call"
        server.bucket.lay(SECOND, b"a third", metadata={})
        async with open_client("s3", server.endpoint) as client:
            with pytest.raises(DestinationConflictError):
                await run(S3Destination(client, STORAGE), body)


@SMALL_SCALE
@pytest.mark.parametrize("operation", ["put", "complete"])
async def test_a_conflict_of_two_writes_is_tried_anew(operation: str) -> None:
    """F30: 409 while another request writes the key; a multipart upload is then begun anew."""
    async with s3_wire() as server:
        server.faults[operation] = [Fault(answer=s3_error(409, "ConditionalRequestConflict"))]
        if operation == "put":
            with pytest.raises(DestinationBusyError):
                await delivered(server, SMALL)
            await delivered(server, SMALL)
        else:
            await delivered(server, LARGE)
            assert server.operations.count("create") == 2
