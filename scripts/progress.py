"""Progress, told on standard error: standard output is for results."""

import sys


def say(text: str) -> None:
    """Tell it."""
    print(text, file=sys.stderr, flush=True)
