"""Exit codes: one table for all commands."""

from enum import IntEnum

from pipeline.errors import DeferError, HaltError, PipelineError, RejectError


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FOUND = 1
    """Something was found wrong, or not all of it succeeded."""
    USAGE = 2
    REFUSED = 3
    """The service, or the configuration, refuses what was asked. Asking again does not help."""
    WAITING = 4
    """A key, a bucket or the service can't be used now. Nothing is lost; try again later."""
    HALTED = 5
    """Nothing can be done safely: the store, the settings or a port is not as it must be."""


HELP = (
    "Exit codes: 0 all well; 1 something was found wrong, or not all succeeded; 2 wrong usage; 3 refused by the service"
    " or the configuration; 4 a key, a bucket or the service is held or can't be reached; 5 halted."
)


def code_of(error: PipelineError) -> ExitCode:
    """Choose the exit code by what the caller can do next."""
    match error:
        case DeferError():
            return ExitCode.WAITING
        case HaltError():
            return ExitCode.HALTED
        case RejectError():
            return ExitCode.FOUND
        case _:
            return ExitCode.REFUSED
