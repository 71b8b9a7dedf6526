"""The service's settings: frozen dataclasses, read once. Pure.

Ciphers, segment sizes and formats are constants, not settings.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key for one endpoint. `None` in an `Endpoint` means AWS's own chain (variables, profile, role)."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where an AWS API is spoken. `url=None` is AWS itself."""

    region: str
    url: str | None = None
    profile: str | None = None
    credentials: Credentials | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpSettings:
    """The intake's listener."""

    host: str = "127.0.0.1"
    port: int = 8080
    event_bytes: int = 1024 * 1024
    """Largest body of POST /v1/events."""
    body_idle: timedelta = timedelta(seconds=60)
    """How long a body may be silent before its connection is let go; the artifact stays open and resumable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSettings:
    """The interim store."""

    free_bytes: int = 64 * 2**20
    """Kept free besides what undelivered artifacts need; intake answers 507 below it."""
    media_idle: timedelta = timedelta(minutes=15)
    """An open voice or screen artifact that nobody writes to is sealed as `recovered` after this."""
    chat_idle: timedelta = timedelta(hours=24)
    receipt_window: timedelta = timedelta(hours=72)
    journal_days: int = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySettings:
    """Data keys in memory."""

    cache: timedelta = timedelta(seconds=300)
    seal_grace: timedelta = timedelta(seconds=900)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliverySettings:
    """How hard the buckets are worked."""

    workers: int = 16
    bytes_in_flight: int = 32 * 2**20
    retry_first: timedelta = timedelta(seconds=1)
    retry_most: timedelta = timedelta(minutes=5)
    probe_first: timedelta = timedelta(seconds=30)
    probe_most: timedelta = timedelta(minutes=15)
    settle_volume: PurePath | None = None
    """Data folder of a bucket on this machine: synced as a volume before a receipt counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueSource:
    """An SQS queue that events arrive on."""

    queue_url: str
    wait: timedelta = timedelta(seconds=20)
    visibility: timedelta = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True, slots=True)
class EventsOut:
    """Where status events go besides `events/<instance>.jsonl`."""

    queue_url: str | None = None
    bus_name: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSettings:
    """Logging to standard error."""

    level: str = "INFO"
    format: str = "auto"
    """`auto`: text at a terminal, one JSON line per event elsewhere; or `text`, `json`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All of it."""

    state_dir: PurePath
    config_dir: PurePath
    embedded: bool
    """Run the key server and SeaweedFS as children, data under `state_dir`."""
    kms: Endpoint
    s3: Endpoint
    sqs: Endpoint
    events: Endpoint
    http: HttpSettings = field(default_factory=HttpSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    keys: KeySettings = field(default_factory=KeySettings)
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    queues: tuple[QueueSource, ...] = ()
    events_out: EventsOut = field(default_factory=EventsOut)
    log: LogSettings = field(default_factory=LogSettings)
    drain: timedelta = timedelta(seconds=30)
