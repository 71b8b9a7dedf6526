"""Who we are, and sessions of roles, by AWS STS. Nothing is retried here."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import structlog
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError
from botocore.parsers import ResponseParserError

from pipeline.errors import KeyBusyError, RefuseError

log = structlog.get_logger()

PATIENCE_S = 15.0
SESSION = timedelta(hours=1)
"""As long as a role's session may be without anything set at AWS."""
REFRESH = timedelta(minutes=10)
"""Before its end a session is asked for anew; the one there is serves meanwhile, and until its end if that fails."""
LEAST = timedelta(minutes=1)
"""A session with less to go is not used: a request may take as long."""
_STALE = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidClientTokenId"})
_SESSION = re.compile(r"arn:(aws[a-z-]*):sts::(\d{12}):assumed-role/([\w+=,.@-]+)/[\w+=,.@-]+")
_USER = re.compile(r"arn:(aws[a-z-]*):sts::(\d{12}):(user/[\w+=,.@/-]+)")
"""As servers that imitate STS name a user."""
_SILENCE = (BotoCoreError, ResponseParserError, OSError, ValueError)


async def own_principal(client: Any) -> str:
    """Ask who we are: the ARN that grants and policies name us by. Of a role's session that is the role.

    A session's ARN does not tell the role's path: where there is one, the setting has to.

    Raises:
        RefuseError: STS does not know us, or not by a name that a grant may have.
        KeyBusyError: it does not answer.

    """
    try:
        with anyio.fail_after(PATIENCE_S):
            arn = str((await client.get_caller_identity()).get("Arn", ""))
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        raise RefuseError(
            f"STS does not say who this service is ({code}); set it", field="kms.principal_arn"
        ) from error
    except _SILENCE as error:
        message = f"no answer from STS ({type(error).__name__}); set kms.principal_arn, or try again later"
        raise KeyBusyError(message) from error
    session = _SESSION.fullmatch(arn)
    if session is not None:
        return f"arn:{session[1]}:iam::{session[2]}:role/{session[3]}"
    user = _USER.fullmatch(arn)
    if user is not None:
        return f"arn:{user[1]}:iam::{user[2]}:{user[3]}"
    if ":iam::" not in arn:
        raise RefuseError("STS names this service by no ARN of a user or role; set it", field="kms.principal_arn")
    return arn


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """A role that is taken on for one instance, and what is asked of STS for it."""

    arn: str
    external_id: str | None
    session_name: str
    policy: str
    """Session policy: what the session may do at most, whatever the role may."""


class RoleSession:
    """Credentials of a role for one instance, as clients of `adapters.aws` ask for them; renewed by one call at a time.

    Another instance has a session of its own: no client ever signs with it.
    """

    def __init__(self, sts: Any, role: Role, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._sts = sts
        self._role = role
        self._now = now
        self._known: ReadOnlyCredentials | None = None
        self._ends = datetime.min.replace(tzinfo=UTC)
        self._turn = anyio.Lock()

    def __repr__(self) -> str:
        """Show no credentials."""
        return f"<session {self._role.session_name} of {self._role.arn}>"

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Give what a request is signed with.

        Raises:
            CredentialRetrievalError: STS refuses the role.
            TimeoutError: it does not answer, and no session is left.

        """
        known = self._usable(REFRESH)
        if known is not None:
            return known
        known = self._usable(LEAST)
        if known is not None and self._turn.locked():
            return known
        async with self._turn:
            known = self._usable(REFRESH)
            return known or await self._renewed()

    def learn(self, parsed: dict[str, Any], **_: object) -> None:
        """Let go of a session that a service calls over."""
        if parsed.get("Error", {}).get("Code") in _STALE:
            self._known = None

    def _usable(self, left: timedelta) -> ReadOnlyCredentials | None:
        return self._known if self._ends - self._now() > left else None

    async def _renewed(self) -> ReadOnlyCredentials:
        role = self._role
        external = {} if role.external_id is None else {"ExternalId": role.external_id}
        try:
            with anyio.fail_after(PATIENCE_S):
                answer = await self._sts.assume_role(
                    RoleArn=role.arn,
                    RoleSessionName=role.session_name,
                    Policy=role.policy,
                    DurationSeconds=int(SESSION.total_seconds()),
                    **external,
                )
            given = answer["Credentials"]
            known = ReadOnlyCredentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
            self._known, self._ends = known, given["Expiration"]
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            return self._left_over(CredentialRetrievalError(provider="assume-role", error_msg=str(code)), error)
        except (*_SILENCE, LookupError, TypeError) as error:
            return self._left_over(TimeoutError("no session of the instance's role: STS does not answer"), error)
        log.info("role.assumed", role=role.arn, session=role.session_name, ends=self._ends.isoformat())
        return known

    def _left_over(self, failure: Exception, cause: Exception) -> ReadOnlyCredentials:
        """Give the session that there is, if it goes on for a while; else fail."""
        known = self._usable(LEAST)
        log.warning("role.not_assumed", role=self._role.arn, detail=str(failure), goes_on=known is not None)
        if known is None:
            raise failure from cause
        return known
