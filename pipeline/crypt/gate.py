"""Whether the KMS keys of one ring may be asked now, and how they last answered. No I/O.

After a failure a key is left alone for a pause that grows with each further failure, and whoever asks meanwhile is
told the same answer: a thousand uploads at once make one call, not a thousand. This is no retry schedule: nothing is
called by itself.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pipeline.errors import HoldCode, KeyBusyError, KeyThrottledError, KeyUnavailableError, RefuseError
from pipeline.ports import Clock

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
"""Short enough that a key which is enabled again is noticed before an uploader gives up."""

_KEY_STATES = {
    HoldCode.KEY_DISABLED,
    HoldCode.KEY_PENDING_DELETION,
    HoldCode.KEY_INVALID_STATE,
    HoldCode.KEY_NOT_FOUND,
}
"""Refusals that speak of the KMS key itself; AccessDenied may be about one operation alone."""


class Call(StrEnum):
    """What is asked of a KMS key."""

    GENERATE = "GenerateDataKey"
    DECRYPT = "Decrypt"


@dataclass(frozen=True, slots=True)
class RingState:
    """Whether the instance's KMS key can be used, as it last answered."""

    code: HoldCode | None = None
    """`None`: usable. `KEY_UNREACHABLE`: it does not answer, and keys in memory go on. Any other: it refuses."""
    since: datetime | None = None
    message: str = ""
    is_proven: bool = False
    """Usable because it did what it was asked, and not only because nobody has asked yet."""
    is_throttled: bool = False
    """It answers, and asks for patience."""


def is_refusal(call: Call, code: HoldCode) -> bool:
    """Tell whether this answer ends the use of the data keys that are in memory.

    Silence does not, nor does one wrapped key that does not open, nor a denial of making new ones.
    """
    if code in _KEY_STATES:
        return True
    return call is Call.DECRYPT and code not in (HoldCode.KEY_UNREACHABLE, HoldCode.KEY_MISMATCH)


class Gates:
    """One gate for each KMS key of a ring and each call."""

    def __init__(self, arns: Iterable[str], clock: Clock, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._gates: dict[tuple[Call, str], _Gate] = {}
        self.open(arns)

    def open(self, arns: Iterable[str]) -> None:
        """Have gates for these KMS keys and no others; one that is known remembers its last answer."""
        self._gates = {
            (call, arn): self._gates.get((call, arn)) or _Gate(arn, self._clock, self._random)
            for arn in arns
            for call in Call
        }

    def ask_now(self) -> None:
        """End every pause."""
        for gate in self._gates.values():
            gate.end_pause()

    def state(self, arn: str) -> RingState:
        """Tell how a KMS key last answered; a refusal outweighs silence."""
        states = [self.answer(arn, call) for call in Call]
        failed = [state for state in states if state.code is not None]
        proven = RingState(is_proven=any(state.is_proven for state in states))
        return min(failed, key=lambda state: state.code is HoldCode.KEY_UNREACHABLE, default=proven)

    def answer(self, arn: str, call: Call) -> RingState:
        """Tell how a KMS key last answered one call."""
        return self._gates[call, arn].state

    @contextmanager
    def asking(self, call: Call, arn: str) -> Iterator[None]:
        """Wrap one call.

        Raises:
            KeyUnavailableError, KeyBusyError: as the call did, or as the last one did while the pause lasts.

        """
        gate = self._gates[call, arn]
        gate.check()
        try:
            yield
        except RefuseError as error:
            message = f"the KMS key does not serve {call}: {error}"
            held = KeyUnavailableError(HoldCode.KEY_INVALID_STATE, message, key_arn=arn)
            gate.failed(held)
            raise held from error
        except (KeyUnavailableError, KeyBusyError) as error:
            gate.failed(error)
            raise
        gate.succeeded()


class _Gate:
    """Remembers the last answer. A refusal stays until a success; silence after it does not hide it."""

    __slots__ = ("_again_at", "_arn", "_clock", "_failures", "_random", "state")

    def __init__(self, arn: str, clock: Clock, random: Callable[[], float]) -> None:
        self._arn = arn
        self._clock = clock
        self._random = random
        self._again_at = 0.0
        self._failures = 0
        self.state = RingState()

    def check(self) -> None:
        if self.state.code is None or self._clock.monotonic() >= self._again_at:
            return
        if self.state.code is HoldCode.KEY_UNREACHABLE:
            raise KeyBusyError(self.state.message)
        raise KeyUnavailableError(self.state.code, self.state.message, key_arn=self._arn)

    def failed(self, error: KeyUnavailableError | KeyBusyError) -> None:
        """Begin the pause: 1 s, doubled each time up to 30 s, half of it by chance."""
        code = error.code if isinstance(error, KeyUnavailableError) else HoldCode.KEY_UNREACHABLE
        if code is HoldCode.KEY_MISMATCH:
            return  # speaks of one wrapped key, which its ring sets aside
        pause = min(_FIRST_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S)
        self._failures = min(self._failures + 1, 10)
        self._again_at = self._clock.monotonic() + pause * (0.5 + 0.5 * self._random())
        if self.state.code in {None, HoldCode.KEY_UNREACHABLE} or code is not HoldCode.KEY_UNREACHABLE:
            since = self.state.since if code is self.state.code else self._clock.now()
            self.state = RingState(code, since, str(error), is_throttled=isinstance(error, KeyThrottledError))

    def end_pause(self) -> None:
        self._again_at = 0.0

    def succeeded(self) -> None:
        self._failures = 0
        self.state = RingState(is_proven=True)
