"""Voice ID's rules for speakers: recognised ones stay, others go; nothing brings back who opted out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest

from pipeline.errors import HoldCode, RecordBusyError
from pipeline.records.drafts import Draft
from pipeline.records.rows import RowChange, RowConflictError
from pipeline.records.speakers import Speakers
from tests.intake_server import CANARY, Server, is_problem, serving, world_at
from tests.unit.keyring_fakes import ARN, A, refusal

DAY_S = 86_400
SPEAKER = "speaker-4930901820"


async def say(server: Server, **detail: Any) -> Any:
    event = {"id": "e-1", "source": "acme.ivr", "detail-type": "Speaker Authenticated", "detail": detail}
    return await server.ask("POST", "/v1/events", json.dumps(event).encode())


async def enrol(server: Server, part: str = "voiceprint", speaker: str = SPEAKER) -> None:
    records = server.records
    draft = Draft(id=f"{part}-{speaker}", body=b'{"print": [1]}', part=part, subject=speaker)
    await records.store.put(records.caller(A), records.shelf("voiceid", A), draft)


async def parts(server: Server) -> list[str]:
    found = await server.records.engine.page(server.records.shelf("voiceid", A).scope.shelf, 0, 99)
    return sorted(row.part for row in found)


async def later(server: Server, days: int) -> None:
    server.process.world.clock.advance(days * DAY_S)
    await server.records.sweeper.sweep()


def told(root: Path) -> list[dict[str, Any]]:
    files = (root / "audit" / str(A)).glob("*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    return [each["requestParameters"] for each in lines if each["eventName"] == "SpeakerAuthenticated"]


async def test_a_speaker_who_is_recognised_stays_and_one_who_is_not_goes(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        for part in ("voiceprint", "utterances"):
            await enrol(server, part)
        await enrol(server, speaker="another")
        for _ in range(3):
            await later(server, 700)
            assert (await say(server, subject=SPEAKER)).status == 202
        assert await parts(server) == [".key", "utterances", "voiceprint"]
        given = await server.ask("GET", f"/v1/instances/{A}/records/voiceid/voiceprint-{SPEAKER}")
        assert (given.status, given.headers["etag"]) == (200, '"1"')
        found = f"/v1/instances/{A}/records/voiceid?speaker={SPEAKER}"
        assert len((await server.ask("GET", found)).json["records"]) == 2
        await later(server, 1097)
        assert await parts(server) == ["utterances"]  # unreadable: its key is gone
        assert server.process.world.holds(SPEAKER.encode()) == []
        assert not (tmp_path / "journal" / str(A)).exists()
    assert len(told(tmp_path)) == 3
    assert all(SPEAKER not in json.dumps(each) for each in told(tmp_path))


async def test_the_original_audio_goes_after_a_day_however_often_its_speaker_is_recognised(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await enrol(server, "audio")
        await enrol(server)
        assert (await say(server, subject=SPEAKER)).status == 202
        await later(server, 1)
        server.process.world.clock.advance(1)
        await server.records.sweeper.sweep()
        assert await parts(server) == [".key", "voiceprint"]


async def test_recognising_one_who_is_unknown_has_expired_or_opted_out_keeps_nothing(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        records = server.records
        assert (await say(server, subject="nobody")).status == 202
        assert await parts(server) == []
        await enrol(server)
        server.process.world.clock.advance(1100 * DAY_S)  # nobody has swept yet
        assert (await say(server, subject=SPEAKER)).status == 202
        await records.sweeper.sweep()
        assert await parts(server) == []
        await enrol(server)
        await records.subjects.opt_out(records.caller(A), records.shelf("voiceid", A), SPEAKER, [])
        assert (await say(server, subject=SPEAKER)).status == 202
        assert await parts(server) == [".opted-out"]
    assert told(tmp_path) == []


async def test_while_the_domains_key_is_refused_it_is_denied_and_then_as_before(tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        await enrol(server)
        server.process.world.kms.refuses[ARN] = refusal(HoldCode.KEY_DISABLED)
        server.process.world.clock.advance(301)
        reply = await say(server, subject=SPEAKER)
        assert (reply.status, reply.json["reason"], reply.json["code"]) == (
            403,
            "AccessDeniedException",
            "KEY_DISABLED",
        )
        del server.process.world.kms.refuses[ARN]
        server.process.world.clock.advance(31)
        assert (await say(server, subject=SPEAKER)).status == 202
    assert len(told(tmp_path)) == 1


@pytest.mark.parametrize("detail", [{}, {"subject": ""}, {"subject": [CANARY]}, {"subject": CANARY * 100}])
async def test_an_event_that_names_no_speaker_is_refused(detail: dict[str, Any], tmp_path: Path) -> None:
    async with serving(world_at(tmp_path)) as server:
        assert is_problem(await say(server, **detail), 400, "refused", "[0].detail")
        assert (await say(server, subject="x", scope="another")).status == 404


async def test_a_speaker_who_is_changed_all_the_time_is_said_again(tmp_path: Path) -> None:
    class Busy:
        def __init__(self, inner: Any, times: int) -> None:
            self.inner, self.times = inner, times

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        async def write(self, changes: Sequence[RowChange]) -> None:
            await anyio.lowlevel.checkpoint()
            if self.times:
                self.times -= 1
                raise RowConflictError
            await self.inner.write(changes)

    async with serving(world_at(tmp_path)) as server:
        await enrol(server)
        process, records = server.process, server.records
        for times in (3, 99):
            engine: Any = Busy(records.engine, times)
            speakers = Speakers(engine, process.commits, process.trail, process.world.clock)
            asked = speakers.authenticated(records.caller(A), records.shelf("voiceid", A), SPEAKER)
            if times == 3:
                assert await asked
            else:
                with pytest.raises(RecordBusyError):
                    await asked
