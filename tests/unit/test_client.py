"""A client sends until it is taken: nothing twice that was held, nothing dropped, and no end without a reason."""

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from pipeline.client import (
    PIECE,
    Client,
    NotTakenError,
    Patience,
    Server,
    Taken,
    Upload,
    connected,
    put_file,
    put_stream,
    upload_path,
)
from pipeline.errors import RefuseError
from tests.intake_fake import TOKEN, Break, FakeIntake, problem, running_intake

PATH = upload_path("aaaa1111-0000-4000-8000-000000000001", "sip:+49/1", "voice", "leg 2.wav")
BODY = os.urandom(3 * PIECE + 17)
BUSY = 503


@dataclass
class Bench:
    """A client and its server; waits take no time and are remembered."""

    client: Client
    intake: FakeIntake
    waits: list[float] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    moves: list[tuple[int, int | None]] = field(default_factory=list)

    def patience(self, give_up_after_s: float | None = None) -> Patience:
        async def pause(seconds: float) -> None:
            self.waits.append(seconds)

        return Patience(give_up_after_s, notice=self.notices.append, pause=pause, chance=lambda: 0.5)

    async def put(self, body: bytes = BODY, give_up_after_s: float | None = None) -> Taken:
        upload = Upload(path=PATH, headers={"Content-Type": "audio/wav"})
        return await put_file(self.client, upload, io.BytesIO(body), self.patience(give_up_after_s), self._moved)

    async def stream(self, body: bytes = BODY) -> Taken:
        upload = Upload(path=PATH, headers={})
        return await put_stream(self.client, upload, io.BytesIO(body), self.patience(), self._moved)

    def _moved(self, done: int, total: int | None) -> None:
        self.moves.append((done, total))

    @property
    def methods(self) -> list[str]:
        return [request.method for request in self.intake.requests]


@asynccontextmanager
async def bench(*answers: Break | web.Response, token: str = TOKEN) -> AsyncIterator[Bench]:
    async with running_intake(*answers) as intake, connected(Server(intake.url, token)) as client:
        yield Bench(client, intake)


@pytest.mark.parametrize("body", [BODY, b"", b"x"], ids=["long", "empty", "one byte"])
async def test_a_file_is_sent_once_with_its_length_and_checksum(body: bytes) -> None:
    async with bench() as test:
        taken = await test.put(body)
        assert test.intake.taken == body
        assert taken.size_bytes == len(body)
        (request,) = test.intake.requests
    assert (
        request.path == "/v1/instances/aaaa1111-0000-4000-8000-000000000001/contacts/sip%3A%2B49%2F1/voice/leg%202.wav"
    )
    assert request.headers["Content-Length"] == str(len(body))
    assert request.headers["X-Recording-Sha256"] == taken.sha256
    assert "Content-Range" not in request.headers
    assert test.moves[-1:] == ([(len(body), len(body))] if body else [])


async def test_a_broken_upload_goes_on_where_the_service_has_it() -> None:
    async with bench(Break(PIECE + 5)) as test:
        await test.put()
        assert test.intake.taken == BODY
        assert test.methods == ["PUT", "HEAD", "PUT"]
        last = test.intake.requests[-1].headers
    assert last["Content-Range"] == f"bytes {PIECE + 5}-{len(BODY) - 1}/*"
    assert last["Content-Length"] == str(len(BODY) - PIECE - 5)


async def test_an_upload_whose_every_byte_is_held_is_ended_without_sending_one_again() -> None:
    async with bench(Break(len(BODY))) as test:
        await test.put()
        assert test.intake.taken == BODY
        last = test.intake.requests[-1].headers
    assert (last["Content-Range"], last["Content-Length"]) == (f"bytes {len(BODY)}-/*", "0")


async def test_an_upload_that_breaks_again_and_again_arrives() -> None:
    async with bench(Break(7), web.Response(status=BUSY), Break(), Break(PIECE), Break()) as test:
        await test.put()
        assert test.intake.taken == BODY


async def test_an_offset_beyond_the_file_begins_anew() -> None:
    async with bench(web.Response(status=BUSY), web.Response(headers={"Upload-Offset": "99999999"})) as test:
        await test.put()
        assert "Content-Range" not in test.intake.requests[-1].headers


async def test_a_wrong_offset_is_asked_for_again() -> None:
    async with bench(problem(409, "It goes on elsewhere.", headers={"Upload-Offset": "3"})) as test:
        test.intake.held = BODY[:3]
        await test.put()
        assert test.intake.taken == BODY


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 507])
async def test_what_may_pass_is_tried_again_after_a_growing_wait(status: int) -> None:
    answers = [web.Response(status=status) for _ in range(6)]  # PUT and HEAD in turn
    async with bench(*answers) as test:
        await test.put()
        assert test.intake.taken == BODY
    assert test.waits == sorted(test.waits)
    assert test.waits[0] < test.waits[-1]
    assert all(str(status) in notice for notice in test.notices)


async def test_retry_after_is_the_least_wait() -> None:
    async with bench(problem(BUSY, "starting", headers={"Retry-After": "30"})) as test:
        await test.put()
    assert test.waits[0] >= 30


@pytest.mark.parametrize("status", [400, 403, 404, 413, 415, 200, 301])
async def test_what_will_never_be_taken_ends_with_the_services_words(status: int) -> None:
    async with bench(problem(status, "No form, please.", "Content-Type", {"Location": "http://127.0.0.1:9/"})) as test:
        with pytest.raises(RefuseError, match=rf"{status}: No form, please\.") as caught:
            await test.put()
        assert caught.value.field == "Content-Type"
        assert test.methods == ["PUT"]


async def test_a_wrong_token_is_refused_before_the_body_is_sent_again() -> None:
    async with bench(token="another") as test:
        with pytest.raises(RefuseError, match="401: Give the instance's token"):
            await test.put()


async def test_an_answer_that_is_no_problem_document_still_ends_with_its_status() -> None:
    async with bench(web.Response(status=400, body=b"\xff<html>")) as test:
        with pytest.raises(RefuseError, match="400: it says no more"):
            await test.put()


async def test_a_created_that_names_other_bytes_is_no_success() -> None:
    async with bench() as test:
        test.intake.told_sha256 = "0" * 64
        with pytest.raises(RefuseError, match="other bytes"):
            await test.put()


async def test_a_created_of_something_else_is_no_success() -> None:
    async with bench(web.Response(status=201, text="hello")) as test:
        with pytest.raises(RefuseError, match="no recording pipeline"):
            await test.put()


async def test_a_client_gives_up_only_when_told_to() -> None:
    async with bench(*[web.Response(status=BUSY) for _ in range(9)]) as test:
        with pytest.raises(NotTakenError, match="time given for it is over"):
            await test.put(give_up_after_s=0)
    assert test.waits == []


async def test_nobody_listening_is_tried_again() -> None:
    async with running_intake() as intake:
        url = intake.url
    async with connected(Server(url, TOKEN)) as client:
        test = Bench(client, intake)
        with pytest.raises(NotTakenError, match="no answer from the service"):
            await test.put(give_up_after_s=0)


async def test_a_file_that_became_shorter_is_not_sent_for_ever() -> None:
    class Shrinking(io.BytesIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            if self.tell() == len(BODY):
                self.truncate(PIECE)
            return super().seek(offset, whence)

    async with bench() as test:
        upload = Upload(path=PATH, headers={})
        with pytest.raises(RefuseError, match="became shorter"):
            await put_file(test.client, upload, Shrinking(BODY), test.patience(), test._moved)


async def test_a_stream_waits_for_the_service_before_its_first_byte_is_read() -> None:
    async with bench(web.Response(status=BUSY), web.Response(status=BUSY)) as test:
        await test.stream()
        assert test.intake.taken == BODY
        assert test.methods == ["HEAD", "HEAD", "HEAD", "PUT"]
        assert test.intake.requests[-1].headers["Transfer-Encoding"] == "chunked"


@pytest.mark.parametrize("answer", [Break(5), web.Response(status=BUSY)], ids=["broken", "busy"])
async def test_a_stream_that_breaks_off_is_not_sent_in_part(answer: Break | web.Response) -> None:
    async with bench(web.Response(status=404), answer) as test:
        with pytest.raises(NotTakenError, match="can't be read again"):
            await test.stream()
        assert test.intake.taken is None


def test_a_server_shows_no_token() -> None:
    assert TOKEN not in repr(Server("http://127.0.0.1:1", TOKEN))
