"""Every error of KMS, for sealing, for opening, for delivery's bucket, and for a change of keys: one table.

What a row says: whether it is a hold, with which code, or a matter of retries; that nothing is dropped and nothing
turns to poison; what the operator is told; and that the audit trail has the call with its error. All of it runs in
virtual time, through the adapter, the ring, the dispatcher and the watch over keys.
"""

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from pipeline import holdwords
from pipeline.adapters import s3
from pipeline.adapters.kms import AwsKeyService
from pipeline.crypt.rewrap import SideError, rewrap
from pipeline.delivery.holds import KEYS, SEALING, data_key_scope
from pipeline.delivery.keywatch import SILENCE
from pipeline.errors import DeferError, HoldCode, KeyBusyError
from pipeline.ids import Kind
from pipeline.interim.states import State
from pipeline.keyports import KmsCall
from tests.simulation.oracle import check_delivered, drain
from tests.simulation.promises import MARKER, Body
from tests.simulation.traffic import Traffic
from tests.simulation.virtual import run
from tests.simulation.world import Node, World, node, scaled
from tests.unit.keyring_fakes import ARN, CACHE, OLD_ARN, A

SILENT = "no answer at all"
DAY_S = 86_400.0


@dataclass(frozen=True)
class Row:
    """One error, and what it means."""

    code: str
    hold: HoldCode | None
    """None: a matter of retries."""
    state: str = "Enabled"
    """What DescribeKey says meanwhile."""
    after_a_while: HoldCode | None = None
    """What it becomes when it goes on for 15 minutes."""
    rewrap: str = "side"
    """What a change of keys ends with: which side is to blame, or `busy`."""

    def __str__(self) -> str:
        return f"{self.code}-{self.state}"


BUSY = {"hold": None, "after_a_while": HoldCode.KEY_UNREACHABLE, "rewrap": "busy"}
TABLE = [
    Row("ThrottlingException", None, rewrap="busy"),  # shared with the whole account: alarm, never a hold
    Row("KeyUnavailableException", **BUSY),  # type: ignore[arg-type]
    Row("DependencyTimeoutException", **BUSY),  # type: ignore[arg-type]
    Row("KMSInternalException", **BUSY),  # type: ignore[arg-type]
    Row("SomethingNewException", **BUSY),  # type: ignore[arg-type]
    Row(SILENT, **BUSY),  # type: ignore[arg-type]
    Row("DisabledException", HoldCode.KEY_DISABLED, "Disabled"),
    Row("DisabledException", HoldCode.KEY_PENDING_DELETION, "PendingDeletion"),
    Row("KMSInvalidStateException", HoldCode.KEY_PENDING_DELETION, "PendingDeletion"),
    Row("KMSInvalidStateException", HoldCode.KEY_PENDING_DELETION, "PendingReplicaDeletion"),
    Row("KMSInvalidStateException", HoldCode.KEY_INVALID_STATE, "PendingImport"),
    Row("KMSInvalidStateException", HoldCode.KEY_INVALID_STATE, "Unavailable"),
    Row("KMSInvalidStateException", state="Creating", **BUSY),  # type: ignore[arg-type]
    Row("KMSInvalidStateException", state="Updating", **BUSY),  # type: ignore[arg-type]
    Row("AccessDeniedException", HoldCode.KEY_ACCESS_DENIED),
    Row("NotFoundException", HoldCode.KEY_NOT_FOUND),
    Row("InvalidCiphertextException", HoldCode.KEY_MISMATCH),
    Row("IncorrectKeyException", HoldCode.KEY_MISMATCH),
    Row("InvalidKeyUsageException", HoldCode.KEY_INVALID_STATE),
    Row("InvalidArnException", HoldCode.KEY_INVALID_STATE),
    Row("ValidationException", HoldCode.KEY_INVALID_STATE),
    Row("InvalidGrantTokenException", **BUSY),  # type: ignore[arg-type]
    Row("LimitExceededException", **BUSY),  # type: ignore[arg-type]  # of CreateGrant it is refused instead
    Row("UnrecognizedClientException", HoldCode.KEY_ACCESS_DENIED),
    Row("ExpiredTokenException", HoldCode.KEY_ACCESS_DENIED),
]
MISMATCHES = [row for row in TABLE if row.hold is HoldCode.KEY_MISMATCH]
OF_THE_KEY = [row for row in TABLE if row.hold is not HoldCode.KEY_MISMATCH]


@dataclass
class Broken:
    """A KMS client whose operations end with an error, those that are named; the others are a strict fake's."""

    world: World
    row: Row | None = None
    operations: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    async def _answer(self, operation: str, members: dict[str, Any]) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        self.asked.append(operation)
        if self.row is not None and operation in self.operations:
            raise _error(self.row, operation)
        kms, context = self.world.kms, members.get("EncryptionContext") or members.get("SourceEncryptionContext")
        key_id = members.get("KeyId") or members["DestinationKeyId"]
        about = {"KeyId": key_id, "ResponseMetadata": {"RequestId": "r-1"}}
        match operation:
            case "GenerateDataKey":
                made = await kms.generate_data_key(key_id, context or {})
                return about | {"Plaintext": made.plaintext, "CiphertextBlob": made.wrapped}
            case "Decrypt":
                return about | {"Plaintext": await kms.decrypt(key_id, members["CiphertextBlob"], context or {})}
            case _:
                again = await kms.re_encrypt(members["SourceKeyId"], key_id, members["CiphertextBlob"], context or {})
                return about | {"CiphertextBlob": again}

    async def generate_data_key(self, **members: Any) -> dict[str, Any]:
        return await self._answer("GenerateDataKey", members)

    async def decrypt(self, **members: Any) -> dict[str, Any]:
        return await self._answer("Decrypt", members)

    async def re_encrypt(self, **members: Any) -> dict[str, Any]:
        return await self._answer("ReEncrypt", members)

    async def describe_key(self, **members: Any) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        state = "Enabled" if self.row is None else self.row.state
        metadata = {"Arn": members["KeyId"], "KeyState": state, "KeySpec": "SYMMETRIC_DEFAULT"}
        return {"KeyMetadata": metadata, "ResponseMetadata": {"RequestId": "r-2"}}


def _error(row: Row, operation: str) -> Exception:
    if row.code == SILENT:
        return EndpointConnectionError(endpoint_url="https://kms.invalid")
    about: Any = {"Error": {"Code": row.code, "Message": "as KMS says it"}, "ResponseMetadata": {"RequestId": "r-3"}}
    return ClientError(about, operation)


@dataclass
class Scene:
    world: World
    client: Broken
    told: list[KmsCall]

    def breaks(self, row: Row | None, *operations: str) -> None:
        self.client.row, self.client.operations = row, frozenset(operations)

    def check_audit(self, row: Row, operation: str) -> None:
        """Every call that failed is in the trail, with its error as KMS gave it."""
        failed = [call for call in self.told if call.name == operation and call.error_code is not None]
        expected = "EndpointConnectionError" if row.code == SILENT else row.code
        assert {call.error_code for call in failed} == {expected}
        assert len([call for call in self.told if call.name == operation]) == self.client.asked.count(operation)


Story = Callable[[Scene, random.Random], Awaitable[None]]


def tell(story: Story) -> None:
    chance = random.Random(6)

    async def told() -> None:
        world = World(chance=chance)
        client, calls = Broken(world), []

        async def tell_trail(call: KmsCall) -> None:
            await anyio.lowlevel.checkpoint()
            calls.append(call)

        world.keys = AwsKeyService(client, tell_trail)  # type: ignore[arg-type]
        await story(Scene(world, client, calls), chance)

    with scaled(chance):
        run(told())


async def sealed(scene: Scene, chance: random.Random, *numbers: int) -> None:
    """Take recordings in; they are not delivered."""
    async with node(scene.world, delivers=False, sweeps=False) as process:
        for number in numbers:
            body = Body(
                instance_id=A,
                kind=Kind.VOICE,
                contact=f"contact-{number}",
                source_id=f"source-{number}",
                data=MARKER + f"of {number} ".encode().ljust(20, b".") + bytes(200),
            )
            scene.world.promises.add(body)
            assert await Traffic(process, chance).send(body)
            await anyio.sleep(1)


def held(process: Node) -> dict[str, HoldCode]:
    return {hold.scope: hold.code for hold in process.holds.all()}


def check_message(process: Node, code: HoldCode) -> None:
    """Look for what an operator must be told: the key, since when, what is safe and what to do."""
    tenant = process.tenant()
    for hold in process.holds.all():
        text = holdwords.told(hold, tenant.instance)
        assert hold.kms_key_arn == tenant.instance.kms_key_arn
        assert tenant.instance.kms_key_arn in text
        assert hold.inaccessible_since.isoformat(timespec="seconds") in text
        assert code in text
        assert "safe" in text
        assert holdwords.action(hold, tenant.instance) in text


async def check_mended(scene: Scene, process: Node) -> None:
    scene.breaks(None)
    process.dispatcher.retry_now()
    await anyio.sleep(2 * scene.world.delivery.probe_most.total_seconds())
    assert held(process) == {}
    await drain(process)
    check_delivered(process)
    assert process.store.index.count(State.POISON) == 0


SOME_BUSY = {"KMSInternalException", SILENT, "SomethingNewException", "ThrottlingException"}


def some(rows: list[Row]) -> list[object]:
    """Leave it to the slow tests to wait for the rest of those that are a matter of retries: they are all one to us."""
    return [
        pytest.param(row, id=str(row), marks=[] if row.hold or row.code in SOME_BUSY else pytest.mark.slow)
        for row in rows
    ]


@pytest.mark.parametrize("row", some(OF_THE_KEY))
def test_opening(row: Row) -> None:
    async def story(scene: Scene, chance: random.Random) -> None:
        await sealed(scene, chance, 0, 1)
        scene.breaks(row, "Decrypt")
        async with node(scene.world, watches=True, sweeps=False) as process:
            await anyio.sleep(60)
            assert held(process) == ({} if row.hold is None else {KEYS: row.hold})
            await anyio.sleep(SILENCE.total_seconds() + 60)
            expected = row.hold or row.after_a_while
            assert held(process) == ({} if expected is None else {KEYS: expected})
            if expected is not None:
                check_message(process, expected)
            calls = scene.client.asked.count("Decrypt")
            await anyio.sleep(600)
            assert 3 <= scene.client.asked.count("Decrypt") - calls < 600 / 10, "asked again, and not all the time"
            assert process.store.index.count(State.SEALED) == 2
            scene.check_audit(row, "Decrypt")
            await check_mended(scene, process)

    tell(story)


@pytest.mark.parametrize("row", some(OF_THE_KEY))
def test_sealing(row: Row) -> None:
    """New artifacts are refused, with the code; nothing of them is written. What is sealed can be opened still."""

    async def story(scene: Scene, chance: random.Random) -> None:
        scene.breaks(row, "GenerateDataKey")
        async with node(scene.world, delivers=False, watches=True, sweeps=False) as process:
            source = Body(instance_id=A, kind=Kind.VOICE, contact="c", source_id="s", data=bytes(100)).source

            async def refused() -> DeferError:
                with pytest.raises(DeferError) as caught:
                    await process.recorder.begin(process.tenant(), source)
                return caught.value

            error = await refused()
            assert getattr(error, "code", None) == row.hold
            assert isinstance(error, KeyBusyError) == (row.hold is None)
            scope = SEALING if row.hold is HoldCode.KEY_ACCESS_DENIED else KEYS
            await anyio.sleep(30)
            assert held(process) == ({} if row.hold is None else {scope: row.hold})
            await anyio.sleep(SILENCE.total_seconds() + 60)
            expected = row.hold or row.after_a_while
            assert held(process) == ({} if expected is None else {scope: expected})
            if expected is not None:
                check_message(process, expected)
            assert not process.store.index.open()
            scene.check_audit(row, "GenerateDataKey")
            scene.breaks(None)
            await anyio.sleep(2 * scene.world.delivery.probe_most.total_seconds())
            assert held(process) == {}
            await process.recorder.begin(process.tenant(), source)

    tell(story)


@pytest.mark.parametrize("row", MISMATCHES, ids=str)
def test_a_wrapped_key_that_does_not_open_holds_what_is_under_it_alone(row: Row) -> None:
    async def story(scene: Scene, chance: random.Random) -> None:
        await sealed(scene, chance, 0)
        async with node(scene.world, delivers=False, sweeps=False) as process:
            (first,) = process.tenant().ring.key_ids()
        scene.breaks(row, "Decrypt")
        async with node(scene.world, watches=True, sweeps=False) as process:
            await anyio.sleep(60)
            assert held(process) == {data_key_scope(first): HoldCode.KEY_MISMATCH}
            scene.breaks(None)  # of another data key
            scene.client.asked.clear()
            await sealed_beside(process, chance, 1)
            await anyio.sleep(3600)
            assert len(scene.world.buckets[A].objects) == 1
            assert process.store.index.count(State.SEALED) == 1
            assert process.store.index.count(State.POISON) == 0
            assert scene.client.asked.count("GenerateDataKey") == 1
        async with node(scene.world, watches=True, sweeps=False) as process:  # the ring file was restored
            await drain(process)
            check_delivered(process)
            assert held(process) == {}

    tell(story)


async def sealed_beside(process: Node, chance: random.Random, number: int) -> None:
    body = Body(
        instance_id=A,
        kind=Kind.VOICE,
        contact=f"contact-{number}",
        source_id=f"source-{number}",
        data=MARKER + f"of {number} ".encode().ljust(20, b".") + bytes(200),
    )
    process.world.promises.add(body)
    assert await Traffic(process, chance).send(body)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_a_change_of_keys(row: Row) -> None:
    """ReEncrypt fails: the old wrapped keys stay, both KMS keys are asked which it is, and it goes on afterwards."""

    async def story(scene: Scene, chance: random.Random) -> None:
        await sealed(scene, chance, 0, 1)
        async with node(scene.world, delivers=False, sweeps=False) as process:
            ring = process.tenant().ring
            await ring.follow(OLD_ARN, ARN)

            async def told(_done: int, _total: int) -> None:
                await anyio.lowlevel.checkpoint()

            scene.breaks(row, "ReEncrypt")
            with pytest.raises(KeyBusyError if row.rewrap == "busy" else SideError):
                await rewrap(ring, scene.world.clock, told)
            scene.check_audit(row, "ReEncrypt")
            old = [file for file in ring.files if file.wrapped_under(ARN) is not None]
            assert len(old) == 1, "nothing is taken away before it is proven"
            scene.breaks(None)
            assert (await rewrap(ring, scene.world.clock, told)).done == 2

    tell(story)


# --- the bucket's KMS key

S3_CODES = {
    "KMS.AccessDeniedException": HoldCode.KEY_ACCESS_DENIED,
    "KMS.DisabledException": HoldCode.KEY_DISABLED,
    "KMS.InvalidKeyUsageException": HoldCode.KEY_INVALID_STATE,
    "KMS.KMSInvalidStateException": HoldCode.KEY_INVALID_STATE,
    "KMS.NotFoundException": HoldCode.KEY_NOT_FOUND,
    "AccessDenied": HoldCode.DESTINATION_ACCESS_DENIED,
}
STATES = {
    "Disabled": HoldCode.KEY_DISABLED,
    "PendingDeletion": HoldCode.KEY_PENDING_DELETION,
    "PendingReplicaDeletion": HoldCode.KEY_PENDING_DELETION,
    "PendingImport": HoldCode.KEY_INVALID_STATE,
    "Unavailable": HoldCode.KEY_INVALID_STATE,
    "Enabled": None,
    "Creating": None,
    "Updating": None,
}


@pytest.mark.parametrize(("code", "hold"), S3_CODES.items())
def test_delivery_by_what_s3_says_of_the_key(code: str, hold: HoldCode) -> None:
    about: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 403 if "Denied" in code else 400}}
    assert getattr(s3._translated(ClientError(about, "PutObject"), reading=False), "code", None) is hold


@pytest.mark.parametrize(("state", "hold"), STATES.items())
def test_delivery_asks_for_the_keys_state_after_the_second_5xx_and_holds_that_lane(
    state: str, hold: HoldCode | None
) -> None:
    async def story(scene: Scene, chance: random.Random) -> None:
        await sealed(scene, chance, 0)
        scene.breaks(Row("-", None, state))
        scene.world.weather.bucket_down = True
        async with node(scene.world, watches=True, sweeps=False) as process:
            await anyio.sleep(300)
            assert held(process) == ({} if hold is None else {Kind.VOICE: hold})
            (arn,) = {each.kms_key_arn for each in process.tenant().instance.storage.values()}
            assert [each.kms_key_arn for each in process.holds.all()] == ([] if hold is None else [arn])
            described = [call for call in scene.told if call.name == "DescribeKey"]
            assert {call.key_arn for call in described} == {arn}
            assert process.store.index.count(State.SEALED) == 1
            scene.world.weather.bucket_down = False
            await check_mended(scene, process)

    tell(story)


# --- silence that is none


def test_one_call_without_an_answer_is_no_hold_however_long_ago_it_was() -> None:
    async def story(scene: Scene, chance: random.Random) -> None:
        await sealed(scene, chance, 0)
        async with node(scene.world, delivers=False, watches=True, sweeps=False) as process:
            ring = process.tenant().ring
            scene.breaks(Row(SILENT, None), "Decrypt")
            with pytest.raises(KeyBusyError):
                await ring.opening(ring.key_ids()[0])
            scene.breaks(None)
            await anyio.sleep(DAY_S / 12)
            assert held(process) == {}
            assert scene.client.asked.count("Decrypt") == 2  # asked once more, before it would have been a hold

    tell(story)


def test_a_hold_where_nothing_waits_is_probed_less_and_less_often_and_ends_by_itself() -> None:
    async def story(scene: Scene, chance: random.Random) -> None:
        await sealed(scene, chance, 0)
        async with node(scene.world, watches=True, sweeps=False) as process:
            await drain(process)
        scene.breaks(Row("AccessDeniedException", HoldCode.KEY_ACCESS_DENIED), "Decrypt")
        async with node(scene.world, watches=True, sweeps=False) as process:
            ring = process.tenant().ring
            with pytest.raises(DeferError):
                await ring.opening(ring.key_ids()[0])
            await anyio.sleep(10)
            assert held(process) == {KEYS: HoldCode.KEY_ACCESS_DENIED}
            scene.client.asked.clear()
            await anyio.sleep(3600)
            settings = scene.world.delivery
            least = 3600 / settings.probe_most.total_seconds()
            assert least <= scene.client.asked.count("Decrypt") <= 3 * least
            scene.breaks(None)
            await anyio.sleep(settings.probe_most.total_seconds() + CACHE.total_seconds())
            assert held(process) == {}
            told = [json.loads(line)["eventName"] for line in audit_lines(scene.world) if b'"Hold' in line]
            assert told == ["HoldBegun", "HoldEnded"]

    tell(story)


def audit_lines(world: World) -> list[bytes]:
    tree = world.disk.tree()
    return [line for path in sorted(tree) if "/audit/" in path for line in tree[path].splitlines()]
