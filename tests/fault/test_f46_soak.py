"""F46: every fault at random, as `scripts/torture --minutes` does it; the long run is for a quiet machine.

Nothing is lost, repeated or in clear, and the process that lives through it does not grow: the run itself checks that.
"""

from pathlib import Path

import pytest
from torture_soak import soaked

pytestmark = [pytest.mark.aws, pytest.mark.slow, pytest.mark.timeout(600)]

SEED = 6


async def test_half_a_minute_of_every_fault_loses_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    outcome = await soaked(0.5, SEED, 4, tmp_path)
    assert outcome.is_clean, outcome
    assert outcome.rounds > 10
