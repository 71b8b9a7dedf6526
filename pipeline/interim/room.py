"""Admission: what may still be taken in, so that all that is held can always be delivered.

Kept free are the ballast and, for every undelivered artifact, 8 KiB and 3 inodes: they pay for its receipt, its events
and its audit records. Nothing that is held is ever removed for room; whoever comes is refused, and is welcome again as
soon as deliveries, or the operator, have made some.
"""

from collections.abc import Callable

import anyio
import anyio.to_thread

from pipeline.errors import DeferError, QuotaError, StoreFullError, StoreIoError
from pipeline.ids import InstanceId
from pipeline.interim.index import Index
from pipeline.interim.states import ArtifactName, State
from pipeline.interim.volume import Volume
from pipeline.ports import FileSystem

PER_ARTIFACT_BYTES = 8 * 1024
PER_ARTIFACT_INODES = 3
_ASKED_EVERY = 1024 * 1024
"""Bytes taken between two questions for the free room."""
_LEAST_COUNTED = 16 * 1024
"""What a question for less counts as: a new artifact is a question for nothing."""
_IN_MEMORY = 4
"""This part of the ballast's size is kept besides: for bytes that were taken, but are not written yet."""
_TENDED_EVERY_S = 1.0

QuotaOf = Callable[[InstanceId], int | None]
"""Tell how many undelivered bytes an instance may hold."""


def unlimited(_instance: InstanceId) -> int | None:
    """Let every instance hold as much as there is room for."""
    return None


def needed_bytes(floor: int, undelivered: int, ballast: int = 0) -> int:
    """Tell how much has to be free: `floor` is the ballast's full size, `ballast` what there is of it."""
    return floor - ballast + floor // _IN_MEMORY + undelivered * PER_ARTIFACT_BYTES


class Room:
    """Answers whether there is room, asking the disk only now and then."""

    def __init__(
        self, root: str, files: FileSystem, index: Index, *, free_bytes: int, volume: Volume | None, quota_of: QuotaOf
    ) -> None:
        self._root = root
        self._files = files
        self._index = index
        self._free_bytes = free_bytes
        self._volume = volume
        self._quota_of = quota_of
        self._credit = 0

    @property
    def trouble(self) -> str | None:
        """What is wrong with the volume; None while it keeps what is written to it."""
        return None if self._volume is None else self._volume.trouble

    @property
    def refusal(self) -> str | None:
        """Why nothing new is taken now, whoever sends it; None if it is."""
        try:
            if self._volume is not None:
                self._volume.check()
            self._ask()
        except DeferError as error:
            return error.reason
        return None

    def check(self, instance: InstanceId, size_bytes: int = 0) -> None:
        """Refuse what can't be taken in.

        Raises:
            QuotaError: the instance would hold more than it may.
            StoreFullError: the room kept for what is held would be touched.
            VolumeFailedError: the volume does not keep what is written to it.

        """
        if self._volume is not None:
            self._volume.check()
        quota = self._quota_of(instance)
        if quota is not None and self._index.held_bytes(instance) + max(size_bytes, 1) > quota:
            raise QuotaError(
                f"this instance holds as many undelivered bytes as its limit allows (held_bytes: {quota}); "
                "they are safe and being delivered, and there is room again as they go"
            )
        cost = max(size_bytes, _LEAST_COUNTED)
        if self._credit < cost:
            self._ask()
            self._credit = _ASKED_EVERY
        self._credit -= cost

    def check_copy(self, size_bytes: int) -> None:
        """Refuse a copy of something held that there is no room for beside it.

        Raises:
            StoreFullError: the room kept for what is held would be touched.
            VolumeFailedError: the volume does not keep what is written to it.

        """
        if self._volume is not None:
            self._volume.check()
        self._ask(size_bytes)

    def take(self, name: ArtifactName, size_bytes: int) -> None:
        """Count bytes that an open artifact is about to take. Raises as `check` does; then they are not counted."""
        self.check(name.instance_id, size_bytes)
        self._index.grow(name.artifact_id, size_bytes)

    async def run(self) -> None:
        """Look after the volume until cancelled."""
        limiter = anyio.CapacityLimiter(1)
        while True:
            await anyio.to_thread.run_sync(self.tend, limiter=limiter)
            await anyio.sleep(_TENDED_EVERY_S)

    def tend(self) -> None:
        """Look whether the volume is well, and fill the ballast again if there is room for it. Blocks."""
        if self._volume is None:
            return
        self._volume.look()
        if self._volume.trouble is not None or not self._volume.ballast.missing_bytes:
            return
        try:
            self._ask()
        except DeferError:
            return
        self._volume.ballast.fill()

    # --- inside

    def _ask(self, more_bytes: int = 0) -> None:
        undelivered = len(self._index) - self._index.count(State.DELIVERED) + 1
        ballast = 0 if self._volume is None else self._volume.ballast.held_bytes
        free, inodes = self._facts()
        if free < needed_bytes(self._free_bytes, undelivered, ballast) + more_bytes or (
            inodes is not None and inodes < undelivered * PER_ARTIFACT_INODES
        ):
            raise StoreFullError("the interim store has no room for more; what it holds is safe and being delivered")

    def _facts(self) -> tuple[int, int | None]:
        try:
            return self._files.free_bytes(self._root), self._files.free_inodes(self._root)
        except FileNotFoundError as error:
            raise StoreIoError("the store's folder is not there; is its volume mounted?") from error
