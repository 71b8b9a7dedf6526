"""How much a process holds: memory, descriptors, threads, tasks; and whether it grows."""

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process."""

    at_s: float
    memory_bytes: int
    descriptors: int
    threads: int
    tasks: int | None = None
    """What its event loop runs; None if it did not say."""


def look(pid: int, at_s: float, tasks: int | None = None) -> Sample:
    """Look at a process now. Needs the right to see its descriptors: the service hides them from its own user."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    memory, threads = (int(found) for found in re.findall(r"^(?:VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
    try:
        descriptors = len([*Path(f"/proc/{pid}/fd").iterdir()])
    except PermissionError:
        # The size of the table, which grows with what it holds: anybody may see it.
        [size] = re.findall(r"^FDSize:\s+(\d+)", status, re.MULTILINE)
        descriptors = int(size)
    return Sample(at_s, memory * 1024, descriptors, threads, tasks)


def growth(samples: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    """Tell how much a figure grows from the first sample to the last, by the straight line through all."""
    times = [each.at_s for each in samples]
    if len(times) < 2:
        return 0.0
    return statistics.linear_regression(times, [of(each) for each in samples]).slope * (times[-1] - times[0])


def told(sample: Sample) -> str:
    """Say what a look saw."""
    tasks = "" if sample.tasks is None else f", {sample.tasks} tasks"
    return (
        f"{sample.memory_bytes / MIB:.0f} MB resident, {sample.descriptors} descriptors, "
        f"{sample.threads} threads{tasks}"
    )
