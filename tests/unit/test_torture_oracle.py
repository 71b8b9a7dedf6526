"""The oracle of `scripts/torture` sees what is broken: of each kind of fault one is shown to it."""

from pathlib import Path
from typing import Any, cast

import pytest
from torture_ledger import MARKER, Chat, Ledger, Manner, Recording
from torture_oracle import MARKERS, Found, Oracle
from torture_outcome import Outcome

from pipeline.demo.search import search
from pipeline.ids import Kind
from tests.sites import Party, Site

NOBODY = cast("Party", None)
KEY = "connect/acme/CallRecordings/2026/11/23/c-1_20261123T14:05_UTC.wav"


def oracle() -> Oracle:
    return Oracle(cast("Site", None), Ledger())


def sent(**changes: Any) -> Recording:
    return Recording(NOBODY, "c-1", Kind.VOICE, Manner.WHOLE, 1, 100_000, **changes)


def found(verdict: str, generation: int = 1, size_bytes: int = 100_044, key: str = KEY) -> Found:
    return Found(key, "rid", str(generation), size_bytes, verdict)


def counts(judged: Oracle) -> tuple[int, int, int]:
    outcome = judged.outcome(1, 2)
    return outcome.lost, outcome.duplicated, outcome.wrong_bytes


@pytest.mark.parametrize(
    ("recording", "objects", "expected"),
    [
        (sent(taken=True), [found("whole")], (0, 0, 0)),
        (sent(taken=True), [found("beginning", 1, 50), found("whole", 2)], (0, 0, 0)),
        (sent(taken=True), [], (1, 0, 0)),
        (sent(taken=True), [found("beginning", 1, 50)], (1, 0, 0)),
        (sent(taken=True), [found("whole", 1), found("whole", 2)], (0, 1, 0)),
        (sent(taken=True), [found("whole", 1), found("beginning", 1, 50)], (0, 1, 0)),
        (sent(taken=True), [found("wrong")], (1, 0, 1)),
        (sent(taken=True, told=True), [found("whole", key=KEY.replace("T14:05", "T15:00"))], (1, 0, 0)),
        (sent(), [], (0, 0, 0)),
        (sent(durable_bytes=50), [found("beginning", 1, 50)], (0, 0, 0)),
        (sent(durable_bytes=51), [found("beginning", 1, 50)], (1, 0, 0)),
        (sent(durable_bytes=51), [], (1, 0, 0)),
        (sent(), [found("beginning", 1, 50), found("beginning", 2, 60)], (0, 1, 0)),
        (sent(refused=True), [found("whole")], (0, 0, 1)),
    ],
)
def test_each_broken_promise_about_a_recording_is_counted(
    recording: Recording, objects: list[Found], expected: tuple[int, int, int]
) -> None:
    judged = oracle()
    judged.judge(recording, objects)
    judged.judge(recording, objects)  # what is known counts once
    assert counts(judged) == expected


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (("i-0 a", "i-1 b"), (0, 0, 0)),
        (("i-0 a",), (1, 0, 0)),
        (("i-0 a", "i-1 b", "i-1 b"), (0, 1, 0)),
        (("i-0 a", "i-1 x"), (1, 0, 1)),
        (("i-1 b", "i-0 a"), (0, 0, 1)),
        (None, (1, 0, 0)),
    ],
)
def test_each_broken_promise_about_a_chat_is_counted(
    items: tuple[str, ...] | None, expected: tuple[int, int, int]
) -> None:
    judged = oracle()
    chat = Chat(NOBODY, "c-1", ["a", "b"], taken=2, ended=True)
    judged.judge_chat(chat, [] if items is None else [Found(KEY, "rid", "1", 1, "transcript", items)])
    assert counts(judged) == expected


@pytest.mark.parametrize("kind", [Kind.VOICE, Kind.SCREEN])
def test_a_body_is_the_same_every_time_and_says_what_is_searched_for(kind: Kind, tmp_path: Path) -> None:
    def of(seed: int) -> bytes:
        return Recording(NOBODY, "c-1", kind, Manner.WHOLE, seed, 70_000).body()

    assert of(1) == of(1) != of(2)
    assert of(1).count(MARKER) == 5
    (tmp_path / "leak").write_bytes(of(1)[16_000:40_000])
    assert len(search(tmp_path, MARKERS).hits) == 1


def test_only_an_outcome_of_zeros_is_clean() -> None:
    for broken in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        assert not Outcome(3, *broken, 7).is_clean
    clean = Outcome(3, 0, 0, 0, 0, 7)
    assert clean.is_clean
    assert clean.to_json() == (
        '{"rounds": 3, "lost": 0, "duplicated": 0, "wrongBytes": 0, "plaintextHits": 0, "seed": 7}'
    )
