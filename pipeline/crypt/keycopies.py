"""Plaintext data keys in memory, and for how long each may be used. No I/O, no clock: the time is passed in."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from uuid import UUID

from pipeline.crypt.segments import DataKey
from pipeline.ids import KeyId

COPIES_LIMIT = 128
"""Most keys of one ring in memory: a key lives for a day, so four months of undelivered recordings."""


class Use(Enum):
    """What a data key is wanted for."""

    OPEN = auto()
    """Opening, and sealing new artifacts."""
    SEAL = auto()
    """Sealing on what was begun under it."""


@dataclass(slots=True)
class Copy:
    """One data key in memory, with the name key of its ring file. Times are monotonic seconds."""

    key: DataKey
    name_key_id: UUID
    name_key: bytes = field(repr=False)
    kms_key_arn: str
    """The KMS key that opened it."""
    refresh_at: float
    expires_at: float
    """End of its use for opening and for new artifacts; a grace for sealing begins here."""
    seals: bool = False
    """It was given out for sealing, so it is kept for the grace."""

    def revoke(self, now: float) -> None:
        """End its use for opening and for new artifacts."""
        self.refresh_at = min(self.refresh_at, now)
        self.expires_at = min(self.expires_at, now)


class KeyCopies:
    """The keys of one ring that are in memory."""

    def __init__(self, seal_grace_s: float) -> None:
        self._seal_grace_s = seal_grace_s
        self._copies: dict[KeyId, Copy] = {}

    def __iter__(self) -> Iterator[Copy]:
        return iter(self._copies.values())

    def get(self, key_id: KeyId | None) -> Copy | None:
        """Find one, whatever it may still be used for."""
        return None if key_id is None else self._copies.get(key_id)

    def permits(self, copy: Copy, use: Use, now: float) -> bool:
        """Tell whether a key may be used so without asking KMS."""
        return now < copy.expires_at + (self._seal_grace_s if use is Use.SEAL else 0.0)

    def put(self, copy: Copy) -> None:
        """Keep a key that KMS just gave; the oldest one that seals nothing makes room if need be."""
        self._copies.pop(copy.key.key_id, None)
        idle = [key_id for key_id, held in self._copies.items() if not held.seals]
        if len(self._copies) >= COPIES_LIMIT and idle:
            del self._copies[idle[0]]
        self._copies[copy.key.key_id] = copy

    def revoke_under(self, kms_key_arn: str, now: float) -> None:
        """End the use of every key that this KMS key opened."""
        for copy in self:
            if copy.kms_key_arn == kms_key_arn:
                copy.revoke(now)

    def expire(self, now: float) -> None:
        """Drop the keys that may not be used for anything any more."""
        for key_id, copy in list(self._copies.items()):
            if not self.permits(copy, Use.SEAL if copy.seals else Use.OPEN, now):
                del self._copies[key_id]

    def clear(self, key_id: KeyId | None = None) -> None:
        """Drop all, or one."""
        if key_id is None:
            self._copies.clear()
        else:
            self._copies.pop(key_id, None)
