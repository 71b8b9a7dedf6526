"""What outlives a process besides its disk: buckets, the key service, whoever follows the events. All strict.

Each misbehaves as its `Weather` says, by the seed; each can be copied, so that one moment has many continuations.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio

from pipeline.errors import (
    DeferError,
    DestinationBusyError,
    DestinationHeldError,
    HoldCode,
    KeyBusyError,
    KeyUnavailableError,
)
from pipeline.instances import Storage
from pipeline.ports import ObjectFacts, PutRequest
from tests.s3_strict import Stored, StrictDestination, Upload
from tests.unit.keyring_fakes import StrictKms

FOREIGN = b"somebody else's object"
_LONGEST_S = 2.0


@dataclass
class Weather:
    """What goes wrong now. All zero: nothing does."""

    trouble: float = 0.0
    """How often a call to a bucket fails, before its effect or after it."""
    slow: float = 0.0
    """How often one takes a while."""
    foreign: float = 0.0
    """How often somebody else takes the key first, if it can be known: one that names no recording."""
    bucket_down: bool = False
    bucket_denied: bool = False
    key_refused: HoldCode | None = None
    key_down: bool = False
    sink_down: bool = False


class Connection(StrictDestination):
    """A bucket as one process reaches it."""

    def __init__(self, bucket: "Bucket", storage: Storage, weather: Weather, chance: random.Random) -> None:
        super().__init__(storage)
        self.objects = bucket.objects
        self.uploads = bucket.uploads
        self._bucket = bucket
        self._weather = weather
        self._chance = chance
        self.on_step = self._misbehave

    def _expect_free(self, key: str) -> None:
        if "_UTC." in key and key not in self.objects and self._chance.random() < self._weather.foreign:
            self.lay(key, FOREIGN, metadata={})
        super()._expect_free(key)

    def _store(self, request: PutRequest, data: bytes) -> ObjectFacts:
        self._bucket.written.append((request.key, data))
        return super()._store(request, data)

    async def _misbehave(self, step: str) -> None:
        weather, chance = self._weather, self._chance
        self._bucket.on_step(step)
        if chance.random() < weather.slow:
            await anyio.sleep(chance.random() * _LONGEST_S)
        else:
            await anyio.lowlevel.checkpoint()
        self._bucket.on_step(step)
        if weather.bucket_denied:
            raise DestinationHeldError(HoldCode.DESTINATION_ACCESS_DENIED, "AccessDenied")
        if weather.bucket_down:
            raise DestinationBusyError("connection refused")
        if chance.random() < weather.trouble:
            if step.startswith(("part", "complete")) and chance.random() < 0.3:
                self.uploads.clear()  # as a lifecycle rule does; the answer is lost, too
            raise DestinationBusyError(chance.choice(("SlowDown", "reset", "InternalError", "an answer that is none")))


@dataclass
class Bucket:
    """One instance's objects and unfinished uploads."""

    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    written: list[tuple[str, bytes]] = field(default_factory=list)
    """Everything that was ever stored, in order."""
    on_step: Callable[[str], None] = lambda _step: None

    def copy(self) -> "Bucket":
        """Give a copy; what is unfinished can go on in each alone."""
        uploads = {upload_id: Upload(one.request, dict(one.parts)) for upload_id, one in self.uploads.items()}
        return Bucket(dict(self.objects), uploads, list(self.written))


class Kms(StrictKms):
    """The key service, as strict as its base, and in the weather."""

    def __init__(self, weather: Weather) -> None:
        super().__init__()
        self.weather = weather

    async def _call(self, name: str, key_arn: str) -> None:
        await super()._call(name, key_arn)
        if self.weather.key_down:
            raise KeyBusyError("ThrottlingException")
        if self.weather.key_refused is not None:
            raise KeyUnavailableError(self.weather.key_refused, "KMS refuses the key")

    def copy(self, weather: Weather) -> "Kms":
        """Give a copy that knows the same keys."""
        copy = Kms(weather)
        copy._wrapped = dict(self._wrapped)
        return copy


@dataclass
class Sink:
    """Takes status events."""

    weather: Weather
    taken: list[bytes] = field(default_factory=list)

    async def send(self, events: Sequence[bytes]) -> None:
        await anyio.lowlevel.checkpoint()
        if self.weather.sink_down:
            raise DeferError("the queue does not answer")
        self.taken += events

    def copy(self, weather: Weather) -> "Sink":
        """Give a copy that has taken the same."""
        return Sink(weather, list(self.taken))
