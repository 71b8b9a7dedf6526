"""What a key ring asks of the world, strict and in memory. For tests only."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio
import anyio.lowlevel
import msgspec

from pipeline.crypt import segments
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.ringfile import RingFile
from pipeline.crypt.segments import DataKey
from pipeline.errors import HoldCode, KeyUnavailableError, PipelineError, StoreIoError
from pipeline.ids import InstanceId
from pipeline.keyports import GeneratedKey, KeyDescription
from pipeline.ports import Buffer

A = InstanceId(UUID(int=0xA))
B = InstanceId(UUID(int=0xB))
OLD_ARN = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-00000000001d"
ARN = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-00000000002e"
CACHE = timedelta(seconds=300)
GRACE = timedelta(seconds=900)
_PLACE = b"test place"


def context(instance_id: InstanceId, account: str = "111122223333") -> dict[str, str]:
    return {
        "pipeline:accountId": account,
        "pipeline:instanceId": str(instance_id),
        "pipeline:dataClass": "recordings_interim",
    }


class FakeClock:
    """Time that moves only when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.start = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class MemoryFiles:
    """A disk that remembers the order of what was done, and what of it would survive a power cut."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.contents: dict[str, bytes] = {}
        self.synced: dict[str, bytes] = {}
        self.durable: dict[str, bytes] = {}
        self.fail: str | None = None
        self._handles: dict[int, str] = {}

    def _do(self, what: str, path: str) -> None:
        self.done.append((what, path))
        if self.fail == what:
            raise StoreIoError(f"no {what}")

    def create(self, path: str) -> int:
        self._do("create", path)
        if path in self.contents:
            raise FileExistsError(path)
        self.contents[path] = b""
        return self._handle(path)

    def open(self, path: str, *, write: bool = False) -> int:
        if path not in self.contents:
            raise FileNotFoundError(path)
        self._do("open", path)
        return self._handle(path)

    def _handle(self, path: str) -> int:
        handle = len(self.done)
        self._handles[handle] = path
        return handle

    def append(self, handle: int, buffers: Sequence[Buffer]) -> None:
        self._do("append", self._handles[handle])
        self.contents[self._handles[handle]] += b"".join(buffers)

    def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        return self.contents[self._handles[handle]][offset : offset + size_bytes]

    def read_into(self, handle: int, offset: int, buffer: memoryview) -> int:
        raise NotImplementedError

    def size(self, handle: int) -> int:
        return len(self.contents[self._handles[handle]])

    def allocate(self, handle: int, size_bytes: int) -> None:
        raise NotImplementedError

    def truncate(self, handle: int, size_bytes: int) -> None:
        raise NotImplementedError

    def sync(self, handle: int) -> None:
        self._do("sync", self._handles[handle])
        self.synced[self._handles[handle]] = self.contents[self._handles[handle]]

    def close(self, handle: int) -> None:
        del self._handles[handle]

    def rename(self, source: str, target: str) -> None:
        self._do("rename", target)
        self.contents[target] = self.contents.pop(source)
        self.synced[target] = self.synced.pop(source, b"")

    def unlink(self, path: str) -> None:
        self.done.append(("unlink", path))
        self.contents.pop(path, None)

    def make_directory(self, path: str) -> None:
        self._do("make_directory", path)

    def lock(self, handle: int) -> None:
        raise NotImplementedError

    def unlock(self, handle: int) -> None:
        raise NotImplementedError

    def is_at(self, handle: int, path: str) -> bool:
        raise NotImplementedError

    def sync_directory(self, path: str) -> None:
        self._do("sync_directory", path)
        self.durable.update({name: self.synced.get(name, b"") for name in self.contents if name.startswith(path)})

    def sync_volume(self, path: str) -> None:
        raise NotImplementedError

    def names(self, path: str) -> list[str]:
        return [name.removeprefix(path + "/") for name in self.contents if name.startswith(path + "/")]

    def sorted_out(self, path: str) -> tuple[list[str], list[str]]:
        raise NotImplementedError

    def free_bytes(self, path: str) -> int:
        raise NotImplementedError

    def free_inodes(self, path: str) -> int | None:
        raise NotImplementedError

    @property
    def open_handles(self) -> int:
        return len(self._handles)


@dataclass
class StrictKms:
    """Opens a wrapped key only under the KMS key and the encryption context that it was made with.

    `refuses` holds what a KMS key answers instead: to every call, or to one (`"<arn> Decrypt"`).
    """

    arns: set[str] = field(default_factory=lambda: {ARN, OLD_ARN})
    refuses: dict[str, PipelineError] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    answers_with: str | None = None
    pause: anyio.Event | None = None
    _wrapped: dict[bytes, tuple[str, dict[str, str], bytes]] = field(default_factory=dict)

    async def generate_data_key(
        self, key_arn: str, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> GeneratedKey:
        await self._call("GenerateDataKey", key_arn)
        plaintext, wrapped = os.urandom(32), b"wrapped:" + os.urandom(16)
        self._wrapped[wrapped] = (key_arn, dict(context), plaintext)
        return GeneratedKey(plaintext, wrapped, self.answers_with or key_arn)

    async def decrypt(
        self, key_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        await self._call("Decrypt", key_arn)
        made_under, made_with, plaintext = self._wrapped.get(wrapped, ("", {}, b""))
        if made_under != key_arn or made_with != dict(context):
            raise KeyUnavailableError(HoldCode.KEY_MISMATCH, "KMS can't open this wrapped key")
        return plaintext

    async def re_encrypt(
        self,
        source_arn: str,
        target_arn: str,
        wrapped: bytes,
        context: Mapping[str, str],
        tokens: Sequence[str] = (),
    ) -> bytes:
        await self._call("ReEncrypt", source_arn)
        await self._call("ReEncrypt", target_arn)
        made_under, made_with, _ = self._wrapped.get(wrapped, ("", {}, b""))
        if made_under != source_arn or made_with != dict(context):
            raise KeyUnavailableError(HoldCode.KEY_MISMATCH, "KMS can't open this wrapped key")
        return self.rewrap(wrapped, target_arn)

    async def describe(self, key_arn: str, tokens: Sequence[str] = ()) -> KeyDescription:
        await self._call("DescribeKey", key_arn)
        return KeyDescription(key_arn, "Enabled", "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")

    def rewrap(self, wrapped: bytes, key_arn: str) -> bytes:
        """Wrap the same data key under another KMS key."""
        _, made_with, plaintext = self._wrapped[wrapped]
        again = b"wrapped:" + os.urandom(16)
        self._wrapped[again] = (key_arn, made_with, plaintext)
        return again

    def plaintexts(self) -> list[bytes]:
        return [plaintext for _, _, plaintext in self._wrapped.values()]

    async def _call(self, name: str, key_arn: str) -> None:
        assert key_arn in self.arns, "a KMS key that is not configured was asked"
        self.calls.append(name)
        if self.pause is not None:
            await self.pause.wait()
        else:
            await anyio.lowlevel.checkpoint()
        error = self.refuses.get(key_arn) or self.refuses.get(f"{key_arn} {name}")
        if error is not None:
            raise error


def refusal(code: HoldCode = HoldCode.KEY_DISABLED) -> KeyUnavailableError:
    return KeyUnavailableError(code, "KMS refuses the key")


@dataclass
class World:
    """One store, one key service, one clock; rings over them come and go as processes do."""

    clock: FakeClock = field(default_factory=FakeClock)
    files: MemoryFiles = field(default_factory=MemoryFiles)
    kms: StrictKms = field(default_factory=StrictKms)

    def ring(
        self,
        instance_id: InstanceId = A,
        *,
        arn: str = ARN,
        previous: str | None = None,
        grace: timedelta = GRACE,
        account: str = "111122223333",
        directory: str | None = None,
    ) -> KeyRing:
        return KeyRing(
            instance_id=instance_id,
            context=context(instance_id, account),
            current_arn=arn,
            previous_arn=previous,
            directory=directory or f"keys/{instance_id.hex}",
            files=self.files,
            service=self.kms,
            clock=self.clock,
            cache=CACHE,
            seal_grace=grace,
            random=lambda: 0.5,
        )

    async def loaded(
        self, instance_id: InstanceId = A, *, arn: str = ARN, previous: str | None = None, grace: timedelta = GRACE
    ) -> KeyRing:
        ring = self.ring(instance_id, arn=arn, previous=previous, grace=grace)
        await ring.load()
        return ring

    def path(self, key_id: UUID, instance_id: InstanceId = A) -> str:
        return f"keys/{instance_id.hex}/{key_id.hex}.json"


def is_same_secret(one: DataKey, other: DataKey) -> bool:
    return segments.open_segment(other, _PLACE, segments.seal(one, _PLACE, b"x")) == b"x"


def ring_file(world: World, key: DataKey) -> RingFile:
    return msgspec.json.decode(world.files.contents[world.path(key.key_id)], type=RingFile)


def change(world: World, path: str, **fields: object) -> None:
    file = msgspec.json.decode(world.files.contents[path], type=RingFile)
    world.files.contents[path] = msgspec.structs.replace(file, **fields).encode()
