"""The service's settings: frozen dataclasses, read once from one TOML file and the environment. Pure.

`PIPELINE_<TABLE>_<KEY>` overrides the file; AWS's own variables fill in what neither says. A field's name, default and
bounds stand on one line; durations are seconds in the file, their keys end in `_s`. `sample.toml` beside this module
documents every key. Ciphers, segment sizes and formats are constants, not settings.
"""
# ruff: noqa: RUF009  # the calls declare dataclass fields

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePath
from urllib.parse import urlsplit

from pipeline.errors import HaltError
from pipeline.fields import Given, flag, optional_path, optional_text, optional_url, seconds, text, url, whole
from pipeline.instances import KEY_ARN


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

    host: str = text("127.0.0.1")
    port: int = whole(8080, low=0, high=65_535)
    """0 takes a free port."""
    event_bytes: int = whole(2**20, low=1_024, high=64 * 2**20)
    """Largest body of POST /v1/events."""
    body_idle: timedelta = seconds(60, low=1, high=3_600)
    """How long a body may be silent before its connection is let go; the artifact stays open and resumable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSettings:
    """The interim store."""

    free_bytes: int = whole(64 * 2**20, low=2**20, high=2**50)
    """Size of the ballast, kept besides what undelivered artifacts need; intake answers 507 before it is touched."""
    media_idle: timedelta = seconds(900, low=1, high=7 * 86_400)
    """An open voice or screen artifact that nobody writes to is sealed as `recovered` after this."""
    chat_idle: timedelta = seconds(86_400, low=1, high=30 * 86_400)
    receipt_window: timedelta = seconds(72 * 3_600, low=60, high=365 * 86_400)
    journal_days: int = whole(7, low=1, high=365)


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingSettings:
    """Recordings that were announced and do not come."""

    after: timedelta = seconds(2 * 3_600, low=1, high=86_400)
    """After the end of the recording or of its contact was heard: then it is FAILED, `SOURCE_MISSING`."""
    unended: timedelta = seconds(86_400, low=1, high=86_400)
    """The same after the announcement, if no end is ever heard."""
    kept_days: int = whole(7, low=3, high=365)
    """Days that a missing recording is shown, and taken back if it comes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthSettings:
    """What the service says of itself."""

    log_every: timedelta = seconds(60, low=1, high=3_600)
    alarm_after: timedelta = seconds(3_600, low=1, high=7 * 86_400)
    """How long the oldest recording may wait, or something be held, before that is logged as an error."""
    decide_after: timedelta = seconds(7 * 86_400, low=60, high=365 * 86_400)
    """How long something may be held before an operator is asked to decide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CanarySettings:
    """A recording made here that travels the whole journey again and again."""

    instance: str | None = optional_text()
    """Alias or id of the instance whose bucket it goes to; none: there is no canary."""
    every: timedelta = seconds(300, low=1, high=86_400)
    alarm_after: timedelta = seconds(900, low=1, high=86_400)
    """How long none may have arrived before that is logged as an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySettings:
    """Data keys in memory."""

    cache: timedelta = seconds(300, low=1, high=3_600)
    seal_grace: timedelta = seconds(900, low=0, high=3_600)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordSettings:
    """The other classes of data."""

    service_key_arn: str | None = optional_text()
    """The operator's own KMS key, where no customer's is used."""
    previous_service_key_arn: str | None = optional_text()


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSettings:
    """Checkpoints of the audit logs."""

    checkpoint_every: timedelta = seconds(300, low=1, high=86_400)
    """How long a record may wait for a signed checkpoint that covers it."""
    checkpoint_records: int = whole(10_000, low=1, high=10_000_000)
    """So many are signed sooner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliverySettings:
    """How hard the buckets are worked."""

    workers: int = whole(16, low=1, high=256)
    bytes_in_flight: int = whole(32 * 2**20, low=16 * 2**20, high=2**34)
    retry_first: timedelta = seconds(1, low=0.01, high=3_600)
    retry_most: timedelta = seconds(300, low=0.01, high=86_400)
    probe_first: timedelta = seconds(30, low=0.01, high=3_600)
    probe_most: timedelta = seconds(900, low=0.01, high=86_400)
    settle_volume: PurePath | None = optional_path()
    """Data folder of a bucket on this machine: synced as a volume before a receipt counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueSource:
    """An SQS queue that events arrive on."""

    queue_url: str = url()
    wait: timedelta = seconds(20, low=0, high=20)
    visibility: timedelta = seconds(60, low=5, high=43_200)


@dataclass(frozen=True, kw_only=True, slots=True)
class EventsOut:
    """Where status events go besides `events/<instance>.jsonl`."""

    queue_url: str | None = optional_url()
    bus_name: str | None = optional_text()
    file_bytes: int = whole(64 * 2**20, low=4_096, high=2**40)
    """A log that is longer goes on in a new file."""
    kept_bytes: int = whole(2**30, low=4_096, high=2**50)
    """Of one instance's earlier files; the oldest go first, and only when all has been sent where it is to go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSettings:
    """Logging to standard error."""

    level: str = text("INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    format: str = text("auto", choices=("auto", "text", "json"))
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
    sts: Endpoint | None = None
    """Where it is asked who we are, and for sessions of roles; `None`: nowhere."""
    principal_arn: str | None = None
    """Who we are, as grants name us; `None`: STS is asked."""
    http: HttpSettings = field(default_factory=HttpSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    missing: MissingSettings = field(default_factory=MissingSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    canary: CanarySettings = field(default_factory=CanarySettings)
    keys: KeySettings = field(default_factory=KeySettings)
    records: RecordSettings = field(default_factory=RecordSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    queues: tuple[QueueSource, ...] = ()
    events_out: EventsOut = field(default_factory=EventsOut)
    log: LogSettings = field(default_factory=LogSettings)
    drain: timedelta = timedelta(seconds=30)


# --- as the file has it, where that differs


@dataclass(frozen=True, kw_only=True, slots=True)
class _ServiceKeys:
    """The keys above the first table."""

    state_dir: PurePath | None = optional_path()
    embedded: bool = flag(default=False)
    region: str | None = optional_text()
    drain: timedelta = seconds(30, low=0, high=3_600)


@dataclass(frozen=True, kw_only=True, slots=True)
class _EndpointKeys:
    """`kms`, `s3`, `sqs`, `events`, `sts`."""

    url: str | None = optional_url()
    region: str | None = optional_text()
    profile: str | None = optional_text()
    access_key: str | None = optional_text()
    secret_key: str | None = optional_text()


@dataclass(frozen=True, kw_only=True, slots=True)
class _KmsKeys(_EndpointKeys):
    """`kms` has one key more."""

    principal_arn: str | None = optional_text()


TABLES: Mapping[str, type] = {
    "": _ServiceKeys,
    "http": HttpSettings,
    "store": StoreSettings,
    "missing": MissingSettings,
    "health": HealthSettings,
    "canary": CanarySettings,
    "keys": KeySettings,
    "records": RecordSettings,
    "audit": AuditSettings,
    "delivery": DeliverySettings,
    "events_out": EventsOut,
    "log": LogSettings,
    "kms": _KmsKeys,
    "s3": _EndpointKeys,
    "sqs": _EndpointKeys,
    "events": _EndpointKeys,
    "sts": _EndpointKeys,
}
"""Tables of the file, `""` being what stands above the first."""
LISTS: Mapping[str, type] = {"queues": QueueSource}
"""Arrays of tables; in the file only."""
AWS_ENDPOINTS = {"kms": "KMS", "s3": "S3", "sqs": "SQS", "events": "EVENTBRIDGE"}
PRINCIPAL = re.compile(r"arn:aws(?:-[a-z]+)*:iam::[0-9]{12}:(?:root|(?:role|user)/[\w+=,.@/-]{1,512})", re.ASCII)
"""A principal that a grant or a policy may name: an account, a user, a role (not a session of one)."""
EMBEDDED_REGION = "us-east-1"
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")


def load(toml_text: str | None, environ: Mapping[str, str], *, base: PurePath) -> Settings:
    """Read the settings. `base` is the directory of the file; paths in the file are relative to it.

    Without a file (`toml_text` is None) the embedded servers are used, and the configuration directory lies in the
    state directory. Raises `HaltError` naming the key, never its value.
    """
    given = Given.read(toml_text, environ, base=base, tables=TABLES, lists=LISTS)
    service = given.table("", _ServiceKeys)
    embedded = service.embedded if given.has("", "embedded") else toml_text is None
    state_dir = service.state_dir or _default_state_dir(environ)
    region = service.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if embedded:
        _refuse_beside_embedded(given)
        region = region or EMBEDDED_REGION
    endpoints = {
        name: _endpoint(given, name, region, environ, aws_name=aws_name) for name, aws_name in AWS_ENDPOINTS.items()
    }
    return Settings(
        state_dir=state_dir,
        config_dir=state_dir / "config" if toml_text is None else base,
        embedded=embedded,
        kms=endpoints["kms"],
        s3=endpoints["s3"],
        sqs=endpoints["sqs"],
        events=endpoints["events"],
        sts=_sts(given, endpoints["kms"], environ),
        principal_arn=_principal(given),
        http=given.table("http", HttpSettings),
        store=given.table("store", StoreSettings),
        missing=given.table("missing", MissingSettings),
        health=given.table("health", HealthSettings),
        canary=given.table("canary", CanarySettings),
        keys=given.table("keys", KeySettings),
        records=_records(given),
        audit=given.table("audit", AuditSettings),
        delivery=_delivery(given),
        queues=tuple(given.rows("queues", QueueSource)),
        events_out=given.table("events_out", EventsOut),
        log=given.table("log", LogSettings),
        drain=service.drain,
    )


def _default_state_dir(environ: Mapping[str, str]) -> PurePath:
    """Choose a directory as the XDG base directory specification says. Raises `HaltError` without a home."""
    if environ.get("XDG_STATE_HOME"):
        return PurePath(environ["XDG_STATE_HOME"]) / "recording-pipeline"
    if environ.get("HOME"):
        return PurePath(environ["HOME"]) / ".local/state/recording-pipeline"
    raise HaltError("state_dir: there is no home directory to put it in. Set state_dir or PIPELINE_STATE_DIR")


def _refuse_beside_embedded(given: Given) -> None:
    """Refuse an endpoint that the embedded servers would silently take the place of. Raises `HaltError`."""
    for table in ("kms", "s3"):
        for key in ("url", "profile", "access_key", "secret_key"):
            if given.has(table, key):
                raise HaltError(
                    f"{table}.{key}: the embedded servers take its place. Set embedded = false, or leave it out"
                )


def _endpoint(given: Given, name: str, region: str | None, environ: Mapping[str, str], *, aws_name: str) -> Endpoint:
    """Complete one endpoint from AWS's own variables. Raises `HaltError`."""
    keys: _EndpointKeys = given.table(name, TABLES[name])
    region = keys.region or region
    if region is None:
        raise HaltError(f"{name}.region: no AWS region is known. Set region, {name}.region or AWS_REGION")
    if (keys.access_key is None) != (keys.secret_key is None):
        raise HaltError(f"{name}.access_key and {name}.secret_key: one without the other. Set both or none")
    credentials = Credentials(keys.access_key, keys.secret_key) if keys.access_key and keys.secret_key else None
    aws_url = environ.get(f"AWS_ENDPOINT_URL_{aws_name}") or environ.get("AWS_ENDPOINT_URL")
    return Endpoint(
        region=region,
        url=keys.url or aws_url or None,
        profile=keys.profile or environ.get("AWS_PROFILE") or None,
        credentials=credentials,
    )


def _sts(given: Given, kms: Endpoint, environ: Mapping[str, str]) -> Endpoint:
    """Complete STS's endpoint: what neither file nor variables say is as for KMS. Raises `HaltError`.

    A key server outside AWS speaks for both; AWS's own addresses do not.
    """
    endpoint = _endpoint(given, "sts", kms.region, environ, aws_name="STS")
    url = endpoint.url
    if url is None and kms.url is not None and not (urlsplit(kms.url).hostname or "").endswith(_AWS_DOMAINS):
        url = kms.url
    return Endpoint(
        region=endpoint.region,
        url=url,
        profile=endpoint.profile or kms.profile,
        credentials=endpoint.credentials or kms.credentials,
    )


def _principal(given: Given) -> str | None:
    principal = given.table("kms", _KmsKeys).principal_arn
    if principal is not None and not PRINCIPAL.fullmatch(principal):
        raise HaltError("kms.principal_arn: not the ARN of an IAM role or user (arn:aws:iam::<account>:role/<name>)")
    return principal


def _records(given: Given) -> RecordSettings:
    """Read `records`. Raises `HaltError` for a key that is not named by its full ARN."""
    records = given.table("records", RecordSettings)
    for name in ("service_key_arn", "previous_service_key_arn"):
        arn = getattr(records, name)
        if arn is not None and not KEY_ARN.fullmatch(arn):
            raise HaltError(f"records.{name}: not the full ARN of a KMS key (arn:aws:kms:<region>:<account>:key/<id>)")
    return records


def _delivery(given: Given) -> DeliverySettings:
    """Read `delivery`. Raises `HaltError` if a first wait is longer than the longest."""
    delivery = given.table("delivery", DeliverySettings)
    if delivery.retry_first > delivery.retry_most:
        raise HaltError("delivery.retry_first_s: longer than delivery.retry_most_s")
    if delivery.probe_first > delivery.probe_most:
        raise HaltError("delivery.probe_first_s: longer than delivery.probe_most_s")
    return delivery
