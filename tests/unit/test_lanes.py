from datetime import timedelta
from uuid import UUID

from pipeline.delivery.lanes import Backoff, Lane, LaneKey, Lanes, Window
from pipeline.ids import ArtifactId, InstanceId, Kind

KEYS: list[LaneKey] = [(InstanceId(UUID(int=number)), Kind.VOICE) for number in range(3)]


def artifact(number: int) -> ArtifactId:
    return ArtifactId(UUID(int=number))


def backoff(chance: float = 1.0) -> Backoff:
    return Backoff(timedelta(seconds=2), timedelta(seconds=60), lambda: chance)


def lane(*numbers: int) -> Lane:
    made = Lane(KEYS[0], window=Window(size=16.0))
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
    assert each.hold(0.0, 0.0, backoff())
    assert each.next_due() == 2.0
    assert taken(each, 1.0) is None
    assert [taken(each, 2.0), taken(each, 2.0)] == [1, None]
    assert each.next_due() is None
    each.put_back(artifact(1))
    assert each.hold(2.0, 2.0, backoff())
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
        assert each.hold(0.0, 60.0 * number, backoff()) is (number == 0)
    assert (each.probes, each.held_until) == (1, 2.0)


def test_a_hold_waits_at_least_a_second() -> None:
    each = lane(1)
    each.hold(0.0, 10.0, backoff(0.0))
    assert each.held_until == 11.0


def test_what_was_deferred_before_a_hold_waits_with_the_others() -> None:
    each = lane(1)
    taken(each)
    each.defer(artifact(1), 0.0, backoff())
    each.hold(0.0, 0.0, Backoff(timedelta(seconds=30), timedelta(seconds=60), lambda: 1.0))
    assert taken(each, 10.0) is None
    assert each.next_due() == 30.0


def test_a_parked_artifact_waits_long_and_alone() -> None:
    each = lane(1, 2)
    taken(each)
    each.park(artifact(1), 3600.0)
    assert [taken(each), taken(each)] == [2, None]
    assert each.next_due() == 3600.0


def lanes_of(*counts: int) -> Lanes:
    """Make lanes that hold so many artifacts each."""
    lanes = Lanes()
    for key, count in zip(KEYS, counts, strict=True):
        for number in range(count):
            lanes[key].add(artifact(number))
        lanes.look(lanes[key], 0.0)
    return lanes


def order(lanes: Lanes, count: int, now: float = 0.0) -> list[int | None]:
    """Tell from which lane each of the next artifacts comes."""
    found = [lanes.take(now) for _ in range(count)]
    return [None if each is None else KEYS.index(each[0].key) for each in found]


def test_lanes_take_turns_and_the_one_with_the_fewest_under_way_is_next() -> None:
    lanes = lanes_of(100, 1, 1)
    assert order(lanes, 5) == [0, 1, 2, 0, None]
    assert [each.key for each in lanes.of(KEYS[1][0])] == [KEYS[1]]
    assert len(lanes.all()) == 3
    busy = lanes[KEYS[0]]
    busy.settled(artifact(0))
    lanes[KEYS[1]].add(artifact(7))
    for key in KEYS:
        lanes.look(lanes[key], 0.0)
    assert order(lanes, 3) == [0, 1, 0]


def test_a_lane_that_waits_does_not_delay_the_others() -> None:
    lanes = lanes_of(1, 1, 1)
    lanes[KEYS[0]].hold(0.0, 0.0, backoff())
    lanes.look(lanes[KEYS[0]], 0.0)
    assert order(lanes, 3) == [1, 2, None]
    assert lanes.next_due() == 2.0
    assert order(lanes, 2, 1.9) == [None, None]
    assert order(lanes, 2, 2.0) == [0, None]
    assert Lanes().next_due() is None
    assert Lanes().take(0.0) is None


def test_the_last_places_are_kept_for_lanes_that_have_nothing_under_way() -> None:
    lanes = lanes_of(100, 0, 3)
    lanes[KEYS[0]].window.size = 16.0
    lanes.look(lanes[KEYS[0]], 0.0)
    lanes[KEYS[2]].hold(-1.0, -5.0, backoff())
    lanes.look(lanes[KEYS[2]], 0.0)
    found = [lanes.take(0.0, under_way) for under_way in range(15)]
    assert [each[0].key for each in found if each] == [KEYS[2], *[KEYS[0]] * 14]  # one probe at a time
    lanes[KEYS[1]].add(artifact(1))
    lanes[KEYS[1]].add(artifact(2))
    lanes.look(lanes[KEYS[1]], 0.0)
    lanes[KEYS[2]].in_hand.clear()
    lanes.look(lanes[KEYS[2]], 0.0)
    found = [lanes.take(0.0, 16), lanes.take(0.0, 17)]
    assert [each and each[0].key for each in found] == [KEYS[1], None]
    assert lanes.take(0.0, 24) is None
    assert lanes.take(0.0, 15) is not None


def test_what_was_deferred_is_taken_when_its_time_comes() -> None:
    lanes = lanes_of(2, 0, 0)
    assert order(lanes, 2) == [0, 0]
    each = lanes[KEYS[0]]
    for number, until in ((0, 5.0), (1, 3.0)):
        each.park(artifact(number), until)
        lanes.look(each, 0.0)
    assert [lanes.next_due(), lanes.take(2.0)] == [3.0, None]
    assert lanes.take(3.0) == (each, artifact(1))
    assert [lanes.next_due(), lanes.take(4.9)] == [5.0, None]
    assert lanes.take(5.0) == (each, artifact(0))
    assert lanes.next_due() is None


# --- how many at a time


def test_a_window_doubles_grows_by_one_a_round_and_is_halved_once_a_round() -> None:
    window = Window(most=16)
    for expected in (3, 4, 5, 6):
        window.succeeded(int(window.size))
        assert window.size == expected
    window.failed(1.0, 2.0)
    assert (window.size, window.threshold) == (3.0, 3.0)
    for _ in range(5):
        window.failed(1.5, 2.5)  # they began before it was halved
    assert window.size == 3.0
    for _ in range(4):
        window.succeeded(3)
    assert 4.0 <= window.size < 4.5
    window.failed(2.1, 3.0)
    assert 2.0 <= window.size < 2.5
    for _ in range(1000):
        window.succeeded(16)
    assert window.size == 16.0


def test_a_window_that_is_not_used_does_not_grow() -> None:
    window = Window()
    for _ in range(100):
        window.succeeded(1)
    assert window.size == 2.0


def test_a_window_never_closes() -> None:
    window = Window()
    for number in range(10):
        window.failed(number + 0.5, number + 1.0)
    assert window.size == 1.0


def test_failures_in_a_row_pause_a_lane_and_the_first_success_lets_it_go_on_slowly() -> None:
    each = lane(*range(100))
    assert [taken(each) for _ in range(17)] == [*range(16), None]
    assert [each.strained(0.0, 1.0, backoff(), 0.0) for _ in range(16)] == [False, False, True, *[False] * 13]
    for number in range(16):
        each.defer(artifact(number), 1.0, backoff())
    assert (each.probes, each.held_until, each.window.size, each.window.threshold) == (1, 3.0, 1.0, 8.0)
    assert taken(each, 2.9) is None
    assert [taken(each, 3.0), taken(each, 3.0)] == [0, None]
    assert each.strained(3.0, 3.5, backoff(), 0.0)
    assert (each.probes, each.held_until, each.window.threshold) == (2, 7.5, 8.0)
    each.defer(artifact(0), 3.5, backoff())
    assert taken(each, 7.5) == 0
    each.settled(artifact(0))
    each.release()
    assert [taken(each, 8.0), taken(each, 8.0), taken(each, 8.0)] == [1, 2, None]


def test_success_between_failures_pauses_nothing() -> None:
    each = lane(*range(30))
    for number in range(10):
        for _ in range(2):
            taken(each)
            assert not each.strained(float(number), number + 0.5, backoff(), 0.0)
        each.settled(artifact(number))
    assert each.held_until is None


def test_a_bucket_that_asks_for_time_gets_it_at_once() -> None:
    each = lane(1)
    taken(each)
    assert each.strained(0.0, 1.0, backoff(0.5), 30.0)
    assert each.held_until == 32.0
    assert each.defer(artifact(1), 1.0, backoff(0.5), 30.0) == 31.0
