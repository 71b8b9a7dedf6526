"""Answers to requests that can't be served: RFC 9457 problem documents, from our errors by one table.

A problem names the field that was wrong and never repeats its value.
"""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from pipeline.errors import (
    DeferError,
    HoldError,
    LegalHoldError,
    NoSuchRecordError,
    PipelineError,
    RecordChangedError,
    RecordsDeniedError,
    RefuseError,
    StoppingError,
    StoreFullError,
    VolumeFailedError,
)


class Problem(Exception):  # noqa: N818  # it is an answer
    """A request that ends in an error answer."""

    def __init__(
        self,
        status: HTTPStatus,
        reason: str,
        detail: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})
        self.code = code

    def response(self) -> Response:
        """Make the answer. The connection is closed, since part of the request's body may still be on its way."""
        document = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "reason": self.reason,
            "detail": self.detail,
        }
        if self.field is not None:
            document["field"] = self.field
        if self.code is not None:
            document["code"] = self.code
        return Response(
            msgspec.json.encode(document),
            self.status.value,
            {"Connection": "close", **self.headers},
            "application/problem+json",
        )


def not_found(field: str | None = None) -> Problem:
    """Answer for everything a caller may not name, whether it exists or not."""
    return Problem(HTTPStatus.NOT_FOUND, "not-found", "There is nothing here for you.", field)


def unauthorized() -> Problem:
    """Answer to a missing or unknown token."""
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        "Give the instance's token, as Bearer or as the password of Basic.",
        headers={"WWW-Authenticate": 'Bearer realm="pipeline", Basic realm="pipeline"'},
    )


def too_large(limit: int, what: str) -> Problem:
    """Answer to a body over its limit."""
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"{what} may have at most {limit} bytes.")


def of(error: PipelineError) -> Problem:  # noqa: PLR0911 - a table
    """Translate one of our errors."""
    match error:
        case StoreFullError():
            return Problem(HTTPStatus.INSUFFICIENT_STORAGE, error.reason, str(error), headers={"Retry-After": "30"})
        case StoppingError() | VolumeFailedError():
            return _unavailable(error, 5)
        case RecordsDeniedError() | NoSuchRecordError() | RecordChangedError() | LegalHoldError():
            return _of_records(error)
        case HoldError():
            return _unavailable(error, 30, str(error.code))
        case DeferError():
            return _unavailable(error, 2)
        case RefuseError():
            return Problem(HTTPStatus.BAD_REQUEST, error.reason, str(error), error.field)
        case _:
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, error.reason, str(error))


def _of_records(error: RecordsDeniedError | NoSuchRecordError | RecordChangedError | LegalHoldError) -> Problem:
    if isinstance(error, RecordsDeniedError):
        return Problem(HTTPStatus.FORBIDDEN, error.reason, str(error), code=str(error.code))
    if isinstance(error, NoSuchRecordError):
        return not_found(error.field)
    if isinstance(error, LegalHoldError):
        return Problem(HTTPStatus.LOCKED, error.reason, str(error))
    return Problem(HTTPStatus.PRECONDITION_FAILED, error.reason, str(error))


def _unavailable(error: PipelineError, retry_after_s: int, reason: str | None = None) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        reason or error.reason,
        str(error),
        headers={"Retry-After": str(retry_after_s)},
    )
