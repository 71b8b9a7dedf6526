"""One test for each cell: what the documents say of a class, literally, against the key server, which enforces.

The expectations stand here in full and are not read from the policy table: that is what is tested.
"""

import base64
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import anyio
import anyio.lowlevel
import pytest

from pipeline.adapters.aws import open_client
from pipeline.adapters.kms import AwsKeyService
from pipeline.crypt.rewrap import let_go_of_others, rewrap
from pipeline.crypt.ringdirectory import RingDirectory
from pipeline.errors import HoldCode, KeyUnavailableError, RecordsDeniedError, RefuseError
from pipeline.instances import checked
from pipeline.keyports import KmsCall
from pipeline.records.drafts import Draft
from pipeline.records.grants import terms_of
from pipeline.records.reencrypt import reencrypt
from pipeline.records.scopes import ScopeConfig
from pipeline.records.sealing import Record
from pipeline.records.shelves import ServiceKey, Shelf
from pipeline.settings import Credentials, Endpoint
from tests.contract.record_rows import BODY, NUMBER, ROWS, Expected
from tests.kms_server import IDENTITIES, REGION, RunningKeyServer, new_key, running_key_server
from tests.records_fixture import ACCOUNT, Records, arn_of, configs, records_over
from tests.store_fixture import World, instance, node
from tests.unit.keyring_fakes import A, B, StrictKms

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

DAY_S = 86_400


# --- one key server for all of them


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKeyServer]:
    """Serve in a thread of its own."""
    up, stop, made = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with running_key_server(tmp_path_factory.mktemp("kms")) as running:
            made.append(running)
            up.set()
            while not stop.is_set():  # noqa: ASYNC110 - set in another thread
                await anyio.sleep(0.02)

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    assert up.wait(30)
    yield made[0]
    stop.set()
    thread.join()


@dataclass
class Cell:
    """One class over the key server: the operator's key, a customer's, and another."""

    name: str
    row: Expected
    records: Records
    admin: "KMSClient"
    server: RunningKeyServer
    heard: list[KmsCall]
    keys: tuple[str, str, str]

    @property
    def shelf(self) -> Shelf:
        return self.records.shelf(self.name, A)

    @property
    def expected_arn(self) -> str:
        return self.keys[0] if self.row.owner == "owned" else self.keys[1]

    async def put(self, record_id: str = "r-1") -> None:
        await self.records.store.put(self.records.caller(A), self.shelf, self.draft(record_id))

    def draft(self, record_id: str = "r-1") -> Draft:
        return Draft(id=record_id, body=BODY, part="voiceprint" if self.name == "voiceid" else None)

    async def get(self, record_id: str = "r-1") -> Record | None:
        return await self.records.store.get(self.records.caller(A), self.shelf, record_id)

    def configure(self, change: Callable[[ScopeConfig], ScopeConfig], *, of: str | None = None) -> None:
        """Change the class's configuration, as its file would have it."""
        wanted = of or ("cases" if self.name == "case_events" else self.name)
        caller = self.records.caller(A)
        known = [each for each in caller.records if each.data_class == wanted] or [ScopeConfig(data_class=wanted)]
        others = [each for each in caller.records if each.data_class != wanted]
        self.records.configure(a=checked(replace(caller, records=(*others, *map(change, known)))))

    async def disable(self, arn: str) -> None:
        await self.admin.disable_key(KeyId=arn.rpartition("/")[2])
        self.records.process.world.clock.advance(301)

    async def enable(self, arn: str) -> None:
        await self.admin.enable_key(KeyId=arn.rpartition("/")[2])
        self.records.process.world.clock.advance(31)

    def wrapped_under(self) -> set[str]:
        """Tell the KMS keys that the scope's ring files name."""
        folder = self.records.process.world.root / self.shelf.scope.directory
        return {arn["kmsKeyArn"] for file in folder.glob("*.json") for arn in json.loads(file.read_bytes())["wrapped"]}

    def audit(self) -> set[str]:
        files = (self.records.process.world.root / "audit" / str(A)).glob("*.jsonl")
        return {json.loads(line)["eventName"] for file in files for line in file.read_bytes().splitlines()}


def _with_key_of_its_own(name: str, arn: str, known: tuple[ScopeConfig, ...]) -> tuple[ScopeConfig, ...]:
    """Give one class another customer's key than all others have."""
    return tuple(
        replace(each, kms_key_arn=arn) if each.data_class == name and each.kms_key_arn else each for each in known
    )


@asynccontextmanager
async def cell(name: str, server: RunningKeyServer, root: Path) -> AsyncIterator[Cell]:
    identity = IDENTITIES["service"]
    endpoint = Endpoint(
        region=REGION, url=server.url, credentials=Credentials(identity.access_key, identity.secret_key)
    )
    heard: list[KmsCall] = []

    async def tell(call: KmsCall) -> None:
        await anyio.lowlevel.checkpoint()
        heard.append(call)

    async with server.client("admin") as admin, open_client("kms", endpoint) as client:
        keys = (await new_key(admin), await new_key(admin), await new_key(admin))
        world = World(root=root, kms=cast("StrictKms", AwsKeyService(client, tell)))
        world.instances = {
            A: checked(replace(instance(A), records=_with_key_of_its_own(name, keys[1], configs(A, customer=keys[2])))),
            B: checked(replace(instance(B), records=configs(B, customer=keys[2]))),
        }
        async with node(world) as process, records_over(process) as records:
            records.service = ServiceKey(keys[0])
            records.configure()
            yield Cell(name, ROWS[name], records, admin, server, heard, keys)


# --- what each column says


async def ownership(cell: Cell) -> None:
    await cell.put()
    assert cell.wrapped_under() == {cell.expected_arn}
    if cell.row.owner == "owned":
        with pytest.raises(RefuseError, match="service's own"):
            cell.configure(lambda known: replace(known, kms_key_arn=cell.keys[1]))
        return
    if cell.row.owner == "required":
        with pytest.raises(RefuseError, match="required"):
            cell.configure(lambda known: replace(known, kms_key_arn=None))
        return
    for flag in cell.row.needs:
        with pytest.raises(RefuseError, match="required with"):
            _without_key(cell, flags=(flag,))
    _without_key(cell)
    scope = cell.shelf.scope
    assert cell.shelf.keys is not None
    assert cell.shelf.keys.current == cell.keys[0]
    if cell.name == "profiles_object_type":  # the domain's comes before the service's
        cell.configure(lambda known: replace(known, kms_key_arn=cell.keys[2]), of="profiles_domain")
        assert cell.shelf.keys is not None
        assert (cell.shelf.keys.current, cell.shelf.scope) == (cell.keys[2], scope)


def _without_key(cell: Cell, flags: tuple[str, ...] = ()) -> None:
    """Take the customer's key away, also from the domain that an object type would have it from."""
    for of in dict.fromkeys(("profiles_domain", cell.name)):
        cell.configure(lambda known: replace(known, kms_key_arn=None, flags=flags), of=of)


async def scope(cell: Cell) -> None:
    await cell.put()
    other = cell.records.shelf(cell.name, B)
    await cell.records.store.put(cell.records.caller(B), other, cell.draft())
    is_shared = cell.row.scope == "account"
    assert (other.scope.directory == cell.shelf.scope.directory) == is_shared
    assert (other.scope.shelf == cell.shelf.scope.shelf) is False
    made = [call for call in cell.heard if call.name == "GenerateDataKey"]
    assert len(made) == (1 if is_shared else 2)
    named = {
        "account": f"account/{ACCOUNT}",
        "instance": f"instance/{A}",
        "object type": f"{arn_of('profiles_domain', A)}/object-types/CTR",
    }
    of = "cases" if cell.name == "case_events" else cell.name
    assert cell.shelf.scope.name == named.get(cell.row.scope, arn_of(of, A))


async def context(cell: Cell) -> None:
    await cell.put()
    (call,) = [call for call in cell.heard if call.name == "GenerateDataKey"]
    assert dict(call.context) == cell.row.context
    told = [
        each["requestParameters"]["encryptionContext"]
        for each in cell.server.trail()
        if each["eventName"] == "GenerateDataKey" and each["requestParameters"]["keyId"] == cell.expected_arn
    ]
    assert told == [cell.row.context]
    process = cell.records.process
    folder = RingDirectory(process.volume.files, f"{process.world.root}/{cell.shelf.scope.directory}")
    (raw,) = folder.read().values()
    blob = base64.b64decode(json.loads(raw)["wrapped"][0]["blob"])
    for key in cell.row.context:
        changed = {**cell.row.context, key: "another"}
        with pytest.raises(KeyUnavailableError) as caught:
            await cell.records.process.world.kms.decrypt(cell.expected_arn, blob, changed)
        assert caught.value.code is HoldCode.KEY_MISMATCH


async def grants(cell: Cell) -> None:
    policy = cell.shelf.scope.policy
    assert set(policy.grant_operations) == cell.row.grant
    assert policy.grant_constraint == ("equals" if cell.row.grant else "none")
    if not cell.row.grant:
        assert cell.row.owner == "owned"
        return
    wanted = terms_of(cell.shelf.scope, IDENTITIES["bare"].principal)
    await cell.admin.create_grant(
        KeyId=cell.keys[1],
        GranteePrincipal=wanted.grantee,
        Operations=list(wanted.operations),  # type: ignore[arg-type]
        Constraints={"EncryptionContextEquals": dict(wanted.context)},
        Name=wanted.name,
    )
    async with cell.server.client("bare") as bare:
        made = await bare.generate_data_key(KeyId=cell.keys[1], KeySpec="AES_256", EncryptionContext=cell.row.context)
        opened = await bare.decrypt(
            KeyId=cell.keys[1], CiphertextBlob=made["CiphertextBlob"], EncryptionContext=cell.row.context
        )
        assert opened["Plaintext"] == made["Plaintext"]
        for wrong in ({**cell.row.context, "more": "x"}, {}):
            with pytest.raises(bare.exceptions.ClientError, match="AccessDenied"):
                await bare.generate_data_key(KeyId=cell.keys[1], KeySpec="AES_256", EncryptionContext=wrong)
        with pytest.raises(bare.exceptions.ClientError, match="AccessDenied"):
            await bare.encrypt(KeyId=cell.keys[1], Plaintext=b"x", EncryptionContext=cell.row.context)


async def retention(cell: Cell) -> None:
    await cell.put()
    clock = cell.records.process.world.clock
    clock.advance(((cell.row.days or 3000) - 3) * DAY_S)
    await cell.records.sweeper.sweep()
    assert await cell.records.engine.count(cell.shelf.scope.shelf) > 0
    clock.advance(4 * DAY_S)
    await cell.records.sweeper.sweep()
    assert (await cell.records.engine.count(cell.shelf.scope.shelf) == 0) == (cell.row.days is not None)
    if cell.name == "case_events":
        await cell.records.publisher().once()
        (row,) = await cell.records.engine.page(cell.shelf.scope.shelf, 0, 9)
        assert row.part == "poison"


async def index(cell: Cell) -> None:
    await cell.put()
    caller = cell.records.caller(A)
    if cell.row.index is None:
        for name in ("number", "phone", "speaker"):
            with pytest.raises(RefuseError):
                await cell.records.store.find(caller, cell.shelf, name, NUMBER)
        return
    (found,) = await cell.records.store.find(caller, cell.shelf, *cell.row.index)
    assert found.id == "r-1"
    other = cell.records.shelf(cell.name, B)
    assert await cell.records.store.find(cell.records.caller(B), other, *cell.row.index) == []
    value = cell.row.index[1].encode()
    files = (cell.records.process.world.root / "records").iterdir()
    assert not any(value in file.read_bytes() for file in files)


async def revocation(cell: Cell) -> None:
    await cell.put()
    await cell.disable(cell.keys[1])
    if cell.row.revoke == "n/a":
        await cell.disable(cell.keys[2])
        assert await cell.get() is not None
        await cell.put("r-2")
        return
    for act in (cell.get, cell.put):
        with pytest.raises(RecordsDeniedError) as caught:
            await act("r-1")
        assert (caught.value.reason, caught.value.code) == ("AccessDeniedException", HoldCode.KEY_DISABLED)
    await others_are_untouched(cell)
    await cell.enable(cell.keys[1])
    found = await cell.get()
    assert found is not None
    assert found.body == BODY


async def others_are_untouched(cell: Cell) -> None:
    """Put and get of every other class, and of the same class of the other instance."""
    store = cell.records.store
    for name in ROWS:
        for each in (A, B):
            if (name, each) == (cell.name, A):
                continue
            caller, shelf = cell.records.caller(each), cell.records.shelf(name, each)
            draft = Draft(id="other", body=BODY, part="voiceprint" if name == "voiceid" else None)
            await store.put(caller, shelf, draft)
            found = await store.get(caller, shelf, "other")
            assert found is not None
            assert found.body == BODY


async def key_change(cell: Cell) -> None:
    await cell.put()
    _, old, new = cell.keys
    if cell.row.change == "rotates":
        cell.records.service = ServiceKey(new, cell.keys[0])
        cell.records.configure()
        assert await cell.get() is not None
        ring = await cell.shelf.opened()
        await rewrap(ring, cell.records.process.world.clock, _untold)
        await let_go_of_others(ring)
        await cell.disable(cell.keys[0])
        assert await cell.get() is not None
        assert cell.wrapped_under() == {new}
        return
    if cell.row.change == "immutable":
        with pytest.raises(RefuseError, match="never changes"):
            cell.configure(lambda known: replace(known, kms_key_arn=new, previous_kms_key_arn=old))
        return
    if cell.row.lock is not None:
        flag = cell.row.lock
        with pytest.raises(RefuseError, match="forbids"):
            cell.configure(lambda known: replace(known, kms_key_arn=new, previous_kms_key_arn=old, flags=(flag,)))
    cell.configure(lambda known: replace(known, kms_key_arn=new, previous_kms_key_arn=old))
    await reencrypt(cell.shelf, cell.records.engine, _untold)
    await cell.disable(old)
    cell.configure(lambda known: replace(known, previous_kms_key_arn=None))
    assert await cell.get() is not None
    assert cell.wrapped_under() == {new}


async def audit(cell: Cell) -> None:
    await cell.put()
    await cell.get()
    await cell.records.store.delete(cell.records.caller(A), cell.shelf, "r-1")
    told = {each for each in cell.audit() if each.startswith("Record")}
    assert told == cell.row.audit
    own = [call for call in cell.heard if call.key_arn == cell.expected_arn]
    uses = [each for each in cell.server.trail() if each["eventName"] in {"GenerateDataKey", "Decrypt"}]
    served = [each for each in uses if each["requestParameters"].get("keyId") == cell.expected_arn]
    assert len(own) == len(served) > 0


async def _untold(_done: int, _total: int) -> None:
    await anyio.lowlevel.checkpoint()


COLUMNS: dict[str, Callable[[Cell], Awaitable[None]]] = {
    each.__name__: each for each in (ownership, scope, context, grants, retention, index, revocation, key_change, audit)
}
FIRST = {"contact_metadata", "profiles_domain", "voiceid"}
"""One class of each key mode; the others' cells are looked at among the slow tests."""
NAMES = [each if each in FIRST else pytest.param(each, marks=pytest.mark.slow) for each in ROWS]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", NAMES)
async def test_a_class_is_as_its_cell_says(name: str, column: str, server: RunningKeyServer, tmp_path: Path) -> None:
    async with cell(name, server, tmp_path) as made:
        await COLUMNS[column](made)
