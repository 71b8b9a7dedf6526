"""One person's data by HTTP: `POST` of who it is, in a body, since an address would be kept by others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import anyio.to_thread
import msgspec
from msgspec import Struct
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive

from pipeline.errors import RefuseError
from pipeline.intake import problems
from pipeline.intake.body import take_body
from pipeline.intake.problems import Problem
from pipeline.records.scopes import DEFAULT
from pipeline.records.subjects import Subjects
from pipeline.settings import HttpSettings
from pipeline.tenants import Tenant

T = TypeVar("T")

_LIMIT = 64 * 1024


class _OptOut(Struct, forbid_unknown_fields=True, rename={"data_class": "class"}):
    subject: str
    data_class: str = "voiceid"
    scope: str = DEFAULT


@dataclass(frozen=True, slots=True)
class SubjectRoutes:
    """Answers requests about one person."""

    settings: HttpSettings
    subjects: Subjects
    backups: Callable[[], Sequence[str]]
    """The backups that may hold a copy. Blocks; raises `RefuseError` if nobody can tell."""

    async def answer(
        self, tenant: Tenant, asked: str, method: str, headers: Headers, receive: Receive
    ) -> Response | None:
        """Answer one request of a tenant."""
        if asked not in {"export", "erase", "opt-out"}:
            raise problems.not_found()
        if method != "POST":
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method", "POST only.", headers={"Allow": "POST"})
        late = "The request did not arrive in time; nothing was done."
        body = await take_body(
            headers, receive, limit=_LIMIT, patience=self.settings.body_idle, what="A subject", late=late
        )
        if body is None:
            return None
        caller = tenant.instance
        if asked == "opt-out":
            wanted = _decoded(body, _OptOut)
            shelf = self.subjects.shelves.get(caller.instance_id, wanted.data_class, wanted.scope)
            answer = await self.subjects.opt_out(caller, shelf, wanted.subject, await self._backups())
        elif asked == "erase":
            answer = await self.subjects.erase(caller, _decoded(body, dict[str, list[str]]), await self._backups())
        else:
            answer = await self.subjects.export(caller, _decoded(body, dict[str, list[str]]))
        return Response(msgspec.json.encode(answer), HTTPStatus.OK, {"Cache-Control": "no-store"}, "application/json")

    async def _backups(self) -> Sequence[str]:
        return await anyio.to_thread.run_sync(self.backups)


def _decoded(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RefuseError("not as it is documented", field="subject") from None
