"""Where the service is tried: endpoints, and two instances with keys, buckets and tokens of their own.

The servers are others' and stay up while the service comes and goes. What the service keeps lies in `state` below the
site's directory.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
import tomli_w

from pipeline import config, embedded
from pipeline.adapters import children
from pipeline.adapters.aws import open_client
from pipeline.audit.hourly import OBJECTS
from pipeline.embedded import Servers, opened
from pipeline.ids import RECORDINGS, InstanceId, Kind
from pipeline.instances import Instance, Limits, Storage
from pipeline.provision import provision_instance
from pipeline.settings import (
    Credentials,
    DeliverySettings,
    Endpoint,
    HttpSettings,
    LogSettings,
    Settings,
    StoreSettings,
)
from pipeline.settings import load as load_settings
from tests import servers
from tests.kms_server import ACCOUNT, IDENTITIES, REGION, RunningKeyServer, running_key_server

PREFIXES = {Kind.VOICE: "CallRecordings", Kind.SCREEN: "ScreenRecordings", Kind.CHAT: "ChatTranscripts"}
IDS = {
    "acme": InstanceId(UUID("aaaa1111-0000-4000-8000-000000000001")),
    "borealis": InstanceId(UUID("aaaa1111-0000-4000-8000-000000000002")),
}
QUICK = DeliverySettings(
    retry_first=timedelta(seconds=0.1),
    retry_most=timedelta(seconds=0.5),
    probe_first=timedelta(seconds=0.1),
    probe_most=timedelta(seconds=0.5),
)
"""Waits that suit a test; everything else as it is by default."""


@dataclass(frozen=True)
class Party:
    """An instance and who speaks for it."""

    instance: Instance
    token: str

    @property
    def bucket(self) -> str:
        return self.instance.storage[Kind.VOICE].bucket

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def path(self, contact: str, recording: str) -> str:
        return f"/v1/instances/{self.instance.instance_id}/contacts/{contact}/{recording}"


@dataclass(frozen=True)
class Stored:
    """An object as the bucket gives it back."""

    body: bytes
    content_type: str
    metadata: Mapping[str, str]
    kms_key_arn: str


@dataclass
class Site:
    """Endpoints and two instances; everything that a service needs to be started, again and again."""

    directory: Path
    settings: Settings
    acme: Party
    borealis: Party
    reader: Endpoint
    """S3 as the instances' owner sees it."""
    key_trail: Callable[[], list[dict[str, Any]]] | None = None
    """What the key server says was asked of it; None where it says nothing."""
    service_arn: str = ""
    """Who the service is, in that trail."""
    servers: Servers | None = None
    """The embedded servers, where they are children of this process."""
    more: dict[str, Any] = field(default_factory=dict)
    """Tables that a settings file gets besides those that are made from `settings`."""

    @property
    def parties(self) -> tuple[Party, Party]:
        return self.acme, self.borealis

    @property
    def state(self) -> Path:
        return Path(self.settings.state_dir)

    def reconfigure(self, instance: Instance) -> None:
        """Change the configuration of one of the instances, for the next start."""
        config.save_instance(self.settings.config_dir, instance)
        if instance.instance_id == self.acme.instance.instance_id:
            self.acme = replace(self.acme, instance=instance)
        else:
            self.borealis = replace(self.borealis, instance=instance)

    def artifacts(self, ending: str) -> list[Path]:
        """Files of the interim store by the end of their names."""
        return sorted(self.state.glob(f"artifacts/*/*{ending}"))

    def events(self, party: Party) -> list[dict[str, Any]]:
        return _lines(self.state.glob(f"events/{party.instance.instance_id}*.jsonl"))

    def audit(self, party: Party) -> list[dict[str, Any]]:
        return _lines(self.state.glob(f"audit/{party.instance.instance_id}/*.jsonl"))

    def node_audit(self) -> list[dict[str, Any]]:
        return _lines(self.state.glob("audit/node/*.jsonl"))

    def published(self, party: Party) -> list[str]:
        """Locations that were told as PUBLISHED."""
        details = [event["detail"] for event in self.events(party)]
        return [each["recordingInfo"]["location"] for each in details if each["recordingStatus"] == "PUBLISHED"]

    async def objects(self, party: Party) -> dict[str, Stored]:
        """Every recording in a party's bucket."""
        found = {}
        async with open_client("s3", self.reader) as s3:
            for key in await _keys(s3, party.bucket):
                answer = await s3.get_object(Bucket=party.bucket, Key=key)
                found[key] = Stored(
                    await answer["Body"].read(),
                    answer["ContentType"],
                    answer["Metadata"],
                    answer.get("SSEKMSKeyId", ""),
                )
        return found

    async def versions(self, party: Party) -> list[str]:
        """Keys of all versions of recordings in a bucket, delete markers too."""
        async with open_client("s3", self.reader) as s3:
            pages = s3.get_paginator("list_object_versions").paginate(Bucket=party.bucket)
            return [
                each["Key"]
                async for page in pages
                for part in ("Versions", "DeleteMarkers")
                for each in page.get(part, [])
                if not each["Key"].startswith(OBJECTS)
            ]

    async def unfinished(self, party: Party) -> list[str]:
        """Keys of multipart uploads that nobody ended."""
        async with open_client("s3", self.reader) as s3:
            answer = await s3.list_multipart_uploads(Bucket=party.bucket)
            return [each["Key"] for each in answer.get("Uploads", [])]

    def write_settings(self) -> Path:
        """Write the settings file of a service that runs as a process."""
        known, path = self.settings, Path(self.settings.config_dir, "pipeline.toml")
        document: dict[str, Any] = {
            "state_dir": str(known.state_dir),
            "drain_s": known.drain.total_seconds(),
            "http": {"port": 0, "body_idle_s": known.http.body_idle.total_seconds()},
            "store": {
                "free_bytes": known.store.free_bytes,
                "media_idle_s": known.store.media_idle.total_seconds(),
                "chat_idle_s": known.store.chat_idle.total_seconds(),
            },
            "delivery": {
                f"{name}_s": getattr(known.delivery, name).total_seconds()
                for name in ("retry_first", "retry_most", "probe_first", "probe_most")
            },
            "log": {"level": known.log.level, "format": "json"},
        }
        if known.delivery.settle_volume is not None:
            document["delivery"]["settle_volume"] = str(known.delivery.settle_volume)
        for name in ("kms", "s3", "sqs", "events"):
            endpoint: Endpoint = getattr(known, name)
            assert endpoint.credentials is not None
            assert endpoint.url is not None
            document[name] = {
                "url": endpoint.url,
                "region": endpoint.region,
                "access_key": endpoint.credentials.access_key,
                "secret_key": endpoint.credentials.secret_key,
            }
        config.write_private(path, tomli_w.dumps(document | self.more).encode())
        return path


# --- sites


@contextlib.asynccontextmanager
async def moto_site(directory: Path) -> AsyncIterator[Site]:
    """Use moto for everything. Its buckets keep versions, so that a second write would show."""
    async with servers.moto() as endpoint, open_client("kms", endpoint) as kms, open_client("s3", endpoint) as s3:
        keys = [(await kms.create_key())["KeyMetadata"]["Arn"] for _ in range(4)]
        site = _site(directory, keys, endpoint, endpoint, account="123456789012")
        for party in site.parties:
            await s3.create_bucket(Bucket=party.bucket)
            await s3.put_bucket_versioning(Bucket=party.bucket, VersioningConfiguration={"Status": "Enabled"})
        yield site


@contextlib.asynccontextmanager
async def localstack_site(directory: Path) -> AsyncIterator[Site]:
    """Use LocalStack for everything."""
    (directory / "localstack").mkdir()
    async with servers.localstack(directory / "localstack") as endpoint, open_client("kms", endpoint) as kms:
        keys = [(await kms.create_key())["KeyMetadata"]["Arn"] for _ in range(4)]
        site = _site(directory, keys, endpoint, endpoint, account="000000000000")
        await _make_buckets(site)
        yield site


@contextlib.asynccontextmanager
async def embedded_site(directory: Path) -> AsyncIterator[Site]:
    """Use the embedded servers, as children of this process: the key server, and SeaweedFS that asks it for keys."""
    plain = load_settings(None, {"PIPELINE_STATE_DIR": str(directory / "state")}, base=directory)
    stop = anyio.Event()
    with opened(plain) as known, _impatient():
        running = Servers(known)
        async with anyio.create_task_group() as group:
            group.start_soon(running.run, stop, name="embedded")
            with anyio.fail_after(40):
                await running.ready.wait()
            made = [Party(*await provision_instance(known, plain.config_dir, alias)) for alias in IDS]
            settings = replace(known.settings(plain), embedded=False, http=HttpSettings(port=0), delivery=QUICK)
            settings = replace(settings, delivery=replace(QUICK, settle_volume=known.bucket_data))
            trail = known.directory / "kms" / "data" / "trail"
            yield Site(
                directory,
                settings,
                acme=made[0],
                borealis=made[1],
                reader=known.s3(known.secrets.s3_operator),
                key_trail=lambda: _lines(trail.glob("*.jsonl")),
                service_arn=embedded.SERVICE,
                servers=running,
            )
            stop.set()


@contextlib.asynccontextmanager
async def key_server_site(directory: Path) -> AsyncIterator[tuple[Site, RunningKeyServer]]:
    """Use the key server, in this process, and moto for the buckets."""
    async with running_key_server(directory) as keys, keys.client("admin") as admin, servers.moto() as moto:
        arns = [(await admin.create_key())["KeyMetadata"]["Arn"] for _ in range(4)]
        site = _site(directory, arns, _kms(keys), moto, account=ACCOUNT)
        site.key_trail, site.service_arn = keys.trail, IDENTITIES["service"].principal
        await _make_buckets(site)
        yield site, keys


@contextlib.asynccontextmanager
async def seaweedfs_site(directory: Path) -> AsyncIterator[tuple[Site, RunningKeyServer]]:
    """Use the key server, in this process, and SeaweedFS for the buckets: for large bodies."""
    async with running_key_server(directory) as keys, keys.client("admin") as admin:
        arns = [(await admin.create_key())["KeyMetadata"]["Arn"] for _ in range(4)]
        with _impatient():
            async with servers.seaweedfs(directory, _kms(keys)) as s3:
                site = _site(directory, arns, _kms(keys), s3, account=ACCOUNT)
                await _make_buckets(site)
                yield site, keys


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Kill a server that does not end when it is asked to: SeaweedFS takes half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "TERM_S", 0.5)
        yield


def _kms(keys: RunningKeyServer) -> Endpoint:
    service = IDENTITIES["service"]
    return Endpoint(region=REGION, url=keys.url, credentials=Credentials(service.access_key, service.secret_key))


def _site(directory: Path, keys: list[str], kms: Endpoint, s3: Endpoint, *, account: str) -> Site:
    """Write the configuration of two instances; `keys` are two for each, of its data keys and of its bucket."""
    config_dir = directory / "config"
    made = []
    for number, (alias, instance_id) in enumerate(IDS.items()):
        data_key, bucket_key = keys[2 * number : 2 * number + 2]
        token, token_hash = config.new_token()
        instance = Instance(
            instance_id=instance_id,
            alias=alias,
            account_id=account,
            region=s3.region,
            kms_key_arn=data_key,
            token_sha256=(token_hash,),
            storage={
                kind: Storage(
                    association_id=str(kind),
                    bucket=f"{alias}-recordings",
                    prefix=f"connect/{alias}/{PREFIXES[kind]}",
                    kms_key_arn=bucket_key,
                    bucket_owner=account,
                )
                for kind in RECORDINGS
            },
            limits=Limits(recording_bytes=2 * 2**30),
        )
        config.save_instance(config_dir, instance)
        made.append(Party(instance, token))
    settings = Settings(
        state_dir=directory / "state",
        config_dir=config_dir,
        embedded=False,
        kms=kms,
        s3=s3,
        sqs=s3,
        events=s3,
        http=HttpSettings(port=0),
        store=StoreSettings(free_bytes=2**20),
        delivery=QUICK,
        log=LogSettings(level="DEBUG"),
        drain=timedelta(seconds=2),
    )
    return Site(directory, settings, acme=made[0], borealis=made[1], reader=s3)


async def _make_buckets(site: Site) -> None:
    for party in site.parties:
        await servers.make_bucket(site.reader, party.bucket)


async def _keys(s3: Any, bucket: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [each["Key"] async for page in pages for each in page.get("Contents", [])]
    return [key for key in keys if not key.startswith(OBJECTS)]


def _lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(paths) for line in _whole(path)]


def _whole(path: Path) -> list[bytes]:
    """Give the lines of a log that is being written: the last may not be whole yet."""
    return path.read_bytes().rpartition(b"\n")[0].splitlines()
