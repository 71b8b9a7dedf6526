"""A bucket of one instance, by the S3 API: `Destination` and `Rewritable`.

Every write is create-only, or on condition that it replaces what was seen; SSE-KMS under the configured key's full ARN
with a Bucket Key; and names the bucket's owner. Nothing is retried, no exception of the HTTP library or the AWS client
leaves this module, and a code that is not in the tables below counts as transient.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
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

from pipeline.errors import DestinationBusyError, DestinationHeldError, DestinationRefusedError, HoldCode
from pipeline.instances import Storage
from pipeline.ports import (
    Buffer,
    ObjectExistsError,
    ObjectFacts,
    ObjectVersion,
    PartFacts,
    PutRequest,
    Unfinished,
    UploadLostError,
)
from pipeline.tracebacks import forget_way

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

HOLDS: Mapping[str, HoldCode] = {
    "AccessDenied": HoldCode.DESTINATION_ACCESS_DENIED,
    "AccountProblem": HoldCode.DESTINATION_ACCESS_DENIED,
    "AllAccessDisabled": HoldCode.DESTINATION_ACCESS_DENIED,
    "ExpiredToken": HoldCode.DESTINATION_ACCESS_DENIED,
    "InvalidAccessKeyId": HoldCode.DESTINATION_ACCESS_DENIED,
    "InvalidSecurity": HoldCode.DESTINATION_ACCESS_DENIED,
    "InvalidToken": HoldCode.DESTINATION_ACCESS_DENIED,
    "NotSignedUp": HoldCode.DESTINATION_ACCESS_DENIED,
    "SignatureDoesNotMatch": HoldCode.DESTINATION_ACCESS_DENIED,
    "AuthorizationHeaderMalformed": HoldCode.DESTINATION_MISSING,  # signed for another Region
    "IllegalLocationConstraintException": HoldCode.DESTINATION_MISSING,
    "NoSuchBucket": HoldCode.DESTINATION_MISSING,
    "PermanentRedirect": HoldCode.DESTINATION_MISSING,
    "Redirect": HoldCode.DESTINATION_MISSING,
    "TemporaryRedirect": HoldCode.DESTINATION_MISSING,
    "KMS.AccessDeniedException": HoldCode.KEY_ACCESS_DENIED,
    "KMS.DisabledException": HoldCode.KEY_DISABLED,
    "KMS.InvalidKeyUsageException": HoldCode.KEY_INVALID_STATE,
    "KMS.KMSInvalidStateException": HoldCode.KEY_INVALID_STATE,
    "KMS.NotFoundException": HoldCode.KEY_NOT_FOUND,
}
"""What the bucket's owner, the key's owner or the configuration must mend."""
HOLD_STATUSES: Mapping[int, HoldCode] = {
    301: HoldCode.DESTINATION_MISSING,
    302: HoldCode.DESTINATION_MISSING,
    307: HoldCode.DESTINATION_MISSING,
    308: HoldCode.DESTINATION_MISSING,
    401: HoldCode.DESTINATION_ACCESS_DENIED,
    403: HoldCode.DESTINATION_ACCESS_DENIED,
}
"""For answers whose code says nothing more: HEAD has no body."""
PATIENCE = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
"""403 by status, but the next request is signed with the bucket's own time (see `adapters.aws`)."""
REFUSALS = frozenset({"EntityTooLarge", "InvalidURI", "KeyTooLongError", "MetadataTooLarge"})
_BUSY_STATUSES = frozenset({429, 500, 502, 503, 504})
LOST = frozenset({"NoSuchUpload", "ConditionalRequestConflict", "InvalidPart", "InvalidPartOrder"})
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_SILENCE = (BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError, ValueError, LookupError, RecursionError)
"""No answer, or one that can't be read. A time-out is an `OSError`."""
_CODE = re.compile(r"[A-Za-z0-9.]{1,64}")

PATIENCE_S = 60.0
"""How long one request may take, apart from its bytes."""
SLOWEST_BYTES_PER_S = 64 * 1024
"""A body that moves more slowly than this is given up and sent again."""


class S3Destination:
    """`Destination` over one bucket, by a client from `adapters.aws`."""

    def __init__(self, client: "S3Client", storage: Storage) -> None:
        # The generated types know neither memoryview bodies nor arguments that are put together.
        self._client: Any = client
        self._place = {"Bucket": storage.bucket, "ExpectedBucketOwner": storage.bucket_owner}
        self._encryption = {
            "ServerSideEncryption": "aws:kms",
            "SSEKMSKeyId": storage.kms_key_arn,
            "BucketKeyEnabled": True,
        }

    async def put(self, request: PutRequest, body: Buffer) -> ObjectFacts:
        return await self._put(request, body, IfNoneMatch="*")

    async def put_over(self, request: PutRequest, body: Buffer, over: str) -> None:
        with _gone():
            await self._put(request, body, IfMatch=over)

    async def _put(self, request: PutRequest, body: Buffer, **condition: str) -> ObjectFacts:
        try:
            with _edge(request.size_bytes):
                answer = await self._client.put_object(
                    **self._place,
                    **self._encryption,
                    **_described(request),
                    **condition,
                    Body=memoryview(body),
                    ChecksumCRC64NVME=request.crc64nvme,
                )
        except UploadLostError as error:  # 409: another write of this key was under way
            raise DestinationBusyError("two writes of one object met; it is sent again") from error
        return _facts(request.key, answer)

    async def create_multipart(self, request: PutRequest) -> str:
        with _edge():
            answer = await self._client.create_multipart_upload(
                **self._place, **self._encryption, **_described(request), ChecksumType="FULL_OBJECT"
            )
            upload_id: str = answer.get("UploadId") or ""
        if not upload_id:
            raise DestinationBusyError("the bucket began a multipart upload and did not name it")
        return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: Buffer, crc64nvme: str) -> PartFacts:
        view = memoryview(body)
        with _edge(view.nbytes):
            answer = await self._client.upload_part(
                **self._place,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                Body=view,
                ChecksumAlgorithm="CRC64NVME",
                ChecksumCRC64NVME=crc64nvme,
            )
        if not answer.get("ETag"):
            raise DestinationBusyError("the bucket took a part and did not name it")
        if answer.get("ChecksumCRC64NVME", crc64nvme) != crc64nvme:
            raise DestinationBusyError("the bucket took a part and names another checksum")
        return PartFacts(number, answer["ETag"], crc64nvme)

    async def complete_multipart(self, request: PutRequest, upload_id: str, parts: Sequence[PartFacts]) -> ObjectFacts:
        return await self._complete(request, upload_id, parts, IfNoneMatch="*")

    async def complete_over(self, request: PutRequest, upload_id: str, parts: Sequence[PartFacts], over: str) -> None:
        with _gone():
            await self._complete(request, upload_id, parts, IfMatch=over)

    async def _complete(
        self, request: PutRequest, upload_id: str, parts: Sequence[PartFacts], **condition: str
    ) -> ObjectFacts:
        listed = [{"PartNumber": part.number, "ETag": part.etag, "ChecksumCRC64NVME": part.crc64nvme} for part in parts]
        with _edge():
            answer = await self._client.complete_multipart_upload(
                **self._place,
                Key=request.key,
                UploadId=upload_id,
                MultipartUpload={"Parts": listed},
                **condition,
                ChecksumType="FULL_OBJECT",
                ChecksumCRC64NVME=request.crc64nvme,
                MpuObjectSize=request.size_bytes,
            )
        return _facts(request.key, answer)

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        with contextlib.suppress(UploadLostError), _edge():
            await self._client.abort_multipart_upload(**self._place, Key=key, UploadId=upload_id)

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        found: list[Unfinished] = []
        marker: dict[str, str] = {}
        while True:
            with _edge():
                page = await self._client.list_multipart_uploads(**self._place, Prefix=prefix, **marker)
                found += [Unfinished(upload["Key"], upload["UploadId"]) for upload in page.get("Uploads", [])]
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return found
            following = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}
            if following == marker:
                raise DestinationBusyError("the bucket's list of unfinished uploads has no end; it is read again later")
            marker = following

    async def head(self, key: str) -> ObjectFacts | None:
        return await self.head_version(key, None)

    async def head_version(self, key: str, version_id: str | None) -> ObjectFacts | None:
        version = {} if version_id is None else {"VersionId": version_id}
        try:
            with _edge(reading=True):
                answer = await self._client.head_object(**self._place, **version, Key=key, ChecksumMode="ENABLED")
        except _NothingThereError:
            return None
        return _facts(key, answer)

    async def read(self, key: str, offset: int, size_bytes: int) -> bytes:
        if size_bytes == 0:
            return b""
        try:
            with _edge(size_bytes, reading=True):
                answer = await self._client.get_object(
                    **self._place, Key=key, Range=f"bytes={offset}-{offset + size_bytes - 1}"
                )
                async with answer["Body"] as stream:
                    if answer.get("ContentLength", size_bytes + 1) > size_bytes:
                        raise DestinationBusyError("the bucket gives more of an object than it was asked for")
                    data: bytes = await stream.read()
        except _NothingThereError as error:
            raise DestinationBusyError("there is no such object, or no such part of it") from error
        return data

    async def delete(self, key: str) -> None:
        with _edge():
            await self._client.delete_object(**self._place, Key=key)

    # --- encrypted anew

    async def versions(self, prefix: str) -> AsyncIterator[Sequence[ObjectVersion]]:
        marker: dict[str, str] = {}
        while True:
            with _edge():
                page = await self._client.list_object_versions(**self._place, Prefix=prefix, **marker)
                found = [_version(each) for each in page.get("Versions", [])]
                found += [_version(each, is_marker=True) for each in page.get("DeleteMarkers", [])]
            yield found
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return
            following = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page.get("NextVersionIdMarker", "")}
            if following == marker:
                raise DestinationBusyError("the bucket's list of versions has no end; it is read again later")
            marker = following

    async def update_encryption(self, key: str) -> None:
        wanted = {"KMSKeyArn": self._encryption["SSEKMSKeyId"], "BucketKeyEnabled": True}
        with _edge():
            await self._client.update_object_encryption(**self._place, Key=key, ObjectEncryption={"SSEKMS": wanted})

    async def copy_over(self, request: PutRequest, over: str) -> None:
        with _gone(), _edge(request.size_bytes):
            await self._client.copy_object(
                **self._place,
                **self._encryption,
                **self._source(request.key, over),
                Key=request.key,
                IfMatch=over,
                MetadataDirective="COPY",
                ChecksumAlgorithm="CRC64NVME",
            )

    async def copy_part(
        self, key: str, upload_id: str, number: int, first: int, size_bytes: int, over: str
    ) -> PartFacts:
        with _gone(), _edge(size_bytes):
            answer = await self._client.upload_part_copy(
                **self._place,
                **self._source(key, over),
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                CopySourceRange=f"bytes={first}-{first + size_bytes - 1}",
            )
        part = answer.get("CopyPartResult", {})
        if not part.get("ETag") or not part.get("ChecksumCRC64NVME"):
            raise DestinationBusyError("the bucket copied a part and does not name it with its checksum")
        return PartFacts(number, part["ETag"], part["ChecksumCRC64NVME"])

    def _source(self, key: str, over: str) -> dict[str, Any]:
        return {
            "CopySource": {"Bucket": self._place["Bucket"], "Key": key},
            "CopySourceIfMatch": over,
            "ExpectedSourceBucketOwner": self._place["ExpectedBucketOwner"],
        }


def _described(request: PutRequest) -> dict[str, Any]:
    return {
        "Key": request.key,
        "ContentType": request.content_type,
        "Metadata": dict(request.metadata),
        "ChecksumAlgorithm": "CRC64NVME",
    }


def _facts(key: str, answer: Mapping[str, Any]) -> ObjectFacts:
    version = answer.get("VersionId")
    return ObjectFacts(
        key=key,
        size_bytes=answer.get("ContentLength"),
        etag=answer.get("ETag"),
        version_id=None if version == "null" else version,
        crc64nvme=answer.get("ChecksumCRC64NVME"),
        checksum_type=answer.get("ChecksumType"),
        encryption=answer.get("ServerSideEncryption"),
        kms_key_arn=answer.get("SSEKMSKeyId"),
        bucket_key=answer.get("BucketKeyEnabled"),
        metadata=answer.get("Metadata", {}),
        content_type=answer.get("ContentType"),
    )


def _version(listed: Mapping[str, Any], *, is_marker: bool = False) -> ObjectVersion:
    version = listed.get("VersionId") or "null"
    return ObjectVersion(listed["Key"], version, bool(listed.get("IsLatest")), is_marker=is_marker)


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    """Take "there is no such object" for what it means to a condition: it is not the one that was seen."""
    try:
        yield
    except DestinationBusyError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response.get("Error", {}).get("Code") == "NoSuchKey":
            raise ObjectExistsError("the object is gone") from error
        raise


class _NothingThereError(Exception):
    """404 or 416 to a request that only reads."""


@contextlib.contextmanager
def _edge(size_bytes: int = 0, *, reading: bool = False) -> Iterator[None]:
    """Bound one request in time; let only our own exceptions out.

    `reading` adds `_NothingThereError`, which its caller must expect.
    """
    try:
        with anyio.fail_after(PATIENCE_S + size_bytes / SLOWEST_BYTES_PER_S):
            yield
    except (ClientError, *_SILENCE) as error:
        forget_way(error)
        raise _ours(error, reading=reading) from error


def _ours(error: Exception, *, reading: bool) -> Exception:
    if isinstance(error, ClientError):
        return _translated(error, reading=reading)
    if isinstance(error, SSLError):
        message = "the bucket's certificate is not valid for its name; nothing was sent"
        return DestinationHeldError(HoldCode.DESTINATION_UNREACHABLE, message)
    if isinstance(error, _CREDENTIALS):
        message = "no credentials for the bucket could be found; nothing was sent"
        return DestinationHeldError(HoldCode.DESTINATION_ACCESS_DENIED, message)
    return DestinationBusyError(f"no answer from the bucket ({type(error).__name__}); it is tried again")


def _translated(error: ClientError, *, reading: bool) -> Exception:
    """Choose our exception for an answer of the bucket."""
    given: Mapping[str, Any] = error.response.get("Error", {})
    about: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    status = about.get("HTTPStatusCode", 0)
    headers: Mapping[str, str] = about.get("HTTPHeaders", {})
    code = str(given.get("Code", ""))
    said = code if _CODE.fullmatch(code) else "an unknown error"
    if code in LOST:
        return UploadLostError(said)
    if status == 412:
        return ObjectExistsError("the object's key is taken")
    hold = HOLDS.get(code) or (None if code in PATIENCE else HOLD_STATUSES.get(status))
    if hold is not None:
        return DestinationHeldError(hold, f"the bucket answered {said}; recordings wait until that is mended")
    if code in REFUSALS or (code == "InvalidArgument" and str(given.get("ArgumentName")).lower() == "key"):
        return DestinationRefusedError(f"the bucket answered {said}; the recording is kept here")
    if reading and status in {404, 416}:
        return _NothingThereError(said)
    return DestinationBusyError(
        f"the bucket answered {said}; it is tried again", retry_after_s=_retry_after_s(status, headers)
    )


def _retry_after_s(status: int, headers: Mapping[str, str]) -> float | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds, or a time by the answerer's own clock."""
    given = headers.get("retry-after", "").strip()
    if status not in _BUSY_STATUSES or not given:
        return None
    if given.isascii() and given.isdigit():
        return float(given[:9])
    until, there = _time(given), _time(headers.get("date"))
    return None if until is None else max(0.0, (until - (there or datetime.now(UTC))).total_seconds())


def _time(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
