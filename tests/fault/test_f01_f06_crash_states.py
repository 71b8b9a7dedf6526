"""F1 to F6: a kill or a power cut at any step, with any of what was not synced lost, torn or reordered; and again."""

from collections.abc import Callable

import pytest

from tests.fault.crash_explorer import Count, Share, explore_all
from tests.fault.crash_journey import made_small
from tests.simulation.virtual import run

PARTS = 4
Report = Callable[[str, object], None]


def explored(seed: int, share: Share, report: Report) -> Count:
    with made_small():
        count = run(explore_all(seed, share))
    report("counted", f"seed {seed}, {count}")
    return count


def test_some_crashes_lose_nothing_that_was_acknowledged_and_deliver_nothing_wrong(record_property: Report) -> None:
    """Everything acknowledged is held, then delivered once; nothing else is; nothing is readable on the disk."""
    count = explored(1, Share(every=170, part=23, deep=1), record_property)
    assert count.states["killed"] > 5
    assert count.states["power cut"] > 25
    assert count.states["crashed in recovery"] > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_crash_loses_what_was_acknowledged_or_delivers_anything_wrong(part: int, record_property: Report) -> None:
    """Every step of receive, seal, deliver, settle and recover; together the parts leave none out."""
    count = explored(1 + part, Share(every=PARTS, part=part, deep=7), record_property)
    assert count.states.total() > 1000
