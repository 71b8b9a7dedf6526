"""Status events go out: each instance's event log is followed by a durable cursor, one per sink.

At least once, in the order of the log. A sink that does not take them is tried again for ever; the log keeps them.
"""

import anyio
import anyio.to_thread
import msgspec
import structlog

from pipeline.delivery.lanes import Backoff
from pipeline.errors import DeferError
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.ports import EventSink, FileSystem

log = structlog.get_logger()

_LOOK_EVERY_S = 0.5
_READ = 256 * 1024
_MOST = 100
"""Events between two moves of the cursor: what a crash may send again."""


class Cursor(msgspec.Struct, frozen=True, rename="camel"):
    """How far a log was sent: every byte before `offset`."""

    offset: int


class Publisher:
    """Follows every instance's log for one sink."""

    def __init__(
        self, name: str, sink: EventSink, directory: str, files: FileSystem, commits: GroupCommit, backoff: Backoff
    ) -> None:
        self._name = name
        self._sink = sink
        self._directory = directory
        self._files = files
        self._commits = commits
        self._backoff = backoff
        self._offsets: dict[str, int] = {}

    async def run(self) -> None:
        """Send until cancelled."""
        failures = 0
        while True:
            try:
                sent = await self.once()
            except DeferError as error:
                failures += 1
                log.warning("events.deferred", sink=self._name, attempt=failures, reason=error.reason)
                await anyio.sleep(max(_LOOK_EVERY_S, self._backoff.delay_s(failures)))
                continue
            failures = 0
            if not sent:
                await anyio.sleep(_LOOK_EVERY_S)

    async def once(self) -> int:
        """Send what is new in every log, up to a limit each; give the number of events.

        Raises:
            DeferError: the sink did not take those of one log or more; the other logs were sent.

        """
        sent = 0
        trouble: DeferError | None = None
        for name in sorted(await anyio.to_thread.run_sync(self._files.names, self._directory)):
            if not name.endswith(".jsonl"):
                continue
            try:
                sent += await self._follow(name)
            except DeferError as error:
                trouble = error
        if trouble is not None:
            raise trouble
        return sent

    # --- inside

    async def _follow(self, name: str) -> int:
        events, end = await anyio.to_thread.run_sync(self._read, name)
        if not events:
            return 0
        # Lines that are being synced can be read already, and are cut off again if that fails. Once a commit has
        # passed after they were read, what stands there still is durable.
        await self._commits.commit(Commit())
        again, _ = await anyio.to_thread.run_sync(self._read, name)
        if again[: len(events)] != events:
            return 0
        await self._sink.send(events)
        cursor = msgspec.json.encode(Cursor(end))
        await self._commits.commit(Commit(files=((self._cursor_path(name), cursor),)))
        self._offsets[name] = end
        return len(events)

    def _read(self, name: str) -> tuple[list[bytes], int]:
        """Read whole lines behind the cursor; give them and where they end."""
        if name not in self._offsets:
            self._offsets[name] = self._load(name)
        start = self._offsets[name]
        handle = self._files.open(f"{self._directory}/{name}")
        try:
            if start > self._files.size(handle):
                start = self._offsets[name] = 0  # another log than the cursor's: rather all of it again
            piece = self._files.read(handle, start, _READ)
        finally:
            self._files.close(handle)
        lines = piece.split(b"\n")[:-1][:_MOST]
        return lines, start + sum(len(line) + 1 for line in lines)

    def _load(self, name: str) -> int:
        try:
            handle = self._files.open(self._cursor_path(name))
        except FileNotFoundError:
            return 0
        try:
            return msgspec.json.decode(self._files.read(handle, 0, 4096), type=Cursor).offset
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return 0  # at least once
        finally:
            self._files.close(handle)

    def _cursor_path(self, name: str) -> str:
        return f"{self._directory}/{name.removesuffix('.jsonl')}.{self._name}.cursor"
