"""The service that runs on a state directory, as a command beside it sees it."""

import os
import signal

from pipeline.commands import screen
from pipeline.commands.options import Site


def tell_service(site: Site) -> bool:
    """Let a running service look again at its configuration and at what waits; False if none runs."""
    from pipeline.adapters.disk import holder

    pid = holder(f"{site.root}/lock")
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGHUP)
    except (ProcessLookupError, PermissionError):
        screen.note("the running service could not be told; send it SIGHUP")
        return False
    return True
