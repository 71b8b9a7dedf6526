"""The AWS KMS API, whoever serves it: `KeyService`.

Every call is told to the audit trail before its outcome counts, failed and cancelled ones too. Nothing is retried, no
key material is logged, and a code that is not in the tables below counts as transient.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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

from pipeline.errors import HoldCode, KeyBusyError, KeyUnavailableError, PipelineError, RefuseError
from pipeline.ports import GeneratedKey, KeyDescription, KmsCall

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
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_SILENCE = (BotoCoreError, ResponseParserError, OSError, ValueError, RecursionError)
"""No answer, or one that can't be read. A time-out is an `OSError`."""

PATIENCE_S = 15.0
"""How long one call may take."""
AUDIT_S = 5.0
"""How long the record of a cancelled call may take."""
DATA_KEY_BYTES = 32


class AwsKeyService:
    """`KeyService` by a client from `adapters.aws`; `audit` is awaited for every call before its outcome counts."""

    def __init__(self, client: "KMSClient", audit: Callable[[KmsCall], Awaitable[None]]) -> None:
        self._client = client
        self._audit = audit

    async def generate_data_key(self, key_arn: str, context: Mapping[str, str]) -> GeneratedKey:
        async with self._call("GenerateDataKey", key_arn, context) as answer:
            answer.update(
                await self._client.generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=dict(context))
            )
        _check_key(key_arn, answer)
        plaintext = answer.get("Plaintext", b"")
        wrapped = answer.get("CiphertextBlob", b"")
        if len(plaintext) != DATA_KEY_BYTES or not wrapped:
            raise KeyBusyError("KMS answered without a whole data key; nothing was sealed under it")
        return GeneratedKey(plaintext, wrapped, key_arn)

    async def decrypt(self, key_arn: str, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        async with self._call("Decrypt", key_arn, context) as answer:
            answer.update(
                await self._client.decrypt(KeyId=key_arn, CiphertextBlob=wrapped, EncryptionContext=dict(context))
            )
        _check_key(key_arn, answer)
        plaintext: bytes = answer.get("Plaintext", b"")
        if len(plaintext) != DATA_KEY_BYTES:
            raise KeyBusyError("KMS answered without a whole data key; nothing was opened")
        return plaintext

    async def re_encrypt(self, source_arn: str, target_arn: str, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        async with self._call("ReEncrypt", target_arn, context, source_arn) as answer:
            answer.update(
                await self._client.re_encrypt(
                    CiphertextBlob=wrapped,
                    SourceKeyId=source_arn,
                    SourceEncryptionContext=dict(context),
                    DestinationKeyId=target_arn,
                    DestinationEncryptionContext=dict(context),
                )
            )
        _check_key(target_arn, answer)
        rewrapped: bytes = answer.get("CiphertextBlob", b"")
        if not rewrapped:
            raise KeyBusyError("KMS answered without a wrapped key; the old one stays")
        return rewrapped

    async def describe(self, key_arn: str) -> KeyDescription:
        async with self._call("DescribeKey", key_arn, {}) as answer:
            described = await self._client.describe_key(KeyId=key_arn)
            answer.update(described.get("KeyMetadata", {}), ResponseMetadata=described["ResponseMetadata"])
        if "Arn" not in answer or "KeyState" not in answer:
            raise KeyBusyError("KMS described a key and left something out; it is asked again")
        # The defaults are CreateKey's.
        spec, usage = answer.get("KeySpec", "SYMMETRIC_DEFAULT"), answer.get("KeyUsage", "ENCRYPT_DECRYPT")
        return KeyDescription(answer["Arn"], answer["KeyState"], spec, usage)

    @contextlib.asynccontextmanager
    async def _call(
        self, name: str, key_arn: str, context: Mapping[str, str], source_arn: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Bound one call in time and tell it to the trail; let only our own exceptions out.

        The block puts the answer into what it is given.
        """
        answer: dict[str, Any] = {}
        tell = partial(self._tell, name, key_arn, context, source_arn)
        try:
            with anyio.fail_after(PATIENCE_S):
                yield answer
        except ClientError as error:
            given = error.response.get("Error", {})
            code = str(given.get("Code", ""))
            await tell(error.response, (code, str(given.get("Message", ""))))
            raise await self._translated(name, key_arn, code) from error
        except _SILENCE as error:
            await tell(answer, (type(error).__name__, "no answer"))
            raise _silence(error) from error
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(AUDIT_S, shield=True):
                await tell(answer, ("RequestCancelled", "the answer was not waited for"))
            raise
        await tell(answer, None)

    async def _tell(
        self,
        name: str,
        key_arn: str,
        context: Mapping[str, str],
        source_arn: str | None,
        answer: Mapping[str, Any],
        error: tuple[str, str] | None,
    ) -> None:
        code, message = error or (None, None)
        request_id = answer.get("ResponseMetadata", {}).get("RequestId", "")
        used = answer.get("KeyId" if name != "DescribeKey" else "Arn") or key_arn
        await self._audit(KmsCall(name, key_arn, dict(context), request_id, used, code, message, source_arn))

    async def _translated(self, name: str, key_arn: str, code: str) -> PipelineError:
        """Choose our exception for an error code; ask for the key's state where the code does not tell it."""
        if code in REFUSALS:
            return RefuseError(f"KMS answered {code}: the configured key can't be used for this", field="kms_key_arn")
        if code in ASK_STATE and name != "DescribeKey":
            hold = await self._hold_by_state(key_arn, ASK_STATE[code])
        else:
            hold = HOLDS.get(code, ASK_STATE.get(code))
        if hold is None:
            return KeyBusyError("KMS can't do this now; it is tried again")
        return KeyUnavailableError(hold, f"KMS refused {name} with {code}; what is sealed is safe and waits")

    async def _hold_by_state(self, key_arn: str, assumed: HoldCode) -> HoldCode | None:
        try:
            return STATES.get((await self.describe(key_arn)).state, assumed)
        except (KeyBusyError, KeyUnavailableError, RefuseError):
            return assumed


def _silence(error: Exception) -> PipelineError:
    if isinstance(error, SSLError):
        return KeyUnavailableError(HoldCode.KEY_UNREACHABLE, "the certificate of KMS is not valid for its name")
    if isinstance(error, _CREDENTIALS):
        return KeyUnavailableError(HoldCode.KEY_ACCESS_DENIED, "no credentials for KMS could be found")
    return KeyBusyError(f"no answer from KMS ({type(error).__name__}); it is tried again")


def _check_key(key_arn: str, answer: Mapping[str, Any]) -> None:
    """Refuse the work of another key than the one that was named, and an answer that names none."""
    if "KeyId" not in answer:
        raise KeyBusyError("KMS answered and did not name the key; nothing counts, it is tried again")
    if answer["KeyId"] != key_arn:
        raise KeyUnavailableError(HoldCode.KEY_MISMATCH, "KMS used another key than the configured one; nothing counts")
