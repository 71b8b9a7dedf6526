"""Clients that send all the time, each one thing after another, and repeat what was not acknowledged as real ones do.

What they send is the same for the same seed; when they send it is not. They write down every acknowledgement.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import aiohttp
import anyio
from torture_ledger import MARKER, Chat, Ledger, Manner, Recording

from pipeline.ids import Kind
from tests.e2e.journey import contact_event, final, message
from tests.node import Answer, Caller
from tests.sites import Party

MIB = 2**20
AGAIN_S = 0.1
"""Between an answer that is none and the next try."""
PATIENCE_S = 15.0
"""For one answer: a server that stands still may keep it for a while."""
MANNERS = {
    Manner.WHOLE: 10,
    Manner.STREAMED: 8,
    Manner.RESUMED: 8,
    Manner.CURL: 2,
    Manner.ABANDONED: 3,
}
"""How often each, in proportion; as often as the first, a chat."""
_LATER = {408, 409, 429, 500, 502, 503, 507}
"""Answers after which a client tries again."""


class UnexpectedAnswerError(Exception):
    """The service said what no client understands."""


@dataclass
class Load:
    """The clients, and what they have sent."""

    caller: Caller
    parties: tuple[Party, ...]
    seed: int
    scratch: Path
    """For what `curl` sends: its files must not lie where nothing may be in clear."""
    curl: str | None
    ledger: Ledger = field(default_factory=Ledger)
    acknowledged: int = 0
    _paused: bool = False
    _working: int = 0

    async def work(self, number: int) -> None:
        """Be one client, until cancelled."""
        for index, chance in enumerate(self._chances(number)):
            while self._paused:  # noqa: ASYNC110 - a few times a minute
                await anyio.sleep(0.02)
            self._working += 1
            try:
                await self._one(f"c{self.seed:x}-{number}-{index}", chance)
            finally:
                self._working -= 1
            self.acknowledged += 1

    async def pause(self, seconds: float) -> None:
        """Let all end what they have in hand, and wait. Raises `TimeoutError`."""
        self._paused = True
        with anyio.fail_after(seconds):
            while self._working:  # noqa: ASYNC110
                await anyio.sleep(0.02)

    def go_on(self) -> None:
        """End the pause."""
        self._paused = False

    async def fresh(self, contact: str) -> Recording:
        """Send one small recording, whole; back when it is acknowledged."""
        each = Recording(self.parties[0], contact, Kind.VOICE, Manner.WHOLE, self.seed, 20_000)
        self.ledger.recordings[contact] = each
        await self.send(each, random.Random(self.seed))
        return each

    async def send(self, each: Recording, chance: random.Random) -> None:
        """Send a recording in its manner."""
        body = each.body()
        if each.manner is Manner.ABANDONED:
            await self._abandon(each, body, chance)
        elif each.manner is Manner.CURL:
            await self._curl(each, body)
        else:
            await self._until_taken(each, body, chance)

    # --- inside

    def _chances(self, number: int) -> Iterator[random.Random]:
        chance = random.Random(self.seed * 1_000 + number)
        while True:
            yield random.Random(chance.getrandbits(64))

    async def _one(self, contact: str, chance: random.Random) -> None:
        party = chance.choice(self.parties)
        told = chance.random() < 0.3
        manners = [*MANNERS, None]
        manner = chance.choices(manners, [*MANNERS.values(), MANNERS[Manner.WHOLE]])[0]
        if manner is Manner.CURL and self.curl is None:
            manner = Manner.WHOLE
        if told:
            await self._post(party, contact_event(party, contact, channel="CHAT" if manner is None else "VOICE"))
        if manner is None:
            said = [f"{MARKER.decode()}{chance.random()}" for _ in range(chance.randint(1, 6))]
            chat = self.ledger.chats[contact] = Chat(party, contact, said, told)
            await self._talk(chat, chance)
            return
        kind = chance.choice([Kind.VOICE, Kind.SCREEN])
        each = Recording(party, contact, kind, manner, chance.getrandbits(32), _size(chance), told)
        self.ledger.recordings[contact] = each
        await self.send(each, chance)

    async def _talk(self, chat: Chat, chance: random.Random) -> None:
        for number, text in enumerate(chat.texts):
            await self._post(chat.party, message(chat.party, chat.contact, f"i-{number}", text))
            chat.taken = number + 1
            await anyio.sleep(chance.random() * 0.1)
        await self._post(chat.party, final(chat.party, chat.contact))
        chat.ended = True

    async def _post(self, party: Party, event: object) -> None:
        while (answer := await asked(partial(self.caller.post, party, event))) is None or answer.status in _LATER:  # noqa: ASYNC110
            await anyio.sleep(AGAIN_S)
        if answer.status != 202:
            raise UnexpectedAnswerError(f"events: {answer}")

    async def _until_taken(self, each: Recording, body: bytes, chance: random.Random) -> None:
        digest = sha256(body).hexdigest()
        first = True
        while not each.taken:
            at = 0 if first or each.manner is not Manner.RESUMED else await self._offset(each)
            first = False
            headers = {"X_Recording_Sha256": digest} if chance.random() < 0.5 else {}
            if each.manner is not Manner.STREAMED:
                headers["Content_Length"] = str(len(body) - at)
            if at:
                headers["Content_Range"] = f"bytes {at}-{len(body) - 1}/{len(body)}"
            pieces = _pieces(body[at:], chance)
            put = partial(self.caller.put, each.party, each.contact, each.name, pieces, **headers)
            answer = await asked(put)
            self._note(each, answer, digest)
            if not each.taken:
                await anyio.sleep(AGAIN_S * chance.random())

    async def _offset(self, each: Recording) -> int:
        """Ask where to go on, until there is an answer; nothing unfinished means from the beginning."""
        while True:
            answer = await asked(partial(self.caller.head, each.party, each.contact, each.name))
            if answer is not None and answer.status == 404:
                return 0
            if answer is not None and answer.status == 200:
                at = int(answer.headers["Upload-Offset"])
                each.durable_bytes = max(each.durable_bytes, at)
                return at
            await anyio.sleep(AGAIN_S)

    async def _abandon(self, each: Recording, body: bytes, chance: random.Random) -> None:
        """Send a beginning, see how much of it is durable, and go away for ever."""
        beginning = body[: max(1, int(len(body) * chance.random()))]
        async with anyio.create_task_group() as group:

            async def send() -> None:
                held = _held(_pieces(beginning, chance))
                put = partial(self.caller.put, each.party, each.contact, each.name, held)
                await asked(partial(put, Content_Length=str(len(body))))

            group.start_soon(send, name="an upload that is not ended")
            await anyio.sleep(0.2 + chance.random())
            answer = await asked(partial(self.caller.head, each.party, each.contact, each.name))
            if answer is not None and answer.status == 200:
                each.durable_bytes = int(answer.headers["Upload-Offset"])
            group.cancel_scope.cancel()

    async def _curl(self, each: Recording, body: bytes) -> None:
        assert self.curl is not None
        file = anyio.Path(self.scratch / each.contact)
        await file.write_bytes(body)
        command = [self.curl, "--silent", "--max-time", str(PATIENCE_S), "--write-out", "%{http_code}", "--output", "-"]
        command += ["--header", f"Authorization: Bearer {each.party.token}", "--upload-file", str(file)]
        while not each.taken:
            url = self.caller.url + each.party.path(each.contact, each.name)
            done = await anyio.run_process([*command, url], check=False)
            status = int(done.stdout[-3:] or b"0")
            answer = Answer(status, {}, done.stdout[:-3]) if status and done.returncode == 0 else None
            self._note(each, answer, sha256(body).hexdigest())
            if not each.taken:
                await anyio.sleep(AGAIN_S)
        await file.unlink()

    def _note(self, each: Recording, answer: Answer | None, digest: str) -> None:
        """Write down what was said of a whole body."""
        if answer is None or answer.status in _LATER:
            return
        if answer.status != 201 or answer.json["sha256"] != digest:
            raise UnexpectedAnswerError(f"{each.contact}: {answer}")
        each.taken = True


async def asked(ask: Callable[[], Awaitable[Answer]]) -> Answer | None:
    """Ask once; None if there was no answer."""
    try:
        with anyio.fail_after(PATIENCE_S):
            return await ask()
    except (aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError):
        return None


async def _pieces(body: bytes, chance: random.Random) -> AsyncIterator[bytes]:
    """Cut a body into pieces as a recorder makes them: now and then it has to wait for more."""
    at = 0
    while at < len(body):
        size = chance.randint(1_000, 200_000)
        yield body[at : at + size]
        at += size
        if chance.random() < 0.3:
            await anyio.sleep(chance.random() * 0.03)


async def _held(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Give what there is, then hold the line."""
    async for piece in pieces:
        yield piece
    await anyio.sleep_forever()


def _size(chance: random.Random) -> int:
    """Choose a size: most are small, some need a few parts."""
    match chance.choices(["small", "middle", "large"], [70, 26, 4])[0]:
        case "small":
            return chance.randint(0, 100_000)
        case "middle":
            return chance.randint(MIB, 3 * MIB)
        case _:
            return chance.randint(8 * MIB, 12 * MIB)
