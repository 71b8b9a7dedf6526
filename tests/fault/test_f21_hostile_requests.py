"""F21: requests that are too much, packed, or two in one: against the real server, by count of the bytes it takes."""

import gzip
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hostile import CLOSED, hostile, request
from tests.intake_server import url

MIB = 2**20


# --- too much of everything


def endless(piece: bytes, size: int) -> Iterable[bytes]:
    return (piece for _ in range(size // len(piece)))


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        pytest.param(request("PUT", url())[:-2] + b"X-Long: ", b"x" * 65_536, id="a header of 64 MiB"),
        pytest.param(request("PUT", url())[:-2], b"X-Header: y\r\n" * 5_000, id="millions of headers"),
        pytest.param(b"PUT /", b"x" * 65_536, id="an address of 64 MiB"),
        pytest.param(b"\r\n", b"\r\n" * 32_768, id="empty lines"),
        pytest.param(
            request("PUT", url(), Transfer_Encoding="chunked") + b"3\r\nabc\r\n0\r\nX-Trailer: ",
            b"x" * 65_536,
            id="a trailer of 64 MiB",
        ),
        pytest.param(
            request("PUT", url(), Transfer_Encoding="chunked") + b"3\r\nabc\r\n0\r\n",
            b"X-Trailer: y\r\n" * 5_000,
            id="millions of trailers",
        ),
        pytest.param(
            request("PUT", url(), Transfer_Encoding="chunked") + b"3;",
            b"x" * 65_536,
            id="a chunk's extension of 64 MiB",
        ),
    ],
)
async def test_no_head_or_trailer_is_taken_without_end(tmp_path: Path, before: bytes, piece: bytes) -> None:
    async with hostile(tmp_path) as test, test.connection() as connection:
        sent = 0
        with suppress(*CLOSED):
            await connection.stream.send(before)
            for each in endless(piece, 64 * MIB):
                await connection.stream.send(each)
                sent += len(each)
        assert sent < 16 * MIB  # what the kernel's buffers hold, and the limit
        assert await connection.is_closed()
        assert test.body_bytes <= 3


async def test_a_head_of_too_many_or_too_long_fields_is_refused_by_name(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        many = [b"X-%d: y" % number for number in range(201)]
        for lines in (many, [b"X-Long: " + b"x" * 65_536], [b"X-%d: %s" % (n, b"x" * 9_000) for n in range(8)]):
            answer = await test.ask(request("PUT", url(), *lines, Content_Length="3"), b"abc")
            assert answer is not None
            assert answer.status == 431
        assert test.requests == []
        answer = await test.ask(request("PUT", url(), *many[:150], Content_Length="3"), b"abc")
        assert answer is not None
        assert answer.status == 201


async def test_a_hundred_megabytes_of_json_are_refused_before_they_came(tmp_path: Path) -> None:
    async with hostile(tmp_path, event_bytes=MIB) as test:
        declared = request("POST", "/v1/events", Content_Length=str(100 * MIB))
        answer = await test.ask(declared, *endless(b"[" * 65_536, 100 * MIB))
        assert answer is None or answer.status == 413
        assert test.body_bytes == 0
        chunked = request("POST", "/v1/events", Transfer_Encoding="chunked")
        answer = await test.ask(chunked, *endless(b"10000\r\n" + b" " * 65_536 + b"\r\n", 100 * MIB))
        assert answer is None or answer.status == 413
        assert test.body_bytes < 3 * MIB  # the limit, and what is received ahead
        assert test.server.process.world.paths() == []


NO_EVENTS = {
    "nested deeply": b"[" * 100_000,
    "nested deeply, and whole": b"[" * 100_000 + b"]" * 100_000,
    "objects nested deeply": b'{"a":' * 100_000,
    "broken UTF-8": b'{"detail-type":"\xff\xfe","detail":{}}',
    "half a surrogate pair": b'{"detail-type":"\xed\xa0\x80"}',
    "UTF-16": '{"detail-type":"x"}'.encode("utf-16"),
    "a number of many digits": b'{"detail-type":' + b"9" * 100_000 + b"}",
    "a number without end": b'{"a":1,"a":' + b"1" * 50_000 + b"e999999}",
    "many events": b"[" + b"{}," * 300_000 + b"{}]",
    "zeros": b"\0" * 1_000,
    "packed": gzip.compress(bytes(MIB)),
}


async def test_what_is_no_event_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    async with hostile(tmp_path, event_bytes=MIB) as test:
        for what, body in NO_EVENTS.items():
            answer = await test.ask(request("POST", "/v1/events", Content_Length=str(len(body))), body)
            assert answer is not None, what
            assert answer.status == 400, what
        assert test.server.process.world.paths() == []


PACKED = gzip.compress(bytes(10 * MIB))


CODINGS = [
    [b"Content-Encoding: gzip"],
    [b"Content-Encoding: GZIP, identity"],
    [b"Content-Encoding: identity", b"Content-Encoding: gzip"],
    [b"Transfer-Encoding: gzip, chunked"],
]


async def test_nothing_is_unpacked(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        for lines in CODINGS:
            if b"chunked" in lines[0]:
                head, body = request("PUT", url(), *lines), b"%x\r\n%s\r\n0\r\n\r\n" % (len(PACKED), PACKED)
            else:
                head, body = request("PUT", url(), *lines, Content_Length=str(len(PACKED))), PACKED
            answer = await test.ask(head, body)
            assert answer is not None, lines
            assert answer.status in {400, 415}, lines
        assert test.server.process.world.paths() == []


# --- one request that two servers would read as two

SMUGGLED = request("PUT", url(contact="smuggled"), Content_Length="3") + b"abc"


TWO_LENGTHS = [
    [b"Content-Length: 3", b"Transfer-Encoding: chunked"],
    [b"Transfer-Encoding: chunked", b"Content-Length: 3"],
    [b"Content-Length: 3", b"Content-Length: 300"],
    [b"Content-Length: 3, 300"],
    [b"Content-Length: +3"],
    [b"Content-Length: 0x3"],
    [b"Content-Length: 99999999999999999999999"],
    [b"Content-Length: -1"],
    [b"Transfer-Encoding: chunked, identity"],
    [b"Transfer-Encoding: xchunked"],
    [b"Transfer-Encoding : chunked"],
    [b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"],
    [b" Content-Length: 3"],
    [b"X: y\0z", b"Content-Length: 3"],
    [b"X: y\rContent-Length: 300", b"Content-Length: 3"],
    [b"X\x0b: y", b"Content-Length: 3"],
]


async def test_a_request_of_two_lengths_is_no_request(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        for lines in TWO_LENGTHS:
            async with test.connection() as connection:
                await connection.stream.send(request("PUT", url(), *lines) + b"0\r\n\r\n" + SMUGGLED)
                answer = await connection.answer()
                assert answer is None or answer.status in {400, 415}, (answer, lines)
                assert await connection.is_closed()
            assert not any("smuggled" in each for each in test.requests), lines
            assert test.server.process.sealed == [], lines


NO_CHUNKS = [b"fffffffffffffffff\r\n", b"-1\r\n", b"0x3\r\nabc\r\n", b"3\r\nabcdef\r\n", b"\r\n", b"3 \0\r\nabc\r\n"]


async def test_a_chunk_that_can_not_be_ends_the_connection_and_seals_nothing(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        for chunks in NO_CHUNKS:
            async with test.connection() as connection:
                head = request("PUT", url(), Transfer_Encoding="chunked")
                await connection.stream.send(head + chunks + b"0\r\n\r\n")
                assert await connection.is_closed()
            assert test.server.process.sealed == [], chunks


async def test_a_claim_that_is_made_twice_is_refused(tmp_path: Path) -> None:
    async with hostile(tmp_path) as test:
        for name in ("Idempotency-Key", "Content-Range", "X-Recording-Sha256", "X-Recording-Start", "X-Recording-End"):
            twice = [f"{name}: bytes 0-2/*".encode(), f"{name}: bytes 0-2/3".encode()]
            answer = await test.ask(request("PUT", url(), *twice, Content_Length="3"), b"abc")
            assert answer is not None
            assert (answer.status, answer.json["field"]) == (400, name)
        assert test.server.process.world.paths() == []
