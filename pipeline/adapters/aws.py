"""Open clients of AWS APIs: one long-lived client for each service and endpoint.

A client here never retries, never follows a redirect, and never logs what a service answered: retries belong to the
caller, a redirect could carry a recording to another host, and at DEBUG the libraries print data keys. One repetition
is aiohttp's own: a GET, HEAD, PUT or DELETE whose connection ends before any answer is sent once more, whole, on
another connection; create-only writes make that harmless.

Credentials that a service calls expired are fetched anew, those that could not be fetched are fetched with the next
request, and a request that was refused for its time is followed by ones with the server's.
"""

import contextlib
import functools
import ipaddress
import logging
import ssl
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from urllib.parse import urlsplit

import aiohttp
import anyio
import botocore.auth
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import BytesPayload
from botocore import handlers
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError
from botocore.httpsession import create_urllib3_context, get_cert_path

from pipeline.settings import Credentials, Endpoint

Service = Literal["s3", "kms", "sqs", "events", "sts"]

LOGGERS = ("botocore", "aiobotocore", "urllib3", "aiohttp", "boto3")
USER_AGENT = "recording-pipeline"
"""Said in full: putting botocore's own together took a tenth of the processor time of a small put."""
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
"""Longer than the longest poll of a queue (20 s)."""
CONNECTIONS = 256
"""As many as there may be: an upload that waits for one would wait in vain for a bucket that does not answer."""
EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidAccessKeyId", "InvalidClientTokenId"}
)
"""Codes by which a service says that the credentials were good once."""
OUT_OF_TIME = frozenset({"RequestTimeTooSkewed", "RequestExpired", "InvalidSignatureException", "AuthFailure", "403"})
"""Codes by which a service may say that the request's time is not its own."""
SKEW = timedelta(minutes=4)
"""Less is not the reason: AWS allows 5 minutes, S3 15. No request takes as long."""
_NEEDLESS = frozenset(
    {
        handlers.add_expect_header,  # for files
        handlers.add_recursion_detection_header,  # of Lambda
        handlers.add_retry_headers,
        handlers.convert_body_to_file_like_object,  # copies
        handlers.inject_api_version_header_if_needed,  # of endpoint discovery
        handlers.sse_md5,  # of customers' own keys
    }
)
"""What botocore asks itself at each request and has no occasion for here; each costs a small put its share."""
_JOINED_BYTES = 256 * 1024
"""Bodies up to here are sent together with their head: copying costs less than one more write."""
_UNSIGNED = frozenset(botocore.auth.SIGNED_HEADERS_BLACKLIST)
_FROM_CHAIN = Credentials("chain", "chain")
"""Stands in for the chain's while a client is made: it must come to be also when they can't be had yet."""
_NO_CREDENTIALS = (BotoCoreError, ClientError, aiohttp.ClientError, OSError, ValueError, LookupError)


def pin_loggers() -> None:
    """Keep the libraries' loggers at INFO or above, whatever the root logger is set to."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.INFO))


class CredentialSource(Protocol):
    """Where a client's credentials come from, where that is neither the settings nor AWS's own chain."""

    async def get_frozen_credentials(self) -> Any:
        """Give what the next request is signed with."""
        ...

    def learn(self, parsed: dict[str, Any], **_: object) -> None:
        """Take note of an answer: it may say that the credentials are over."""
        ...


@contextlib.asynccontextmanager
async def open_client(
    service: Service,
    endpoint: Endpoint,
    *,
    source: CredentialSource | None = None,
    connections: int = CONNECTIONS,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> AsyncIterator[Any]:
    """Open a client; its connections are closed at the end of the block. `source` goes before the endpoint's own.

    Gives an `S3Client`, `KMSClient`, `SQSClient`, `EventBridgeClient` or `STSClient`.
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
    given = _FROM_CHAIN if source is not None else endpoint.credentials or _FROM_CHAIN
    creation = _session(endpoint.profile).create_client(
        service,
        region_name=endpoint.region,
        endpoint_url=endpoint.url,
        aws_access_key_id=given.access_key,
        aws_secret_access_key=given.secret_key,
        config=config,
    )
    async with creation as client:
        service_id = client.meta.service_model.service_id.hyphenize()
        client.meta.events.unregister(f"needs-retry.{service_id}", unique_id=f"retry-config-{service_id}")
        answered = f"after-call.{service_id}"
        client.meta.events.register(answered, _learn_time)
        if given is _FROM_CHAIN:
            chain = source or _Chain(_session(endpoint.profile))
            client._request_signer._credentials = chain  # noqa: SLF001  # there is no other way in
            client.meta.events.register(answered, chain.learn)
        if service == "s3":
            client.meta.events.register_last("before-parameter-build.s3", _stay_in_region)
            _remember_endpoints(client)
        yield client


@functools.cache
def _session(profile: str | None) -> AioSession:
    """Give the one session of a profile: it holds the APIs' models, which take a quarter of a second to load."""
    session = AioSession(profile=profile, include_builtin_handlers=False)
    events = session.get_component("event_emitter")
    register = {
        None: events.register,
        handlers.REGISTER_FIRST: events.register_first,
        handlers.REGISTER_LAST: events.register_last,
    }
    for event, handler, *when in handlers.BUILTIN_HANDLERS:
        if handler not in _NEEDLESS and _concerns_us(event):
            register[when[0] if when else None](event, handler)
    return session


def _concerns_us(event: str) -> bool:
    """Leave out documentation and the services that are not used: each client copies all that its session knows."""
    happens, _, to_whom = event.partition(".")
    return happens != "docs" and (not to_whom or to_whom.partition(".")[0] in {"*", *get_args(Service)})


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


class _Chain:
    """AWS's own chain of credentials (variables, profile, role), asked again as long as it gives none or old ones."""

    def __init__(self, session: AioSession) -> None:
        self._session = session
        self._known: Any = None
        self._turn = anyio.Lock(fast_acquire=True)

    async def get_frozen_credentials(self) -> Any:
        """Give what a request is signed with; botocore asks before each.

        Raises:
            NoCredentialsError: there are none.
            CredentialRetrievalError: their source (STS, the instance's metadata, a process) does not give them now.

        """
        try:
            async with self._turn:
                if self._known is None:
                    self._known = await self._session.get_component("credential_provider").load_credentials()
                known = self._known
            frozen = None if known is None else await known.get_frozen_credentials()
        except _NO_CREDENTIALS as error:
            raise CredentialRetrievalError(provider="chain", error_msg=type(error).__name__) from error
        if frozen is None:
            raise NoCredentialsError
        return frozen

    def learn(self, parsed: dict[str, Any], **_: object) -> None:
        """Let what a service calls expired be fetched anew."""
        if parsed.get("Error", {}).get("Code") in EXPIRED:
            self._known = None


_ahead: dict[str, timedelta] = {}
"""By host and port: how far its clock is ahead of ours, once it has refused a request for that."""


def _learn_time(http_response: Any, parsed: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    """Take note of a server's time if it refused a request for its own, and say so where the server could not."""
    if http_response.status_code not in {400, 403} or parsed.get("Error", {}).get("Code") not in OUT_OF_TIME:
        return
    try:
        there = parsedate_to_datetime(http_response.headers.get("date", ""))
        signed = datetime.strptime(context["timestamp"], botocore.auth.SIGV4_TIMESTAMP).replace(tzinfo=UTC)
        skew = abs(there - signed)
    except (LookupError, TypeError, ValueError):  # a request that was not signed; no time, or one without a zone
        return
    if skew > SKEW:
        _ahead[urlsplit(http_response.url).netloc] = there - datetime.now(UTC)
        parsed["Error"]["Code"] = "RequestTimeTooSkewed"  # an answer to HEAD has no body to say it


_hosts: dict[str, str] = {}
"""By the beginning of a URL: what its requests name as their host."""


class _TimedSigner:
    """Signs with the time of the server, where that is known to be another. Goes before a signer of botocore's.

    One signer signs one request.
    """

    _to_sign: Any = None

    def _modify_request_before_signing(self, request: Any) -> None:
        if _ahead and (ahead := _ahead.get(urlsplit(request.url).netloc)):
            request.context["timestamp"] = (datetime.now(UTC) + ahead).strftime(botocore.auth.SIGV4_TIMESTAMP)
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # of the signer behind

    def headers_to_sign(self, request: Any) -> Any:
        """Choose the headers once, though botocore asks twice, and into what is not searched through for each."""
        if self._to_sign is None:
            named = {name.lower(): value for name, value in request.headers.items()}
            there = "/".join(request.url.split("/", 3)[:3])
            if there not in _hosts:
                _hosts[there] = super().headers_to_sign(request)["host"]  # type: ignore[misc]  # of the signer behind
            named["host"] = _hosts[there]
            self._to_sign = _Headers(item for item in named.items() if item[0] not in _UNSIGNED)
        return self._to_sign


class _Headers(dict[str, str]):
    """Headers of which each comes once, as SigV4 asks for them."""

    def get_all(self, name: str) -> list[str]:
        return [self[name]]


class _Signer(_TimedSigner, botocore.auth.SigV4Auth):
    pass


class _S3Signer(_TimedSigner, botocore.auth.S3SigV4Auth):
    pass


def _sign_in_python() -> None:
    """Take botocore's own signer, also where `awscrt` is installed (we need that for checksums).

    The native signer copies each body and comes back for it in pieces of 4 KiB: twice the time for an 8 MiB part.
    """
    botocore.auth.AUTH_TYPE_MAPS.update({"v4": _Signer, "s3v4": _S3Signer})


def _remember_endpoints(client: Any) -> None:
    """Work out once for each operation and bucket where its requests go, not once for each request.

    Nothing else decides it here: no access points, no redirects to other Regions, one endpoint for each client.
    """
    resolver = client._ruleset_resolver  # noqa: SLF001  # there is no other way in
    resolve = resolver.construct_endpoint
    known: dict[tuple[str, str | None], Any] = {}

    async def remembered(operation_model: Any, call_args: Any, request_context: Any) -> Any:
        place = operation_model.name, (call_args or {}).get("Bucket")
        if (found := known.get(place)) is None:
            found = known[place] = await resolve(operation_model, call_args, request_context)
        return found

    resolver.construct_endpoint = remembered


def _stay_in_region(context: dict[str, Any], **_: object) -> None:
    """Keep botocore from looking for a bucket in other Regions: a bucket that is elsewhere is a hold."""
    context.get("s3_redirect", {})["redirected"] = True


@functools.lru_cache(maxsize=4)
def _trusting(bundle: str, _changed_ns: int) -> ssl.SSLContext:
    """Give the one context for a bundle of certificates: one for each client takes 44 ms and 0.7 MB."""
    context: ssl.SSLContext = create_urllib3_context()
    context.check_hostname = True
    context.load_verify_locations(bundle)
    return context


class _OneHopSession(AIOHTTPSession):
    """The usual session, but an answer 3xx is an answer, and all sessions share what they check certificates with."""

    _verify: bool | str
    _cert_file: str | None

    def _build_ssl_contexts(self, proxy_url: str | None) -> tuple[ssl.SSLContext, ssl.SSLContext | None]:
        bundle = get_cert_path(self._verify)  # type: ignore[arg-type]  # its path is taken as well
        if bundle is None or proxy_url or self._cert_file:
            return super()._build_ssl_contexts(proxy_url)  # type: ignore[misc,no-any-return]  # not in the stubs
        return _trusting(bundle, Path(bundle).stat().st_mtime_ns), None

    async def _get_session(self, proxy_url: str | None) -> "_OneHop":
        return _OneHop(await super()._get_session(proxy_url))  # type: ignore[misc]  # not in the stubs


class _Apart(BytesPayload):
    """A body that is sent behind its head: aiohttp would copy it to send both at once."""

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        writer.send_headers()
        await super().write_with_length(writer, content_length)


class _OneHop:
    """An aiohttp session whose requests go to the host they were signed for, or nowhere."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def request(self, method: str, **options: Any) -> Any:
        body = options.get("data")
        if isinstance(body, memoryview) and body.nbytes > _JOINED_BYTES:
            options["data"] = _Apart(body)
        return self._session.request(method, allow_redirects=False, **options)
