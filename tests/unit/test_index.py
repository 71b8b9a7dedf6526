from uuid import UUID

from pipeline.ids import ArtifactId, InstanceId, KeyId, Kind
from pipeline.interim.index import Index
from pipeline.interim.states import ArtifactName, Event, State

A = InstanceId(UUID(int=1))


def name(number: int, tag: str = "0" * 16, instance: InstanceId = A) -> ArtifactName:
    return ArtifactName(
        artifact_id=ArtifactId(UUID(int=number)),
        instance_id=instance,
        kind=Kind.VOICE,
        key_id=KeyId(UUID(int=9)),
        tag=tag,
        generation=1,
        sequence=1,
        state=State.OPEN,
    )


def test_what_is_held_of_a_source_comes_oldest_first_and_nothing_of_others() -> None:
    index = Index()
    other = InstanceId(UUID(int=2))
    for each in (name(5), name(3), name(4, tag="1" * 16), name(6, tag="2" * 16), name(7, instance=other)):
        index.put(each)
    assert [each.artifact_id.int for each in index.generations(A, ["0" * 16])] == [3, 5]
    assert [each.artifact_id.int for each in index.generations(A, ["0" * 16, "1" * 16])] == [3, 4, 5]
    assert index.generations(A, ["f" * 16]) == []


def test_counts_follow_every_move() -> None:
    index = Index()
    index.put(name(1))
    index.put(name(2))
    assert (index.count(State.OPEN), len(index.open()), len(index)) == (2, 2, 2)
    sealed = name(1).sealed(Event.FINISHED, generation=1, size_bytes=1)
    index.put(sealed)
    assert (index.count(State.OPEN), index.count(State.SEALED), len(index.open())) == (1, 1, 1)
    index.put(sealed.rejected("integrity"))
    index.put(name(2).rejected("integrity"))
    assert (index.count(State.SEALED), index.count(State.POISON), index.open()) == (0, 2, [])
    index.remove(sealed.artifact_id)
    index.remove(sealed.artifact_id)
    assert (index.count(State.POISON), len(index)) == (1, 1)
    index.put(name(2))
    assert index.open() == [name(2)]
    index.remove(name(2).artifact_id)
    assert list(index) == []
    assert index.generations(A, ["0" * 16]) == []
    assert index.get(sealed.artifact_id) is None
