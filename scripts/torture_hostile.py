"""Clients that no service wishes for: they break off, dawdle, repeat themselves, lie, and send far too much.

Whatever of theirs may be delivered stands in the ledger; nothing else of it may appear in a bucket.
"""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketStream
from torture_ledger import Manner, Recording
from torture_load import Load, UnexpectedAnswerError, asked

from pipeline.ids import Kind
from tests.node import Answer

HUGE_BYTES = 100 * 2**20
PIECE = b'{"detail":[' * 6_000
NESTED = 200_000


async def _breaks_off(load: Load, chance: random.Random, contact: str) -> None:
    """Send a beginning, and be gone."""
    each, body = _abandoned(load, chance, contact)
    await _raw(load, _head(load, each, len(body)), [body[: chance.randint(1, len(body) - 1)]])


async def _dawdles(load: Load, chance: random.Random, contact: str) -> None:
    """Send the head of a request a byte at a time, some at once, and never end it."""
    each, body = _abandoned(load, chance, contact)
    head = _head(load, each, len(body))[:-4]
    async with anyio.create_task_group() as group:
        for _ in range(5):
            pieces = [head[at : at + 1] for at in range(30)]
            group.start_soon(partial(_raw, load, b"", pieces, pause_s=0.05))


async def _says_nothing(load: Load, chance: random.Random, contact: str) -> None:
    """Begin a body, then be silent for longer than is allowed."""
    each, body = _abandoned(load, chance, contact)
    await _raw(load, _head(load, each, len(body)), [body[:1_000], b""], pause_s=chance.uniform(1, 6))


async def _repeats(load: Load, chance: random.Random, contact: str) -> None:
    """Send the same thing twice at once, and once more when it is acknowledged."""
    each = Recording(load.parties[1], contact, Kind.VOICE, Manner.WHOLE, chance.getrandbits(32), 150_000)
    load.ledger.recordings[contact] = each
    async with anyio.create_task_group() as group:
        for seed in (1, 2):
            group.start_soon(load.send, each, random.Random(seed))
    each.taken = False
    await load.send(each, chance)


async def _lies(load: Load, chance: random.Random, contact: str) -> None:
    """Name a checksum that the bytes don't have."""
    each, body = _abandoned(load, chance, contact)
    put = partial(load.caller.put, each.party, contact, each.name, body, X_Recording_Sha256="0" * 64)
    answer = await asked(put)
    _expect(answer, 400)
    each.refused = answer is not None and answer.status == 400


async def _floods(load: Load, chance: random.Random, _: str) -> None:
    """Send a hundred megabytes of JSON, with its length or without."""

    async def pieces() -> AsyncGenerator[bytes]:
        for _ in range(HUGE_BYTES // len(PIECE)):
            yield PIECE

    headers = {"Content-Length": str(HUGE_BYTES // len(PIECE) * len(PIECE))} if chance.random() < 0.5 else {}
    async with aclosing(pieces()) as body:
        ask = partial(load.caller.ask, "POST", "/v1/events", chance.choice(load.parties), data=body, headers=headers)
        _expect(await asked(ask), 413)


async def _nests(load: Load, chance: random.Random, _: str) -> None:
    """Send JSON of a depth that no reader should follow."""
    ask = partial(load.caller.ask, "POST", "/v1/events", chance.choice(load.parties), data=b"[" * NESTED)
    _expect(await asked(ask), 400)


async def _prowls(load: Load, chance: random.Random, contact: str) -> None:
    """Ask for what is not there, or is not theirs, by paths that lead out of theirs."""
    mine, other = load.parties
    paths = [
        other.path(contact, "voice.wav"),
        mine.path("..%2f..%2fetc", "passwd"),
        mine.path(contact, "voice.wav") + "/../../x",
    ]
    _expect(await asked(partial(load.caller.ask, "PUT", chance.choice(paths), mine, data=b"x")), 400, 404)
    _expect(await asked(partial(load.caller.ask, "PUT", mine.path(contact, "voice.wav"), None, data=b"x")), 401)


def _abandoned(load: Load, chance: random.Random, contact: str) -> tuple[Recording, bytes]:
    """Write down a recording of which nothing need be delivered."""
    party = chance.choice(load.parties)
    each = Recording(party, contact, Kind.VOICE, Manner.ABANDONED, chance.getrandbits(32), 100_000)
    load.ledger.recordings[contact] = each
    return each, each.body()


def _head(load: Load, each: Recording, size_bytes: int) -> bytes:
    lines = (
        f"PUT {each.party.path(each.contact, each.name)} HTTP/1.1",
        f"Host: {urlsplit(load.caller.url).netloc}",
        f"Authorization: Bearer {each.party.token}",
        f"Content-Length: {size_bytes}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _raw(load: Load, head: bytes, pieces: list[bytes], *, pause_s: float = 0.0) -> None:
    """Write to a connection as no library would; then break it."""
    at = urlsplit(load.caller.url)
    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        link: SocketStream = await anyio.connect_tcp(at.hostname or "", at.port or 0)
        try:
            await link.send(head)
            for piece in pieces:
                await link.send(piece)
                await anyio.sleep(pause_s)
        finally:
            await anyio.aclose_forcefully(link)


def _expect(answer: Answer | None, *statuses: int) -> None:
    """Raise `UnexpectedAnswerError` for an answer that neither refuses nor puts off."""
    if answer is not None and answer.status not in {*statuses, 429, 503, 507}:
        raise UnexpectedAnswerError(f"{answer.status} instead of {statuses}: {answer.body[:300]!r}")


HOSTILE: tuple[Callable[[Load, random.Random, str], Awaitable[None]], ...] = (
    _breaks_off,
    _dawdles,
    _says_nothing,
    _repeats,
    _lies,
    _floods,
    _nests,
    _prowls,
)
"""All of them: each is given the load, its chances, and a contact of its own."""
