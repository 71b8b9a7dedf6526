"""Old files of the event logs leave: the oldest first, when there is more than is to be kept and all sinks have it."""

from collections.abc import Sequence

import anyio
import anyio.to_thread
import structlog

from pipeline.delivery.publisher import Publisher
from pipeline.errors import PipelineError
from pipeline.interim.logs import logs_in, numbered
from pipeline.ports import FileSystem

log = structlog.get_logger()

_EVERY_S = 600.0


class EventLogs:
    """The earlier files of every instance's event log."""

    def __init__(self, directory: str, files: FileSystem, publishers: Sequence[Publisher], kept_bytes: int) -> None:
        self._directory = directory
        self._files = files
        self._publishers = publishers
        self._kept_bytes = kept_bytes

    async def run(self) -> None:
        """Look every ten minutes until cancelled."""
        while True:
            try:
                await anyio.to_thread.run_sync(self.once)
            except PipelineError as error:
                log.warning("events.not_swept", reason=error.reason)
            await anyio.sleep(_EVERY_S)

    def once(self) -> int:
        """Remove what is too much; give the number of files."""
        removed = 0
        for name, numbers in logs_in(self._files.names(self._directory)).items():
            sizes = {number: self._size(f"{self._directory}/{numbered(name, number)}") for number in numbers}
            sent = min((publisher.sent(name) for publisher in self._publishers), default=None)
            too_much = sum(sizes.values()) - self._kept_bytes
            for number in numbers[:-1]:  # the last tells the number of the next
                if too_much <= 0 or (sent is not None and number >= sent):
                    break
                self._files.unlink(f"{self._directory}/{numbered(name, number)}")
                too_much -= sizes[number]
                removed += 1
        return removed

    def _size(self, path: str) -> int:
        try:
            handle = self._files.open(path)
        except FileNotFoundError:  # somebody removed it
            return 0
        try:
            return self._files.size(handle)
        finally:
            self._files.close(handle)
