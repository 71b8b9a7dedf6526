"""F16, F28 over the wire: a clock that is wrong, credentials that end or can't be had. They hold and come right."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.adapters import aws
from pipeline.adapters.aws import open_client
from pipeline.adapters.s3 import S3Destination
from pipeline.errors import DestinationBusyError, DestinationHeldError, HoldCode
from pipeline.settings import Endpoint
from tests.s3_strict import STORAGE
from tests.s3_wire import SMALL_PARTS, Fault, S3Wire, s3_wire, small_parts
from tests.uploads import BARE, body_of, run
from tests.wire import RESET, http, s3_error, wire

SMALL, LARGE = body_of(10_000), body_of(3 * SMALL_PARTS + 17)

pytestmark = pytest.mark.usefixtures(small_parts.__name__)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Let the chain find nothing but what a test gives it; give the shared credentials file."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    shared = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    aws._session.cache_clear()
    yield shared
    aws._session.cache_clear()
    aws._ahead.clear()


def from_chain(server: S3Wire) -> Endpoint:
    return Endpoint(region="us-east-1", url=server.endpoint.url)


def write_token(shared: Path, token: str) -> None:
    shared.write_text(
        f"[default]\naws_access_key_id = key\naws_secret_access_key = secret\naws_session_token = {token}\n"
    )


def answer(token: str, valid: timedelta) -> bytes:
    """Answer as a container's credentials endpoint does."""
    until = (datetime.now(UTC) + valid).strftime("%Y-%m-%dT%H:%M:%SZ")
    given = {"AccessKeyId": "key", "SecretAccessKey": "secret", "Token": token, "Expiration": until, "RoleArn": "r"}
    return http(200, json.dumps(given).encode(), Content_Type="application/json")


# --- F28


async def test_credentials_that_end_in_mid_upload_hold_and_the_new_ones_deliver(environment: Path) -> None:
    """The upload that could not be given up then is given up before the next."""
    write_token(environment, "first")
    async with s3_wire() as server, open_client("s3", from_chain(server)) as client:
        server.tokens = {"first"}

        def rotate() -> None:
            server.tokens = {"second"}

        server.faults["part"] = [Fault(), Fault(then=rotate)]
        destination = S3Destination(client, STORAGE)
        with pytest.raises(DestinationHeldError) as caught:
            await run(destination, LARGE)
        assert caught.value.code is HoldCode.DESTINATION_ACCESS_DENIED
        assert len(server.bucket.uploads) == 1
        with pytest.raises(DestinationHeldError):  # still the old ones
            await run(destination, SMALL)
        write_token(environment, "second")
        assert (await run(destination, LARGE)).key == BARE
        assert server.bucket.uploads == {}
        assert server.bucket.objects[BARE].body == LARGE


async def test_a_role_whose_credentials_can_not_be_fetched_holds_until_they_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """STS, or the metadata of instance or container, is down: at the start, and when they are to be renewed."""
    async with s3_wire() as server, wire(RESET) as source:
        server.tokens = {"first", "second"}
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{source.port}/role")
        monkeypatch.setattr("aiobotocore.utils.AioContainerMetadataFetcher.SLEEP_TIME", 0)
        async with open_client("s3", from_chain(server)) as client:
            destination = S3Destination(client, STORAGE)
            await held(destination)
            source.answer = http(500)
            await held(destination)
            assert server.asked == []
            source.answer = answer("first", timedelta(seconds=5))  # they must be renewed before every request
            assert (await run(destination, SMALL)).key == BARE
            source.answer = RESET
            await held(destination)
            source.answer = answer("second", timedelta(hours=1))
            assert (await run(destination, SMALL)).key == BARE
            assert server.asked[-1].headers["x-amz-security-token"] == "second"
            asked = len(source.requests)
            assert (await run(destination, SMALL)).key == BARE
            assert len(source.requests) == asked


async def test_credentials_that_a_bucket_calls_expired_are_fetched_anew_whatever_their_own_date_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with s3_wire() as server, wire(answer("first", timedelta(hours=6))) as source:
        server.tokens = {"second"}
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{source.port}/role")
        async with open_client("s3", from_chain(server)) as client:
            destination = S3Destination(client, STORAGE)
            await held(destination)
            source.answer = answer("second", timedelta(hours=6))
            assert (await run(destination, SMALL)).key == BARE
            assert len(source.requests) == 2


async def held(destination: S3Destination) -> None:
    with pytest.raises(DestinationHeldError) as caught:
        await run(destination, SMALL)
    assert caught.value.code is HoldCode.DESTINATION_ACCESS_DENIED


async def test_a_policy_that_changes_in_mid_upload_holds_and_nothing_is_left_when_it_is_back() -> None:
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        destination = S3Destination(client, STORAGE)
        server.faults["part"] = [Fault()]
        for operation in ("part", "abort"):
            server.always[operation] = Fault(answer=s3_error(403, "AccessDenied"))
        with pytest.raises(DestinationHeldError):
            await run(destination, LARGE)
        assert len(server.bucket.uploads) == 1
        server.always.clear()
        server.faults.clear()
        await run(destination, LARGE)
        assert server.bucket.uploads == {}
        assert server.bucket.objects[BARE].body == LARGE


# --- F16


@pytest.mark.parametrize("ahead", [timedelta(days=1), timedelta(days=-1)])
@pytest.mark.parametrize("body", [pytest.param(SMALL, id="put"), pytest.param(LARGE, id="multipart")])
async def test_a_request_that_is_refused_for_its_time_is_followed_by_one_with_the_servers(
    ahead: timedelta, body: bytes
) -> None:
    """Our clock is a day off; that is transient, holds nothing, and is right with the next attempt."""
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.clock_ahead = ahead
        destination = S3Destination(client, STORAGE)
        with pytest.raises(DestinationBusyError):
            await run(destination, body)
        assert (await run(destination, body)).key == BARE
        # And when the clock is set right.
        server.clock_ahead = timedelta(0)
        with pytest.raises(DestinationBusyError):
            await run(destination, body)
        assert (await run(destination, body)).key == BARE


async def test_a_refusal_for_another_reason_is_not_taken_for_the_time() -> None:
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        for body, answered in ((SMALL, s3_error(403, "AccessDenied")), (LARGE, http(403))):
            server.faults["any"] = [Fault(answer=answered)]
            with pytest.raises(DestinationHeldError):
                await run(S3Destination(client, STORAGE), body)
        assert aws._ahead == {}


async def test_a_question_that_is_refused_for_its_time_without_a_word_is_not_taken_for_a_policy() -> None:
    """An answer to HEAD has no body that could say why."""
    async with s3_wire() as server, open_client("s3", server.endpoint) as client:
        server.clock_ahead = timedelta(hours=2)
        destination = S3Destination(client, STORAGE)
        with pytest.raises(DestinationBusyError):
            await destination.head(BARE)
        assert await destination.head(BARE) is None
