"""Who may write: one token per instance, kept as a hash; and how fast.

A token says which instance its bearer is. Everything else is absent for it, so an answer never tells what exists.
"""

import binascii
import hashlib
import hmac
from base64 import b64decode
from collections.abc import Iterable
from http import HTTPStatus

from pipeline.ids import InstanceId
from pipeline.instances import Instance, Limits
from pipeline.intake.problems import Problem, unauthorized
from pipeline.ports import Clock


def token_of(authorization: str | None) -> str:
    """Read the token from `Authorization`: Bearer, or the password of Basic (all that some recorders can send).

    Raises:
        Problem: 401, there is none.

    """
    scheme, _, value = (authorization or "").partition(" ")
    match scheme.lower():
        case "bearer":
            token = value.strip()
        case "basic":
            try:
                token = b64decode(value.strip(), validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                token = ""
        case _:
            token = ""
    if not token:
        raise unauthorized()
    return token


def bearer(token: str, instances: Iterable[Instance]) -> InstanceId:
    """Find the instance whose token this is.

    Raises:
        Problem: 401, nobody's.

    """
    presented = hashlib.sha256(token.encode()).hexdigest()
    found: InstanceId | None = None
    for instance in instances:
        for known in instance.token_sha256:
            if hmac.compare_digest(presented, known):
                found = instance.instance_id
    if found is None:
        raise unauthorized()
    return found


class RateLimit:
    """A token bucket per instance."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[InstanceId, tuple[float, float]] = {}

    def take(self, instance: InstanceId, limits: Limits) -> None:
        """Count one request.

        Raises:
            Problem: 429 with the time after which another is welcome.

        """
        now = self._clock.monotonic()
        left, then = self._buckets.get(instance, (float(limits.burst), now))
        left = min(float(limits.burst), left + (now - then) * limits.requests_per_s)
        if left < 1:
            self._buckets[instance] = (left, now)
            wait = max(1, round((1 - left) / limits.requests_per_s))
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate-limit",
                "This instance sends more requests than its limit allows.",
                headers={"Retry-After": str(wait)},
            )
        self._buckets[instance] = (left - 1, now)
