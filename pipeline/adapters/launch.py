"""Become another program that ends with its parent, also when the parent is killed (Linux, prctl(2)).

Run as a script: `launch.py <parent's process id> <program> [argument ...]`. Imports nothing of the package, so that it
starts fast. The kernel's signal is bound to the parent's *thread* that made this process: start it from a thread that
lives as long as the process, as the event loop's.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LOST = 70
"""Exit code, as sysexits.h's EX_SOFTWARE."""


def main(parent: int, argv: list[str]) -> None:
    """Tie this process to `parent`, then become `argv`."""
    # SIGKILL: who starts the service again must not wait for a slow shutdown of what the killed one left.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(_LOST)
    if os.getppid() != parent:  # it ended before the line above; no signal will come
        sys.exit(_LOST)
    os.execvp(argv[0], argv)  # noqa: S606 - what this program is for


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
