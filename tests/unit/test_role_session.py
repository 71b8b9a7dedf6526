"""A session of an instance's role: renewed in time, by one call, and made do with while STS can't be had."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, EndpointConnectionError

from pipeline.adapters.sts import LEAST, REFRESH, SESSION, Role, RoleSession

ROLE = Role(
    arn="arn:aws:iam::111122223333:role/acme", external_id="e-1", session_name="pipeline-acme", policy='{"Version":"x"}'
)
DENIED: Any = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "AssumeRole")
SILENT = EndpointConnectionError(endpoint_url="https://sts.invalid")


@dataclass
class Sts:
    """Gives sessions that end after `SESSION`, or fails."""

    now: datetime = datetime(2026, 11, 29, tzinfo=UTC)
    asked: list[dict[str, Any]] = field(default_factory=list)
    fails: Exception | None = None
    answer: dict[str, Any] | None = None
    wait: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint

    async def assume_role(self, **members: Any) -> dict[str, Any]:
        self.asked.append(members)
        await self.wait()
        if self.fails is not None:
            raise self.fails
        if self.answer is not None:
            return self.answer
        number = str(len(self.asked))
        credentials = {"AccessKeyId": f"AK{number}", "SecretAccessKey": "secret", "SessionToken": f"token-{number}"}
        return {"Credentials": {**credentials, "Expiration": self.now + SESSION}}

    def session(self) -> RoleSession:
        return RoleSession(self, ROLE, lambda: self.now)


async def key_of(session: RoleSession) -> str | None:
    return (await session.get_frozen_credentials()).access_key


async def test_the_role_is_asked_for_with_external_id_and_session_policy_once_for_its_time() -> None:
    sts = Sts()
    session = sts.session()
    credentials = await session.get_frozen_credentials()
    assert (credentials.access_key, credentials.secret_key, credentials.token) == ("AK1", "secret", "token-1")
    sts.now += SESSION - REFRESH - timedelta(seconds=1)
    assert await key_of(session) == "AK1"
    assert sts.asked == [
        {
            "RoleArn": ROLE.arn,
            "RoleSessionName": "pipeline-acme",
            "Policy": ROLE.policy,
            "DurationSeconds": 3600,
            "ExternalId": "e-1",
        }
    ]
    assert "secret" not in repr(session)
    assert "token" not in repr(session)


async def test_it_is_renewed_before_its_end_by_one_call_while_the_others_go_on_with_what_there_is() -> None:
    sts = Sts()
    session = sts.session()
    assert await key_of(session) == "AK1"
    sts.now += SESSION - REFRESH + timedelta(seconds=1)
    release = anyio.Event()
    sts.wait = release.wait
    got: list[str | None] = []

    async def ask() -> None:
        got.append(await key_of(session))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask)
        while len(got) < 4:
            await anyio.lowlevel.checkpoint()
        release.set()
    assert got == ["AK1"] * 4 + ["AK2"]
    assert len(sts.asked) == 2


@pytest.mark.parametrize("failure", [DENIED, SILENT, TimeoutError()])
async def test_while_sts_fails_a_session_serves_to_its_end_and_then_nothing_does(failure: Exception) -> None:
    sts = Sts()
    session = sts.session()
    await key_of(session)
    sts.fails = failure
    sts.now += SESSION - REFRESH + timedelta(seconds=1)
    assert await key_of(session) == "AK1"
    sts.now += REFRESH - LEAST
    with pytest.raises(CredentialRetrievalError if failure is DENIED else TimeoutError):
        await session.get_frozen_credentials()
    sts.fails = None
    assert await key_of(session) == f"AK{len(sts.asked)}"


@pytest.mark.parametrize("answer", [{}, {"Credentials": None}, {"Credentials": {"AccessKeyId": "x"}}])
async def test_an_answer_without_a_whole_session_is_none(answer: dict[str, Any]) -> None:
    sts = Sts(answer=answer)
    with pytest.raises(TimeoutError):
        await sts.session().get_frozen_credentials()


async def test_a_session_that_a_service_calls_over_is_renewed() -> None:
    sts = Sts()
    session = sts.session()
    await key_of(session)
    session.learn({"Error": {"Code": "SlowDown"}})
    assert await key_of(session) == "AK1"
    session.learn({"Error": {"Code": "ExpiredToken"}})
    assert await key_of(session) == "AK2"


async def test_a_role_without_an_external_id_is_asked_for_without() -> None:
    sts = Sts()
    role = Role(arn=ROLE.arn, external_id=None, session_name="x", policy="{}")
    await RoleSession(sts, role, lambda: sts.now).get_frozen_credentials()
    assert "ExternalId" not in sts.asked[0]
