"""F21: clients that disconnect, dawdle, lie about lengths, come twice or race one another: against the real server.

What was acknowledged stays, nothing is waited for without end, and one source's bytes become one recording.
"""

from collections import Counter
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import anyio

from pipeline.interim.states import State
from tests.hostile import CLOSED, Answer, Connection, held, hostile, request, until
from tests.intake_server import BODY, url

HEAD_S = 0.3


# --- disconnects and lengths that are wrong


async def test_a_source_that_went_away_in_mid_body_goes_on_where_it_was(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        async with test.connection() as gone:
            await gone.stream.send(request("PUT", url(), Content_Length=str(len(BODY))) + BODY[:500])
            await until(lambda: test.body_bytes == 500)
        await until(lambda: held(test))
        assert await test.offset(url()) == 500
        for wrong in ("bytes 0-9/*", "bytes 501-999/*", "bytes 999-/*"):
            answer = await test.put(url(), BODY[500:], Content_Range=wrong)
            assert (answer.status, answer.headers["upload-offset"]) == (409, "500")
        answer = await test.put(url(), BODY[500:], Content_Range=f"bytes 500-{len(BODY) - 1}/{len(BODY)}")
        assert (answer.status, answer.json["sha256"]) == (201, sha256(BODY).hexdigest())
        assert await test.server.process.media(test.server.process.sealed[0]) == BODY


async def test_pieces_that_come_out_of_order_are_refused_and_the_order_can_be_found(tmp_path: Path) -> None:
    pieces = [(at, BODY[at : at + 300]) for at in range(0, len(BODY), 300)]
    async with hostile(tmp_path) as test:
        for at, piece in reversed(pieces[1:]):
            answer = await test.put(url(), piece, Content_Range=f"bytes {at}-/*")
            assert (answer.status, answer.headers["upload-offset"]) == (409, "0")
        assert test.server.process.world.paths() == []


async def test_a_body_shorter_than_its_length_gets_no_answer_and_stays_resumable(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        async with test.connection() as connection:
            await connection.stream.send(request("PUT", url(), Content_Length=str(len(BODY) + 1)) + BODY)
            await until(lambda: test.body_bytes == len(BODY))
            await connection.stream.send_eof()
            assert await connection.answer() is None
        await until(lambda: held(test))
        assert await test.offset(url()) == len(BODY)
        assert test.server.process.sealed == []


async def test_a_body_longer_than_its_length_is_refused_or_taken_to_its_length(tmp_path: Path) -> None:
    """What comes behind it is no request: together with it that shows, and nothing is sealed; later it is too late."""
    async with hostile(tmp_path) as test:
        head = request("PUT", url(), Content_Length="500")
        answer = await test.ask(head + BODY)
        assert answer is not None
        assert answer.status == 400
        assert test.server.process.sealed == []
        async with test.connection() as connection:
            await connection.stream.send(head + BODY[:500])
            answer = await connection.answer()
            assert answer is not None
            assert (answer.status, answer.json["sizeBytes"]) == (201, 500)
            await connection.stream.send(BODY[500:])
            answer = await connection.answer()
            assert answer is not None
            assert answer.status == 400
            assert await connection.is_closed()
        assert [name.size_bytes for name in test.server.process.sealed] == [500]
        assert len(test.requests) == 2


# --- those who dawdle


async def test_a_head_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    """Nothing, part of a line, one header after the other, empty lines, and the head of a second request."""
    async with hostile(tmp_path, head_s=HEAD_S) as test:
        async with test.connection() as kept:
            await kept.stream.send(request("PUT", url("screen"), Content_Length="3") + b"abc")
            assert await kept.answer() is not None
            async with test.connection() as silent, test.connection() as partial, test.connection() as dripping:
                await partial.stream.send(request("PUT", url(), Content_Length="5")[:-2])
                await kept.stream.send(b"\r\n")
                async with anyio.create_task_group() as group:
                    group.start_soon(drip, dripping)
                    for each in (silent, partial, kept):
                        assert await each.is_closed()
        answer = await test.ask(request("HEAD", url()))
        assert answer is not None
        assert answer.status == 404
        assert len(test.requests) == 2


async def drip(connection: Connection) -> None:
    with suppress(*CLOSED), anyio.fail_after(10):
        await connection.stream.send(b"GET / HTTP/1.1\r\n")
        while True:
            await connection.stream.send(b"X: y\r\n")
            await anyio.sleep(0.05)


async def test_a_body_may_be_slow_when_its_head_was_not(tmp_path: Path) -> None:
    async with hostile(tmp_path, head_s=HEAD_S) as test, test.connection() as slow:
        await slow.stream.send(request("PUT", url(), Content_Length="12"))
        for _ in range(4):
            await slow.stream.send(b"abc")
            await anyio.sleep(HEAD_S / 2)
        answer = await slow.answer()
        assert answer is not None
        assert answer.status == 201


async def test_a_body_that_falls_silent_loses_its_connection_and_nothing_else(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        process = test.server.process
        async with test.connection() as silent:
            await silent.stream.send(request("PUT", url(), Content_Length="1000") + BODY[:500])
            await until(lambda: test.body_bytes == 500)
            process.world.clock.advance(61)
            await process.sweep.once()
            answer = await silent.answer()
            assert answer is not None
            assert answer.status == 503
            assert await silent.is_closed()
        assert await test.offset(url()) == 500


async def test_events_that_do_not_come_are_not_waited_for(tmp_path: Path) -> None:
    async with hostile(tmp_path, body_idle=timedelta(seconds=0.2)) as test, test.connection() as slow:
        await slow.stream.send(request("POST", "/v1/events", Content_Length="1000") + b"[")
        answer = await slow.answer()
        assert answer is not None
        assert answer.status == 408
        assert await slow.is_closed()


# --- many at once


async def test_the_same_body_many_times_at_once_is_one_recording(tmp_path: Path) -> None:
    body = BODY * 400
    async with hostile(tmp_path) as test:
        answers: list[Answer] = []

        async def send() -> None:
            answers.append(await test.put(url(), body))

        for _ in range(2):
            async with anyio.create_task_group() as group:
                for _ in range(6):
                    group.start_soon(send)
        assert {answer.status for answer in answers} == {201}
        assert len({answer.body for answer in answers}) == 1
        assert [name.state for name in test.server.process.store.index] == [State.SEALED]
        assert await test.server.process.media(test.server.process.sealed[0]) == body


async def test_other_bodies_of_one_source_at_once_are_all_kept(tmp_path: Path) -> None:
    bodies = [bytes([number]) * 100_000 for number in range(6)]
    async with hostile(tmp_path) as test:
        answers: list[Answer] = []

        async def send(body: bytes) -> None:
            answers.append(await test.put(url(), body))

        async with anyio.create_task_group() as group:
            for body in bodies:
                group.start_soon(send, body)
        assert sorted(answer.json["generation"] for answer in answers) == [1, 2, 3, 4, 5, 6]
        assert len({answer.json["recordingId"] for answer in answers}) == 1
        held = [await test.server.process.media(name) for name in test.server.process.sealed]
        assert sorted(held) == bodies


async def test_of_two_who_go_on_with_one_body_only_one_does(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        async with test.connection() as gone:
            await gone.stream.send(request("PUT", url(), Content_Length=str(len(BODY))) + BODY[:500])
            await until(lambda: test.body_bytes == 500)
        await until(lambda: held(test))
        statuses: Counter[int] = Counter()

        async def go_on() -> None:
            statuses[(await test.put(url(), BODY[500:], Content_Range="bytes 500-/*")).status] += 1

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(go_on)
        assert set(statuses) <= {201, 409, 503}
        assert statuses[201] <= 1
        if not statuses[201]:  # each was cut off by the next; the last is told how far they came
            offset = await test.offset(url())
            assert (await test.put(url(), BODY[offset:], Content_Range=f"bytes {offset}-/*")).status == 201
        assert [await test.server.process.media(name) for name in test.server.process.sealed] == [BODY]
