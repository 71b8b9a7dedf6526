"""Fuzz what reads others' bytes, guided by coverage: artifacts, names, events, recordings, headers, answers of S3.

Each target runs in a process of its own, for its share of the time, within limits of memory and of time per input. A
run is repeated by its seed, except that how many inputs fit into a second differs. Ends with 1 if anything was found;
the input is then in the folder that is named, and `--try FILE` runs a target with it alone.
"""

import argparse
import contextlib
import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

MEMORY_MIB = 1024
INPUT_S = 10
"""One input may take so long: a target that is slower can be stopped by its input."""
INPUT_BYTES = 64 * 1024
GRACE_S = 60
_RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


@dataclass(frozen=True)
class Outcome:
    """What became of one target."""

    target: str
    runs: int
    findings: list[str]


def work(target: str, arguments: list[str]) -> None:
    """Fuzz one target in this process; libFuzzer ends it."""
    atheris: Any = import_module("atheris")  # in an environment of its own
    with atheris.instrument_imports(include=["pipeline"]):
        from tests.fuzz.targets import TARGETS

    with TARGETS[target].opened() as run:
        atheris.Setup([sys.argv[0], *arguments], lambda data: run(bytes(data)))
        atheris.Fuzz()


def fuzz(target: str, seconds: int, seed: int, folder: Path) -> Outcome:
    """Fuzz one target in a process of its own; what it finds is left in `folder`."""
    corpus = Path(tempfile.mkdtemp(prefix=f"pipeline-fuzz-{target}-"))
    try:
        _write_seeds(target, corpus)
        command = [
            *(sys.executable, __file__, "--worker", target, str(corpus)),
            *(f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={folder}/{target}-"),
            *(f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={INPUT_S}", f"-max_len={INPUT_BYTES}"),
            *("-print_final_stats=1", "-verbosity=1"),
        ]
        log = folder / f"{target}.log"
        code = _ended(command, log, seconds + GRACE_S)
        runs = _RUNS.search(log.read_text(errors="replace"))
        found = sorted(str(path) for path in folder.glob(f"{target}-*"))
        if code and not found:
            found = [str(log)]
        return Outcome(target, int(runs[1]) if runs else 0, found)
    finally:
        shutil.rmtree(corpus, ignore_errors=True)


def _ended(command: list[str], log: Path, seconds: int) -> int:
    """Run it, for so long at most; give its exit code."""
    with log.open("wb") as out:
        try:
            return subprocess.run(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            return 1


def _write_seeds(target: str, corpus: Path) -> None:
    from tests.fuzz.targets import TARGETS

    for seed in TARGETS[target].seeds():
        (corpus / sha256(seed).hexdigest()[:16]).write_bytes(seed)


def try_once(target: str, file: Path) -> None:
    """Run a target with one input; whatever it raises is shown."""
    from tests.fuzz.targets import TARGETS

    with TARGETS[target].opened() as run:
        run(file.read_bytes())


def main() -> int:
    """Fuzz, and print a table or one JSON object."""
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3:])
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", help=f"of {', '.join(TARGETS)}; without any, all of them")
    parser.add_argument("--seconds", type=int, default=120, help="in all, shared by the targets (default 120)")
    parser.add_argument("--seed", type=int, help="without it one is drawn, and printed")
    parser.add_argument("--try", dest="file", type=Path, help="run one target with this input only")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    names = chosen.target or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if chosen.file is not None:
        try_once(names[0], chosen.file)
        return 0
    seed = chosen.seed if chosen.seed is not None else secrets.randbelow(2**31 - 1) + 1
    folder = Path(tempfile.mkdtemp(prefix="pipeline-fuzz-found-"))
    print(f"seed {seed}; what is found goes to {folder}", file=sys.stderr)
    outcomes = []
    for name in names:
        outcomes.append(fuzz(name, max(1, chosen.seconds // len(names)), seed, folder))
        print(f"{name}: {outcomes[-1].runs} runs, {len(outcomes[-1].findings)} findings", file=sys.stderr)
    found = [path for outcome in outcomes for path in outcome.findings]
    if chosen.json:
        print(json.dumps({"seed": seed, "folder": str(folder), "targets": [asdict(each) for each in outcomes]}))
    for path in found if not chosen.json else []:
        print(f"found: {path}; see the log beside it")
    if not found:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
