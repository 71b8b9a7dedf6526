"""F24 to F26 over the wire: answers that are lost, repeated by the client unseen, or that say nothing one can believe.

Nothing counts without proof, nothing is written twice, and the next attempt finds its way.
"""

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.errors import DestinationBusyError
from tests.s3_strict import STORAGE
from tests.s3_wire import SMALL_PARTS, Fault, S3Wire, s3_wire, small_parts
from tests.uploads import BARE, body_of, plan_for, run
from tests.wire import RESET, http, s3_error

SMALL, LARGE = body_of(10_000), body_of(SMALL_PARTS + 17)
HTML = http(200, b"<html><body>Welcome to the hotel's network</body></html>", Content_Type="text/html")
TRUNCATED = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nConnection: close\r\n\r\n<CompleteMultipartUploadResu"
TOO_LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<CompleteMultipartUploadResult/>" * 2
HALF_XML = http(200, b"<?xml version='1.0'?><CompleteMultipartUploadResult><ETag>x</ET", Content_Type="application/xml")
JUNK = {
    "slow down": s3_error(503, "SlowDown"),
    "too many": s3_error(429, "TooManyRequests"),
    "internal": s3_error(500, "InternalError"),
    "500 bare": http(500),
    "200 and error": s3_error(200, "InternalError"),
    "200 and slow down": s3_error(200, "SlowDown"),
    "200 empty": http(200),
    "200 html": HTML,
    "200 truncated": TRUNCATED,
    "200 too long": TOO_LONG,
    "200 half xml": HALF_XML,
    "502 html": http(502, b"<html>Bad gateway</html>", Content_Type="text/html"),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "another protocol": b"220 mail ready\r\nConnection: close\r\n\r\n",
}
EVERY_JUNK = pytest.mark.parametrize("answer", [pytest.param(raw, id=name) for name, raw in JUNK.items()])


pytestmark = pytest.mark.usefixtures(small_parts.__name__)


async def delivered(server: S3Wire, body: bytes, attempts: int = 4) -> None:
    """Try as the schedule would, with one client; then the bucket holds exactly that."""
    async with open_client("s3", server.endpoint) as client:
        for _ in range(attempts):
            try:
                receipt = await run(S3Destination(client, STORAGE), body)
            except DestinationBusyError:
                continue
            assert receipt.key == BARE
            assert {key: stored.body for key, stored in server.bucket.objects.items()} == {BARE: body}
            assert server.bucket.uploads == {}
            return
    pytest.fail("it is never delivered")


# --- F24


async def test_a_put_whose_answer_was_lost_is_recognised_as_ours() -> None:
    """F24: 412, HEAD, receipt; one object, written once."""
    async with s3_wire() as server:
        server.faults["put"] = [Fault(answer=RESET, applied=True)]
        await delivered(server, SMALL)
        assert server.operations == ["put", "put", "head"]
        assert server.bucket.writes == 1


async def test_a_completion_whose_answer_was_lost_is_recognised_as_ours_at_once() -> None:
    """F24: NoSuchUpload, HEAD, receipt; no part is sent again."""
    async with s3_wire() as server:
        server.faults["complete"] = [Fault(answer=RESET, applied=True)]
        await delivered(server, LARGE, attempts=1)
        assert server.operations.count("part") == 2
        assert server.operations.count("create") == 1
        assert server.operations[-1] == "head"


async def test_an_answer_that_is_lost_again_and_again_costs_nothing_but_time() -> None:
    """F24: also the answers to what asks about it."""
    async with s3_wire() as server:
        server.faults["put"] = [Fault(answer=RESET, applied=True)] * 3
        server.faults["head"] = [Fault(answer=RESET)] * 2
        await delivered(server, SMALL, attempts=8)
        assert server.bucket.writes == 1


# --- F25


async def test_a_request_that_the_client_repeats_unseen_is_whole_and_makes_no_second_object() -> None:
    """F25: on a connection that was kept alive, the HTTP client sends a PUT again by itself."""
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        destination = S3Destination(client, STORAGE)
        await destination.head("warm/the/connection")
        server.faults["put"] = [Fault(answer=RESET, applied=True)]
        receipt = await run(destination, SMALL)
        assert receipt.key == BARE
        assert server.operations == ["head", "put", "put", "head"]
        assert [asked.body for asked in server.asked if asked.operation == "put"] == [SMALL, SMALL]
        assert server.bucket.writes == 1


async def test_a_part_that_the_client_repeats_unseen_is_whole() -> None:
    """F25."""
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.faults["part"] = [Fault(answer=RESET, applied=True), Fault(reset_at=70_000)]
        await run(S3Destination(client, STORAGE), LARGE)
        sizes = {len(asked.body) for asked in server.asked if asked.operation == "part"}
        assert sizes <= {SMALL_PARTS, 17}
        assert server.bucket.objects[BARE].body == LARGE


# --- F26


async def test_a_put_that_was_not_done_and_answered_with_junk_is_sent_again() -> None:
    for name in ("200 html", "500 bare"):
        async with s3_wire() as server:
            server.faults["put"] = [Fault(answer=JUNK[name])]
            await delivered(server, SMALL)
            assert server.operations.count("put") == 2
            assert server.bucket.writes == 1


@EVERY_JUNK
@pytest.mark.parametrize(
    "applied", [pytest.param(False, id="not done", marks=pytest.mark.slow), pytest.param(True, id="done")]
)
async def test_no_junk_in_place_of_an_answer_to_a_put_is_taken_for_proof(answer: bytes, applied: bool) -> None:
    async with s3_wire() as server:
        server.faults["put"] = [Fault(answer=answer, applied=applied)]
        await delivered(server, SMALL)
        assert server.bucket.writes == 1


@EVERY_JUNK
@pytest.mark.parametrize("applied", [False, True], ids=["not done", "done"])
async def test_no_junk_in_place_of_an_answer_to_a_completion_is_taken_for_proof(answer: bytes, applied: bool) -> None:
    async with s3_wire() as server:
        server.faults["complete"] = [Fault(answer=answer, applied=applied)]
        await delivered(server, LARGE)


@pytest.mark.parametrize("operation", ["head", "uploads", "create", "part"])
@pytest.mark.parametrize(
    "answer", [pytest.param(JUNK[name], id=name) for name in ("slow down", "200 html", "200 half xml", "200 truncated")]
)
async def test_junk_in_place_of_any_other_answer_delays_and_breaks_nothing(operation: str, answer: bytes) -> None:
    async with s3_wire() as server:
        server.faults[operation] = [Fault(answer=answer, applied=operation != "create")]
        await delivered(server, LARGE)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("17", 17.0),
        ("0", 0.0),
        (timedelta(seconds=40), 40.0),
        (timedelta(days=-1), 0.0),
        ("soon", None),
        ("-5", None),
        ("٣", None),
        ("9" * 400, 999_999_999.0),
        ("", None),
    ],
)
async def test_retry_after_is_read_in_seconds_and_as_a_time_by_the_servers_clock(
    given: str | timedelta, expected: float | None
) -> None:
    if isinstance(given, timedelta):
        given = format_datetime(datetime.now(UTC) + timedelta(hours=5) + given, usegmt=True)
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.clock_ahead = timedelta(hours=5)
        server.faults["put"] = [
            Fault(answer=s3_error(503, "SlowDown").replace(b"\r\n", f"\r\nRetry-After: {given}\r\n".encode(), 1))
        ]
        with pytest.raises(DestinationBusyError) as caught:
            await S3Destination(client, STORAGE).put(plan_for(SMALL).request(BARE), SMALL)
    assert caught.value.retry_after_s == (expected if expected is None else pytest.approx(expected, abs=2.0))


async def test_a_message_repeats_nothing_of_what_a_stranger_answered() -> None:
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.faults["put"] = [Fault(answer=s3_error(503, "canary <script> +49 30 1234"))]
        with pytest.raises(DestinationBusyError) as caught:
            await S3Destination(client, STORAGE).put(plan_for(SMALL).request(BARE), SMALL)
    assert not re.search("canary|script|1234", str(caught.value))
