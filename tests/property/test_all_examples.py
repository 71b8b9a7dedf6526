"""The same properties, each on all of its examples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.property.examples import ALL

HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_properties_hold_for_all_examples() -> None:
    files = sorted(str(path) for path in HERE.glob("test_*.py") if path != Path(__file__))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, env={**os.environ, ALL: "1"}, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
