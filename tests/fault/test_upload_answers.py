"""F24, F26, F29 to F32: what the bucket answers, and what becomes of the recording.

Nothing is delivered without proof, nothing is written twice, and no multipart upload is left behind.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from pipeline.delivery.buffers import MIB, BufferPool, size_class
from pipeline.delivery.patience import TRIES
from pipeline.delivery.upload import PARTS_AT_A_TIME
from pipeline.errors import DestinationBusyError, DestinationConflictError, DestinationHeldError, HoldCode
from pipeline.ports import ObjectExistsError, ObjectFacts, UploadLostError
from tests.s3_strict import STORAGE, StrictDestination
from tests.s3_wire import SMALL_PARTS, small_parts
from tests.uploads import BARE, body_of, plan_for, run

SMALL, LARGE = b"small", body_of(2 * SMALL_PARTS + 17)
BOTH = pytest.mark.parametrize("body", [pytest.param(SMALL, id="put"), pytest.param(LARGE, id="multipart")])

pytestmark = pytest.mark.usefixtures(small_parts.__name__)


def busy() -> DestinationBusyError:
    return DestinationBusyError("connection reset")


PATIENT_STEPS = ["part before", "part after", "complete before"]
PUT_STEPS = ["put before", "put after"]
LARGE_STEPS = [
    "head before",
    "unfinished before",
    "create before",
    "create after",
    "part before",
    "part after",
    "complete before",
]


@pytest.mark.parametrize(
    ("step", "body"), [*((step, SMALL) for step in PUT_STEPS), *((step, LARGE) for step in LARGE_STEPS)]
)
async def test_a_reset_at_any_step_is_transient_and_the_next_attempt_delivers_once(step: str, body: bytes) -> None:
    """F23, F24: also where the write was done and only its answer was lost."""
    destination = StrictDestination()
    destination.failures[step] = [busy()] * (PARTS_AT_A_TIME * TRIES if step in PATIENT_STEPS else 1)
    with pytest.raises(DestinationBusyError):
        await run(destination, body)
    assert destination.uploads == {}
    destination.failures.clear()
    receipt = await run(destination, body)
    assert receipt.key == BARE
    assert {key: stored.body for key, stored in destination.objects.items()} == {BARE: body}


async def test_a_large_object_that_is_there_already_is_not_sent_again() -> None:
    """F24: the answer to the completion was lost with the process."""
    destination = StrictDestination()
    with anyio.CancelScope() as scope:

        async def step(name: str) -> None:
            if name == "complete after":
                scope.cancel()
            await anyio.lowlevel.checkpoint()

        destination.on_step = step
        await run(destination, LARGE)
    assert scope.cancelled_caught
    destination.calls.clear()
    await run(destination, LARGE)
    assert destination.calls == ["head", "head"]


@pytest.mark.parametrize("step", [*PATIENT_STEPS, "complete after"])
async def test_a_step_of_a_large_upload_is_done_again_and_not_the_whole_of_it(step: str) -> None:
    """F24, F26: one part that was not taken, or an answer that was lost, does not cost the parts before it."""
    destination = StrictDestination()
    destination.failures[step] = [DestinationBusyError("SlowDown")] * (1 if step == "complete after" else TRIES - 1)
    receipt = await run(destination, LARGE)
    assert receipt.key == BARE
    assert destination.calls.count("create") == 1
    assert destination.objects[BARE].body == LARGE
    assert destination.uploads == {}


async def test_the_memory_of_a_part_that_was_sent_again_is_not_used_for_others() -> None:
    """The first try's connection may still send from it, to wherever it leads."""
    idle = []
    for failures in ([], [busy()]):
        destination, buffers = StrictDestination(), BufferPool(32 * MIB)
        destination.failures["part before"] = list(failures)
        await run(destination, LARGE, buffers=buffers)
        idle.append(buffers.idle_bytes)
    assert idle[1] == idle[0] - size_class(SMALL_PARTS)


async def test_an_upload_waits_as_long_as_the_bucket_asks_or_gives_up() -> None:
    """F26: Retry-After; a bucket that asks for more than is worth waiting for is told to the schedule."""
    destination = StrictDestination()
    destination.failures["part before"] = [DestinationBusyError("SlowDown", retry_after_s=0.02)]
    await run(destination, LARGE)
    assert destination.calls.count("create") == 1
    destination = StrictDestination()
    destination.failures["part before"] = [DestinationBusyError("SlowDown", retry_after_s=120.0)]
    with pytest.raises(DestinationBusyError) as caught:
        await run(destination, LARGE)
    assert caught.value.retry_after_s == 120.0
    assert destination.uploads == {}


@pytest.mark.parametrize("step", ["part before", "part after", "complete before"])
async def test_an_upload_that_the_bucket_lost_is_begun_anew(step: str) -> None:
    """F30, F31: a lifecycle rule or another writer ended it."""
    destination = StrictDestination()
    destination.failures[step] = [UploadLostError("NoSuchUpload")]
    await run(destination, LARGE)
    assert destination.calls.count("create") == 2
    assert destination.objects[BARE].body == LARGE
    assert destination.uploads == {}


async def test_an_upload_whose_completion_was_done_unheard_is_not_begun_anew() -> None:
    """F24: NoSuchUpload, because a hidden repetition of the request came second."""
    destination = StrictDestination()
    destination.failures["complete after"] = [UploadLostError("NoSuchUpload")]
    receipt = await run(destination, LARGE)
    assert receipt.key == BARE
    assert destination.calls.count("create") == 1


async def test_a_bucket_that_loses_every_upload_is_left_alone_for_a_while() -> None:
    destination = StrictDestination()
    destination.failures["complete before"] = [UploadLostError("409")] * 50
    with pytest.raises(DestinationBusyError):
        await run(destination, LARGE)
    assert destination.calls.count("create") == 3
    assert (destination.objects, destination.uploads) == ({}, {})


@BOTH
async def test_a_refusal_that_is_not_true_is_transient(body: bytes) -> None:
    """F26: 412, and then there is nothing."""
    destination = StrictDestination()
    destination.failures["put before"] = destination.failures["complete before"] = [ObjectExistsError("412")]
    with pytest.raises(DestinationBusyError):
        await run(destination, body)
    assert (destination.objects, destination.uploads) == ({}, {})


def all_answers(change: Callable[[ObjectFacts], ObjectFacts]) -> dict[str, Callable[[ObjectFacts], ObjectFacts]]:
    return dict.fromkeys(("put", "complete", "head"), change)


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {"crc64nvme": None},
        {"crc64nvme": None, "encryption": None, "kms_key_arn": None},
        {"kms_key_arn": STORAGE.kms_key_arn.rpartition("/")[2]},
        {"crc64nvme": "AAAAAAAAAAA="},
        {"encryption": "AES256"},
        {"checksum_type": "COMPOSITE"},
    ],
)
async def test_where_the_answer_proves_nothing_head_decides(body: bytes, changes: dict[str, Any]) -> None:
    """F32: SeaweedFS and LocalStack leave out fields of the answer to a completion."""
    destination = StrictDestination()
    destination.echo = {name: lambda facts: replace(facts, **changes) for name in ("put", "complete")}
    receipt = await run(destination, body)
    assert receipt.kms_key_arn == STORAGE.kms_key_arn
    assert destination.calls[-1] == "head"


@BOTH
@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"crc64nvme": None}, DestinationBusyError, None),
        ({"checksum_type": "COMPOSITE"}, DestinationBusyError, None),
        ({"metadata": {}}, DestinationBusyError, None),
        ({"encryption": None, "kms_key_arn": None}, DestinationHeldError, HoldCode.DESTINATION_WRONG_KEY),
        ({"kms_key_arn": "arn:aws:kms:a:1:key/b"}, DestinationHeldError, HoldCode.DESTINATION_WRONG_KEY),
        ({"crc64nvme": "AAAAAAAAAAA="}, DestinationConflictError, None),
        ({"size_bytes": 3}, DestinationConflictError, None),
        ({"size_bytes": None}, DestinationBusyError, None),
    ],
)
async def test_without_proof_from_head_there_is_no_receipt_and_no_second_object(
    body: bytes, changes: dict[str, Any], error: type[Exception], code: HoldCode | None
) -> None:
    """F29, F32: the object is written, and it is not what it should be."""
    destination = StrictDestination()
    destination.echo = all_answers(lambda facts: replace(facts, **({"encryption": None} | changes)))
    if "encryption" not in changes and code is None:
        destination.echo["head"] = lambda facts: replace(facts, **changes)
    with pytest.raises(error) as caught:
        await run(destination, body)
    assert getattr(caught.value, "code", None) is code
    assert list(destination.objects) == [BARE]
    assert destination.uploads == {}


async def test_uploads_of_earlier_attempts_are_given_up_and_those_of_other_keys_are_not() -> None:
    destination, plan = StrictDestination(), plan_for(LARGE)
    for _ in range(2):
        await destination.create_multipart(plan.request(BARE))
    other = await destination.create_multipart(plan.request(f"{BARE}.mp4"))
    await run(destination, LARGE)
    assert list(destination.uploads) == [other]


async def test_where_head_is_not_allowed_the_answer_alone_has_to_prove_it() -> None:
    destination = StrictDestination()
    denied = DestinationHeldError(HoldCode.DESTINATION_ACCESS_DENIED, "403")
    destination.failures["head before"] = [denied] * 50
    assert (await run(destination, LARGE, head_allowed=False)).key == BARE
    assert "head" not in destination.calls
    with pytest.raises(DestinationHeldError):  # "maybe mine", and nobody to ask
        await run(destination, LARGE, head_allowed=False)
    assert list(destination.objects) == [BARE]
    assert destination.uploads == {}


async def test_a_failed_abort_does_not_hide_why_the_upload_failed() -> None:
    destination = StrictDestination()
    destination.failures["part before"] = [DestinationHeldError(HoldCode.KEY_DISABLED, "disabled")]
    destination.failures["abort before"] = [busy()]
    with pytest.raises(DestinationHeldError) as caught:
        await run(destination, LARGE)
    assert caught.value.code is HoldCode.KEY_DISABLED
