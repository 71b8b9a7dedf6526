"""Measure a change of KMS key: the real service and its key server, many sealed recordings under many data keys.

Recordings are written as the service writes them, a day's data key for each share; their bucket can't be reached, so
they stay. Told are the seconds that `pipeline keys change` takes, as a process of its own, the calls to KMS, and how
many files of recordings were touched: there must be none.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread
import structlog
from awscrt.checksums import crc64nvme
from progress import say

from pipeline.adapters.aws import open_client
from pipeline.adapters.disk import Disk
from pipeline.adapters.kms import AwsKeyService
from pipeline.checksums import checksum_text
from pipeline.crypt.artifact import Header, Sealer
from pipeline.crypt.contents import Counts, Head, Manifest, Rendition, encode_head, encode_manifest
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.ids import Kind, new_artifact_id
from pipeline.instances import Instance
from pipeline.interim.states import ArtifactName, State
from pipeline.keyports import KmsCall
from pipeline.settings import DeliverySettings
from tests.kms_server import new_key
from tests.node import process_node
from tests.sites import Site, key_server_site

NOBODY = "http://127.0.0.1:9"
BODY = b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(1008)


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen."""

    recordings: int
    data_keys: int
    change_s: float
    """From the start of the command to its end."""
    command_cpu_s: float
    service_cpu_s: float
    """Processor time in it, by which a busy machine can be told from a slow change."""
    calls: dict[str, int]
    """By operation, of the service and the command together."""
    touched: int
    """Files of recordings that are not what and where they were."""
    status: str


class DayClock:
    """The real time, some days ago."""

    def __init__(self, days: int) -> None:
        self.days = days

    def now(self) -> datetime:
        """Tell the time."""
        return datetime.now(UTC) - timedelta(days=self.days)

    def monotonic(self) -> float:
        """Tell the seconds."""
        return time.monotonic()


def measure(recordings: int, data_keys: int) -> Result:
    """Write so many recordings under so many data keys, and change the KMS key."""
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as folder:
        return anyio.run(_measured, recordings, data_keys, Path(folder))


async def _measured(recordings: int, data_keys: int, folder: Path) -> Result:
    async with key_server_site(folder) as (site, keys), keys.client("admin") as admin:
        arn = await new_key(admin)
        # Nobody answers there, and nobody is asked often: what is measured is the change alone.
        site.settings = replace(site.settings, s3=replace(site.settings.s3, url=NOBODY), delivery=DeliverySettings())
        async with process_node(site) as running:  # makes the store's folders
            await running.stop()
            made = await _data_keys(site, data_keys)
            await anyio.to_thread.run_sync(_write, site, made, recordings)
            say(f"{recordings} recordings under {data_keys} data keys written")
            await running.start()
            before, asked = _state(site), len(keys.trail())
            waited = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            began, used = time.monotonic(), _cpu_s(running.pid)
            status = await anyio.to_thread.run_sync(_change, site, arn)
            change_s, service_cpu_s = time.monotonic() - began, _cpu_s(running.pid) - used
            calls = Counter(each["eventName"] for each in keys.trail()[asked:])
            after = _state(site)
            return Result(
                recordings=recordings,
                data_keys=data_keys,
                change_s=round(change_s, 2),
                command_cpu_s=round(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - waited, 2),
                service_cpu_s=round(service_cpu_s, 2),
                calls=dict(sorted(calls.items())),
                touched=sum(1 for path in before.keys() | after.keys() if before.get(path) != after.get(path)),
                status=status,
            )


async def _data_keys(site: Site, count: int) -> list[DataKey]:
    """Have a data key made for each of the last days."""
    instance, clock = site.acme.instance, DayClock(0)

    async def told(_call: KmsCall) -> None:
        pass

    async with open_client("kms", site.settings.kms) as client:
        ring = KeyRing(
            instance_id=instance.instance_id,
            context=instance.recordings_context,
            current_arn=instance.kms_key_arn,
            previous_arn=None,
            directory=f"{site.state}/keys/{instance.instance_id}",
            files=Disk(),
            service=AwsKeyService(client, told),
            clock=clock,
            cache=timedelta(seconds=300),
            seal_grace=timedelta(0),
            random=lambda: 0.5,
        )
        made = []
        for day in range(count, 0, -1):
            clock.days = day
            made.append(await ring.active())
        return made


def _write(site: Site, keys: list[DataKey], recordings: int) -> None:
    for number in range(recordings):
        name, content = _recording(site.acme.instance, keys[number % len(keys)], number)
        path = site.state / "artifacts" / name.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _recording(instance: Instance, key: DataKey, number: int) -> tuple[ArtifactName, bytes]:
    created = datetime.now(UTC)
    artifact_id = new_artifact_id(created)
    name = ArtifactName(
        artifact_id=artifact_id,
        instance_id=instance.instance_id,
        kind=Kind.VOICE,
        key_id=key.key_id,
        tag=f"{number:016x}",
        generation=1,
        sequence=2,
        state=State.SEALED,
        size_bytes=len(BODY),
    )
    header = Header(name.kind, name.instance_id, artifact_id, key.key_id, created).pack()
    return name, b"".join([header, *_segments(Sealer(key, header), instance, name, number)])


def _segments(sealer: Sealer, instance: Instance, name: ArtifactName, number: int) -> Iterator[bytes]:
    contact, storage = f"contact-{number}", instance.storage[name.kind]
    head = encode_head(Head(contact=contact, source_id=contact, recording_id=name.artifact_id))
    manifest = Manifest(
        recording_id=name.artifact_id,
        generation=1,
        contact=contact,
        ending="complete",
        counts=Counts(media_segments=1, media_bytes=len(BODY), event_segments=1, event_bytes=len(head)),
        association_id=storage.association_id,
        bucket=storage.bucket,
        keys=(f"{storage.prefix}/2026/11/23/{uuid4()}_20261123T14:05_UTC.wav",),
        object=Rendition(
            renderer="copy/1",
            size_bytes=len(BODY),
            crc64nvme=checksum_text(crc64nvme(BODY)),
            sha256=hashlib.sha256(BODY).hexdigest(),
            content_type="audio/wav",
            extension="wav",
        ),
    )
    yield sealer.seal(SegmentType.EVENT, head, 0)
    yield sealer.seal(SegmentType.MEDIA, BODY, 0)
    yield sealer.seal(SegmentType.MANIFEST, encode_manifest(manifest)[-1], 0)


def _state(site: Site) -> dict[str, tuple[int, int, int]]:
    """Tell of each recording's file what a write would change."""
    found = {}
    for path in site.state.glob("artifacts/*/*"):
        facts = path.lstat()
        found[path.name] = facts.st_ino, facts.st_size, facts.st_mtime_ns
    return found


def _cpu_s(pid: int) -> float:
    """Tell the processor time that a process has used (proc(5): fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _change(site: Site, arn: str) -> str:
    settings = Path(site.settings.config_dir, "pipeline.toml")
    command = [sys.executable, "-m", "pipeline", "keys", "change", "acme", arn, "--json", "--config", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    lines = done.stdout.splitlines()
    return str(json.loads(lines[-1])["UpdateStatus"]) if lines else done.stderr


def main(arguments: list[str]) -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=10_000)
    parser.add_argument("--data-keys", type=int, default=50)
    given = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    result = measure(given.recordings, given.data_keys)
    sys.stdout.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
