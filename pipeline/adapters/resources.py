"""Make keys and buckets, by the KMS and S3 APIs: for the embedded servers, whose operator nobody else is.

Nothing is retried. Every refusal and every silence is a `DeferError`: nothing of a tenant's is touched by it.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pipeline.errors import DeferError

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient
    from types_aiobotocore_s3 import S3Client

_OURS = "BucketAlreadyOwnedByYou"
_SILENCE = (BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError, ValueError, LookupError, RecursionError)


async def make_key(client: "KMSClient", *, description: str, policy: str) -> str:
    """Make a symmetric key; give back its full ARN."""
    with _translating("the key server"):
        made = await client.create_key(Description=description, Policy=policy)
        return made["KeyMetadata"]["Arn"]


async def make_bucket(client: "S3Client", name: str) -> None:
    """Make a bucket; nothing happens if it is ours already."""
    with _translating("the bucket server"):
        try:
            await client.create_bucket(Bucket=name)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != _OURS:
                raise


@contextlib.contextmanager
def _translating(who: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise DeferError(f"{who} refused to make what was asked (HTTP {status})") from error
    except _SILENCE as error:
        raise DeferError(f"{who} did not answer. Is the service running?") from error
