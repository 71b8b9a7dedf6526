"""What an exception went through is let go, and what it says stays."""

import weakref
from typing import Any

from pipeline.process import uncollected
from pipeline.tracebacks import forget_way


class Body:
    """Something large."""


def sends(bodies: list[Any]) -> None:
    body = Body()
    bodies.append(weakref.ref(body))
    failure = ConnectionResetError("gone")
    raise failure  # whose way is this frame, which has it


def asks(bodies: list[Any]) -> None:
    body = Body()
    bodies.append(weakref.ref(body))
    try:
        sends(bodies)
    except OSError as error:
        failure = RuntimeError("no answer")
        raise failure from error


def test_what_was_in_hand_is_free_without_the_garbage_collector() -> None:
    bodies: list[Any] = []
    with uncollected():
        try:
            asks(bodies)
        except RuntimeError as error:
            forget_way(error)
            said = [repr(error), repr(error.__cause__)]
        assert [each() for each in bodies] == [None, None]
    assert said == ["RuntimeError('no answer')", "ConnectionResetError('gone')"]
