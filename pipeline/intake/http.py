"""The HTTP intake: `PUT` and `HEAD` of recordings, `POST` of events, records, and two health pages for anybody.

Bodies are read from `receive` as they come and never spooled. 2xx is sent only when what it stands for is durable. A
body that breaks off gets no answer: its artifact stays open, and `HEAD` tells where to go on.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from pipeline.errors import PipelineError, StoppingError, WriterClosedError
from pipeline.intake import problems
from pipeline.intake.access import RateLimit, bearer, token_of
from pipeline.intake.address import parse_address, parse_record_address, parse_subject_address
from pipeline.intake.body import take_body
from pipeline.intake.claims import Claims, read_claims
from pipeline.intake.events import EventIntake, ForeignInstanceError
from pipeline.intake.problems import Problem
from pipeline.intake.reception import Reception, Source
from pipeline.intake.recorder import Recorder, WrongOffsetError
from pipeline.intake.records import RecordRoutes
from pipeline.intake.subjects import SubjectRoutes
from pipeline.intake.unrepeated import Unrepeated
from pipeline.ports import Clock
from pipeline.settings import HttpSettings
from pipeline.tenants import Tenant, Tenants

_DISCONNECT = "http.disconnect"


class HealthReport(Protocol):
    """What the service says of itself. Nothing in it is anybody's."""

    @property
    def is_ready(self) -> bool:
        """Whether recordings may be sent here."""
        ...

    def text(self) -> str:
        """Tell it line by line."""
        ...

    def document(self) -> dict[str, Any]:
        """Tell it as JSON."""
        ...


class HttpIntake:
    """The ASGI application."""

    def __init__(
        self,
        *,
        settings: HttpSettings,
        tenants: Tenants,
        recorder: Recorder,
        events: EventIntake,
        records: RecordRoutes,
        subjects: SubjectRoutes,
        limits: RateLimit,
        clock: Clock,
        is_ready: Callable[[], bool],
        report: Callable[[], HealthReport],
        unrepeated: Unrepeated,
    ) -> None:
        self._settings = settings
        self._tenants = tenants
        self._recorder = recorder
        self._events = events
        self._records = records
        self._subjects = subjects
        self._limits = limits
        self._clock = clock
        self._is_ready = is_ready
        self._report = report
        self._unrepeated = unrepeated
        self.stopping = False
        """Set by the service when it goes down: what is in hand may end, nothing new begins."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        try:
            response = await self._answer(scope, receive)
        except Problem as problem:
            response = problem.response()
        except ForeignInstanceError as error:
            response = problems.not_found(error.field).response()
        except PipelineError as error:
            response = problems.of(error).response()
        if response is not None:
            await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        path, method = scope["path"], scope["method"]
        if method in {"GET", "HEAD"} and path in {"/livez", "/readyz"}:
            return self._health(scope)
        headers = Headers(scope=scope)
        token = token_of(headers.get("authorization"))
        tenant = self._tenants[bearer(token, self._tenants.instances())]
        if self.stopping or not self._is_ready():
            raise problems.of(StoppingError("The service is starting or stopping; ask again in a moment."))
        self._limits.take(tenant.instance.instance_id, tenant.instance.limits)
        if path == "/v1/events" and method == "POST":
            return await self._post_events(tenant, headers, receive)
        record, person = parse_record_address(scope["raw_path"]), parse_subject_address(scope["raw_path"])
        named = record.instance_id if record is not None else person[0] if person is not None else None
        if named not in {None, tenant.instance.instance_id}:
            raise problems.not_found()
        if record is not None:
            return await self._records.answer(tenant, record, scope, headers, receive)
        if person is not None:
            return await self._subjects.answer(tenant, person[1], method, headers, receive)
        return await self._of_recording(tenant, scope, headers, receive)

    def _health(self, scope: Scope) -> Response:
        """Answer for a load balancer by the status, for a person line by line, for a program as JSON."""
        if scope["path"] == "/livez":
            return PlainTextResponse("ok\n")
        report = self._report()
        status = HTTPStatus.OK if report.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        headers = {"Cache-Control": "no-store"} | ({} if report.is_ready else {"Retry-After": "1"})
        if "application/json" in Headers(scope=scope).get("accept", ""):
            return Response(msgspec.json.encode(report.document()), status, headers, "application/json")
        if "verbose" in QueryParams(scope["query_string"]):
            return PlainTextResponse(report.text(), status, headers)
        return PlainTextResponse("ok\n" if report.is_ready else "not ready\n", status, headers)

    # --- recordings

    async def _of_recording(self, tenant: Tenant, scope: Scope, headers: Headers, receive: Receive) -> Response | None:
        address = parse_address(scope["raw_path"])
        if address is None or address.instance_id != tenant.instance.instance_id:
            raise problems.not_found()
        if address.kind not in tenant.instance.storage:
            raise problems.not_found()
        claims = read_claims(headers, address)
        match scope["method"]:
            case "PUT":
                return await self._put(tenant, claims, receive)
            case "HEAD":
                return await self._head(tenant, claims.source)
            case _:
                raise Problem(
                    HTTPStatus.METHOD_NOT_ALLOWED, "method", "PUT or HEAD only.", headers={"Allow": "PUT, HEAD"}
                )

    async def _head(self, tenant: Tenant, source: Source) -> Response:
        offset = await self._recorder.offset(tenant, source.kind, source.source_id)
        if offset is None:
            raise problems.not_found()
        return Response(headers={"Upload-Offset": str(offset), "Cache-Control": "no-store"})

    async def _put(self, tenant: Tenant, claims: Claims, receive: Receive) -> Response | None:
        limit = tenant.instance.limits.recording_bytes
        if claims.size_bytes is not None and claims.size_bytes > limit:
            raise problems.too_large(limit, "A recording")
        if claims.resumes_at is None:
            reception = await self._recorder.begin(tenant, claims.source)
        else:
            reception = await self._resume(tenant, claims.source, claims.resumes_at)
        try:
            if not await self._take_body(reception, receive, limit):
                return None
            answer = await self._recorder.finish(reception, claims.sha256)
        finally:
            await self._recorder.let_go(reception)
        return Response(msgspec.json.encode(answer), HTTPStatus.CREATED, media_type="application/json")

    async def _resume(self, tenant: Tenant, source: Source, offset: int) -> Reception:
        try:
            return await self._recorder.resume(tenant, source, offset)
        except WrongOffsetError as error:
            raise Problem(
                HTTPStatus.CONFLICT, error.reason, str(error), error.field, {"Upload-Offset": str(error.offset)}
            ) from error

    async def _take_body(self, reception: Reception, receive: Receive, limit: int) -> bool:
        """Receive a body to its end; False if its source broke it off.

        Raises:
            StoppingError, WriterClosedError: it was broken off here. What came is durable soon: `let_go` sees to it.

        """
        with reception.scope:
            while True:
                message: Message = await receive()
                if message["type"] == _DISCONNECT:
                    return False
                if body := message.get("body", b""):
                    if reception.size_bytes + len(body) > limit:
                        await self._recorder.refuse(reception)
                        raise problems.too_large(limit, "A recording")
                    await reception.append(body, self._clock.monotonic())
                if not message.get("more_body", False):
                    return True
        if self.stopping:
            raise StoppingError("The service is stopping; ask for the upload's offset soon and go on from there.")
        raise WriterClosedError("this upload was broken off here; ask for its offset and go on from there")

    # --- events

    async def _post_events(self, tenant: Tenant, headers: Headers, receive: Receive) -> Response | None:
        body = await take_body(
            headers,
            receive,
            limit=self._settings.event_bytes,
            patience=self._settings.body_idle,
            what="A body of events",
            late="The events did not arrive in time; none was taken.",
        )
        if body is None:
            return None
        count = await self._events.take(tenant, body)
        return Response(msgspec.json.encode({"accepted": count}), HTTPStatus.ACCEPTED, media_type="application/json")
