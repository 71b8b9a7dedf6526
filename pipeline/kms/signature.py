"""Signature Version 4: which configured identity signed this request, if any did. No I/O.

The canonical request and the string to sign are botocore's own; only what a client may choose is taken from the
request: its SignedHeaders (Go signs `content-length`, botocore does not) and its date. The body is hashed here, never
believed. Query-string signatures and session tokens are not offered.
"""

import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import cast

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from pipeline.kms.principals import Identity
from pipeline.kms.refusal import KmsRefusalError

SKEW = timedelta(minutes=5)
_SERVICE = "kms"
_REQUIRED = {
    _SERVICE: frozenset({"host", "x-amz-target", "x-amz-date"}),
    "sts": frozenset({"host", "x-amz-date"}),  # names its operation in the body
}
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 +Credential=(\w{1,128})/(\d{8})/([a-z0-9-]+)/([a-z0-9]+)/aws4_request, *"
    r"SignedHeaders=([a-z0-9;_-]+), *Signature=([0-9a-f]{64})"
)
_DATE = re.compile(r"\d{8}T\d{6}Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class HttpCall:
    """A request as it came in."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, in the order and number they came in."""
    body: bytes
    source: str
    """The caller's network address."""

    def header(self, name: str) -> str | None:
        """Give the header's value; None if it is missing or was sent more than once."""
        values = [value for key, value in self.headers if key == name]
        return values[0] if len(values) == 1 else None


class Verifier:
    """Knows the identities, and tells which of them signed a request."""

    def __init__(self, identities: Iterable[Identity], region: str, now: Callable[[], datetime]) -> None:
        self._identities: Mapping[str, Identity] = {one.access_key: one for one in identities}
        self._region = region
        self._now = now

    def __repr__(self) -> str:
        return f"<Verifier of {len(self._identities)} identities>"

    def verify(self, call: HttpCall, service: str = _SERVICE) -> Identity:
        """Give the identity that signed the request, for this service.

        Raises: KmsRefusalError: MissingAuthenticationTokenException, IncompleteSignatureException,
        UnrecognizedClientException, InvalidSignatureException.
        """
        authorization = call.header("authorization")
        if authorization is None:
            raise KmsRefusalError("MissingAuthenticationTokenException", "Request is missing Authentication Token")
        parts = _AUTHORIZATION.fullmatch(authorization)
        if parts is None:
            raise KmsRefusalError("IncompleteSignatureException", "The Authorization header is not of its form.")
        access_key, day, region, scope, signed, signature = parts.groups()
        identity = self._identities.get(access_key)
        if identity is None or call.header("x-amz-security-token") is not None:
            message = "The security token included in the request is invalid."
            raise KmsRefusalError("UnrecognizedClientException", message)
        if (region, scope) != (self._region, service):
            raise _invalid(f"Credential should be scoped to {self._region}/{service}.")
        names = frozenset(signed.split(";"))
        required = _REQUIRED[service]
        if not names >= required:
            raise _invalid(f"The headers {', '.join(sorted(required))} must be signed.")
        stamp = self._checked_date(call.header("x-amz-date"), day)
        if not hmac.compare_digest(signature, _signature(identity, (self._region, service), stamp, names, call)):
            message = (
                "The request signature we calculated does not match the signature you provided. "
                "Check your AWS Secret Access Key and signing method."
            )
            raise _invalid(message)
        return identity

    def _checked_date(self, stamp: str | None, day: str) -> str:
        try:
            signed_at = datetime.fromisoformat(stamp) if stamp is not None and _DATE.fullmatch(stamp) else None
        except ValueError:
            signed_at = None
        if stamp is None or signed_at is None:
            raise KmsRefusalError("IncompleteSignatureException", "X-Amz-Date is missing or malformed.")
        if stamp[:8] != day:
            raise _invalid("The date of the credential's scope is not that of X-Amz-Date.")
        if signed_at < self._now() - SKEW:
            raise _invalid("Signature expired: X-Amz-Date is more than 5 minutes old.")
        if signed_at > self._now() + SKEW:
            raise _invalid("Signature not yet current: X-Amz-Date is more than 5 minutes ahead.")
        return stamp


class _Signer(SigV4Auth):
    """botocore's signer, told which headers were signed, and deriving a day's key once."""

    def __init__(self, identity: Identity, scope: tuple[str, str], headers: HTTPHeaders) -> None:
        region, service = scope
        super().__init__(Credentials(identity.access_key, identity.secret_key), service, region)
        self._headers = headers
        self._scope = scope
        self._secret_key = identity.secret_key

    def headers_to_sign(self, request: AWSRequest) -> HTTPHeaders:  # noqa: ARG002 - botocore's signature
        return self._headers

    def signature(self, string_to_sign: str, request: AWSRequest) -> str:
        key = _signing_key(self._secret_key, request.context["timestamp"][:8], self._scope)
        return hmac.new(key, string_to_sign.encode(), sha256).hexdigest()


@dataclass(slots=True)
class _Signable:
    """The few members of an AWSRequest that the signer reads; making a whole one takes longer than signing it."""

    method: str
    url: str
    headers: dict[str, str]
    context: dict[str, str]
    params: None = None


def _signature(identity: Identity, scope: tuple[str, str], stamp: str, names: frozenset[str], call: HttpCall) -> str:
    """Sign the request as its caller should have; `scope` is Region and service."""
    body_hash = sha256(call.body).hexdigest()
    # The signer would believe this header about the body.
    if call.header("x-amz-content-sha256") not in {None, body_hash}:
        raise _invalid("X-Amz-Content-SHA256 is not the hash of the body.")
    headers = HTTPHeaders()
    for name, value in call.headers:
        if name in names:
            headers[name] = value
    url = f"http://{_SERVICE}{call.path}?{call.query}"
    hashed = {"X-Amz-Content-SHA256": body_hash}
    request = cast("AWSRequest", _Signable(call.method, url, hashed, {"timestamp": stamp}))
    signer = _Signer(identity, scope, headers)
    return signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)


@lru_cache(maxsize=256)
def _signing_key(secret_key: str, day: str, scope: tuple[str, str]) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, *scope, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _invalid(message: str) -> KmsRefusalError:
    return KmsRefusalError("InvalidSignatureException", message)
