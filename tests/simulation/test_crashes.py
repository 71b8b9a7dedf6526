"""Crashes from fixed seeds: nothing acknowledged is lost, nothing comes twice, nothing can be read on the disk."""

from collections.abc import Callable
from dataclasses import astuple

import pytest

from tests.simulation.crashes import simulate

RecordProperty = Callable[[str, object], None]


def check(seed: int) -> tuple[int, int]:
    found = simulate(seed)
    assert found.broken is None, f"{found.broken}: {found.message}; replay: scripts/torture --crashes 1 --seed {seed}"
    return found.crashes, found.drained


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 1, 2])
def test_whatever_crashes_nothing_acknowledged_is_lost(seed: int, record_property: RecordProperty) -> None:
    crashes, drained = check(seed)
    record_property("counted", f"{crashes} power cuts recovered from, {drained} of them drained")
    assert crashes > 100
    assert drained > 10


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(4))
def test_ten_thousand_crashes(part: int, record_property: RecordProperty) -> None:
    counts = [check(seed) for seed in range(1_000 * part + 1_000, 1_000 * part + 1_015)]
    crashes, drained = sum(each for each, _ in counts), sum(each for _, each in counts)
    record_property("counted", f"{crashes} power cuts recovered from, {drained} of them drained")
    assert crashes > 2_500


def test_a_seed_replays() -> None:
    found = simulate(7, 20)
    assert astuple(simulate(7, 20)) == astuple(found)
    assert simulate(8, 20).fingerprint != found.fingerprint
