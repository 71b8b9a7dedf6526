"""Who we are, by AWS STS. Nothing is retried here."""

import re
from typing import Any

import anyio
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pipeline.errors import KeyBusyError, RefuseError

PATIENCE_S = 15.0
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
