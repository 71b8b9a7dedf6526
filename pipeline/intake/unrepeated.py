"""Uploads that were refused for a key that can't be used, from sources that do not try again: for them a 503 is loss.

Known by how they ask, and told by fixed words: nothing of what a caller sent is repeated.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from starlette.datastructures import Headers

from pipeline.ids import InstanceId

FREESWITCH = "FreeSWITCH"
FFMPEG = "ffmpeg"
LIVE = "live upload"


def source_of(headers: Headers) -> str | None:
    """Name a source that does not repeat what it sends; None for one that may."""
    agent = headers.get("user-agent", "").lower()
    if "freeswitch" in agent:  # mod_http_cache: one PUT, its failure is logged and the file removed
        return FREESWITCH
    if agent.startswith("lavf/"):
        return FFMPEG
    return LIVE if "content-length" not in headers else None


class Unrepeated:
    """Counts them, by instance."""

    def __init__(self) -> None:
        self._counts: defaultdict[InstanceId, Counter[str]] = defaultdict(Counter)

    def refused(self, instance: InstanceId, source: str | None) -> None:
        """Take note of an upload that was refused."""
        if source is not None:
            self._counts[instance][source] += 1

    def of(self, instance: InstanceId) -> Mapping[str, int]:
        """Tell how many, by source."""
        return dict(self._counts.get(instance, {}))

    def forget(self, instance: InstanceId) -> None:
        """Begin anew: nothing of the instance is held any more."""
        self._counts.pop(instance, None)

    def instances(self) -> list[InstanceId]:
        """List the instances that have any."""
        return list(self._counts)
