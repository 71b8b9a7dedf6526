"""`pipeline feed` and `pipeline put` as a shell runs them, and the batches between a file and the service."""

import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.client import Patience, Server, connected
from pipeline.commands.batches import BATCH_BYTES, BATCH_EVENTS, Feed, Line, batched, read_lines
from pipeline.errors import RefuseError
from tests.intake_fake import TOKEN, Break, FakeIntake, problem, running_intake

INSTANCE = "aaaa1111-0000-4000-8000-000000000001"


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"detail-type": "t", "n": number, **more}


def as_lines(events: Sequence[Any]) -> list[Line]:
    raw = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in events]
    return [Line(number, one) for number, one in enumerate(raw, start=1)]


@dataclass
class Bench:
    intake: FakeIntake
    feed: Feed
    refused: list[tuple[int, str | None, str]] = field(default_factory=list)


@asynccontextmanager
async def bench(*answers: Break | web.Response) -> AsyncIterator[Bench]:
    async def pause(_seconds: float) -> None:
        pass

    async with running_intake(*answers) as intake, connected(Server(intake.url, TOKEN)) as client:
        told: list[tuple[int, str | None, str]] = []
        patience = Patience(None, notice=lambda _: None, pause=pause)
        yield Bench(intake, Feed(client, patience, lambda *what: told.append(what)), told)


async def test_events_arrive_in_order_and_in_batches() -> None:
    events = [event(number) for number in range(2 * BATCH_EVENTS + 1)]
    async with bench() as test:
        await test.feed.send(as_lines(events))
        assert test.intake.events == events
        assert len(test.intake.requests) == 3
        assert (test.feed.taken, test.feed.refused) == (len(events), 0)


async def test_a_refused_event_is_told_by_line_and_field_and_the_rest_arrives() -> None:
    events = [event(1), event(2, refuse="detail.contactId"), b"not json", event(4), b"[1]", event(6, refuse="time")]
    async with bench() as test:
        await test.feed.send(as_lines(events))
        assert test.intake.events == [event(1), event(4)]
        assert sorted(test.refused, key=lambda each: each[0]) == [
            (2, "detail.contactId", "the service answered 400: must be a text"),
            (3, None, "not a JSON object"),
            (5, None, "not a JSON object"),
            (6, "time", "the service answered 400: must be a text"),
        ]


async def test_a_refusal_without_a_place_is_found_by_halving() -> None:
    events = [event(number) for number in range(9)]
    events[6]["hide"] = True
    async with bench() as test:
        await test.feed.send(as_lines(events))
        assert test.intake.events == [each for each in events if "hide" not in each]
        assert [line for line, _, _ in test.refused] == [7]


async def test_batches_that_are_too_large_for_the_service_are_halved_in_order() -> None:
    events = [event(number) for number in range(20)]
    async with bench() as test:
        test.intake.most_events = 3
        await test.feed.send(as_lines(events))
        assert test.intake.events == events


async def test_an_event_that_is_too_large_by_itself_is_refused() -> None:
    async with bench() as test:
        test.intake.most_events = 0
        await test.feed.send(as_lines([event(1), event(2)]))
        assert [line for line, _, _ in test.refused] == [1, 2]


async def test_what_may_pass_is_sent_again_and_nothing_twice() -> None:
    async with bench(Break(), web.Response(status=429), web.Response(status=503), web.Response(status=500)) as test:
        await test.feed.send(as_lines([event(1)]))
        assert test.intake.events == [event(1)]
        assert len(test.intake.requests) == 5


async def test_a_caller_who_may_send_nothing_is_told_at_once() -> None:
    async with bench(problem(401, "Give the token.")) as test:
        with pytest.raises(RefuseError, match="Give the token"):
            await test.feed.send(as_lines([event(1), event(2)]))
        assert test.refused == []


def test_lines_keep_their_numbers_over_blank_ones_and_reads() -> None:
    class Dribble(io.BytesIO):
        def read1(self, _size: int | None = -1, /) -> bytes:
            return super().read1(3)

    found = [line for lines in read_lines(Dribble(b'\n{"a":1}\r\n\n \n{"b":2}')) for line in lines]
    assert found == [Line(2, b'{"a":1}'), Line(5, b'{"b":2}')]


def test_a_batch_stays_within_its_bytes() -> None:
    lines = [Line(number, b"x" * (BATCH_BYTES // 3)) for number in range(1, 8)]
    batches = list(batched(lines))
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
    assert [line for batch in batches for line in batch] == lines


# --- the command line


async def run(*arguments: str, env: Mapping[str, str] | None = None, given: bytes | None = None) -> Result:
    """Run a command in a thread, so that the server beside it can answer."""
    environ = {"PIPELINE_TOKEN": TOKEN, "PIPELINE_URL": "", "PIPELINE_CONFIG": "", **(env or {})}
    return await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, arguments, env=environ, input=given))


async def test_feed_sums_up_and_ends_with_1_if_a_line_was_refused(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(event(1)) + "\n" + json.dumps(event(2, refuse="detail.x\u001b[2J")) + "\n")
    async with running_intake() as intake:
        result = await run("feed", str(file), "--url", intake.url)
        assert intake.events == [event(1)]
    assert (result.exit_code, result.stdout) == (1, "1 events taken, 1 refused\n")
    assert result.stderr == "line 2: detail.x\\x1b[2J: the service answered 400: must be a text\n"


async def test_feed_from_standard_input_prints_json_lines(tmp_path: Path) -> None:
    async with running_intake() as intake:
        env = {"PIPELINE_URL": intake.url}
        result = await run("feed", "-", "--json", env=env, given=json.dumps(event(1)).encode() + b"\nnonsense\n")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert documents == [
        {"line": 2, "field": None, "refused": "not a JSON object"},
        {"taken": 1, "refused": 1},
    ]


async def test_feed_that_gives_up_says_where_to_go_on(tmp_path: Path) -> None:
    async with running_intake() as intake:
        url = intake.url
    result = await run("feed", "-", "--url", url, "--give-up-after", "0", given=b"{}\n")
    assert result.exit_code == 4
    assert "0 events were taken, all up to line 0" in result.stderr


async def test_put_prints_the_answer_as_json(tmp_path: Path) -> None:
    file, token = tmp_path / "call.wav", tmp_path / "token"
    file.write_bytes(b"RIFF")
    token.write_text(f"{TOKEN}\n")
    async with running_intake() as intake:
        options = ["--instance", INSTANCE, "--contact", "c-1", "--kind", "voice", "--source-id", "s-1"]
        more = ["--start", "1795442712", "--end", "2026-11-23T14:20:59Z", "--url", intake.url]
        result = await run("put", str(file), *options, *more, "--token-file", str(token), env={"PIPELINE_TOKEN": ""})
        (request,) = intake.requests
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sizeBytes"] == 4
    assert request.headers["Idempotency-Key"] == "s-1"
    assert request.headers["X-Recording-Start"] == "1795442712"
    assert request.headers["X-Recording-End"] == "2026-11-23T14:20:59Z"
    assert request.headers["Content-Type"] == "audio/x-wav"


async def test_put_takes_a_recording_from_standard_input() -> None:
    async with running_intake() as intake:
        options = ["--instance", INSTANCE, "--contact", "c-1", "--kind", "chat", "--url", intake.url]
        result = await run("put", "-", *options, given=b"{}")
        assert (result.exit_code, intake.taken) == (0, b"{}")


async def test_put_that_is_refused_ends_with_3_and_the_services_words(tmp_path: Path) -> None:
    file = tmp_path / "call.wav"
    file.write_bytes(b"RIFF")
    async with running_intake(problem(415, "No form.\x1b[31m", "Content-Type")) as intake:
        options = ["--instance", INSTANCE, "--contact", "c-1", "--kind", "voice", "--url", intake.url]
        result = await run("put", str(file), *options)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "pipeline: Content-Type: the service answered 415: No form.\\x1b[31m\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--source-id", "a\r\nX-Evil: 1"], "Idempotency-Key: printable characters"),
        (["--url", "ftp://host"], "--url: an http"),
        (["--token-file", "/nowhere/at/all"], "--token-file: the token file can't be read"),
    ],
)
async def test_put_with_values_that_can_not_be_is_refused_before_anything_is_sent(
    tmp_path: Path, more: list[str], said: str
) -> None:
    file = tmp_path / "call.wav"
    file.write_bytes(b"RIFF")
    options = ["--instance", INSTANCE, "--contact", "c-1", "--kind", "voice"]
    result = await run("put", str(file), *options, *more)
    assert result.exit_code == 3
    assert said in result.stderr


async def test_put_without_a_token_says_how_to_give_one(tmp_path: Path) -> None:
    result = await run(
        "put", "-", "--instance", INSTANCE, "--contact", "c", "--kind", "voice", env={"PIPELINE_TOKEN": ""}
    )
    assert result.exit_code == 3
    assert "PIPELINE_TOKEN" in result.stderr


async def test_put_has_no_option_for_a_token() -> None:
    result = await run("put", "-", "--instance", INSTANCE, "--contact", "c", "--kind", "voice", "--token", "x")
    assert result.exit_code == 2
