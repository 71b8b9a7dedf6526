from collections.abc import Callable
from itertools import product
from uuid import UUID

import pytest

from pipeline.errors import SegmentForgedError
from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind
from pipeline.interim.states import NEXT, ArtifactName, Event, State, parse_name

OPEN = ArtifactName(
    artifact_id=ArtifactId(UUID("01a208b9-9dc0-7e08-9d5a-3f1c8e2b6a90")),
    instance_id=InstanceId(UUID(int=0xA)),
    kind=Kind.VOICE,
    key_id=KeyId(UUID(int=0xB)),
    tag="0123456789abcdef",
    generation=1,
    sequence=1,
    state=State.OPEN,
)
SEALED = OPEN.sealed(Event.FINISHED, generation=1, size_bytes=320)
TEXT = (
    "01a208b99dc07e089d5a3f1c8e2b6a90.0000000000000000000000000000000a.voice."
    "0000000000000000000000000000000b.0123456789abcdef.g1"
)


def test_names_say_what_scheduling_needs() -> None:
    assert str(OPEN) == f"{TEXT}.1.open"
    assert str(SEALED) == f"{TEXT}.320.2.sealed"
    assert str(SEALED.delivered()) == f"{TEXT}.320.3.done"
    assert str(SEALED.rejected("integrity")) == f"{TEXT}.320.3.sealed.poison.integrity"
    assert str(OPEN.rejected("integrity")) == f"{TEXT}.2.open.poison.integrity"
    assert OPEN.path == f"0/{OPEN}"


def test_a_recovered_artifact_takes_the_generation_that_became_free() -> None:
    second = ArtifactName(**{**{f: getattr(OPEN, f) for f in OPEN.__struct_fields__}, "generation": 2})
    assert second.sealed(Event.IDLE, generation=1, size_bytes=0).generation == 1


@pytest.mark.parametrize("name", [OPEN, SEALED, SEALED.delivered(), SEALED.rejected("x"), OPEN.rejected("x")])
def test_a_name_that_was_written_reads_the_same(name: ArtifactName) -> None:
    assert parse_name(str(name)) == name


def test_poison_that_was_sealed_can_wait_again_and_what_was_open_can_not() -> None:
    assert str(SEALED.rejected("x").requeued()) == f"{TEXT}.320.4.sealed"
    assert SEALED.rejected("x").requeued().is_waiting
    with pytest.raises(AssertionError):
        OPEN.rejected("x").requeued()


def test_a_poisoned_artifact_is_not_waiting() -> None:
    assert SEALED.is_waiting
    assert not SEALED.rejected("x").is_waiting
    assert not OPEN.is_waiting
    assert not SEALED.delivered().is_waiting


STANDING = {
    State.OPEN: OPEN,
    State.SEALED: SEALED,
    State.DELIVERED: SEALED.delivered(),
    State.POISON: SEALED.rejected("x"),
}


@pytest.mark.parametrize(("state", "event"), [pair for pair in product(State, Event) if pair not in NEXT])
def test_a_move_that_the_table_lacks_is_a_bug(state: State, event: Event) -> None:
    name = STANDING[state]
    moves: dict[Event, Callable[[], ArtifactName]] = {
        Event.FINISHED: lambda: name.sealed(event, generation=1, size_bytes=1),
        Event.IDLE: lambda: name.sealed(event, generation=1, size_bytes=1),
        Event.SETTLED: name.delivered,
        Event.REJECTED: lambda: name.rejected("x"),
        Event.REQUEUED: name.requeued,
    }
    with pytest.raises(KeyError):
        moves[event]()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "README",
        "..",
        f"{TEXT}.1.open.tmp",
        f"{TEXT}.1.open\n",
        f"{TEXT}.320.1.open",
        f"{TEXT}.2.sealed",
        f"{TEXT}.2.done",
        f"{TEXT}.320.2.delivered",
        f"{TEXT}.0320.2.sealed",
        f"{TEXT}.320.02.sealed",
        f"{TEXT}.01.open",
        f"{TEXT}.-1.open",
        f"{TEXT.replace('.g1', '.g0')}.1.open",
        f"{TEXT.replace('.g1', '.g01')}.1.open",
        f"{TEXT.replace('voice', 'journal')}.1.open",
        f"{TEXT.upper()}.1.open",
        f"{TEXT}.1.open.poison.",
        f"{TEXT}.1.open.poison.Integrity",
        f"{TEXT}.1.open.poison.a/b",
        f"{TEXT}.1.open.poison.a.poison.b",
    ],
)
def test_what_is_not_one_of_our_names_is_refused(text: str) -> None:
    with pytest.raises(SegmentForgedError):
        parse_name(text)
