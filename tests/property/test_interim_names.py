from contextlib import suppress
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SegmentForgedError
from pipeline.ids import RECORDINGS, ArtifactId, InstanceId, KeyId
from pipeline.interim.states import ArtifactName, Event, State, parse_name

uuids = st.integers(0, 2**128 - 1).map(lambda number: UUID(int=number))
begun = st.builds(
    ArtifactName,
    artifact_id=uuids.map(ArtifactId),
    instance_id=uuids.map(InstanceId),
    kind=st.sampled_from(RECORDINGS),
    key_id=uuids.map(KeyId),
    tag=st.text("0123456789abcdef", min_size=16, max_size=16),
    generation=st.integers(1, 10**9 - 1),
    sequence=st.integers(0, 1000),
    state=st.just(State.OPEN),
)
moves = st.lists(st.tuples(st.sampled_from(Event), st.integers(1, 9), st.integers(0, 5 * 2**40)), max_size=5)


@given(name=begun, path=moves)
def test_any_sequence_of_moves_is_told_by_the_name_alone(
    name: ArtifactName, path: list[tuple[Event, int, int]]
) -> None:
    for event, generation, size_bytes in path:
        before = name
        with suppress(KeyError):
            if event is Event.SETTLED:
                name = name.delivered()
            elif event is Event.REJECTED:
                name = name.rejected("integrity")
            else:
                name = name.sealed(event, generation=generation, size_bytes=size_bytes)
        assert parse_name(str(name)) == name
        assert len(str(name)) < 255 - len(".tmp")
        assert name.sequence == before.sequence + (name != before)
        assert (name.artifact_id, name.shard, name.tag) == (before.artifact_id, before.shard, before.tag)


@given(name=begun, at=st.integers(0, 200), letter=st.characters(max_codepoint=0x250))
def test_a_changed_name_is_another_name_or_none(name: ArtifactName, at: int, letter: str) -> None:
    text = str(name)
    changed = text[: at % len(text)] + letter + text[at % len(text) + 1 :]
    with suppress(SegmentForgedError):
        assert str(parse_name(changed)) == changed
