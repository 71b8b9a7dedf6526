"""Records by HTTP: `PUT`, `GET` and `DELETE` of one, `GET` and `POST` of a class.

Conditional by version, which is the `ETag`. Whatever is not the caller's own is absent. The values of a question are
personal: they stand in no log and in no answer but the records'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Meta, Struct
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope

from pipeline.errors import RefuseError
from pipeline.intake import problems
from pipeline.intake.address import RecordAddress
from pipeline.intake.body import take_body
from pipeline.intake.problems import Problem
from pipeline.records.classes import policy_of
from pipeline.records.drafts import ALWAYS, Condition, Draft
from pipeline.records.finding import is_json
from pipeline.records.sealing import BODY_LIMIT, Record
from pipeline.records.search import TEXT, SearchIndexes
from pipeline.records.shelves import Shelf, Shelves
from pipeline.records.store import PAGE, RecordStore
from pipeline.settings import HttpSettings
from pipeline.tenants import Tenant

log = structlog.get_logger()

BATCH_BYTES = 16 * 1024 * 1024
BATCH_LINES = 5000
_RESERVED = frozenset({"scope", "part", "after", "limit"})
_NO_STORE = {"Cache-Control": "no-store"}
_LATE = "The record did not arrive in time; nothing was taken."


class _Line(Struct, forbid_unknown_fields=True, rename="camel"):
    """One record of a batch."""

    id: Annotated[str, Meta(min_length=1)]
    data: msgspec.Raw
    part: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class RecordRoutes:
    """Answers requests for records."""

    settings: HttpSettings
    shelves: Shelves
    store: RecordStore
    search: SearchIndexes

    async def answer(
        self, tenant: Tenant, address: RecordAddress, scope: Scope, headers: Headers, receive: Receive
    ) -> Response | None:
        """Answer one request of a tenant, whose own the address is."""
        query = QueryParams(scope["query_string"])
        response = None
        try:
            shelf = self._shelf(tenant, address, query)
            if address.record_id is None:
                response = await self._of_class(tenant, shelf, scope["method"], query, headers, receive)
            else:
                record_id = address.record_id
                response = await self._of_one(tenant, shelf, record_id, scope["method"], query, headers, receive)
        finally:
            status = None if response is None else response.status_code
            log.debug("http.request", route=address.route, method=scope["method"], status=status)
        return response

    def _shelf(self, tenant: Tenant, address: RecordAddress, query: QueryParams) -> Shelf:
        try:
            policy_of(address.data_class)
        except RefuseError:
            raise problems.not_found("class") from None
        return self.shelves.get(tenant.instance.instance_id, address.data_class, query.get("scope"))

    async def _of_one(
        self,
        tenant: Tenant,
        shelf: Shelf,
        record_id: str,
        method: str,
        query: QueryParams,
        headers: Headers,
        receive: Receive,
    ) -> Response | None:
        match method:
            case "PUT":
                return await self._put(tenant, shelf, record_id, query, headers, receive)
            case "GET":
                record = await self.store.get(tenant.instance, shelf, record_id)
                if record is None:
                    raise problems.not_found()
                return _given(record, headers)
            case "DELETE":
                if not await self.store.delete(tenant.instance, shelf, record_id, condition_of(headers)):
                    raise problems.not_found()
                return Response(status_code=HTTPStatus.NO_CONTENT)
            case _:
                raise _not_allowed("GET, PUT, DELETE")

    async def _put(
        self,
        tenant: Tenant,
        shelf: Shelf,
        record_id: str,
        query: QueryParams,
        headers: Headers,
        receive: Receive,
    ) -> Response | None:
        content_type = headers.get("content-type", "application/json")
        if len(content_type) > 256 or not content_type.isprintable():
            raise RefuseError("a media type is expected", field="Content-Type")
        body = await self._body(headers, receive, BODY_LIMIT, "A record")
        if body is None:
            return None
        subject = headers.get("x-record-subject")
        draft = Draft(
            id=record_id, body=body, content_type=content_type, part=query.get("part"), subject=subject or None
        )
        version = await self.store.put(tenant.instance, shelf, draft, condition_of(headers))
        status = HTTPStatus.CREATED if version == 1 else HTTPStatus.OK
        return _json({"version": version}, status, {"ETag": f'"{version}"'})

    async def _of_class(
        self, tenant: Tenant, shelf: Shelf, method: str, query: QueryParams, headers: Headers, receive: Receive
    ) -> Response | None:
        match method:
            case "GET":
                return await self._question(tenant, shelf, query)
            case "POST":
                body = await self._body(headers, receive, BATCH_BYTES, "A batch")
                if body is None:
                    return None
                versions = await self.store.put_all(tenant.instance, shelf, drafts_of(body))
                return _json({"taken": len(versions), "new": versions.count(1)}, HTTPStatus.OK)
            case _:
                raise _not_allowed("GET, POST")

    async def _question(self, tenant: Tenant, shelf: Shelf, query: QueryParams) -> Response:
        """Find by one index, or list."""
        limit = _whole(query, "limit", PAGE, PAGE)
        asked = [name for name in query if name not in _RESERVED]
        if len(query.multi_items()) != len(query) or len(asked) > 1:
            raise RefuseError("one question at a time", field="query")
        if asked:
            name, value = asked[0], query[asked[0]]
            if name == TEXT:
                found = await self.search.search(tenant.instance, shelf, value, limit)
            else:
                found = await self.store.find(tenant.instance, shelf, name, value, limit)
            return _json({"records": [_document(each, with_data=True) for each in found]})
        after = _whole(query, "after", 0, 2**62)
        listed, goes_on = await self.store.page(tenant.instance, shelf, after, limit)
        return _json(
            {"records": [_document(each, with_data=False) for each in listed]} | ({"next": goes_on} if goes_on else {})
        )

    async def _body(self, headers: Headers, receive: Receive, limit: int, what: str) -> bytes | None:
        patience = self.settings.body_idle
        return await take_body(headers, receive, limit=limit, patience=patience, what=what, late=_LATE)


def condition_of(headers: Headers) -> Condition:
    """Read `If-Match` and `If-None-Match`.

    Raises:
        RefuseError: neither `*` nor one version in quotes.

    """
    match, none = headers.get("if-match"), headers.get("if-none-match")
    if match is None and none is None:
        return ALWAYS
    if match is not None and none is not None:
        raise RefuseError("one condition at a time", field="If-None-Match")
    if none is not None:
        if none.strip() != "*":
            raise RefuseError("only * can be asked for here", field="If-None-Match")
        return Condition(version=0)
    text = (match or "").strip()
    if text == "*":
        return Condition(present=True)
    digits = text.removeprefix('"').removesuffix('"')
    if text != f'"{digits}"' or not (digits.isascii() and digits.isdigit() and 0 < len(digits) < 18):
        raise RefuseError("a version in quotes is expected, as ETag has it", field="If-Match")
    return Condition(version=int(digits) or -1)


def drafts_of(body: bytes) -> list[Draft]:
    """Read a batch: one JSON object a line.

    Raises:
        RefuseError: with the number of the line, from 0, and what is wrong there.

    """
    drafts: list[Draft] = []
    for number, line in enumerate(body.splitlines()):
        if not line.strip():
            continue
        if len(drafts) == BATCH_LINES:
            raise RefuseError(f"a batch has at most {BATCH_LINES} records")
        try:
            given = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RefuseError("an object with id, data and perhaps part is expected", field=f"[{number}]") from None
        drafts.append(Draft(id=given.id, body=bytes(given.data), part=given.part, subject=given.subject))
    return drafts


def _given(record: Record, headers: Headers) -> Response:
    etag = f'"{record.version}"'
    if headers.get("if-none-match", "").strip() == etag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=_NO_STORE | {"ETag": etag})
    more = {"ETag": etag, "X-Content-Type-Options": "nosniff"} | ({"X-Record-Part": record.part} if record.part else {})
    return Response(record.body, HTTPStatus.OK, _NO_STORE | more, record.content_type)


def _document(record: Record, *, with_data: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": record.id,
        "version": record.version,
        "contentType": record.content_type,
        "putAt": record.put_at,
        "sizeBytes": len(record.body),
    }
    if record.part:
        document["part"] = record.part
    if with_data and is_json(record.content_type):
        document["data"] = msgspec.Raw(record.body)
    return document


def _json(
    document: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(msgspec.json.encode(document), status, _NO_STORE | dict(headers or {}), "application/json")


def _whole(query: QueryParams, name: str, default: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise RefuseError(f"a whole number up to {most}", field=name)
    return int(text)


def _not_allowed(allowed: str) -> Problem:
    detail = f"{allowed} only."
    return Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method", detail, headers={"Allow": allowed})
