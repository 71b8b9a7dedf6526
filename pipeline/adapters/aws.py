"""Open clients of AWS APIs: one long-lived client for each service and endpoint.

A client here never retries, never follows a redirect, and never logs what a service answered: retries belong to the
caller, a redirect could carry a recording to another host, and at DEBUG the libraries print data keys. One repetition
is aiohttp's own: a GET, HEAD, PUT or DELETE whose connection ends before any answer is sent once more, whole, on
another connection; create-only writes make that harmless.
"""

import contextlib
import functools
import ipaddress
import logging
import warnings
from collections.abc import AsyncIterator
from typing import Any, Literal
from urllib.parse import urlsplit

import botocore.auth
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession

from pipeline.settings import Endpoint

Service = Literal["s3", "kms", "sqs", "events"]

LOGGERS = ("botocore", "aiobotocore", "urllib3", "aiohttp", "boto3")
USER_AGENT = "recording-pipeline"
"""Said in full: putting botocore's own together took a tenth of the processor time of a small put."""
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
"""Longer than the longest poll of a queue (20 s)."""
CONNECTIONS = 64


def pin_loggers() -> None:
    """Keep the libraries' loggers at INFO or above, whatever the root logger is set to."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.INFO))


@contextlib.asynccontextmanager
async def open_client(
    service: Service, endpoint: Endpoint, *, connections: int = CONNECTIONS, read_timeout_s: float = READ_TIMEOUT_S
) -> AsyncIterator[Any]:
    """Open a client; its connections are closed at the end of the block.

    Gives an `S3Client`, `KMSClient`, `SQSClient` or `EventBridgeClient`.
    """
    pin_loggers()
    _sign_in_python()
    # An 8 MiB body is written in one call on purpose: anything else copies it.
    warnings.filterwarnings("ignore", message="Sending a large body directly", category=ResourceWarning)
    config = AioConfig(
        user_agent=USER_AGENT,
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1, "mode": "standard"},
        parameter_validation=False,  # refuses a memoryview, which is the one body that is not copied
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        http_session_cls=_OneHopSession,
        s3=_s3_options(endpoint),
    )
    given = endpoint.credentials
    creation = _session(endpoint.profile).create_client(
        service,
        region_name=endpoint.region,
        endpoint_url=endpoint.url,
        aws_access_key_id=given.access_key if given else None,
        aws_secret_access_key=given.secret_key if given else None,
        config=config,
    )
    async with creation as client:
        if service == "s3":
            client.meta.events.register_last("before-parameter-build.s3", _stay_in_region)
        yield client


@functools.cache
def _session(profile: str | None) -> AioSession:
    """Give the one session of a profile: it holds the APIs' models, which take a quarter of a second to load."""
    return AioSession(profile=profile)


def _s3_options(endpoint: Endpoint) -> dict[str, Any]:
    """Choose addressing and body signing.

    Every body of ours is covered by a signed CRC64NVME header, so its SHA-256 is signed as well only where somebody
    could stand between: plain HTTP to another machine.
    """
    if endpoint.url is None:
        return {"payload_signing_enabled": False}
    return {"addressing_style": "path", "payload_signing_enabled": not _is_private(endpoint.url)}


def _is_private(url: str) -> bool:
    """Tell whether nobody can change what is sent there: TLS, or this machine itself."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _sign_in_python() -> None:
    """Take botocore's own signer, also where `awscrt` is installed (we need that for checksums).

    The native signer copies each body and comes back for it in pieces of 4 KiB: twice the time for an 8 MiB part.
    """
    botocore.auth.AUTH_TYPE_MAPS.update({"v4": botocore.auth.SigV4Auth, "s3v4": botocore.auth.S3SigV4Auth})


def _stay_in_region(context: dict[str, Any], **_: object) -> None:
    """Keep botocore from looking for a bucket in other Regions: a bucket that is elsewhere is a hold."""
    context.get("s3_redirect", {})["redirected"] = True


class _OneHopSession(AIOHTTPSession):
    """The usual session, but an answer 3xx is an answer."""

    async def _get_session(self, proxy_url: str | None) -> "_OneHop":
        return _OneHop(await super()._get_session(proxy_url))  # type: ignore[misc]  # not in the stubs


class _OneHop:
    """An aiohttp session whose requests go to the host they were signed for, or nowhere."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def request(self, method: str, **options: Any) -> Any:
        return self._session.request(method, allow_redirects=False, **options)
