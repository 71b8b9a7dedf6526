"""See that the tests notice when a safety line is gone: each is taken out of a copy of the code in turn.

Standard output tells the test that caught each. The exit code is 1 if one escaped, and 2 if the gate itself can't be
used: the tests fail without a mutation, or a line is not where it was.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import MUTATIONS, Mutation

COPIED = ("pipeline", "tests", "fixtures", "scripts", "pyproject.toml")
PATIENCE_S = 900.0
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def main() -> int:
    """Run all mutations, or those that are named."""
    parser = argparse.ArgumentParser(prog="scripts/mutation-gate", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--workers", type=int, default=2, help="mutations at a time (2)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    chosen = parser.parse_args()
    wanted = [mutation for mutation in MUTATIONS if not chosen.names or mutation.name in chosen.names]
    if not wanted or len(wanted) < len(set(chosen.names)):
        parser.error("there is no such mutation; they are: " + ", ".join(each.name for each in MUTATIONS))
    moved = [each.name for each in wanted if Path(each.file).read_text().count(each.before) != 1]
    if moved:
        print(f"the line of these is not where it was: {', '.join(moved)}", file=sys.stderr)
        return 2
    if (broken := _caught(None, sorted({test for each in wanted for test in each.tests}))) is not None:
        print(f"without any mutation {broken} fails; nothing can be said", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(chosen.workers) as pool:
        caught = list(pool.map(_tried, wanted))
    if chosen.json:
        _print_json(wanted, caught)
    return int(None in caught)


def _tried(mutation: Mutation) -> str | None:
    by = _caught(mutation, mutation.tests)
    print(f"{mutation.name}: {by or 'ESCAPED'}", file=sys.stderr, flush=True)
    return by


def _caught(mutation: Mutation | None, tests: "list[str] | tuple[str, ...]") -> str | None:
    """Run tests in a copy with the mutation; give the first that fails."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        for name in COPIED:
            source, target = Path(name), Path(folder, name)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)
        if mutation is not None:
            changed = Path(folder, mutation.file)
            changed.write_text(changed.read_text().replace(mutation.before, mutation.after))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-m", "not slow", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *tests], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    if done.returncode == 0:
        return None
    found = FAILED.search(done.stdout)
    return found[1] if found else f"pytest itself: exit code {done.returncode}"


def _print_json(wanted: list[Mutation], caught: list[str | None]) -> None:
    report = {
        "mutations": [{"name": each.name, "caughtBy": by} for each, by in zip(wanted, caught, strict=True)],
        "escaped": [each.name for each, by in zip(wanted, caught, strict=True) if by is None],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())
