"""Where log lines go: a thread of their own writes them, so that a sink which does not take them stops nobody.

Lines wait in memory up to a limit; what does not fit, or can't be written, is dropped and counted, and the next line
that gets through is preceded by one that says how many. Nothing waits for the sink but the end of the process, and that
for a moment only.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

WAITING_BYTES = 4 * 2**20
"""Lines that wait. More would only be older news."""
_END_S = 1.0
"""What the process gives the sink for its last lines."""
_TRY_S = 0.5


class LogSink(logging.Handler):
    """Writes lines to a file descriptor, from a thread."""

    def __init__(self, descriptor: int, dropped_line: Callable[[int], str]) -> None:
        """`dropped_line` makes the line that says how many were dropped."""
        super().__init__()
        self._descriptor = descriptor
        self._dropped_line = dropped_line
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._there = threading.Condition()
        self._untold = 0
        self._ends_at: float | None = None
        self._is_torn = False
        """The last line is there in part."""
        self.dropped = 0
        """Lines that were lost."""
        # A daemon: a sink that blocks for ever must not keep the process.
        self._thread = threading.Thread(target=self._run, name="log sink", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, or drop it. Never waits for the sink."""
        try:
            line = (self.format(record) + "\n").encode(errors="backslashreplace")
        except Exception:  # noqa: BLE001 - as logging's own handlers: a line that can't be made must not stop the work
            line = None
        with self._there:
            if line is None or self._waiting_bytes + len(line) > WAITING_BYTES:
                self._drop()
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)
            self._there.notify()

    def close(self) -> None:
        """Let the thread write what waits, for a moment."""
        with self._there:
            if self._ends_at is None:
                self._ends_at = time.monotonic() + _END_S
            self._there.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(_END_S)
        super().close()

    # --- in the thread

    def _run(self) -> None:
        while (line := self._next()) is not None:
            if (untold := self._untold) and self._is_written(self._dropped_line(untold).encode() + b"\n"):
                with self._there:
                    self._untold -= untold
            if not self._is_written(line):
                with self._there:
                    self._drop()

    def _next(self) -> bytes | None:
        """Wait for a line; None at the end."""
        with self._there:
            while not self._lines:
                if self._ends_at is not None:
                    return None
                self._there.wait()
            line = self._lines.popleft()
            self._waiting_bytes -= len(line)
            return line

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1

    def _is_written(self, line: bytes) -> bool:
        """Write a line; False if the sink is gone, full, or the process ends first."""
        left = memoryview(b"\n" + line if self._is_torn else line)
        while left:
            try:
                written = os.write(self._descriptor, left)
            except BlockingIOError:
                if self._ends_at is not None and time.monotonic() >= self._ends_at:
                    return False
                select.select([], [self._descriptor], [], _TRY_S)
            except OSError:
                return False
            else:
                left = left[written:]
                self._is_torn = bool(left)
        return True
