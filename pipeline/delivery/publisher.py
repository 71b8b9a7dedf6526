"""Status events go out: each instance's event log is followed by a durable cursor, one per sink.

At least once, in the order of the log, through all of its files. A sink that does not take them is tried again for
ever; the log keeps them.
"""

import anyio
import anyio.to_thread
import msgspec
import structlog

from pipeline.delivery.lanes import Backoff
from pipeline.errors import DeferError
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import has_hole, logs_in, numbered, written
from pipeline.ports import EventSink, FileSystem

log = structlog.get_logger()

_LOOK_EVERY_S = 0.5
_READ = 1024 * 1024
_MOST = 100
"""Events between two moves of the cursor: what a crash may send again."""


class Cursor(msgspec.Struct, frozen=True, rename="camel"):
    """How far a log was sent: every file before `file`, and of that one every byte before `offset`."""

    offset: int
    file: int = 1


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
        self._cursors: dict[str, Cursor] = {}
        self.failures = 0
        """How often in a row the sink did not take what it was given."""

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            try:
                sent = await self.once()
            except DeferError as error:
                self.failures += 1
                log.warning("events.deferred", sink=self._name, attempt=self.failures, reason=error.reason)
                await anyio.sleep(max(_LOOK_EVERY_S, self._backoff.delay_s(self.failures)))
                continue
            self.failures = 0
            if not sent:
                await anyio.sleep(_LOOK_EVERY_S)

    async def once(self) -> int:
        """Send what is new in every log, up to a limit each; give the number of events.

        Raises:
            DeferError: the sink did not take those of one log or more; the other logs were sent.

        """
        sent = 0
        trouble: DeferError | None = None
        for name in logs_in(await anyio.to_thread.run_sync(self._files.names, self._directory)):
            try:
                sent += await self._follow(name)
            except DeferError as error:
                trouble = error
        if trouble is not None:
            raise trouble
        return sent

    def sent(self, name: str) -> int:
        """Tell which file of a log is being sent: all of the earlier ones has been."""
        if name not in self._cursors:
            self._cursors[name] = self._load(name)
        return self._cursors[name].file

    # --- inside

    async def _follow(self, name: str) -> int:
        events, cursor = await anyio.to_thread.run_sync(self._read, name)
        if not events:
            return 0
        # Lines that are being synced can be read already, and are cut off again if that fails. Once a commit has
        # passed after they were read, what stands there still is durable.
        await self._commits.commit(Commit())
        again, _ = await anyio.to_thread.run_sync(self._read, name)
        if again[: len(events)] != events:
            return 0
        await self._sink.send(events)
        await self._commits.commit(Commit(files=((self._cursor_path(name), msgspec.json.encode(cursor)),)))
        self._cursors[name] = cursor
        return len(events)

    def _read(self, name: str) -> tuple[list[bytes], Cursor]:
        """Read whole lines behind the cursor; give them and where they end."""
        self.sent(name)
        while True:
            earlier = self._earlier(name)
            cursor = self._cursors[name] = _in_log(self._cursors[name], earlier)
            is_written = cursor.file > max(earlier, default=0)
            try:
                handle = self._files.open(
                    f"{self._directory}/{written(name) if is_written else numbered(name, cursor.file)}"
                )
            except FileNotFoundError:
                return [], cursor
            try:
                if is_written and self._earlier(name) != earlier:
                    continue  # it got a number meanwhile: which file was opened is not certain
                if cursor.offset > self._files.size(handle):
                    cursor = self._cursors[name] = Cursor(0, cursor.file)  # another file than the cursor's: all of it
                piece = self._files.read(handle, cursor.offset, _READ)
            finally:
                self._files.close(handle)
            lines = piece.split(b"\n")[:-1][:_MOST]
            behind = Cursor(cursor.offset + sum(len(line) + 1 for line in lines), cursor.file)
            events = [line for line in lines if not has_hole(line)]
            if events or is_written:
                return events, behind
            self._cursors[name] = behind if lines else Cursor(0, cursor.file + 1)

    def _earlier(self, name: str) -> list[int]:
        return logs_in(self._files.names(self._directory)).get(name, [])

    def _load(self, name: str) -> Cursor:
        try:
            handle = self._files.open(self._cursor_path(name))
        except FileNotFoundError:
            return Cursor(0)
        try:
            return msgspec.json.decode(self._files.read(handle, 0, 4096), type=Cursor)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Cursor(0)  # at least once
        finally:
            self._files.close(handle)

    def _cursor_path(self, name: str) -> str:
        return f"{self._directory}/{name}.{self._name}.cursor"


def _in_log(cursor: Cursor, earlier: list[int]) -> Cursor:
    """Put a cursor on a file that there is: the next one, or the first if the log is another than the cursor's."""
    there = [*earlier, max(earlier, default=0) + 1]
    if cursor.file in there:
        return cursor
    return Cursor(0, next((file for file in there if file > cursor.file), there[0]))
