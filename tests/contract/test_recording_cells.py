"""One test for each cell of recordings, held and delivered: calls, screens and transcripts through the whole service.

The service is a process, the key server enforces, and the bucket is SeaweedFS, which has its keys from the same server.
The expectations stand here in full and are not read from the policy table.
"""

import base64
import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import pytest
from anyio.from_thread import start_blocking_portal
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from pipeline import config
from pipeline.cli import app
from pipeline.crypt.grants import terms
from pipeline.errors import RefuseError
from pipeline.ids import Kind
from pipeline.instances import Instance, checked
from tests.e2e.journey import message, mp4, wav
from tests.kms_server import ACCOUNT, IDENTITIES, RunningKeyServer, new_key
from tests.node import Answer, Caller, ProcessNode, process_node, until
from tests.sites import Party, Site, Stored, seaweedfs_site

pytestmark = [pytest.mark.aws, pytest.mark.slow]

BASE = {"DescribeKey", "GenerateDataKey", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "RetireGrant"}
BODIES = {Kind.VOICE: wav(4096), Kind.SCREEN: mp4(4096)}
NAMES = {Kind.VOICE: "voice.wav", Kind.SCREEN: "screen.mp4"}


@dataclass
class Running:
    """The service, its site and keys; they live in a loop of their own."""

    site: Site
    keys: RunningKeyServer
    node: ProcessNode
    count: int = 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve for all cells."""

    @asynccontextmanager
    async def served() -> AsyncIterator[Running]:
        async with seaweedfs_site(tmp_path_factory.mktemp("cells")) as (site, keys):
            site.more["keys"] = {"cache_s": 1, "seal_grace_s": 0}
            async with process_node(site) as node:
                yield Running(site, keys, node)

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(served()) as made:
        yield made


@dataclass
class Cell:
    """One kind of recording, of one instance and beside another."""

    running: Running
    caller: Caller
    kind: Kind

    @property
    def site(self) -> Site:
        return self.running.site

    @property
    def acme(self) -> Party:
        """Acme as its file has it now."""
        party = self.site.acme
        return replace(party, instance=self.configured(party))

    @property
    def data_key(self) -> str:
        return self.acme.instance.kms_key_arn

    @property
    def bucket_key(self) -> str:
        return self.acme.instance.storage[self.kind].kms_key_arn

    def configured(self, party: Party) -> Instance:
        return config.load_instances(self.site.settings.config_dir).instances[party.instance.instance_id]

    async def disable(self, arn: str) -> None:
        async with self.running.keys.client("admin") as admin:
            await admin.disable_key(KeyId=arn)

    async def enable(self, arn: str) -> None:
        async with self.running.keys.client("admin") as admin:
            await admin.enable_key(KeyId=arn)

    async def send(self, party: Party | None = None) -> tuple[str, Answer]:
        """Send one recording; give its contact, and the answer."""
        whose = party or self.acme
        self.running.count += 1
        contact = f"c-{self.running.count}"
        if self.kind is Kind.CHAT:
            return contact, await self.caller.post(whose, message(whose, contact, "i-1", "hello", final=True))
        return contact, await self.caller.put(whose, contact, NAMES[self.kind], BODIES[self.kind])

    async def sent(self, party: Party | None = None) -> str:
        contact, answer = await self.send(party)
        assert answer.status in {201, 202}, answer
        return contact

    async def delivered(self, contact: str, party: Party | None = None) -> Stored:
        """Wait for a recording in its bucket; it is whole."""
        whose = party or self.acme
        await until(lambda: self.is_published(contact, whose))
        (found,) = [each for key, each in (await self.site.objects(whose)).items() if f"/{contact}_" in key]
        assert found.body == BODIES[self.kind] if self.kind in BODIES else b'"hello"' in found.body
        return found

    def is_published(self, contact: str, party: Party | None = None) -> bool:
        return any(f"/{contact}_" in location for location in self.site.published(party or self.acme))

    def hold(self, scope: str) -> str | None:
        path = self.site.state / "holds" / f"{self.acme.instance.instance_id}.{scope}.json"
        try:
            code: str = json.loads(path.read_bytes())["code"]
        except FileNotFoundError:
            return None
        return code

    @asynccontextmanager
    async def held(self) -> AsyncIterator[str]:
        """Have a recording sealed that can't be delivered while the block lasts; give its contact."""
        arn = self.bucket_key
        await self.disable(arn)
        try:
            contact = await self.sent()
            await until(lambda: self.hold(self.kind))
            yield contact
        finally:
            await self.enable(arn)

    def asked(self, party: Party, *names: str, interim: bool = True) -> list[dict[str, Any]]:
        """Give what the key server was asked for a party: for its data keys, or by its bucket."""
        found = []
        for each in self.running.keys.trail():
            context = each.get("requestParameters", {}).get("encryptionContext") or {}
            mine = (
                context.get("pipeline:instanceId") == str(party.instance.instance_id)
                if interim
                else str(context.get("aws:s3:arn", "")).startswith(f"arn:aws:s3:::{party.bucket}")
            )
            is_service = each["userIdentity"].get("arn") == IDENTITIES["service"].principal
            if mine and is_service and "errorCode" not in each and each["eventName"] in names:
                found.append(each["requestParameters"])
        return found

    def wrapped(self, party: Party) -> list[dict[str, Any]]:
        folder = self.site.state / "keys" / str(party.instance.instance_id)
        files = [file for file in folder.glob("*.json") if file.name != "unneeded.json"]
        return [each for file in files for each in json.loads(file.read_bytes())["wrapped"]]

    async def command(self, *arguments: str) -> list[dict[str, Any]]:
        settings = ["--config", str(Path(self.site.settings.config_dir, "pipeline.toml")), "--json"]
        done = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, [*arguments, *settings]))
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]


# --- held: recordings_interim


async def interim_ownership(cell: Cell) -> None:
    await cell.delivered(await cell.sent())
    assert {each["kmsKeyArn"] for each in cell.wrapped(cell.acme)} == {cell.data_key}
    assert cell.asked(cell.acme, "GenerateDataKey")[-1]["keyId"] == cell.data_key
    assert cell.bucket_key != cell.data_key
    with pytest.raises(RefuseError, match="ARN"):
        checked(replace(cell.acme.instance, kms_key_arn="alias/recordings"))


async def interim_scope(cell: Cell) -> None:
    acme, borealis = cell.acme, cell.site.borealis
    contacts = [(party, await cell.sent(party)) for party in (acme, borealis)]
    for party, contact in contacts:
        await cell.delivered(contact, party)
    made = {each["keyId"] for each in cell.asked(acme, "GenerateDataKey")}
    assert {each["keyId"] for each in cell.asked(borealis, "GenerateDataKey")}.isdisjoint(made)
    blobs = [{each["blob"] for each in cell.wrapped(party)} for party in (acme, borealis)]
    assert blobs[0].isdisjoint(blobs[1])


async def interim_context(cell: Cell) -> None:
    await cell.sent()
    wanted = {
        "pipeline:accountId": ACCOUNT,
        "pipeline:instanceId": str(cell.acme.instance.instance_id),
        "pipeline:dataClass": "recordings_interim",
    }
    asked = cell.asked(cell.acme, "GenerateDataKey", "Decrypt")
    assert asked
    assert all(each["encryptionContext"] == wanted for each in asked)
    blob = base64.b64decode(cell.wrapped(cell.acme)[-1]["blob"])
    async with cell.running.keys.client("admin") as kms:
        opened = await kms.decrypt(KeyId=cell.data_key, CiphertextBlob=blob, EncryptionContext=wanted)
        assert len(opened["Plaintext"]) == 32
        for name in wanted:
            with pytest.raises(ClientError, match="InvalidCiphertext"):
                await kms.decrypt(
                    KeyId=cell.data_key, CiphertextBlob=blob, EncryptionContext={**wanted, name: "another"}
                )


async def interim_grants(cell: Cell) -> None:
    instance = cell.acme.instance
    given = terms(
        str(instance.instance_id), "recordings_interim", instance.recordings_context, IDENTITIES["bare"].principal
    )
    assert set(given.operations) == BASE
    assert given.name == f"pipeline:{instance.instance_id}:recordings_interim:v1"
    async with cell.running.keys.client("admin") as admin, cell.running.keys.client("bare") as bare:
        made = await admin.create_grant(
            KeyId=cell.data_key,
            GranteePrincipal=given.grantee,
            Operations=list(given.operations),  # type: ignore[arg-type]
            Constraints={"EncryptionContextEquals": dict(given.context)},
        )
        for context, works in ((given.context, True), ({**given.context, "more": "x"}, False), ({}, False)):
            ask = bare.generate_data_key(KeyId=cell.data_key, KeySpec="AES_256", EncryptionContext=dict(context))
            if works:
                await ask
            else:
                with pytest.raises(ClientError, match="AccessDenied"):
                    await ask
        await admin.revoke_grant(KeyId=cell.data_key, GrantId=made["GrantId"])


async def interim_retention(cell: Cell) -> None:
    async with cell.held() as contact:
        held = cell.site.artifacts(".sealed")
        assert len(held) == 1
        assert not cell.is_published(contact)
    await cell.delivered(contact)
    await until(lambda: not cell.site.artifacts(".sealed"))
    assert not any(path.exists() for path in held)
    (receipt,) = [path for path in cell.site.artifacts(".done") if path.name[:32] == held[0].name[:32]]
    assert set(json.loads(receipt.read_bytes())) >= {"bucket", "key", "sha256"}


async def interim_index(cell: Cell) -> None:
    contact = await cell.sent()
    path = f"/v1/instances/{cell.acme.instance.instance_id}/records/recordings_interim"
    for query in ("", "?number=%2B4930", f"?contact={contact}", f"/{contact}"):
        assert (await cell.caller.ask("GET", path + query, cell.acme)).status == 404
    assert not any(contact in path.name.split(".") for path in cell.site.artifacts(""))
    await cell.delivered(contact)


async def interim_revocation(cell: Cell) -> None:
    """Everything of the instance waits, and nothing of another; it goes on by itself."""
    async with cell.held() as contact:
        await cell.disable(cell.data_key)
        refused = (await cell.send())[1]
        while refused.status != 503:  # for as long as a key in memory may be used: a second
            refused = (await cell.send())[1]
        assert refused.json["reason"] == "KEY_DISABLED"
        assert "Retry-After" in refused.headers
        await until(lambda: cell.hold("keys"))
    try:
        assert cell.hold("keys") == "KEY_DISABLED"
        await cell.delivered(await cell.sent(cell.site.borealis), cell.site.borealis)
        assert not cell.is_published(contact)
        assert (await cell.caller.ask("GET", "/readyz", None)).status == 200
    finally:
        await cell.enable(cell.data_key)
    await cell.delivered(contact)
    await until(lambda: cell.hold("keys") is None)
    await cell.delivered(await cell.sent())


async def interim_change(cell: Cell) -> None:
    """Free the old key of what is held, which is not written again; what is new has the new one at once."""
    old = cell.data_key
    async with cell.running.keys.client("admin") as admin:
        new = await new_key(admin)
    async with cell.held() as contact:
        before = [path.read_bytes() for path in cell.site.artifacts(".sealed")]
        done = await cell.command("keys", "change", "acme", new)
        assert (done[-1]["UpdateStatus"], done[-1]["OldKmsKeyId"]) == ("COMPLETED", old)
        assert [path.read_bytes() for path in cell.site.artifacts(".sealed")] == before
        assert {each["kmsKeyArn"] for each in cell.wrapped(cell.acme)} == {new}
        await cell.disable(old)
    await cell.delivered(contact)
    await cell.delivered(await cell.sent())


async def interim_audit(cell: Cell) -> None:
    contact = await cell.sent()
    await cell.delivered(contact)
    (row,) = await cell.command("ls", "--contact", contact, "--instance", "acme")
    target = cell.site.directory / "opened"
    await cell.command("get", row["artifactId"], "-o", str(target), "--from", "bucket", "--reason", "cell")
    audit = cell.site.audit(cell.acme)
    told = [each for each in audit if row["artifactId"] in json.dumps(each)]
    names = [each["eventName"] for each in told]
    assert names == ["ArtifactOpened", "ArtifactSealed", "ArtifactDelivered", "PlaintextOpened"]
    assert told[-1]["requestParameters"]["reason"] == "cell"
    for name in ("GenerateDataKey", "Decrypt"):
        own = [each for each in audit if each["eventName"] == name and "errorCode" not in each]
        assert len(own) == len(cell.asked(cell.acme, name)), name


# --- delivered: recordings_delivered


async def delivered_ownership(cell: Cell) -> None:
    found = await cell.delivered(await cell.sent())
    assert found.kms_key_arn == cell.bucket_key
    storage = cell.acme.instance.storage
    for wrong in ("", "alias/recordings", "aaaa1111-0000-4000-8000-000000000001"):
        with pytest.raises(RefuseError):
            checked(
                replace(
                    cell.acme.instance,
                    storage={**storage, cell.kind: replace(storage[cell.kind], kms_key_arn=wrong)},
                )
            )


async def delivered_scope(cell: Cell) -> None:
    for party in (cell.acme, cell.site.borealis):
        await cell.delivered(await cell.sent(party), party)
    keys = [
        {each["keyId"] for each in cell.asked(party, "GenerateDataKey", interim=False)} for party in cell.site.parties
    ]
    assert keys[0]
    assert keys[1]
    assert keys[0].isdisjoint(keys[1])


async def delivered_context(cell: Cell) -> None:
    await cell.delivered(await cell.sent())
    asked = [
        each for each in cell.asked(cell.acme, "GenerateDataKey", interim=False) if each["keyId"] == cell.bucket_key
    ]
    assert asked
    assert all(set(each["encryptionContext"]) == {"aws:s3:arn"} for each in asked)


async def delivered_grants(cell: Cell) -> None:
    await cell.delivered(await cell.sent())
    async with cell.running.keys.client("admin") as admin:
        assert (await admin.list_grants(KeyId=cell.bucket_key))["Grants"] == []
    (shown,) = await cell.command("policy", "show", "acme")
    assert "kms:ViaService" in json.dumps(shown)


async def delivered_retention(cell: Cell) -> None:
    contact = await cell.sent()
    await cell.delivered(contact)
    (row,) = await cell.command("ls", "--contact", contact, "--instance", "acme")
    await cell.command("erase", "recording", row["recordingId"], "--reason", "cell", "--yes")
    await cell.delivered(contact)  # the object is the bucket's


async def delivered_index(cell: Cell) -> None:
    contact = await cell.sent()
    await cell.delivered(contact)
    path = f"/v1/instances/{cell.acme.instance.instance_id}/records/recordings_delivered"
    for query in ("", "?number=%2B4930", f"/{contact}"):
        assert (await cell.caller.ask("GET", path + query, cell.acme)).status == 404


async def delivered_revocation(cell: Cell) -> None:
    """Objects can't be read, new ones wait here, and everything is taken meanwhile."""
    before = await cell.sent()
    await cell.delivered(before)
    async with cell.held() as contact:
        assert cell.hold(cell.kind) == "KEY_DISABLED"
        assert cell.hold("keys") is None
        with pytest.raises(ClientError):
            await cell.site.objects(cell.acme)
        more = await cell.sent()
        await cell.delivered(await cell.sent(cell.site.borealis), cell.site.borealis)
        assert not cell.is_published(contact)
        assert not cell.is_published(more)
    for each in (before, contact, more):
        await cell.delivered(each)
    await until(lambda: cell.hold(cell.kind) is None)


async def delivered_change(cell: Cell) -> None:
    """Put new objects under it; those that are there stay under the former."""
    old, before = cell.bucket_key, await cell.sent()
    await cell.delivered(before)
    async with cell.running.keys.client("admin") as admin:
        new = await new_key(admin)
    storage = cell.acme.instance.storage
    changed = replace(cell.acme.instance, storage={**storage, cell.kind: replace(storage[cell.kind], kms_key_arn=new)})
    config.save_instance(cell.site.settings.config_dir, changed)
    os.kill(cell.running.node.pid, signal.SIGHUP)
    with anyio.fail_after(20):
        while (await cell.delivered(await cell.sent())).kms_key_arn != new:
            pass
    assert (await cell.delivered(before)).kms_key_arn == old


async def delivered_audit(cell: Cell) -> None:
    contact = await cell.sent()
    await cell.delivered(contact)
    (row,) = await cell.command("ls", "--contact", contact, "--instance", "acme")
    (raw,) = [
        path.read_bytes()
        for path in cell.site.artifacts(".done")
        if path.name.startswith(row["artifactId"].replace("-", ""))
    ]
    receipt = json.loads(raw)
    assert receipt["kmsKeyArn"] == cell.bucket_key
    assert len(base64.b64decode(receipt["crc64nvme"])) == 8
    assert len(receipt["sha256"]) == 64
    (told,) = [
        each
        for each in cell.site.audit(cell.acme)
        if each["eventName"] == "ArtifactDelivered" and row["artifactId"] in json.dumps(each)
    ]
    assert told["requestParameters"]["kmsKeyArn"] == cell.bucket_key
    assert told["requestParameters"]["receiptSha256"] == hashlib.sha256(raw).hexdigest()


CELLS: dict[str, Callable[[Cell], Awaitable[None]]] = {
    each.__name__: each
    for each in (
        interim_ownership, interim_scope, interim_context, interim_grants, interim_retention, interim_index,
        interim_revocation, interim_change, interim_audit, delivered_ownership, delivered_scope, delivered_context,
        delivered_grants, delivered_retention, delivered_index, delivered_revocation, delivered_change, delivered_audit,
    )
}  # fmt: skip


@pytest.mark.parametrize("kind", [Kind.VOICE, Kind.SCREEN, Kind.CHAT], ids=str)
@pytest.mark.parametrize("column", CELLS)
async def test_recordings_are_as_their_cell_says(column: str, kind: Kind, running: Running) -> None:
    async with aiohttp.ClientSession() as http:
        await CELLS[column](Cell(running, Caller(running.node.caller.url, http), kind))
