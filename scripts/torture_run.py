"""Torture the service: real kills under load, minutes of every fault at once, or simulated crashes from a seed.

Progress and the seed go to standard error. The exit code is 0 only if nothing was lost, duplicated, delivered with
other bytes or found in clear. The same seed makes the same plan; with real processes its timing is not the same.
"""

import argparse
import logging
import random
import sys

from progress import say
from torture_ground import TortureError
from torture_kill import kill_rounds
from torture_outcome import Outcome
from torture_soak import soak

from pipeline.logs import configure
from pipeline.settings import LogSettings

NOISY = ("aiohttp", "microburst")
"""What the broken way between the service and the bucket says of itself: errors, which it is there to make."""


def main() -> None:
    """Run one mode, and report."""
    chosen = _arguments()
    configure(LogSettings(level="ERROR", format="text"), sys.stderr)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    say(f"seed {seed}")
    try:
        outcome = _run(chosen, seed)
    except* (TortureError, TimeoutError, OSError) as errors:
        say(f"torture: seed {seed}: {_first(errors)}")
        sys.exit(1)
    if chosen.json:
        print(outcome.to_json(), flush=True)
    else:
        print(
            f"{outcome.rounds} rounds: {outcome.lost} lost, {outcome.duplicated} duplicated, "
            f"{outcome.wrong_bytes} with wrong bytes, {outcome.plaintext_hits} in clear (seed {outcome.seed})"
        )
    sys.exit(not outcome.is_clean)


def _run(chosen: argparse.Namespace, seed: int) -> Outcome:
    more = {} if chosen.workers is None else {"workers": chosen.workers}
    if chosen.kill_rounds is not None:
        return kill_rounds(chosen.kill_rounds, seed, **more)
    if chosen.minutes is not None:
        return soak(chosen.minutes, seed, **more)
    from torture_crashes import crashes  # not needed for the other modes

    return crashes(chosen.crashes, seed, **more)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument(
        "--kill-rounds", type=_whole, metavar="N", help="kill -9 the real service N times under load (about 3 s each)"
    )
    mode.add_argument(
        "--minutes", type=_minutes, metavar="M", help="run the real service for M minutes with every fault on"
    )
    mode.add_argument("--crashes", type=_whole, metavar="N", help="simulate N crashes, power cuts included")
    parser.add_argument("--seed", type=int, metavar="S", help="what decides the plan; a random one is chosen and told")
    parser.add_argument("--workers", type=_whole, metavar="W", help="clients at a time, or processes that simulate")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on standard output")
    return parser.parse_args()


def _whole(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"from 1 to {10**9}, not {number}")
    return number


def _minutes(text: str) -> float:
    number = float(text)
    if not 0.5 <= number <= 24 * 60:
        raise argparse.ArgumentTypeError(f"from 0.5 to {24 * 60}, not {number:g}")
    return number


if __name__ == "__main__":
    main()
