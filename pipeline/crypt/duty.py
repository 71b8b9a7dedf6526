"""How long a data key is the active one of its ring. Pure.

Policy, far below what AES-GCM and the random salts would allow: the bound is on what one key's disclosure would open.
"""

from dataclasses import dataclass
from datetime import timedelta

KEY_LIFE = timedelta(hours=24)
KEY_ARTIFACTS = 2**20
KEY_BYTES = 2**44


@dataclass(frozen=True, slots=True)
class Duty:
    """What a data key has done so far."""

    age: timedelta
    artifacts: int
    size_bytes: int
    """Of the media sealed under it, as far as that is known."""
    life: timedelta = KEY_LIFE

    @property
    def shares(self) -> dict[str, float]:
        """How much of each limit is used up; 1 is all of it."""
        return {
            "age": max(self.age / self.life, 0.0),
            "artifacts": self.artifacts / KEY_ARTIFACTS,
            "bytes": self.size_bytes / KEY_BYTES,
        }

    @property
    def is_over(self) -> bool:
        """Tell whether the next artifact takes another key."""
        return any(share >= 1 for share in self.shares.values())
