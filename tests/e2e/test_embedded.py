"""The embedded servers: real ones, real processes. All that they keep survives kill -9."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError

import pipeline.embedded
from pipeline.adapters import children, seaweed
from pipeline.adapters.aws import open_client
from pipeline.config import load_instances
from pipeline.embedded import Embedded, Servers, attached, concerns, opened
from pipeline.errors import DeferError, HaltError, RefuseError
from pipeline.ids import Kind
from pipeline.instances import Instance
from pipeline.provision import demo_token_file, provision_demo, provision_instance
from pipeline.settings import Settings, load
from tests import markers

MARKER = markers.SPOKEN
BODY = MARKER * 5_000


def settings(directory: Path) -> Settings:
    return load(None, {"PIPELINE_STATE_DIR": str(directory)}, base=directory)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Servers]:
    """Run the servers; they are stopped at the end of the block."""
    stop = anyio.Event()
    with opened(settings(directory)) as embedded:
        servers = Servers(embedded)
        async with anyio.create_task_group() as tg:
            tg.start_soon(servers.run, stop, name="embedded")
            with anyio.fail_after(40):
                await servers.ready.wait()
            yield servers
            stop.set()


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    with anyio.fail_after(seconds):
        while not true():  # noqa: ASYNC110 - other processes are watched
            await anyio.sleep(0.05)


def processes_below(directory: Path) -> dict[int, str]:
    """Give every living process that names the directory in its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(directory / "embedded").encode() in line:  # empty for one that has ended and was not asked yet
            found[int(entry.name)] = line.replace(b"\0", b" ").decode()
    return found


async def put(bucket_settings: Settings, instance: Instance, key: str) -> dict[str, Any]:
    storage = instance.storage[Kind.VOICE]
    async with open_client("s3", bucket_settings.s3) as s3:
        answer: dict[str, Any] = await s3.put_object(
            Bucket=storage.bucket,
            Key=key,
            Body=BODY,
            IfNoneMatch="*",
            ServerSideEncryption="aws:kms",
            SSEKMSKeyId=storage.kms_key_arn,
        )
        return answer


async def got(bucket_settings: Settings, instance: Instance, key: str) -> bytes:
    """Read an object. A server that has just come back may still answer 5xx for a moment; nothing else is excused."""
    deadline = anyio.current_time() + 15
    async with open_client("s3", bucket_settings.s3) as s3:
        while True:
            try:
                answer = await s3.get_object(Bucket=instance.storage[Kind.VOICE].bucket, Key=key)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 or anyio.current_time() > deadline:
                    raise
                await anyio.sleep(0.2)
            else:
                body: bytes = await answer["Body"].read()
                return body


async def refusal(call: Any) -> str:
    """Await a call that must be refused; give back the code."""
    with pytest.raises(Exception, match="error occurred") as caught:
        await call
    code: str = caught.value.response["Error"]["Code"]  # type: ignore[attr-defined]  # botocore's ClientError
    return code


async def first_life(directory: Path) -> None:
    """Serve until killed, having made the demo instance, an object of it and a data key."""
    async with running(directory) as servers:
        here = servers.embedded.settings(settings(directory))
        demo, token = await provision_demo(servers.embedded, here.config_dir)
        answer = await put(here, demo, "one")
        async with open_client("kms", here.kms) as kms:
            key = await kms.generate_data_key(
                KeyId=demo.kms_key_arn, KeySpec="AES_256", EncryptionContext=demo.recordings_context
            )
        told = {
            "token": token,
            "encryption": [answer["ServerSideEncryption"], answer["SSEKMSKeyId"]],
            "plaintext": base64.b64encode(key["Plaintext"]).decode(),
            "wrapped": base64.b64encode(key["CiphertextBlob"]).decode(),
        }
        (directory / "aside").write_text(json.dumps(told))
        (directory / "aside").rename(directory / "told")
        await anyio.sleep_forever()


@pytest.mark.slow
@pytest.mark.aws
async def test_what_the_servers_keep_survives_kill_9_of_their_owner_and_of_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No child outlives its owner; a child that dies is back by itself; everything is readable again."""
    monkeypatch.setattr(children, "TERM_S", 0.5)
    told = await _live_and_be_killed(tmp_path)
    async with running(tmp_path) as servers:
        here = servers.embedded.settings(settings(tmp_path))
        demo, token = await provision_demo(servers.embedded, here.config_dir)
        assert token is None
        assert told["encryption"] == ["aws:kms", demo.storage[Kind.VOICE].kms_key_arn]
        assert demo_token_file(servers.embedded).read_text().strip() == told["token"]
        await _check_all_is_readable(here, demo, told)
        await _check_each_caller_has_its_own_keys(servers.embedded, here, demo, told)

        pids = [servers.keys.pid, servers.bucket.pid]
        for pid in pids:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        await until(lambda: servers.keys.starts == 2 and servers.bucket.starts == 2 and servers.up)
        await _check_all_is_readable(here, demo, told)
        _check_nothing_is_told(tmp_path, servers.embedded)
    assert processes_below(tmp_path) == {}
    assert not [path for path in seaweed.sockets(servers.embedded.ports.seaweed) if path.exists()]


async def _live_and_be_killed(directory: Path) -> dict[str, Any]:
    life = [sys.executable, __file__, str(directory)]
    environ = {**os.environ, "PYTHONPATH": str(Path(pipeline.embedded.__file__).parents[1])}
    async with await anyio.open_process(life, stdout=subprocess.DEVNULL, stderr=None, env=environ) as owner:
        try:
            await until((directory / "told").exists, 40)
            below = processes_below(directory)
            assert len(below) == 2, below
        finally:
            owner.kill()
        await until(lambda: not processes_below(directory))
    told: dict[str, Any] = json.loads((directory / "told").read_text())
    return told


async def _check_all_is_readable(here: Settings, demo: Instance, told: dict[str, Any]) -> None:
    assert await got(here, demo, "one") == BODY
    async with open_client("kms", here.kms) as kms:
        opened_key = await kms.decrypt(
            KeyId=demo.kms_key_arn,
            CiphertextBlob=base64.b64decode(told["wrapped"]),
            EncryptionContext=demo.recordings_context,
        )
    assert opened_key["Plaintext"] == base64.b64decode(told["plaintext"])


async def _check_each_caller_has_its_own_keys(
    embedded: Embedded, here: Settings, demo: Instance, told: dict[str, Any]
) -> None:
    foreign = demo.recordings_context | {"pipeline:instanceId": "aaaa1111-0000-4000-8000-000000000001"}
    bucket_key = demo.storage[Kind.VOICE].kms_key_arn
    async with open_client("kms", here.kms) as kms:
        assert await refusal(kms.generate_data_key(KeyId=bucket_key, KeySpec="AES_256")) == "AccessDeniedException"
        call = kms.generate_data_key(KeyId=demo.kms_key_arn, KeySpec="AES_256", EncryptionContext=foreign)
        assert await refusal(call) == "AccessDeniedException"
        assert (await kms.describe_key(KeyId=bucket_key))["KeyMetadata"]["KeyState"] == "Enabled"
        assert await refusal(kms.disable_key(KeyId=demo.kms_key_arn)) == "AccessDeniedException"
    async with open_client("kms", embedded.kms(embedded.secrets.kms_bucket)) as kms:
        call = kms.decrypt(CiphertextBlob=base64.b64decode(told["wrapped"]), EncryptionContext=demo.recordings_context)
        assert await refusal(call) == "AccessDeniedException"
    async with open_client("s3", here.s3) as s3:
        assert await refusal(s3.create_bucket(Bucket="not-for-the-service")) == "AccessDenied"


def _check_nothing_is_told(directory: Path, embedded: Embedded) -> None:
    secret = [
        each.secret_key.encode() for each in map(embedded.secrets.__getattribute__, embedded.secrets.__struct_fields__)
    ]
    secret.append((embedded.directory / "kms" / "root.key").read_bytes().strip())
    for path in directory.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        content = path.read_bytes()
        assert MARKER not in content, path
        if path.suffix in {".log", ".1"}:
            assert not [each for each in secret if each in content], path
        if any(each in content for each in secret):
            assert path.stat().st_mode & 0o777 == 0o600, path
    assert embedded.directory.stat().st_mode & 0o777 == 0o700


# --- without starting anything


def test_secrets_and_ports_are_chosen_once(tmp_path: Path) -> None:
    with opened(settings(tmp_path)) as first:
        pass
    with opened(settings(tmp_path)) as second:
        assert second == first
    assert attached(settings(tmp_path)) == first
    assert first.secrets.kms_service.secret_key not in repr(first)
    for name in ("secrets.json", "ports.json", "kms/server.toml", "bucket/s3.json", "lock"):
        assert (first.directory / name).stat().st_mode & 0o777 == 0o600, name


def test_a_port_that_somebody_took_is_chosen_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.embedded, "PORT_PATIENCE_S", 0.1)
    with opened(settings(tmp_path)) as first:
        pass
    with socket.create_server(("127.0.0.1", first.ports.seaweed + 10_000)), opened(settings(tmp_path)) as second:
        assert first.ports.seaweed + 10_000 not in second.ports.all()
        assert str(second.ports.kms) in (second.directory / "kms" / "server.toml").read_text()
        assert second.secrets == first.secrets


def test_one_process_runs_them(tmp_path: Path) -> None:
    with opened(settings(tmp_path)), pytest.raises(HaltError, match="Another process"), opened(settings(tmp_path)):
        pass


def test_commands_are_refused_before_the_first_start(tmp_path: Path) -> None:
    with pytest.raises(RefuseError, match="No service has started"):
        attached(settings(tmp_path))
    assert not list(tmp_path.iterdir())


def test_secrets_that_can_not_be_read_are_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "secrets.json").write_text("{}")
    with pytest.raises(HaltError, match=r"secrets\.json"), opened(settings(tmp_path)):
        pass
    assert (tmp_path / "embedded" / "secrets.json").read_text() == "{}"


def test_the_service_is_pointed_at_them(tmp_path: Path) -> None:
    given = replace(settings(tmp_path), drain=settings(tmp_path).drain * 2)
    with opened(given) as embedded:
        pointed = embedded.settings(given)
        assert pointed.delivery.settle_volume == embedded.bucket_data
        assert pointed.kms.credentials == embedded.secrets.kms_service
        assert pointed.s3.credentials == embedded.secrets.s3_service
        assert pointed.drain == given.drain
        assert "root.key" in concerns(embedded)[0]


async def test_no_instance_is_made_while_the_servers_do_not_run(tmp_path: Path) -> None:
    with opened(settings(tmp_path)) as embedded:
        with pytest.raises(DeferError, match="key server did not answer"):
            await provision_instance(embedded, tmp_path / "config", "acme")
        with pytest.raises(RefuseError, match="letters"):
            await provision_instance(embedded, tmp_path / "config", "../acme")
    assert load_instances(tmp_path / "config").instances == {}


if __name__ == "__main__":
    anyio.run(first_life, Path(sys.argv[1]), backend_options={"use_uvloop": True})
