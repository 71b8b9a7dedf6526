"""Small bodies, received whole into memory. Nothing is spooled."""

from datetime import timedelta
from http import HTTPStatus

import anyio
from starlette.datastructures import Headers
from starlette.types import Receive

from pipeline.intake import problems
from pipeline.intake.claims import declared_length
from pipeline.intake.problems import Problem


async def take_body(
    headers: Headers, receive: Receive, *, limit: int, patience: timedelta, what: str, late: str
) -> bytes | None:
    """Receive a body; None if it broke off.

    Raises:
        Problem: 413, it has more than `limit` bytes; 408, it did not arrive in time.

    """
    if (declared_length(headers) or 0) > limit:
        raise problems.too_large(limit, what)
    body: bytes | None = None
    with anyio.move_on_after(patience.total_seconds()) as deadline:
        body = await _whole_body(receive, limit, what)
    if deadline.cancelled_caught:
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, "slow", late)
    return body


async def _whole_body(receive: Receive, limit: int, what: str) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            raise problems.too_large(limit, what)
        if not message.get("more_body", False):
            return bytes(body)
