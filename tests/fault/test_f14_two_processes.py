"""F14: a second process on one store is refused, and touches nothing of it; the lock goes with its holder.

The service as a whole: see `test_commands`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.adapters.disk import holder, locked
from pipeline.errors import HaltError

HOLD = """
import sys, time
from pipeline.adapters.disk import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == b"held\n"
            assert holder(path) == first.pid
            before = Path(path).read_bytes()
            with pytest.raises(HaltError, match="another process"), locked(path):
                raise AssertionError
            assert Path(path).read_bytes() == before
        finally:
            first.kill()
    assert holder(path) is None
    with locked(path):
        assert holder(path) is not None


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"kept")
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(HaltError, match="ELOOP"), locked(str(tmp_path / "lock")):
        raise AssertionError
    assert (tmp_path / "other").read_bytes() == b"kept"
