"""Judge the lines of a log by its checkpoints and by the lines themselves. Pure.

Three kinds of fault are told apart. `missing`: what a checkpoint or a digest proves to have been there is gone. `gap`:
the numbering jumps, or digests do not adjoin, and nothing says whether there was something between. `invalid`: what is
there is not what was written: a hash, a place or a signature does not hold. The rules are in the README, "Audit log".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.audit.chain import NO_HASH, Link, leaf_hash, link_of
from pipeline.audit.notes import Checkpoint
from pipeline.audit.tree import roots_at

_TOLD = 100
"""Problems that are told in words; all are counted."""


class Mark(NamedTuple):
    """What is kept of a line."""

    leaf: bytes
    link: Link | None
    file: str


@dataclass(slots=True)
class Verdict:
    """What was found of one log."""

    records: int = 0
    first_bad: int | None = None
    missing: int = 0
    gap: int = 0
    invalid: int = 0
    tail_bytes: int = 0
    """Behind the last whole line: never acknowledged."""
    covered: int = 0
    """Records that a signed checkpoint covers."""
    problems: list[str] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.gap or self.invalid)

    def add(self, kind: str, index: int | None, text: str, count: int = 1) -> None:
        """Take a fault down."""
        setattr(self, kind, getattr(self, kind) + count)
        if index is not None and (self.first_bad is None or index < self.first_bad):
            self.first_bad = index
        if len(self.problems) < _TOLD:
            self.problems.append(f"{kind}: {text}" if index is None else f"{kind}: record {index}: {text}")


def mark(text: bytes, file: str) -> Mark:
    """Keep of a line what is needed of it."""
    return Mark(leaf_hash(text), link_of(text), file)


def examine(marks: Sequence[Mark], checkpoints: Sequence[Checkpoint], leaves: Sequence[bytes]) -> Verdict:
    """Judge a log.

    Args:
        marks: of its lines, in the order in which they stand.
        checkpoints: those whose signatures hold, whoever kept them.
        leaves: the hashes that are kept beside the log; believed only if a checkpoint's root follows from them.

    """
    verdict = Verdict(records=len(marks))
    known = _believed(leaves, checkpoints)
    verdict.covered = max((each.size for each in checkpoints), default=0)
    at = _compare(marks, known, verdict)
    end = _follow(marks[at:], known, verdict)
    _judge_roots([*known, *(each.leaf for each in marks[at:])], end, checkpoints, verdict)
    return verdict


def _believed(leaves: Sequence[bytes], checkpoints: Sequence[Checkpoint]) -> Sequence[bytes]:
    """Give as many of the kept hashes as the largest checkpoint vouches for that agrees with them."""
    roots = roots_at(leaves, [each.size for each in checkpoints])
    sizes = [each.size for each in checkpoints if roots.get(each.size) == each.root]
    return leaves[: max(sizes, default=0)]


def _compare(marks: Sequence[Mark], known: Sequence[bytes], verdict: Verdict) -> int:
    """Lay the lines beside the hashes that they must have. Tell at which line those end."""
    place = {leaf: index for index, leaf in enumerate(known)}
    absent: set[int] = set()
    expected = at = 0
    while expected < len(known):
        if at < len(marks) and marks[at].leaf == known[expected]:
            at, expected = at + 1, expected + 1
            continue
        run, following = _strangers(marks, at, place)
        if following is not None and following < expected:  # it stands before this place, or a second time
            _judge_run(run, expected, expected, absent, verdict)
            verdict.add("invalid", following, f"out of its place, in {marks[at + run].file}")
            absent.discard(following)
            at += run + 1
            continue
        end = len(known) if following is None else following
        if following is None:
            run = _claiming(marks[at : at + run], end)  # those behind are judged by the chain
        _judge_run(run, expected, end, absent, verdict)
        at, expected = at + run, end
    while at < len(marks) and (behind := place.get(marks[at].leaf)) is not None:
        verdict.add("invalid", behind, f"out of its place, in {marks[at].file}")
        absent.discard(behind)
        at += 1
    for index in sorted(absent):
        verdict.add("missing", index, "gone; a signed checkpoint covers it")
    return at


def _strangers(marks: Sequence[Mark], at: int, place: dict[bytes, int]) -> tuple[int, int | None]:
    """Count the lines from `at` on that are no known record, and give the index of the record behind them."""
    for run, each in enumerate(marks[at:]):
        if each.leaf in place:
            return run, place[each.leaf]
    return len(marks) - at, None


def _claiming(marks: Sequence[Mark], end: int) -> int:
    """Count the lines at the beginning that do not say that they stand at `end` or behind it."""
    return next((run for run, each in enumerate(marks) if each.link is not None and each.link.index >= end), len(marks))


def _judge_run(run: int, expected: int, end: int, absent: set[int], verdict: Verdict) -> None:
    """Judge `run` unknown lines where the records `expected` to `end` should be."""
    altered = min(run, end - expected)
    for index in range(expected, expected + altered):
        verdict.add("invalid", index, "is not what was written")
    if run > altered:
        verdict.add("invalid", expected + altered, f"{run - altered} lines before it are no records", run - altered)
    absent.update(range(expected + altered, end))


def _follow(marks: Sequence[Mark], known: Sequence[bytes], verdict: Verdict) -> int:
    """Judge the lines that no hash is known of: each has the next index, and names the line before it.

    Where two lines do not fit, the earlier one is at fault, unless a checkpoint vouches for it or the later one does
    not fit the line behind it either. Gives the index behind the last line.
    """
    expected, absent = len(known), set[int]()
    last: str | None = known[-1].hex() if known else NO_HASH
    is_sure = True
    """Whether the line before is beyond doubt."""
    for number, each in enumerate(marks):
        link = each.link
        if link is None:
            verdict.add("invalid", expected, f"no record, in {each.file}")
            if _index_after(marks, number) != expected:  # else it was put in between
                expected, last, is_sure = expected + 1, None, False
        elif link.index < expected:
            what = "out of its place" if link.index in absent else "there a second time, or of another log"
            absent.discard(link.index)
            verdict.add("invalid", link.index, f"{what}, in {each.file}")
        else:
            absent.update(range(expected, link.index))
            is_bad = False
            if link.index == expected and last is not None and link.previous != last:
                is_bad = is_sure or _is_broken_after(marks, number)
                index = link.index if is_bad else link.index - 1
                verdict.add("invalid", index, f"does not fit the line that follows or precedes it, in {each.file}")
            expected, last, is_sure = link.index + 1, None if is_bad else each.leaf.hex(), False
    for index in sorted(absent):
        if index < verdict.covered:
            verdict.add("missing", index, "gone; a signed checkpoint covers it")
        else:
            verdict.add("gap", index, "not there; no checkpoint says whether it was")
    return expected


def _index_after(marks: Sequence[Mark], number: int) -> int | None:
    link = marks[number + 1].link if number + 1 < len(marks) else None
    return None if link is None else link.index


def _is_broken_after(marks: Sequence[Mark], number: int) -> bool:
    link = marks[number + 1].link if number + 1 < len(marks) else None
    return link is not None and link.previous != marks[number].leaf.hex()


def _judge_roots(hashes: Sequence[bytes], end: int, checkpoints: Sequence[Checkpoint], verdict: Verdict) -> None:
    """Hold every checkpoint against the tree that the hashes make. `end` is the index behind the last line."""
    roots = roots_at(hashes, [each.size for each in checkpoints])
    sound = 0
    for each in sorted(checkpoints, key=lambda one: one.size):
        if roots.get(each.size) == each.root:
            sound = each.size
        elif each.size > end:
            verdict.add("missing", end, f"gone; a signed checkpoint covers {each.size} records", each.size - end)
            return
        elif verdict.first_bad is None or verdict.first_bad >= each.size:
            verdict.add("invalid", sound, f"or one behind it: a checkpoint over {each.size} records is of another log")
            return
