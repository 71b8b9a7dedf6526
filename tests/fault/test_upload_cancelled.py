"""F20: cancellation at every await of an upload.

Wherever it strikes, no multipart upload and no lease is left behind, and the next attempt delivers exactly one object.
"""

import anyio
import anyio.lowlevel
import pytest

from tests.s3_strict import StrictDestination
from tests.s3_wire import SMALL_PARTS, small_parts
from tests.uploads import BARE, Source, body_of, pool, run

SMALL, LARGE = b"small", body_of(2 * SMALL_PARTS + 17)
pytestmark = pytest.mark.usefixtures(small_parts.__name__)


class CancellingSource(Source):
    """Counts its reads among the destination's steps."""

    destination: StrictDestination

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self.destination.on_step("read")
        await super().read_into(offset, buffer)


async def cancelled_at(number: int, body: bytes) -> tuple[StrictDestination, bool]:
    """Deliver, cancelled at that step; say whether there was one."""
    destination, buffers, seen = StrictDestination(), pool(), 0
    source = CancellingSource(body)
    source.destination = destination
    with anyio.CancelScope() as scope:

        async def step(name: str) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                scope.cancel()
            await anyio.lowlevel.checkpoint()

        destination.on_step = step
        await run(destination, body, source=source, buffers=buffers)
    assert buffers.leased_bytes == 0
    return destination, scope.cancelled_caught


@pytest.mark.parametrize("body", [pytest.param(SMALL, id="put"), pytest.param(LARGE, id="multipart")])
async def test_cancellation_at_any_await_leaves_nothing_and_can_be_done_again(body: bytes) -> None:
    number = 1
    while True:
        destination, was_cancelled = await cancelled_at(number, body)
        assert destination.uploads == {}, f"left behind at step {number}"
        if not was_cancelled:
            break
        assert set(destination.objects) <= {BARE}
        await run(destination, body)
        assert {key: stored.body for key, stored in destination.objects.items()} == {BARE: body}
        number += 1
    assert number > (2 if body is SMALL else 14)


@pytest.mark.timeout(10)
async def test_a_bucket_that_does_not_answer_the_abort_holds_nobody_up_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.delivery.upload.ABORT_S", 0.05)
    destination = StrictDestination()

    async def stuck(step: str) -> None:
        if step == "part before":
            scope.cancel()
        if step in {"part before", "abort before"}:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()

    destination.on_step = stuck
    with anyio.CancelScope() as scope:
        await run(destination, LARGE)
    assert scope.cancelled_caught
    assert destination.calls[-1] == "abort"
