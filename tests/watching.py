"""The parts that watch over a node, over the fixture of its inner half. For tests only."""

from datetime import datetime, timedelta

from pipeline.intake.missing import MissingWatch
from pipeline.settings import MissingSettings
from tests.store_fixture import Node
from tests.unit.keyring_fakes import FakeClock

AFTER, UNENDED = timedelta(hours=2), timedelta(hours=24)


class JumpingClock(FakeClock):
    """Time that passes when a test says so, and a wall clock that others set, or that stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = timedelta(0)
        self.stuck_at: datetime | None = None

    def now(self) -> datetime:
        return self.stuck_at or super().now() + self.moved

    def jump(self, by: timedelta) -> None:
        self.moved += by

    def stick(self) -> None:
        self.stuck_at = self.now()


def missing_watch(process: Node, *, kept_days: int = 7) -> MissingWatch:
    """Watch over what is announced to a node."""
    watch = MissingWatch(
        f"{process.world.root}/missing",
        store=process.store,
        tenants=process.tenants,
        contacts=process.contacts,
        replay=process.replay,
        files=process.files,
        commits=process.commits,
        trail=process.trail,
        clock=process.world.clock,
        settings=MissingSettings(after=AFTER, unended=UNENDED, kept_days=kept_days),
        receipt_window=timedelta(hours=72),
    )
    watch.load()
    return watch
