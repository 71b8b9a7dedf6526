"""The AWS KMS API, whoever serves it: `KeyService` and `GrantService`.

Every call is told to the audit trail before its outcome counts, failed and cancelled ones too. Nothing is retried, no
key material is logged, and a code that is not in the tables below counts as transient.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from pipeline.errors import (
    GrantTokenError,
    HoldCode,
    KeyBusyError,
    KeyThrottledError,
    KeyUnavailableError,
    PipelineError,
    RefuseError,
)
from pipeline.keyports import GeneratedKey, GrantFacts, GrantTerms, KeyDescription, KmsCall, MadeGrant

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

HOLDS: Mapping[str, HoldCode] = {
    "AccessDeniedException": HoldCode.KEY_ACCESS_DENIED,
    "ExpiredTokenException": HoldCode.KEY_ACCESS_DENIED,
    "IncompleteSignature": HoldCode.KEY_ACCESS_DENIED,
    "InvalidClientTokenId": HoldCode.KEY_ACCESS_DENIED,
    "InvalidSignatureException": HoldCode.KEY_ACCESS_DENIED,
    "MissingAuthenticationTokenException": HoldCode.KEY_ACCESS_DENIED,
    "UnrecognizedClientException": HoldCode.KEY_ACCESS_DENIED,
    "NotFoundException": HoldCode.KEY_NOT_FOUND,
    "IncorrectKeyException": HoldCode.KEY_MISMATCH,
    "InvalidCiphertextException": HoldCode.KEY_MISMATCH,  # a wrong context looks the same
}
ASK_STATE: Mapping[str, HoldCode] = {
    "DisabledException": HoldCode.KEY_DISABLED,  # also said of a key that is pending deletion
    "KMSInvalidStateException": HoldCode.KEY_INVALID_STATE,
}
"""Codes behind which different states lie, and what is assumed where the state can't be asked for."""
STATES: Mapping[str, HoldCode | None] = {
    "Disabled": HoldCode.KEY_DISABLED,
    "PendingDeletion": HoldCode.KEY_PENDING_DELETION,
    "PendingReplicaDeletion": HoldCode.KEY_PENDING_DELETION,
    "PendingImport": HoldCode.KEY_INVALID_STATE,
    "Unavailable": HoldCode.KEY_INVALID_STATE,
    "Creating": None,
    "Updating": None,
    "Enabled": None,
}
"""By `KeyState` as DescribeKey gives it; None passes by itself."""
REFUSALS = frozenset({"InvalidArnException", "InvalidKeyUsageException", "ValidationException"})
THROTTLES = frozenset({"ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException"})
GRANT_LIMIT = "LimitExceededException"
"""Of CreateGrant: the key has as many grants as it may. The AWS clients take it for throttling, and repeat it."""
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_SILENCE = (BotoCoreError, ResponseParserError, OSError, ValueError, RecursionError)
"""No answer, or one that can't be read. A time-out is an `OSError`."""

PATIENCE_S = 15.0
"""How long one call may take."""
AUDIT_S = 5.0
"""How long the record of a cancelled call may take."""
DATA_KEY_BYTES = 32
_NO_CONTEXT: Mapping[str, str] = {}
_NOTHING_MORE: Mapping[str, Any] = {}


class AwsKeyService:
    """`KeyService` and `GrantService` by a client from `adapters.aws`.

    `audit` is awaited for every call before its outcome counts.
    """

    def __init__(self, client: "KMSClient", audit: Callable[[KmsCall], Awaitable[None]]) -> None:
        self._client = client
        self._audit = audit

    async def generate_data_key(
        self, key_arn: str, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> GeneratedKey:
        async with self._call("GenerateDataKey", key_arn, context) as answer:
            answer.update(
                await self._client.generate_data_key(
                    KeyId=key_arn, KeySpec="AES_256", EncryptionContext=dict(context), **_named(tokens)
                )
            )
        _check_key(key_arn, answer)
        plaintext = answer.get("Plaintext", b"")
        wrapped = answer.get("CiphertextBlob", b"")
        if len(plaintext) != DATA_KEY_BYTES or not wrapped:
            raise KeyBusyError("KMS answered without a whole data key; nothing was sealed under it")
        return GeneratedKey(plaintext, wrapped, key_arn)

    async def decrypt(
        self, key_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        async with self._call("Decrypt", key_arn, context) as answer:
            answer.update(
                await self._client.decrypt(
                    KeyId=key_arn, CiphertextBlob=wrapped, EncryptionContext=dict(context), **_named(tokens)
                )
            )
        _check_key(key_arn, answer)
        plaintext: bytes = answer.get("Plaintext", b"")
        if len(plaintext) != DATA_KEY_BYTES:
            raise KeyBusyError("KMS answered without a whole data key; nothing was opened")
        return plaintext

    async def re_encrypt(
        self,
        source_arn: str,
        target_arn: str,
        wrapped: bytes,
        context: Mapping[str, str],
        tokens: Sequence[str] = (),
    ) -> bytes:
        async with self._call("ReEncrypt", target_arn, context, source_arn=source_arn) as answer:
            answer.update(
                await self._client.re_encrypt(
                    CiphertextBlob=wrapped,
                    SourceKeyId=source_arn,
                    SourceEncryptionContext=dict(context),
                    DestinationKeyId=target_arn,
                    DestinationEncryptionContext=dict(context),
                    **_named(tokens),
                )
            )
        _check_key(target_arn, answer)
        rewrapped: bytes = answer.get("CiphertextBlob", b"")
        if not rewrapped:
            raise KeyBusyError("KMS answered without a wrapped key; the old one stays")
        return rewrapped

    async def describe(self, key_arn: str, tokens: Sequence[str] = ()) -> KeyDescription:
        async with self._call("DescribeKey", key_arn) as answer:
            described = await self._client.describe_key(KeyId=key_arn, **_named(tokens))
            answer.update(described.get("KeyMetadata", {}), ResponseMetadata=described["ResponseMetadata"])
        if "Arn" not in answer or "KeyState" not in answer:
            raise KeyBusyError("KMS described a key and left something out; it is asked again")
        # The defaults are CreateKey's.
        spec, usage = answer.get("KeySpec", "SYMMETRIC_DEFAULT"), answer.get("KeyUsage", "ENCRYPT_DECRYPT")
        return KeyDescription(answer["Arn"], answer["KeyState"], spec, usage)

    async def create_grant(self, key_arn: str, terms: GrantTerms) -> MadeGrant:
        async with self._call("CreateGrant", key_arn, asked=_asked(terms)) as answer:
            answer.update(
                await self._client.create_grant(
                    KeyId=key_arn,
                    Name=terms.name,
                    GranteePrincipal=terms.grantee,
                    RetiringPrincipal=terms.grantee,
                    Operations=list(terms.operations),  # type: ignore[arg-type]  # the stubs know their names
                    Constraints={"EncryptionContextEquals": dict(terms.context)},
                )
            )
        if not answer.get("GrantId") or not answer.get("GrantToken"):
            raise KeyBusyError("KMS answered without a whole grant; it is asked for again, and is the same then")
        return MadeGrant(answer["GrantId"], answer["GrantToken"])

    async def list_grants(self, key_arn: str) -> list[GrantFacts]:
        found: list[GrantFacts] = []
        marker: dict[str, Any] = {}
        while True:
            async with self._call("ListGrants", key_arn) as answer:
                answer.update(await self._client.list_grants(KeyId=key_arn, **marker))
            found += [_facts(grant) for grant in answer.get("Grants", [])]
            following = {"Marker": answer.get("NextMarker")}
            if not answer.get("Truncated") or following["Marker"] is None:
                return found
            if following == marker:
                raise KeyBusyError("the key's list of grants has no end; it is read again later")
            marker = following

    async def revoke_grant(self, key_arn: str, grant_id: str) -> None:
        with _gone_is_well():
            async with self._call("RevokeGrant", key_arn, asked={"grantId": grant_id}) as answer:
                answer.update(await self._client.revoke_grant(KeyId=key_arn, GrantId=grant_id))

    async def retire_grant(self, key_arn: str, grant_id: str) -> None:
        with _gone_is_well():
            async with self._call("RetireGrant", key_arn, asked={"grantId": grant_id}) as answer:
                answer.update(await self._client.retire_grant(KeyId=key_arn, GrantId=grant_id))

    @contextlib.asynccontextmanager
    async def _call(
        self,
        name: str,
        key_arn: str,
        context: Mapping[str, str] = _NO_CONTEXT,
        *,
        source_arn: str | None = None,
        asked: Mapping[str, Any] = _NOTHING_MORE,
    ) -> AsyncIterator[dict[str, Any]]:
        """Bound one call in time and tell it to the trail; let only our own exceptions out.

        The block puts the answer into what it is given.
        """
        answer: dict[str, Any] = {}
        call = partial(KmsCall, name, key_arn, dict(context), source_arn=source_arn, asked=asked)
        try:
            with anyio.fail_after(PATIENCE_S):
                yield answer
        except ClientError as error:
            given = error.response.get("Error", {})
            code = str(given.get("Code", ""))
            await self._tell(call, error.response, (code, str(given.get("Message", ""))))
            raise await self._translated(name, key_arn, code, source_arn) from error
        except _SILENCE as error:
            await self._tell(call, answer, (type(error).__name__, "no answer"))
            raise _silence(error, key_arn) from error
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(AUDIT_S, shield=True):
                await self._tell(call, answer, ("RequestCancelled", "the answer was not waited for"))
            raise
        await self._tell(call, answer, None)

    async def _tell(
        self, call: Callable[..., KmsCall], answer: Mapping[str, Any], error: tuple[str, str] | None
    ) -> None:
        code, message = error or (None, None)
        request_id = answer.get("ResponseMetadata", {}).get("RequestId", "")
        told = call(request_id, "", error_code=code, error_message=message)
        # The key that was used: of DescribeKey, the members of the answer are the key's own.
        used = answer.get("KeyId" if told.name != "DescribeKey" else "Arn") or told.key_arn
        grant_id = answer.get("GrantId") if told.name == "CreateGrant" else None
        await self._audit(replace(told, resource_arn=used, grant_id=grant_id))

    async def _translated(self, name: str, key_arn: str, code: str, source_arn: str | None = None) -> PipelineError:
        """Choose our exception for an error code; ask for the key's state where the code does not tell it.

        Of two keys it is the first that can't be used, or the second.
        """
        if code in REFUSALS:
            field = "kms.principal_arn" if name == "CreateGrant" and code == "InvalidArnException" else "kms_key_arn"
            return RefuseError(f"KMS answered {code}: what is configured can't be used for this", field=field)
        if code == GRANT_LIMIT and name == "CreateGrant":
            return RefuseError("the KMS key has as many grants as it may; retire one that is not needed any more")
        if code in THROTTLES:
            return KeyThrottledError("KMS asks for patience: the account's quota is used up; it is tried again")
        if code == "InvalidGrantTokenException":
            return GrantTokenError("KMS does not know the grant's token; it is asked again without")
        if code in ASK_STATE and name != "DescribeKey":
            hold = None
            if source_arn is not None:
                hold = await self._hold_by_state(source_arn, ASK_STATE[code])
            if hold is None:
                hold = await self._hold_by_state(key_arn, ASK_STATE[code])
            else:
                key_arn = source_arn or key_arn
        else:
            hold = HOLDS.get(code, ASK_STATE.get(code))
        if hold is None:
            return KeyBusyError("KMS can't do this now; it is tried again")
        message = f"KMS refused {name} with {code}; what is sealed is safe and waits"
        return KeyUnavailableError(hold, message, key_arn=key_arn)

    async def _hold_by_state(self, key_arn: str, assumed: HoldCode) -> HoldCode | None:
        try:
            return STATES.get((await self.describe(key_arn)).state, assumed)
        except (KeyBusyError, KeyUnavailableError, RefuseError):
            return assumed


def _silence(error: Exception, key_arn: str) -> PipelineError:
    if isinstance(error, SSLError):
        message = "the certificate of KMS is not valid for its name"
        return KeyUnavailableError(HoldCode.KEY_UNREACHABLE, message, key_arn=key_arn)
    if isinstance(error, _CREDENTIALS):
        message = "no credentials for KMS could be found"
        return KeyUnavailableError(HoldCode.KEY_ACCESS_DENIED, message, key_arn=key_arn)
    return KeyBusyError(f"no answer from KMS ({type(error).__name__}); it is tried again")


def _check_key(key_arn: str, answer: Mapping[str, Any]) -> None:
    """Refuse the work of another key than the one that was named, and an answer that names none."""
    if "KeyId" not in answer:
        raise KeyBusyError("KMS answered and did not name the key; nothing counts, it is tried again")
    if answer["KeyId"] != key_arn:
        message = "KMS used another key than the configured one; nothing counts"
        raise KeyUnavailableError(HoldCode.KEY_MISMATCH, message, key_arn=key_arn)


def _named(tokens: Sequence[str]) -> dict[str, Any]:
    return {"GrantTokens": list(tokens)} if tokens else {}


def _asked(terms: GrantTerms) -> dict[str, Any]:
    """Describe a grant as CloudTrail does."""
    return {
        "name": terms.name,
        "granteePrincipal": terms.grantee,
        "retiringPrincipal": terms.grantee,
        "operations": list(terms.operations),
        "constraints": {"encryptionContextEquals": dict(terms.context)},
    }


def _facts(grant: Mapping[str, Any]) -> GrantFacts:
    return GrantFacts(
        grant_id=grant["GrantId"],
        name=grant.get("Name", ""),
        grantee=grant.get("GranteePrincipal", ""),
        operations=tuple(grant.get("Operations", ())),
        context=grant.get("Constraints", {}).get("EncryptionContextEquals"),
        created_at=grant.get("CreationDate"),
    )


@contextlib.contextmanager
def _gone_is_well() -> Iterator[None]:
    """Take "there is no such grant" for done: it is what was wanted."""
    try:
        yield
    except KeyUnavailableError as error:
        if error.code is not HoldCode.KEY_NOT_FOUND:
            raise
