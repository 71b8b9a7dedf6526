"""F1, F2, F18: `kill -9` of the real service under load, as `scripts/torture` does it.

Nothing acknowledged is lost, nothing is delivered twice or as other bytes, and nothing is in clear on disk.
"""

from pathlib import Path

import pytest
from torture_kill import Kind, plan, rounds
from torture_outcome import Outcome

SEED = 32


@pytest.mark.aws
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_kills_of_the_service_and_of_its_servers_lose_and_repeat_nothing(tmp_path: Path) -> None:
    assert {each.kind for each in plan(12, SEED)} == set(Kind)
    assert await rounds(12, SEED, 8, tmp_path) == Outcome(12, 0, 0, 0, 0, SEED)


def test_a_seed_names_one_plan() -> None:
    assert plan(50, 1) == plan(50, 1) != plan(50, 2)
