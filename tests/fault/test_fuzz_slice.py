"""A short slice of `scripts/fuzz`, the same in every run: good inputs of each target, changed; and what was found."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).parents[1] / "fuzz" / "found"
"""By target, inputs that once got another answer."""
MOST_MEMORY = 32 * 2**20
WORDS = [
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b'"',
    b"{",
    b"[" * 2_000,
    b"null",
    b"-1",
    b"1e999",
    b"\\ud800",
    b"\n",
    b":",
]


def changed(seeds: list[bytes], chance: random.Random) -> Iterator[bytes]:
    """Change good inputs: bits, cuts, repeats, splices of two, words that mean something."""
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            at, to = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
            match chance.randrange(6):
                case 0 if data:
                    data[at % len(data)] ^= 1 << chance.randrange(8)
                case 1:
                    del data[at:to]
                case 2:
                    data[at:at] = data[at:to]
                case 3:
                    other = chance.choice(seeds)
                    data[at:to] = other[at:to] or other[:64]
                case 4:
                    data[at:at] = chance.choice(WORDS)
                case _:
                    data[at : at + 4] = chance.randbytes(4)
        yield bytes(data[: 64 * 1024])


@pytest.mark.parametrize("rounds", [25, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_gets_another_answer_than_a_documented_one(name: str, rounds: int) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    inputs = changed(seeds, random.Random(name))
    with target.opened() as run:
        for known in [b"", *seeds, *(path.read_bytes() for path in sorted((FOUND / name).glob("*")))]:
            run(known)
        tracemalloc.start()
        try:
            for _ in range(rounds):
                data = next(inputs)
                try:
                    run(data)
                except Exception as error:
                    raise AssertionError(f"{name}: {data!r}") from error
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < MOST_MEMORY
