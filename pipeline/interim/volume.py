"""The volume under the store: whether it is the one we know, whether it keeps what is written, and its ballast.

One refused write is an alarm; what it concerned is written again to a new file. A second one soon after it means the
volume: intake stops, while deliveries go on. It resumes by itself, when fresh small files have been written, synced and
read back three times in a row.
"""

import structlog

from pipeline.errors import HaltError, PipelineError, StoreIoError, VolumeFailedError
from pipeline.interim.ballast import Ballast
from pipeline.interim.marker import read_marker
from pipeline.interim.watched import WatchedFiles
from pipeline.ports import Clock, FileSystem

log = structlog.get_logger()

_SOON_S = 60.0
"""A refusal this soon after another is no accident."""
_PROBES = 3
"""In a row that must hold before intake resumes."""
_PROBED_EVERY_S = 2.0
_LONGEST_WAIT_S = 60.0
"""Between probes; the wait doubles while they fail, since each may keep a dying disk busy."""
_PROBE = b"is what is written here kept?\n" * 128


class Volume:
    """One volume. `files` is for intake, `reserved` for what the ballast is kept for."""

    def __init__(self, root: str, files: FileSystem, clock: Clock, *, ballast_bytes: int) -> None:
        self.files = WatchedFiles(files, self.failed, self.present)
        self.ballast = Ballast(files, root, ballast_bytes)
        self.reserved = WatchedFiles(files, self.failed, self.present, self.ballast.give_up)
        self.trouble: str | None = None
        """Why nothing new is taken; None while all is well."""
        self._root = root
        self._plain = files
        self._clock = clock
        self._store_id: str | None = None
        self._failed_at: float | None = None
        self._held = 0
        self._wait_s = _PROBED_EVERY_S
        self._probe_at = 0.0

    def check(self) -> None:
        """Refuse what is new while the volume is in trouble.

        Raises:
            VolumeFailedError: it is.

        """
        if self.trouble is not None:
            raise VolumeFailedError(
                f"{self.trouble}; what was acknowledged is safe, nothing new is taken until the disk keeps it again"
            )

    def is_known_as(self, store_id: str) -> None:
        """Remember which store it holds: from now on `look` compares."""
        self._store_id = store_id

    def failed(self, error: StoreIoError) -> None:
        """Take note of a write or sync that was refused."""
        now = self._clock.monotonic()
        before, self._failed_at = self._failed_at, now
        log.error("store.write_refused", detail=str(error))
        if before is not None and now - before <= _SOON_S:
            self._stop("the disk refuses to keep what is written")

    def present(self) -> None:
        """Make sure that it is the volume we know that is there.

        Raises:
            StoreIoError: it is not; intake has stopped.

        """
        if (trouble := self._absence()) is not None:
            self._stop(trouble)
            raise StoreIoError(trouble)

    def look(self) -> None:
        """Look whether it is still the volume we know, and if it was in trouble, whether that is over. Blocks."""
        trouble = self._absence()
        if trouble is not None:
            self._stop(trouble)
        elif self.trouble is not None and self._clock.monotonic() >= self._probe_at:
            self._probe()

    # --- inside

    def _stop(self, trouble: str) -> None:
        if self.trouble is None:
            log.error("store.volume_failed", detail=trouble)
            self._wait_s = _PROBED_EVERY_S
        self.trouble = trouble
        self._held = 0
        self._probe_at = self._clock.monotonic() + self._wait_s

    def _absence(self) -> str | None:
        """Tell why it is not our volume that is there; None if it is, or if that can't be told now."""
        if self._store_id is None:
            return None
        try:
            marker = read_marker(self._plain, self._root)
        except HaltError:
            return "store.json is damaged"
        except StoreIoError:
            return "the disk can't be read"
        except PipelineError:
            return None
        if marker is None or marker.store_id != self._store_id:
            return "the store is not there any more: is its volume mounted?"
        return None

    def _probe(self) -> None:
        try:
            self._write_probe()
        except (PipelineError, FileNotFoundError, FileExistsError) as error:
            self._held = 0
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
            log.warning("store.probe_failed", detail=str(error), next_in_s=self._wait_s)
        else:
            self._held += 1
            self._wait_s = _PROBED_EVERY_S
        self._probe_at = self._clock.monotonic() + self._wait_s
        if self._held >= _PROBES:
            self.trouble, self._failed_at = None, None
            log.info("store.volume_holds", detail="intake resumes")

    def _write_probe(self) -> None:
        """Write, sync and read back a fresh file; and sync the change of names."""
        path = f"{self._root}/probe"
        self._plain.unlink(path)
        handle = self._plain.create(path)
        try:
            self._plain.append(handle, [_PROBE])
            self._plain.sync(handle)
            if self._plain.read(handle, 0, len(_PROBE)) != _PROBE:
                raise StoreIoError("other bytes came back than were written")
        finally:
            self._plain.close(handle)
        self._plain.unlink(path)
        self._plain.sync_directory(self._root)
