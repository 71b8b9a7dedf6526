from datetime import timedelta
from uuid import UUID

from pipeline.delivery.lanes import Backoff, Lane, LaneKey, Lanes
from pipeline.ids import ArtifactId, InstanceId, Kind

KEYS: list[LaneKey] = [(InstanceId(UUID(int=number)), Kind.VOICE) for number in range(3)]


def artifact(number: int) -> ArtifactId:
    return ArtifactId(UUID(int=number))


def backoff(chance: float = 1.0) -> Backoff:
    return Backoff(timedelta(seconds=2), timedelta(seconds=60), lambda: chance)


def lane(*numbers: int) -> Lane:
    made = Lane(KEYS[0])
    for number in numbers:
        made.add(artifact(number))
    return made


def taken(each: Lane, now: float = 0.0) -> int | None:
    found = each.take(now)
    return None if found is None else found.int


def test_attempts_start_oldest_first() -> None:
    each = lane(3, 1, 2)
    assert [taken(each) for _ in range(4)] == [1, 2, 3, None]
    assert each.size == 3


def test_a_deferred_artifact_does_not_stop_those_behind_it() -> None:
    each = lane(1, 2)
    assert taken(each) == 1
    assert each.defer(artifact(1), 0.0, backoff()) == 2.0
    assert [taken(each), taken(each)] == [2, None]
    assert each.next_due() == 2.0
    assert taken(each, 1.9) is None
    assert taken(each, 2.0) == 1


def test_waits_double_up_to_a_limit_and_are_anything_below_it() -> None:
    each = lane(1)
    found = [each.defer(artifact(1), 0.0, backoff()) for _ in range(8)]
    assert found == [2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff(0.0).delay_s(40) == 0
    assert backoff(0.5).delay_s(10_000) == 30


def test_a_settled_artifact_begins_its_attempts_anew() -> None:
    each = lane(1)
    taken(each)
    each.defer(artifact(1), 0.0, backoff())
    taken(each, 5.0)
    each.settled(artifact(1))
    assert each.size == 0
    assert each.attempts == {}


def test_what_could_not_be_tried_costs_no_attempt() -> None:
    each = lane(1, 2)
    taken(each)
    each.put_back(artifact(1))
    assert each.attempts == {}
    assert taken(each) == 1


def test_a_held_lane_sends_one_probe_at_a_time_and_the_oldest_first() -> None:
    each = lane(1, 2, 3)
    taken(each)
    each.put_back(artifact(1))
    each.hold(0.0, backoff())
    assert each.next_due() == 2.0
    assert taken(each, 1.0) is None
    assert [taken(each, 2.0), taken(each, 2.0)] == [1, None]
    assert each.next_due() is None
    each.put_back(artifact(1))
    each.hold(2.0, backoff())
    assert each.held_until == 6.0
    assert taken(each, 6.0) == 1
    each.settled(artifact(1))
    each.release()
    assert [taken(each, 6.0), taken(each, 6.0)] == [2, 3]


def test_many_that_find_the_same_hold_at_once_count_as_one() -> None:
    """Sixteen in hand that all end so must not bring the first probe to the longest wait."""
    each = lane(*range(16))
    for _ in range(16):
        taken(each)
    for number in range(16):
        each.put_back(artifact(number))
        each.hold(0.1 * number, backoff())
    assert (each.probes, each.held_until) == (1, 2.0)


def test_a_hold_waits_at_least_a_second() -> None:
    each = lane(1)
    each.hold(10.0, backoff(0.0))
    assert each.held_until == 11.0


def test_what_was_deferred_before_a_hold_waits_with_the_others() -> None:
    each = lane(1)
    taken(each)
    each.defer(artifact(1), 0.0, backoff())
    each.hold(0.0, Backoff(timedelta(seconds=30), timedelta(seconds=60), lambda: 1.0))
    assert taken(each, 10.0) is None
    assert each.next_due() == 30.0


def test_a_parked_artifact_waits_long_and_alone() -> None:
    each = lane(1, 2)
    taken(each)
    each.park(artifact(1), 3600.0)
    assert [taken(each), taken(each)] == [2, None]
    assert each.next_due() == 3600.0


def test_lanes_take_turns() -> None:
    lanes = Lanes()
    for number in range(100):
        lanes[KEYS[0]].add(artifact(number))
    for key in KEYS[1:]:
        lanes[key].add(artifact(1000))
    found = [lanes.take(0.0) for _ in range(6)]
    assert [KEYS.index(each[0].key) for each in found if each] == [0, 1, 2, 0, 0, 0]
    assert [each.key for each in lanes.of(KEYS[1][0])] == [KEYS[1]]
    assert len(lanes.all()) == 3


def test_a_lane_that_waits_does_not_delay_the_others() -> None:
    lanes = Lanes()
    for key in KEYS:
        lanes[key].add(artifact(1))
    lanes[KEYS[0]].hold(0.0, backoff())
    found = [lanes.take(0.0) for _ in range(3)]
    assert [each[0].key for each in found if each] == KEYS[1:]
    assert lanes.next_due() == 2.0
    assert Lanes().next_due() is None
    assert Lanes().take(0.0) is None
