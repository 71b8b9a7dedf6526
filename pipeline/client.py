"""A recorder's side of the HTTP intake: send a recording, or events, and try again until they are taken.

What was not acknowledged is sent again; what was is not. Follows no redirect. A token never stands in an address.
"""

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote, urlencode

import aiohttp
import anyio
import anyio.to_thread
import msgspec
from yarl import URL

from pipeline.errors import DeferError, RefuseError

PIECE = 1024 * 1024
"""Bytes that are read from a file and written to the connection at a time."""
CONNECT_S = 10.0
STALL_S = 120.0
"""A connection on which nothing moves for longer is given up, and what is left is sent again."""
FIRST_S, MOST_S = 0.5, 30.0
"""The wait before another attempt: any time up to a limit that doubles."""
_PATIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})
_LONGEST_ANSWER = 64 * 1024 * 1024


class NotTakenError(DeferError):
    """The service did not take it in the time that was given."""

    reason = "not-taken"


@dataclass(frozen=True, slots=True)
class Server:
    """Where the intake is, and the instance's token."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service answered."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    @property
    def offset(self) -> int | None:
        """`Upload-Offset`: where an unfinished upload goes on."""
        text = self.headers.get("Upload-Offset", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None

    @property
    def retry_after_s(self) -> float:
        """`Retry-After` in seconds; 0 if there is none, or it is a date."""
        text = self.headers.get("Retry-After", "")
        return min(float(text), 3600.0) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0

    @property
    def is_patient(self) -> bool:
        """Whether the same request may be taken later."""
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR or self.status in _PATIENT

    def refusal(self) -> RefuseError:
        """Make an error of a problem document (RFC 9457)."""
        try:
            problem = msgspec.json.decode(self.body, type=_Problem)
        except msgspec.MsgspecError:
            problem = _Problem()
        words = problem.detail or problem.title or "it says no more"
        return RefuseError(f"the service answered {self.status}: {words}", field=problem.field)


class _Problem(msgspec.Struct, frozen=True):
    title: str | None = None
    detail: str | None = None
    field: str | None = None


Notice = Callable[[str], None]
"""Told why something is tried again."""
Pause = Callable[[float], Awaitable[None]]


class Patience:
    """Waits between attempts: jittered, longer each time, not beyond the time that was given."""

    def __init__(
        self,
        give_up_after_s: float | None,
        *,
        notice: Notice,
        pause: Pause = anyio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._ends = None if give_up_after_s is None else anyio.current_time() + give_up_after_s
        self._notice = notice
        self._pause = pause
        self._chance = chance
        self._failures = 0

    def progressed(self) -> None:
        """Begin with short waits again."""
        self._failures = 0

    async def wait(self, why: str, at_least_s: float = 0.0) -> None:
        """Wait before another attempt.

        Raises:
            NotTakenError: the time is over.

        """
        self._failures += 1
        limit = min(MOST_S, FIRST_S * 2.0 ** min(self._failures - 1, 16))
        delay_s = at_least_s + limit * self._chance()
        if self._ends is not None and anyio.current_time() + delay_s > self._ends:
            raise NotTakenError(f"{why}; the time given for it is over. Nothing that was acknowledged is lost")
        self._notice(f"{why}; trying again in {delay_s:.1f} s")
        await self._pause(delay_s)


class LinkError(Exception):
    """The request got no answer."""


class Client:
    """Speaks to one service."""

    def __init__(self, session: aiohttp.ClientSession, server: Server) -> None:
        self._session = session
        self._server = server

    async def put(
        self, path: str, headers: Mapping[str, str], body: Callable[[], AsyncIterator[bytes]], size_bytes: int | None
    ) -> Answer:
        """Send one body, of `size_bytes` if that is known. Raises `LinkError`."""
        more = {"Content-Length": str(size_bytes)} if size_bytes is not None else {}
        return await self._request("PUT", path, {**headers, **more}, body)

    async def head(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Ask how much of an upload is durable. Raises `LinkError`."""
        return await self._request("HEAD", path, headers, None)

    async def post_events(self, body: bytes) -> Answer:
        """Send events. Raises `LinkError`."""
        return await self.ask("POST", "/v1/events", {"Content-Type": "application/json"}, body)

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Make a request whose body is small, and is sent again by whoever asks. Raises `LinkError`."""
        given = dict(headers or {})
        if body is None:
            return await self._request(method, path, given, None)
        sent = body

        async def whole() -> AsyncIterator[bytes]:
            yield sent

        return await self._request(method, path, given | {"Content-Length": str(len(body))}, whole)

    async def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: Callable[[], AsyncIterator[bytes]] | None
    ) -> Answer:
        url = URL(self._server.url.rstrip("/") + path, encoded=True)
        authorized = {**headers, "Authorization": f"Bearer {self._server.token}"}
        options: dict[str, Any] = {"headers": authorized, "allow_redirects": False}
        with anyio.CancelScope(deadline=anyio.current_time() + STALL_S) as scope:
            if body is not None:
                # So that a body which is not wanted is not sent, and the answer to it not lost in a broken connection.
                options |= {"data": _moving(body(), scope), "expect100": True}
            try:
                async with self._session.request(method, url, **options) as response:
                    return Answer(response.status, await _whole(response), response.headers)
            except (aiohttp.ClientError, OSError) as error:
                if isinstance(error.__cause__, RefuseError):  # of our own body
                    raise error.__cause__ from None
                raise LinkError(f"no answer from the service ({type(error).__name__})") from error
        raise LinkError("nothing moved for too long")


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    """Open a client. Connections are closed at the end of the block."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        yield Client(session, server)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer; more than any of ours has is not looked at."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _LONGEST_ANSWER:
            break
    return bytes(body)


async def _moving(pieces: AsyncIterator[bytes], scope: anyio.CancelScope) -> AsyncIterator[bytes]:
    """Hand pieces on; each moves the deadline of a connection that stands still."""
    async for piece in pieces:
        scope.deadline = anyio.current_time() + STALL_S
        yield piece
    scope.deadline = anyio.current_time() + STALL_S


def record_path(
    instance: str, data_class: str, record_id: str | None = None, query: Mapping[str, str] | None = None
) -> str:
    """Write the path of a record's address, or of a class'."""
    parts = [instance, "records", data_class, *([record_id] if record_id is not None else [])]
    path = "/v1/instances/" + "/".join(quote(part, safe="") for part in parts)
    return path + (f"?{urlencode(query)}" if query else "")


def upload_path(instance: str, contact: str, kind: str, name: str | None) -> str:
    """Write the path of a recording's address."""
    parts = [quote(part, safe="") for part in (instance, "contacts", contact, kind, *([name] if name else []))]
    return "/v1/instances/" + "/".join(parts)


# --- a recording


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """One recording to be sent."""

    path: str
    """Of its address."""
    headers: Mapping[str, str]


class Stream(Protocol):
    """What can be read once."""

    def read1(self, size: int, /) -> bytes:
        """Read what is there, waiting only if nothing is; nothing at the end."""
        ...


Moved = Callable[[int, int | None], None]
"""Told how many bytes of how many were sent."""


class Taken(msgspec.Struct, frozen=True, rename="camel"):
    """What the service answered when a recording was sealed and durable."""

    recording_id: str
    artifact_id: str
    generation: int
    size_bytes: int
    sha256: str


async def put_file(client: Client, upload: Upload, file: BinaryIO, patience: Patience, moved: Moved) -> Taken:
    """Send a file that can be read again, until it is taken; go on where the service has what came before.

    Raises:
        RefuseError: the service will never take it.
        NotTakenError: it did not take it in time.

    """
    size_bytes, sha256 = await anyio.to_thread.run_sync(_measure, file)
    headers = {**upload.headers, "X-Recording-Sha256": sha256}
    offset = 0
    while True:
        ranged = headers | ({"Content-Range": _content_range(offset, size_bytes)} if offset else {})
        at_least_s = 0.0
        try:
            body = _reader(file, offset, size_bytes, moved)
            answer = await client.put(upload.path, ranged, body, size_bytes - offset)
        except LinkError as error:
            why = str(error)
        else:
            if answer.status == HTTPStatus.CREATED:
                return _taken(answer, sha256)
            if not answer.is_patient:
                raise answer.refusal()
            why, at_least_s = str(answer.refusal()), answer.retry_after_s
        await patience.wait(why, at_least_s)
        reached = await _offset(client, upload, headers, patience)
        if reached > size_bytes:
            reached = 0  # of another recording with this source id: this one begins anew
        if reached > offset:
            patience.progressed()
        offset = reached


async def put_stream(client: Client, upload: Upload, stream: Stream, patience: Patience, moved: Moved) -> Taken:
    """Send what can be read only once. Waits until the service is there before it reads the first byte.

    Raises:
        RefuseError: the service does not take it.
        NotTakenError: the service was not there in time, or the connection broke: what was read can't be read again.

    """
    await _offset(client, upload, upload.headers, patience)
    try:
        answer = await client.put(upload.path, upload.headers, _once(stream, moved), None)
    except LinkError as error:
        raise NotTakenError(f"{error}; standard input can't be read again. Send the recording from a file") from error
    if answer.status != HTTPStatus.CREATED:
        if answer.is_patient:
            raise NotTakenError(f"{answer.refusal()}; standard input can't be read again. Send it from a file")
        raise answer.refusal()
    return _taken(answer, None)


async def _offset(client: Client, upload: Upload, headers: Mapping[str, str], patience: Patience) -> int:
    """Ask until the service says how much of the upload it has; 0 if nothing."""
    asked = {name: value for name, value in headers.items() if name != "Content-Type"}
    while True:
        at_least_s = 0.0
        try:
            answer = await client.head(upload.path, asked)
        except LinkError as error:
            why = str(error)
        else:
            if answer.status == HTTPStatus.OK:
                return answer.offset or 0
            if answer.status == HTTPStatus.NOT_FOUND:
                return 0  # nothing unfinished; or no such place, which the PUT will say in words
            if not answer.is_patient:
                raise answer.refusal()
            why, at_least_s = str(answer.refusal()), answer.retry_after_s
        await patience.wait(why, at_least_s)


def _content_range(offset: int, size_bytes: int) -> str:
    """Write `Content-Range`; with nothing left to send there is no last byte."""
    return f"bytes {offset}-{size_bytes - 1 if offset < size_bytes else ''}/*"


def _taken(answer: Answer, sha256: str | None) -> Taken:
    try:
        taken = msgspec.json.decode(answer.body, type=Taken)
    except msgspec.MsgspecError:
        raise RefuseError("what answered is no recording pipeline; is the address right?") from None
    if sha256 not in {None, taken.sha256}:
        raise RefuseError("the service holds other bytes than this file's. Keep the file, and send it again")
    return taken


def _measure(file: BinaryIO) -> tuple[int, str]:
    file.seek(0)
    digest = hashlib.sha256()
    size_bytes = 0
    while piece := file.read(PIECE):
        digest.update(piece)
        size_bytes += len(piece)
    return size_bytes, digest.hexdigest()


def _reader(file: BinaryIO, offset: int, end: int, moved: Moved) -> Callable[[], AsyncIterator[bytes]]:
    async def read() -> AsyncIterator[bytes]:
        at = offset
        file.seek(at)
        while at < end:
            piece = await anyio.to_thread.run_sync(file.read, min(PIECE, end - at))
            if not piece:
                raise RefuseError("the file became shorter while it was sent. Send it again when it is complete")
            yield piece
            at += len(piece)
            moved(at, end)

    return read


def _once(stream: Stream, moved: Moved) -> Callable[[], AsyncIterator[bytes]]:
    async def read() -> AsyncIterator[bytes]:
        at = 0
        while piece := await anyio.to_thread.run_sync(stream.read1, PIECE, abandon_on_cancel=True):
            yield piece
            at += len(piece)
            moved(at, None)

    return read
