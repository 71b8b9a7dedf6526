"""The commands against real servers: keys are asked, buckets are read, a running service is told."""

import io
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import structlog
from typer.testing import CliRunner, Result

from pipeline import logs, running
from pipeline.adapters.aws import open_client
from pipeline.adapters.kms import AwsKeyService
from pipeline.cli import app
from pipeline.commands.options import load_settings
from pipeline.ids import Kind
from pipeline.interim.states import ArtifactName
from pipeline.keyports import KmsCall
from pipeline.settings import Credentials, Endpoint, LogSettings
from tests.held_store import ACCOUNT, ACME, HeldStore, held_store, instance
from tests.kms_server import REGION, RunningKeyServer, running_key_server
from tests.servers import Bucket, moto_bucket

MEDIA = os.urandom(2_500_000)
CHAT = "cccc3333-0000-4000-8000-000000000004"


async def cli(*arguments: str, env: dict[str, str] | None = None) -> Result:
    """Run a command in a thread, beside the servers of this one."""
    environ = {"PIPELINE_CONFIG": "", "PIPELINE_URL": "", **(env or {})}
    return await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, arguments, env=environ))


def answered(result: Result, code: int = 0) -> Any:
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def plaintext(result: Result) -> bytes:
    assert result.exit_code == 0, result.stderr
    return result.stdout_bytes


def records(state: Path) -> list[dict[str, Any]]:
    """Give what commands have put into the audit trail."""
    files = sorted((state / "audit").rglob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    lines = [json.loads(line) for file in files for line in file.read_text().rpartition("\n")[0].splitlines()]
    return [line for line in lines if line["userIdentity"]["type"] == "Command"]


def settings_file(directory: Path, state: Path, kms: Endpoint, s3: Endpoint) -> Path:
    def table(name: str, endpoint: Endpoint) -> str:
        assert endpoint.credentials is not None
        keys = f'access_key = "{endpoint.credentials.access_key}"\nsecret_key = "{endpoint.credentials.secret_key}"'
        return f'[{name}]\nurl = "{endpoint.url}"\nregion = "{endpoint.region}"\n{keys}\n'

    directory.mkdir(mode=0o700, exist_ok=True)
    file = directory / "pipeline.toml"
    top = f'state_dir = "{state}"\nregion = "{REGION}"\n[http]\nport = 0\n'
    file.write_text(top + table("kms", kms) + table("s3", s3))
    file.chmod(0o600)
    return file


# --- from the store, by its keys


@dataclass
class Held:
    """A store under a key of the key server, and what is in it."""

    state: Path
    config: Path
    server: RunningKeyServer
    key_id: str
    store: HeldStore

    async def run(self, *arguments: str) -> Result:
        return await cli(*arguments, "--config", str(self.config))


@asynccontextmanager
async def held(tmp_path: Path) -> AsyncIterator[Held]:
    state, directory = tmp_path / "state", tmp_path / "config"

    async def untold(_call: KmsCall) -> None:
        pass

    async with running_key_server(tmp_path) as server, server.client() as admin:
        arn = (await admin.create_key())["KeyMetadata"]["Arn"]
        caller = next(one for one in server.config.identities if one.access_key == "AKADMIN")
        endpoint = Endpoint(
            region=REGION, url=server.url, credentials=Credentials(caller.access_key, caller.secret_key)
        )
        async with open_client("kms", endpoint) as client:
            acme = instance(ACME, "acme", arn)
            async with held_store(state, AwsKeyService(client, untold), acme) as store:
                (state / "config").rename(directory)
                config = settings_file(directory, state, endpoint, endpoint)
                yield Held(state, config, server, arn.rpartition("/")[2], store)


async def test_get_gives_back_what_was_sealed_and_says_so_in_the_audit_log_first(tmp_path: Path) -> None:
    async with held(tmp_path) as test:
        name = await test.store.hold(ACME, Kind.VOICE, MEDIA)
        out = tmp_path / "out.wav"
        answer = answered(await test.run("get", str(name.artifact_id), "-o", str(out), "--json"))
        assert out.read_bytes() == MEDIA
        assert out.stat().st_mode & 0o777 == 0o600
    assert (answer["from"], answer["bytes"], answer["compared"]) == ("store", len(MEDIA), True)
    told = records(test.state)
    assert [record["eventName"] for record in told] == ["Decrypt", "PlaintextOpened"]
    assert told[1]["requestParameters"]["artifactId"] == str(name.artifact_id)
    assert told[1]["requestParameters"]["whole"] is True
    assert told[1]["userIdentity"]["type"] == "Command"


async def test_ls_tells_the_flags_of_sealed_ones_if_it_is_asked_to_open_them(tmp_path: Path) -> None:
    async with held(tmp_path) as test:
        empty = await test.store.hold(ACME, Kind.VOICE, b"RIFF\x04\0\0\0WAVE")
        chat = await test.store.hold(ACME, Kind.CHAT, b'{"Transcript":[{}]}')
        result = await test.run("ls", "--flags", "--json")
        rows = {row["artifactId"]: row for row in map(json.loads, result.stdout.splitlines())}
        assert rows[str(empty.artifact_id)]["quality"] == ["SUSPECT_EMPTY"]
        assert {"quality", "problem"}.isdisjoint(rows[str(chat.artifact_id)])
        assert "quality" not in (await test.run("ls", "--json")).stdout
        assert "SUSPECT_EMPTY" in (await test.run("ls", "--flags")).stdout


async def test_get_gives_a_range_to_a_pipe(tmp_path: Path) -> None:
    async with held(tmp_path) as test:
        name = await test.store.hold(ACME, Kind.VOICE, MEDIA)
        wanted = ("get", str(name.artifact_id), "--range")
        assert plaintext(await test.run(*wanted, "0-0")) == MEDIA[:1]
        assert plaintext(await test.run(*wanted, "1048570-1048585")) == MEDIA[1_048_570:1_048_586]  # over two segments
        assert plaintext(await test.run(*wanted, "2499990-9999999")) == MEDIA[2_499_990:]
        beyond = await test.run(*wanted, f"{len(MEDIA)}-")
        assert (beyond.exit_code, beyond.stdout_bytes) == (3, b"")


async def test_get_gives_an_empty_recording(tmp_path: Path) -> None:
    async with held(tmp_path) as test:
        name = await test.store.hold(ACME, Kind.VOICE, b"")
        answered(await test.run("get", str(name.artifact_id), "-o", str(tmp_path / "out"), "--json"))
        assert (tmp_path / "out").read_bytes() == b""


async def test_get_finds_the_generations_of_a_recording(tmp_path: Path) -> None:
    async with held(tmp_path) as test:
        first = await test.store.hold(ACME, Kind.VOICE, b"first")
        await test.store.hold(ACME, Kind.VOICE, b"second")
        assert plaintext(await test.run("get", str(first.artifact_id))) == b"first"
        assert plaintext(await test.run("get", str(first.artifact_id), "--generation", "2")) == b"second"


async def test_nothing_that_was_changed_is_given_out(tmp_path: Path) -> None:
    """A file that does not authenticate leaves no output behind, and only --read-data can see it."""
    async with held(tmp_path) as test:
        name = await test.store.hold(ACME, Kind.VOICE, MEDIA)
        path = test.state / "artifacts" / name.path
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        result = await test.run("get", str(name.artifact_id), "-o", str(tmp_path / "out"))
        assert (result.exit_code, (tmp_path / "out").exists()) == (1, False)
        assert [path.name for path in tmp_path.glob(".out*")] == []
        assert (await test.run("verify")).exit_code == 0
        answer = answered(await test.run("verify", "--read-data", "--json"), 1)
    assert [problem["what"] for problem in answer["problems"]] == [str(name.artifact_id)]


async def test_verify_opens_every_segment_of_a_sound_store(tmp_path: Path) -> None:
    async with held(tmp_path) as test:
        await test.store.hold(ACME, Kind.VOICE, MEDIA)
        await test.store.hold(ACME, Kind.CHAT, b"{}", contact="c-2")
        answer = answered(await test.run("verify", "--read-data", "--json"))
        assert answer == {"checked": 2, "readData": True, "problems": [], "unopened": [], "poison": 0}
        assert [record["eventName"] for record in records(test.state)] == ["PlaintextOpened", "Decrypt"]


async def test_a_key_that_is_disabled_opens_nothing_and_is_no_damage(tmp_path: Path) -> None:
    async with held(tmp_path) as test:
        name = await test.store.hold(ACME, Kind.VOICE, MEDIA)
        test.server.disable(test.key_id)
        got = await test.run("get", str(name.artifact_id), "-o", str(tmp_path / "out"))
        assert (got.exit_code, (tmp_path / "out").exists()) == (4, False)
        assert "PlaintextOpened" not in [record["eventName"] for record in records(test.state)]
        answer = answered(await test.run("verify", "--read-data", "--json"), 4)
        assert (answer["problems"], len(answer["unopened"])) == ([], 1)
        refused = await test.run("doctor")
        assert "FAIL  acme key: its state is Disabled" in refused.stdout


async def test_a_legal_hold_on_a_contact_is_found_by_opening_heads(tmp_path: Path) -> None:
    """Damage behind the head does not hide whose recording it is; a key that can't be used does, and nothing goes."""
    async with held(tmp_path) as test:
        poison = []
        for contact in ("c-1", "c-2"):
            name = await test.store.hold(ACME, Kind.VOICE, MEDIA, contact=contact)
            poison.append(await test.store.store.reject(name, "integrity", ()))
        for name in poison:
            os.truncate(test.state / "artifacts" / name.path, 1_000)
        answered(await test.run("legal-hold", "add", "acme", "--contact", "c-1", "--reason", "x", "--json"))

        def discard(*names: ArtifactName) -> Any:
            ids = [str(name.artifact_id) for name in names]
            return test.run("poison", "discard", *ids, "--reason", "tidy", "--yes")

        assert (await discard(poison[1], poison[0])).exit_code == 3
        test.server.disable(test.key_id)
        assert "can't be told" in (await discard(poison[1])).stderr
        assert all((test.state / "artifacts" / name.path).exists() for name in poison)
        test.server.enable(test.key_id)
        assert (await discard(poison[1])).exit_code == 0
        assert [(test.state / "artifacts" / name.path).exists() for name in poison] == [True, False]


# --- a whole service


@contextmanager
def logging_aside() -> Iterator[None]:
    """Keep the service's log out of what the commands print."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure(LogSettings(), io.StringIO())
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


@asynccontextmanager
async def served(config: Path) -> AsyncIterator[str]:
    """Serve until the block ends; gives the URL."""
    stop, up = anyio.Event(), anyio.Event()
    urls: list[str] = []

    def started(url: str) -> None:
        urls.append(url)
        up.set()

    with logging_aside():
        async with anyio.create_task_group() as group:
            group.start_soon(running.run, load_settings(config, None), stop, started)
            await up.wait()
            try:
                yield urls[0]
            finally:
                stop.set()


def add_options(bucket: Bucket) -> list[str]:
    storage = bucket.storage
    return [
        *("--account", storage.bucket_owner, "--region", bucket.s3.region, "--kms-key", storage.kms_key_arn),
        *("--bucket", storage.bucket, "--bucket-key", storage.kms_key_arn),
    ]


async def delivered(config: Path, count: int) -> list[dict[str, Any]]:
    """Wait until so many recordings are delivered."""
    with anyio.fail_after(30):
        while True:
            result = await cli("ls", "--json", "--state", "delivered", "--config", str(config))
            rows = [json.loads(line) for line in result.stdout.splitlines()]
            if len(rows) == count:
                return rows
            await anyio.sleep(0.1)


def chat_events(instance_arn: str) -> list[dict[str, Any]]:
    def message(number: int) -> dict[str, Any]:
        item = {
            "AbsoluteTime": f"2026-11-23T09:00:0{number}.000Z",
            "Id": f"i-{number}",
            "Type": "MESSAGE",
            "ContentType": "text/plain",
            "Content": f"message {number}",
        }
        detail = {"instanceArn": instance_arn, "contactId": CHAT, "item": item, "final": number == 3}
        return {"detail-type": "Chat Message", "source": "pipeline.chat", "detail": detail}

    return [message(number) for number in (1, 2, 3)]


@pytest.mark.aws
async def test_an_instance_is_added_used_probed_and_removed(tmp_path: Path) -> None:
    async with moto_bucket() as bucket:
        config = settings_file(tmp_path / "config", tmp_path / "state", bucket.kms, bucket.s3)
        where = ("--config", str(config))
        added = answered(await cli("instance", "add", "acme", *add_options(bucket), *where, "--json"))
        assert {row["kind"] for row in added["destinations"]} == {"voice", "screen", "chat"}
        assert all(row["usable"] for row in added["destinations"])
        async with served(config) as url:
            token = tmp_path / "token"
            token.write_text(added["token"])
            client = ("--url", url, "--token-file", str(token))
            media, events = tmp_path / "call.wav", tmp_path / "events.jsonl"
            media.write_bytes(b"RIFF" + MEDIA)
            options = ("--instance", added["instanceId"], "--contact", "c-1", "--kind", "voice")
            taken = answered(await cli("put", str(media), *options, *client))
            assert answered(await cli("put", str(media), *options, *client)) == taken  # a repeat is told the same
            arn = f"arn:aws:connect:{bucket.s3.region}:{bucket.storage.bucket_owner}:instance/{added['instanceId']}"
            events.write_text("".join(f"{json.dumps(event)}\n" for event in [*chat_events(arn), {"detail-type": 5}]))
            fed = await cli("feed", str(events), *client)
            assert (fed.exit_code, fed.stdout) == (1, "3 events taken, 1 refused\n"), fed.output
            rows = await delivered(config, 2)
            voice = next(row for row in rows if row["kind"] == "voice")
            chat = next(row for row in rows if row["kind"] == "chat")

            assert plaintext(await cli("get", taken["recordingId"], *where)) == b"RIFF" + MEDIA
            assert plaintext(await cli("get", voice["artifactId"], "--range", "2-5", *where)) == b"FF" + MEDIA[:2]
            transcript = json.loads(plaintext(await cli("get", chat["artifactId"], *where)))
            assert [item["Content"] for item in transcript["Transcript"]] == ["message 1", "message 2", "message 3"]
            assert answered(await cli("status", "--json", *where))["service"] == {"running": True, "pid": os.getpid()}
            assert answered(await cli("verify", "--read-data", "--json", *where))["problems"] == []
            probed = answered(await cli("instance", "probe", "acme", "--json", *where))
            assert (probed["key"], probed["serviceTold"]) == (None, True)
            checks = answered(await cli("doctor", "--json", *where))["checks"]
            assert {"ok"} == {check["level"] for check in checks if check["name"].startswith("acme")}

            answered(await cli("instance", "remove", "acme", *where, "--json"))
            with anyio.fail_after(20):  # the service is told, and nobody waits until it has heard
                while (refused := await cli("put", str(media), *options, *client)).exit_code == 0:
                    pass
            assert (refused.exit_code, "401" in refused.stderr) == (3, True)


@pytest.mark.aws
async def test_nothing_leaves_unrecorded_and_a_bucket_that_has_changed_an_object_is_found_out(tmp_path: Path) -> None:
    async with moto_bucket() as bucket:
        config = settings_file(tmp_path / "config", tmp_path / "state", bucket.kms, bucket.s3)
        added = answered(await cli("instance", "add", "acme", *add_options(bucket), "--config", str(config), "--json"))
        media = tmp_path / "call.wav"
        media.write_bytes(MEDIA)
        async with served(config) as url:
            options = ("--instance", added["instanceId"], "--contact", "c-1", "--kind", "voice", "--url", url)
            taken = answered(await cli("put", str(media), *options, env={"PIPELINE_TOKEN": added["token"]}))
            (row,) = await delivered(config, 1)
        audit = tmp_path / "state" / "audit"
        audit.rename(audit.with_name("aside"))
        audit.write_bytes(b"")
        unaudited = await cli("get", taken["recordingId"], "--config", str(config))
        assert (unaudited.exit_code, unaudited.stdout_bytes) == (4, b"")  # what can't be recorded is not opened
        audit.unlink()
        audit.with_name("aside").rename(audit)
        async with open_client("s3", bucket.s3) as s3:
            await s3.put_object(Bucket=row["bucket"], Key=row["key"], Body=bytes(len(MEDIA)))
        out = tmp_path / "out"
        result = await cli("get", taken["recordingId"], "-o", str(out), "--config", str(config))
        assert (result.exit_code, out.exists()) == (1, False)


@pytest.mark.aws
async def test_nothing_is_saved_of_an_instance_that_does_not_prove_itself(tmp_path: Path) -> None:
    async with moto_bucket() as bucket:
        config = settings_file(tmp_path / "config", tmp_path / "state", bucket.kms, bucket.s3)
        where = ("--config", str(config))
        options = add_options(bucket)
        missing = [each if each != bucket.storage.bucket else "no-such-bucket" for each in options]
        assert (await cli("instance", "add", "acme", *missing, *where)).exit_code == 4
        unknown = bucket.storage.kms_key_arn.rpartition("/")[0] + "/bbbb2222-0000-4000-8000-000000000099"
        wrong = ["--kms-key", unknown] + [each for each in options if each != "--kms-key"]
        wrong.remove(bucket.storage.kms_key_arn)
        assert (await cli("instance", "add", "acme", *wrong, *where)).exit_code == 4
        alias = ["--kms-key", "alias/acme", *(each for each in options if each != "--kms-key")]
        alias.remove(bucket.storage.kms_key_arn)
        refused = await cli("instance", "add", "acme", *alias, *where)
        assert (refused.exit_code, "kms_key_arn" in refused.stderr) == (3, True)
        listed = answered(await cli("instance", "list", "--json", *where))
        assert listed["instances"] == []


@pytest.mark.aws
async def test_an_instance_can_name_a_storage_for_each_kind_in_a_file(tmp_path: Path) -> None:
    async with moto_bucket() as bucket:
        config = settings_file(tmp_path / "config", tmp_path / "state", bucket.kms, bucket.s3)
        file = tmp_path / "storage.json"
        s3 = {
            "BucketName": bucket.storage.bucket,
            "BucketPrefix": "connect/acme/CallRecordings",
            "EncryptionConfig": {"EncryptionType": "KMS", "KeyId": bucket.storage.kms_key_arn},
        }
        association = {
            "AssociationId": "voice-1",
            "ResourceType": "CALL_RECORDINGS",
            "bucket_owner": bucket.storage.bucket_owner,
            "StorageConfig": {"StorageType": "S3", "S3Config": s3},
        }
        file.write_text(json.dumps([association]))
        options = add_options(bucket)[:6]
        done = await cli("instance", "add", "acme", *options, "--storage", str(file), "--config", str(config), "--json")
        assert [row["kind"] for row in answered(done)["destinations"]] == ["voice"]
        file.write_text(json.dumps([association | {"Bucket": "typo"}]))
        wrong = await cli("instance", "add", "other", *options, "--storage", str(file), "--config", str(config))
        assert (wrong.exit_code, "storage[0].Bucket" in wrong.stderr) == (3, True)


@pytest.mark.slow
async def test_serve_ends_with_5_where_another_holds_the_store_and_with_0_when_told_to_stop(tmp_path: Path) -> None:
    endpoint = Endpoint(region=REGION, url="http://127.0.0.1:9", credentials=Credentials("none", "none"))
    config = settings_file(tmp_path / "config", tmp_path / "state", endpoint, endpoint)
    argv = [os.sys.executable, "-m", "pipeline", "serve", "--config", str(config)]  # type: ignore[attr-defined]
    async with await anyio.open_process(argv, stdout=None, stderr=-1) as first:
        assert first.stderr is not None
        said = b""
        with anyio.fail_after(30):
            while b"service.started" not in said:
                said += await first.stderr.receive()
        second = await anyio.run_process(argv, check=False)
        assert (second.returncode, b"another process serves this store" in second.stderr) == (5, True)
        first.send_signal(signal.SIGTERM)
        with anyio.fail_after(30):
            while True:
                try:
                    said += await first.stderr.receive()
                except anyio.EndOfStream:
                    break
            assert await first.wait() == 0
    assert all(json.loads(line)["event"] for line in said.splitlines())
    assert ACCOUNT.encode() not in said
