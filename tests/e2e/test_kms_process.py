"""The key server as a process of its own: what it says, what a kill leaves, where a key may never be seen."""

import base64
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from tests.kms_server import IDENTITIES, REGION

ADMIN = IDENTITIES["admin"]
CANARY = b"canary-plaintext-0123456789"


def written(directory: Path) -> Path:
    path = directory / "kms.toml"
    path.write_text(
        f'region = "{REGION}"\ndata_dir = "data"\n[root_key]\nfile = "root.key"\ncreate = true\n[[identities]]\n'
        f'access_key = "{ADMIN.access_key}"\nsecret_key = "{ADMIN.secret_key}"\nprincipal = "{ADMIN.principal}"\n'
    )
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def process(config: Path, said: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server until the block ends; give it and its URL. What it says goes to `said`."""
    command = [sys.executable, "-m", "pipeline.kms", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            for line in child.stderr:
                said.append(line)
                if line.startswith("listening on "):
                    break
            yield child, said[-1].split()[2]
        finally:
            child.terminate()
            assert child.stderr is not None
            said.extend(child.stderr)


def client(url: str) -> Any:
    keys: dict[str, Any] = {
        "aws_access_key_id": ADMIN.access_key,
        "aws_secret_access_key": ADMIN.secret_key,
        "region_name": REGION,
    }
    return get_session().create_client("kms", endpoint_url=url, **keys)


async def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    """A key, a ciphertext, a disabled state and a grant that were answered are there after SIGKILL.

    The server that comes after it ends when it is asked to, and is asked twice.
    """
    config = written(tmp_path)
    with process(config, []) as (child, url):
        async with client(url) as kms:
            key = (await kms.create_key())["KeyMetadata"]["Arn"]
            blob = (await kms.encrypt(KeyId=key, Plaintext=CANARY))["CiphertextBlob"]
            grant = await kms.create_grant(KeyId=key, GranteePrincipal=ADMIN.principal, Operations=["Decrypt"])
            off = (await kms.create_key())["KeyMetadata"]["Arn"]
            await kms.disable_key(KeyId=off)
            child.send_signal(signal.SIGKILL)
            child.wait()
    # A crash may cut the last line of the trail.
    [trail] = (tmp_path / "data" / "trail").iterdir()
    with trail.open("ab") as file:
        file.write(b'{"torn":')
    said: list[str] = []
    with process(config, said) as (child, url):
        async with client(url) as kms:
            assert (await kms.decrypt(CiphertextBlob=blob))["Plaintext"] == CANARY
            assert (await kms.describe_key(KeyId=off))["KeyMetadata"]["KeyState"] == "Disabled"
            assert (await kms.list_grants(KeyId=key))["Grants"][0]["GrantId"] == grant["GrantId"]
            for number in (signal.SIGTERM, signal.SIGTERM):
                child.send_signal(number)
            assert child.wait() == 0
    assert len(said) == 3  # as at each start, and nothing of what was cut
    names = [line.partition('"eventName":"')[2].partition('"')[0] for line in trail.read_text().splitlines()]
    assert names == [
        "CreateKey", "Encrypt", "CreateGrant", "CreateKey", "DisableKey", "", "Decrypt", "DescribeKey", "ListGrants",
    ]  # fmt: skip


async def test_it_says_what_it_is_and_shows_no_key_on_disk_or_in_what_it_says(tmp_path: Path) -> None:
    said: list[str] = []
    config = written(tmp_path)
    with process(config, said) as (_, url):
        _a_second_one_is_refused(config)
        async with client(url) as kms:
            key = (await kms.create_key())["KeyMetadata"]["Arn"]
            made = await kms.generate_data_key(KeyId=key, KeySpec="AES_256")
            blob = (await kms.encrypt(KeyId=key, Plaintext=CANARY))["CiphertextBlob"]
            await kms.decrypt(CiphertextBlob=made["CiphertextBlob"])
            await kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=key)
            with contextlib.suppress(ClientError):
                await kms.decrypt(CiphertextBlob=blob, EncryptionContext={"wrong": "context"})
            files = {path.name: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert {"keys.sqlite", "keys.sqlite-wal"} <= set(files)
    seen = b"".join(files.values()) + "".join(said).encode()
    root_key = bytes.fromhex((tmp_path / "root.key").read_text())
    for secret in (made["Plaintext"], CANARY, ADMIN.secret_key.encode(), root_key):
        for form in (secret, base64.b64encode(secret), secret.hex().encode(), repr(secret)[2:-1].encode()):
            assert form not in seen
    assert base64.b64encode(made["CiphertextBlob"]) not in seen
    assert "for machines without AWS and for tests" in said[0]
    assert "warning: The root key" in said[1]
    assert "same volume" in said[1]
    assert said[2].startswith("listening on http://127.0.0.1:")
    assert len(said) == 3


def _a_second_one_is_refused(config: Path) -> None:
    command = [sys.executable, "-m", "pipeline.kms", str(config)]
    second = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert "Another process" in second.stderr
    assert "Traceback" not in second.stderr


def test_its_memory_is_closed_to_other_processes_and_core_dumps() -> None:
    # PR_GET_DUMPABLE is 3.
    program = (
        "import ctypes, resource; from pipeline.process import harden; harden();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=30, check=True)
    assert done.stdout == "0 (0, 0)\n"
