"""The service's own checkpoints in a tenant's bucket, and what a verifier finds by them that the store hides."""

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.aws import open_client
from pipeline.settings import AuditSettings
from tests.e2e.test_commands import cli
from tests.node import node, until
from tests.sites import Site, moto_site

pytestmark = pytest.mark.aws


def log_of(site: Site) -> Path:
    return site.state / "audit" / str(site.acme.instance.instance_id)


async def verified(site: Site, *options: str, code: int = 0) -> dict[str, Any]:
    where = ("--config", str(site.write_settings()), "--instance", "acme", "--json")
    result = await cli("audit", "verify", *options, *where)
    assert result.exit_code == code, result.output
    total: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return total


async def test_a_log_that_was_cut_with_every_trace_here_is_found_out_by_the_bucket(tmp_path: Path) -> None:
    async with moto_site(tmp_path) as site:
        site.settings = replace(site.settings, audit=AuditSettings(checkpoint_every=timedelta(seconds=1)))
        async with node(site) as caller:
            assert (await caller.put(site.acme, "c-1", "voice", b"RIFF" + bytes(2000))).status == 201
            await until(lambda: "ArtifactDelivered" in {each["eventName"] for each in site.audit(site.acme)})
            cursor = log_of(site) / "delivered.json"
            records = len(site.audit(site.acme))
            covered = log_of(site) / "leaves"
            await until(lambda: covered.exists() and covered.stat().st_size >= 32 * records)
            number = len(list((log_of(site) / "checkpoints").iterdir()))
            await until(lambda: cursor.exists() and json.loads(cursor.read_bytes())["checkpoints"] >= number)
        assert await verified(site, "--bucket") == await verified(site)
        assert len(await site.objects(site.acme)) == 1  # the recording alone
        async with open_client("s3", site.reader) as s3:
            answer = await s3.list_objects_v2(Bucket=site.acme.bucket, Prefix="audit/")
            [first, *_] = [each["Key"] for each in answer["Contents"]]
            head = await s3.head_object(Bucket=site.acme.bucket, Key=first)
        assert first.endswith("/checkpoint-00000001.txt")
        assert head["SSEKMSKeyId"] == site.acme.instance.storage[min(site.acme.instance.storage)].kms_key_arn
        signed = [record for record in site.node_audit() if record["eventName"] == "CheckpointSigned"]
        assert str(site.acme.instance.instance_id) in {each["requestParameters"]["log"] for each in signed}

        [path] = log_of(site).glob("*.jsonl")
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: records - 1]))
        shutil.rmtree(log_of(site) / "checkpoints")
        covered.unlink()
        Path(site.settings.config_dir, "audit", f"{log_of(site).name}.checkpoint").unlink()
        assert (await verified(site))["ok"]
        found = await verified(site, "--bucket", code=1)
        assert found["missing"] >= 1  # more if the service had something to say after the delivery
        assert (found["gap"], found["invalid"]) == (0, 0)
        assert found["firstBad"]["index"] == records - 1
