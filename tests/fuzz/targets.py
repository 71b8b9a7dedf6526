"""What is fuzzed: each target takes any bytes, and may answer with the errors that its module documents and no other.

A target also knows more than "it did not crash": whatever opens is what was sealed, whatever is read is written the
same again, and no verdict depends on the pieces in which bytes came.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tests.fuzz import artifacts, media, requests, s3_answers, texts

Run = Callable[[bytes], None]
"""Try one input. Raises what must not be raised, `AssertionError` for an answer that is wrong."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads what others wrote."""

    seeds: Callable[[], Sequence[bytes]]
    """Good inputs to begin from."""
    opened: Callable[[], AbstractContextManager[Run]]


def _plain(seeds: Callable[[], Sequence[bytes]], run: Run) -> Target:
    return Target(seeds, lambda: nullcontext(run))


TARGETS: dict[str, Target] = {
    "artifact": _plain(artifacts.sealed, artifacts.read),
    "recovery": _plain(artifacts.unfinished, artifacts.recover_again),
    "contents": _plain(artifacts.contents, artifacts.decode),
    "names": _plain(artifacts.names, artifacts.name),
    "ring": _plain(artifacts.ring_files, artifacts.ring_file),
    "receipts": _plain(artifacts.receipts, artifacts.receipt),
    "events": _plain(texts.events, texts.event),
    "wav": _plain(media.wavs, media.judged),
    "mp4": _plain(media.mp4s, media.judged),
    "transcript": _plain(media.transcripts, media.judged),
    "headers": _plain(requests.uploads, requests.upload),
    "s3": Target(s3_answers.answers, s3_answers.opened),
}
