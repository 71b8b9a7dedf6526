"""The ballast: a file that only keeps room, so that a full disk still has some for receipts, events and audit records.

Its blocks are really the file's: allocated and synced, not a hole. When another writer has filled the disk it is given
up a piece at a time, since whoever filled the disk may take what is let go; when there is room it is filled again.
"""

import contextlib
import threading

import structlog

from pipeline.errors import PipelineError
from pipeline.ports import FileSystem

log = structlog.get_logger()

NAME = "ballast"
"""Of the file, in the state directory."""
_PIECE = 4 * 1024 * 1024
"""Given up at a time: room for the records of about 500 deliveries."""


class Ballast:
    """One file of `size_bytes`, if it can be had. Used by several threads."""

    def __init__(self, files: FileSystem, root: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.held_bytes = 0
        """How much of it there is now."""
        self._files = files
        self._root = root
        self._path = f"{root}/{NAME}"
        self._lock = threading.Lock()

    @property
    def missing_bytes(self) -> int:
        """How much of it was given up."""
        return self.size_bytes - self.held_bytes

    def find(self) -> None:
        """See what an earlier process left of it; make sure that it really has its blocks."""
        with self._lock, contextlib.suppress(PipelineError, FileNotFoundError):
            handle = self._files.open(self._path, write=True)
            try:
                found = min(self.size_bytes, self._files.size(handle))
                self._files.allocate(handle, found)
                self.held_bytes = found
            finally:
                self._files.close(handle)

    def fill(self) -> None:
        """Take all of it. If that can't be had, what there was of it stays."""
        with self._lock, contextlib.suppress(PipelineError, FileNotFoundError):
            handle = self._opened()
            try:
                self._extend(handle)
            finally:
                self._files.close(handle)
            self._files.sync_directory(self._root)
            log.info("store.ballast_taken", size_bytes=self.size_bytes)

    def give_up(self) -> bool:
        """Let a piece of it go; tell whether there was one."""
        with self._lock:
            if self.held_bytes == 0:
                return False
            left = max(0, self.held_bytes - _PIECE)
            try:
                handle = self._files.open(self._path, write=True)
                try:
                    self._files.truncate(handle, left)
                finally:
                    self._files.close(handle)
            except (PipelineError, FileNotFoundError):
                return False
            self.held_bytes = left
        log.error("store.ballast_given_up", left_bytes=left, detail="another writer fills the disk; make room")
        return True

    # --- inside

    def _extend(self, handle: int) -> None:
        try:
            self._files.allocate(handle, self.size_bytes)
            self._files.sync(handle)
        except PipelineError:
            self._files.truncate(handle, self.held_bytes)  # also of blocks behind the file's end
            raise
        self.held_bytes = self.size_bytes

    def _opened(self) -> int:
        try:
            return self._files.open(self._path, write=True)
        except FileNotFoundError:
            return self._files.create(self._path)
